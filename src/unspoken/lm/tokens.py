"""Text to ids and back: chat templates, end-of-think ids, and a detokeniser that never splits a character.

Text that goes on after other text (a transition, the opening of an answer) is encoded piece by piece and the
ids are concatenated: encoded together, `</think><think>` can merge into tokens that are neither.
"""

from __future__ import annotations

import codecs
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from numbers import Integral
from typing import Any

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from unspoken.errors import ConfigError
from unspoken.types import RawText

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
_INCOMPLETE = "\ufffd"
_ANCHORS = ("\n", ":", "a", "0")
_MARK = "unspoken-mark"


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level tokenizers write the 256 bytes: printable ones stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _show_bytes(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "".join(f"<0x{byte:02X}>" for byte in error.object[error.start : error.end]), error.end


_BYTES = _byte_alphabet()
codecs.register_error("unspoken_hex", _show_bytes)


class PromptWarning(UserWarning):
    """A prompt that is probably not what was meant."""


class Detokenizer:
    """Ids in, text out, as soon as it is certain.

    `push` gives the text that an id adds: nothing while a character that spans several tokens is incomplete,
    and nothing for special tokens. All pushes and the final `flush` joined are `Tokens.decode` of all ids.
    One exception: tokenizers with byte fallback decode a broken run of bytes otherwise than its beginning, and
    what was pushed is never taken back.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._backend: Any = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        self._stream = DecodeStream(skip_special_tokens=True) if tokenizer.is_fast else None
        self._ids: list[int] = []
        self._pending = False
        # The text of ids[:read] is out; ids[start:read] are the context in which the next ones are decoded.
        self._start = self._read = 0

    def push(self, token_id: int) -> str:
        """The text this id adds; may be empty."""
        self._ids.append(token_id)
        text = self._step(token_id)
        self._pending = not text
        return text

    def flush(self) -> str:
        """What is left at the end of a text: incomplete characters, each as U+FFFD."""
        if not self._pending:
            return ""
        self._pending = False
        known, now = self._window()
        return now[len(known) :]

    def _step(self, token_id: int) -> str:
        if self._stream is not None:
            try:
                text = self._stream.step(self._backend, token_id) or ""
            except Exception:  # "Invalid prefix": the broken bytes of the class's docstring
                self._stream = None
            else:
                self._read = len(self._ids) if text else self._read
                return text
        known, now = self._window()
        if len(now) <= len(known) or now.endswith(_INCOMPLETE):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return now[len(known) :]

    def _window(self) -> tuple[str, str]:
        """The text that is out, as far back as context is needed, and the same with what followed."""
        ids = self._ids[self._start :]
        return _decode(self._tokenizer, ids[: self._read - self._start]), _decode(self._tokenizer, ids)


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    # Clean-up would delete spaces that the model wrote.
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


class Tokens:
    """What the rest of the project needs of a tokenizer.

    Args:
        tokenizer: A Hugging Face tokenizer.
        vocab_size: Number of ids the model knows (default: the tokenizer's); ids in prompts must be below it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = len(tokenizer) if vocab_size is None else vocab_size
        self._texts: dict[int, str] = {}

    # Text to ids

    def encode(self, text: str) -> list[int]:
        """Ids of text that follows other text: no special tokens are added, and no leading space either.

        Special tokens written out in the text (`<think>`) become their ids.
        """
        if not text:
            return []
        if not self._adds_space:
            return self._raw(text)
        for anchor in _ANCHORS:  # the first that does not merge with the text
            before, joined = self._raw(anchor), self._raw(anchor + text)
            if joined[: len(before)] == before:
                return joined[len(before) :]
        return self._raw(text)

    def encode_prompt(self, prompt: str | Sequence[Mapping[str, str]] | Sequence[int]) -> list[int]:
        """Ids of a prompt, ready for the model to go on from.

        * A string is one user message if the tokenizer has a chat template, else plain text.
        * `RawText` is plain text always.
        * Messages (`{"role": ..., "content": ...}`) go through the chat template, with the opening of the
          assistant's turn. Without a template their contents are joined by blank lines and roles are dropped.
        * Ids are used as they are.

        Text that comes out of a template gets no further special tokens (the template writes its own); plain
        text gets those that the tokenizer puts before a text. A prompt that begins with two of the
        tokenizer's opening tokens gives a `PromptWarning`.

        Raises:
            ConfigError: If the prompt is empty, malformed, refused by the template or outside the vocabulary.
        """
        if isinstance(prompt, str):
            if not prompt.strip():
                raise ConfigError("The prompt is empty.", "Give a question, chat messages or token ids.")
            if isinstance(prompt, RawText) or not self.has_template:
                return self._plain(prompt)
            return self._templated([{"role": "user", "content": prompt}])
        if not isinstance(prompt, Sequence):
            raise ConfigError(
                f"A prompt is a string, a list of messages or a list of ids, not {_kind(prompt)}."
            )
        if not prompt:
            raise ConfigError("The prompt is empty.", "Give a question, chat messages or token ids.")
        if all(isinstance(item, Integral) for item in prompt):
            return self._checked_ids([int(item) for item in prompt])  # type: ignore[arg-type]
        messages = self._checked_messages(prompt)
        if self.has_template:
            return self._templated(messages)
        return self._plain("\n\n".join(message["content"] for message in messages))

    def append_to_prompt(self, ids: Sequence[int], text: str) -> list[int]:
        """The prompt followed by the opening of the answer, such as `<think>` and a line break."""
        return [*ids, *self.encode(text)]

    def transition(self, *pieces: str) -> list[int]:
        """Ids of forced text: each piece encoded by itself, then concatenated. Empty pieces are left out."""
        return [token for piece in pieces for token in self.encode(piece)]

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(self.tokenizer.chat_template)

    # Sets of ids

    @cached_property
    def end_of_think_ids(self) -> tuple[int, ...]:
        """Ids whose probability is that of thinking ending.

        The id of `</think>` if it has one. Otherwise the first sub-tokens of `</think>`, ` </think>` and
        a line break with `</think>`: where the space or the line break is a token of its own, the next
        one counts, since white space says nothing about the end.
        """
        whole = self.encode(THINK_CLOSE)
        if len(whole) == 1:
            return tuple(whole)
        first: dict[int, None] = {}
        for form in (THINK_CLOSE, " " + THINK_CLOSE, "\n" + THINK_CLOSE):
            visible = [token for token in self.encode(form) if self.token_text(token).strip()]
            first[visible[0]] = None
        return tuple(first)

    @cached_property
    def end_of_turn_ids(self) -> frozenset[int]:
        """The special token by which the chat template ends an assistant's turn; empty if it has none."""
        if not self.has_template:
            return frozenset()
        turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
        try:
            rendered = self._render(turn, add_generation_prompt=False)
        except ConfigError:
            return frozenset()  # a template with demands of its own; the other end tokens remain
        _, mark, after = rendered.rpartition(_MARK)
        ids = self._raw(after.strip())[:1] if mark and after.strip() else []
        return frozenset(ids) & set(self.tokenizer.added_tokens_decoder)

    # Ids to text

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids without special tokens; an incomplete character shows as U+FFFD."""
        return _decode(self.tokenizer, ids)

    def detokenizer(self) -> Detokenizer:
        """A fresh incremental detokeniser, for one row."""
        return Detokenizer(self.tokenizer)

    def token_text(self, token_id: int) -> str:
        """One token for display: with its leading space, special tokens by name, stray bytes as `<0xE2>`."""
        text = self._texts.get(token_id)
        if text is None:
            text = self._texts[token_id] = self._token_text(token_id)
        return text

    def _token_text(self, token_id: int) -> str:
        added = self.tokenizer.added_tokens_decoder.get(token_id)
        if added is not None:
            return added.content
        piece = self.tokenizer.convert_ids_to_tokens(token_id)
        if piece is None or piece == "":
            return f"<id {token_id}>"  # models pad their vocabulary beyond the tokenizer's
        assert isinstance(piece, str)
        text = _decode(self.tokenizer, [token_id])
        if _INCOMPLETE in text:
            if all(char in _BYTES for char in piece):
                return bytes(_BYTES[char] for char in piece).decode("utf-8", errors="unspoken_hex")
            return piece  # byte-fallback pieces are called <0xE2> themselves
        if piece.startswith("\u2581") and not text.startswith(" "):
            return " " + text  # decoders of this kind strip the first space of a text
        return text

    # Parts

    def _raw(self, text: str, special: bool = False) -> list[int]:
        ids: Any = self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        return list(ids)

    @cached_property
    def _adds_space(self) -> bool:
        """Whether the tokenizer puts a space before every text, as SentencePiece ones do."""
        first = self.tokenizer.convert_ids_to_tokens(self._raw("a"))[0]
        return first[:1] in ("\u2581", "\u0120")

    def _plain(self, text: str) -> list[int]:
        if not text.strip():
            raise ConfigError("The prompt is empty.", "Give a question, chat messages or token ids.")
        ids = self._raw(text, special=True)
        # Some tokenizers close every text; the model is to go on from here.
        while len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id:
            ids.pop()
        return self._opened_once(ids)

    def _opened_once(self, ids: list[int]) -> list[int]:
        opening = self.tokenizer.bos_token_id
        if opening is not None and ids[:2] == [opening, opening]:
            warnings.warn(
                f"The prompt begins with {self.token_text(opening)} twice, which the model has never seen: give "
                "text without it, or messages instead of text that has been through the chat template.",
                PromptWarning,
                stacklevel=4,
            )
        return ids

    def _templated(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        if not any(message["content"].strip() for message in messages):
            raise ConfigError(
                "All messages of the prompt are empty.", "Give a question as the content of one."
            )
        return self._opened_once(self._raw(self._render(messages, add_generation_prompt=True)))

    def _render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        import jinja2

        try:
            text = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except (jinja2.TemplateError, ValueError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise ConfigError(
                f"The model's chat template refuses these messages (roles: {roles}): {error}"
            ) from error
        assert isinstance(text, str)
        return text

    def _checked_messages(self, prompt: Sequence[Any]) -> list[dict[str, str]]:
        problems = []
        for number, message in enumerate(prompt):
            if not isinstance(message, Mapping):
                problems.append(f"Message {number} is {_kind(message)}, not a mapping with role and content.")
                continue
            for name in ("role", "content"):
                if not isinstance(message.get(name), str):
                    problems.append(
                        f"Message {number} needs {name!r} as a string, not {_kind(message.get(name))}."
                    )
        if problems:
            raise ConfigError(problems, 'Messages look like [{"role": "user", "content": "..."}].')
        return [dict(message) for message in prompt]

    def _checked_ids(self, ids: list[int]) -> list[int]:
        outside = [token for token in ids if not 0 <= token < self.vocab_size]
        if outside:
            raise ConfigError(
                f"The prompt holds ids outside the vocabulary, such as {outside[0]}; "
                f"allowed: 0 to {self.vocab_size - 1}."
            )
        return ids


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
