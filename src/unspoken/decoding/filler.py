"""Filler tokens: read n tokens that say nothing, all at once, then answer in words."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from itertools import count, takewhile
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor

from unspoken.decoding import _prompt
from unspoken.decoding._base import Feed, Prompt, Row, State, Strategy
from unspoken.decoding._sampling import filter_problems, is_greedy, token_logprob
from unspoken.decoding._tokens import Sampler

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM
    from unspoken.lm.tokens import Tokens

NAME = "<fill_{}>"
"""What the filler tokens of trained models are called."""
_USUAL = (" .", ".", " ...", "…", "-", "<|pause|>", "<pause>")  # texts that others took for fillers


@dataclass(frozen=True)
class Filler(Strategy):
    """Read n filler tokens after the prompt, then decode the answer (arXiv 2310.02226, 2404.15758).

    The fillers are read with the prompt, in one forward: they widen the computation before the answer and add no
    step to it. In `usage` they count as prompt tokens; the note `fillers` says how many there were.

    This is how models trained by `internalize` answer: what the row reads is `question SEP1 fillers`, then the
    rest of the chain of thought if the model still writes one (phase `think`), `SEP2`, and the answer. With an
    untrained model it is the null control of latent thoughts: the same width without content.
    """

    formula: ClassVar[str] = "question, n fillers, answer"

    n_fillers: int = 16
    """How many fillers; 0 reads none."""
    kind: Literal["text", "single", "distinct"] = "text"
    """What fillers are: a text of the model's own, or tokens made in training: <fill_0> again and again, or
    <fill_0>, <fill_1> and so on."""
    token: str = " ."
    """The filler of kind text."""
    force_sep2: bool = False
    """Read the separator after the fillers too, so that the model goes straight to the answer."""
    sep2: str = ""
    """The separator before the answer, if it is a token of its own; otherwise it is the end token."""
    separators: int = 1
    """End tokens that a row writes before it is over: 2 if the first one separates thought and answer."""
    position_gap: int = 0
    """Positions left out from the prompt's last token on, for models trained to keep the place of what was removed."""
    emit: bool = False
    """Whether the model may write filler tokens itself, as those trained to predict them do."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    top_k: int = 0
    """Keep only the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest tokens that hold this much probability; 1 keeps all."""
    min_p: float = 0.0
    """Drop tokens below this share of the likeliest one; 0 keeps all."""

    def problems(self) -> list[str]:
        found = filter_problems(self.temperature, self.top_k, self.top_p, self.min_p)
        if self.n_fillers < 0:
            found.append(f"n_fillers must be 0 or more, not {self.n_fillers}.")
        if self.kind == "text" and not self.token:
            found.append("token must not be empty; n_fillers=0 reads none.")
        if self.separators < 1:
            found.append(f"separators must be at least 1, not {self.separators}.")
        if self.force_sep2 and self.separators > 1:
            found.append(
                f"With force_sep2 the row reads its separator, and writes one end token, not {self.separators}."
            )
        if self.position_gap < 0:
            found.append(f"position_gap must be 0 or more, not {self.position_gap}.")
        return found

    def check(self, lm: CausalLM) -> list[str]:
        found = []
        if self.n_fillers and self.kind == "text":
            ids = lm.tokens.encode(self.token)
            if not ids or lm.tokens.tokenizer.unk_token_id in ids:
                found.append(
                    f"The model's tokenizer does not know the filler {self.token!r}. {_instead(lm.tokens)}"
                )
        elif self.n_fillers:
            known = len(made_fillers(lm.tokens))
            wanted = self.n_fillers if self.kind == "distinct" else 1
            if known < wanted:
                found.append(
                    f"{wanted} filler tokens ({NAME.format(0)} ...) are wanted, but the model has {known}; "
                    "kind='text' works with any model."
                )
        if self.sep2 and _id(lm.tokens, self.sep2) is None:
            found.append(f"sep2 must be one token of the model, which {self.sep2!r} is not.")
        if self.force_sep2 and not self.sep2 and lm.tokens.tokenizer.eos_token_id is None:
            found.append("The model has no end token to force as separator; name one with sep2.")
        return found

    @property
    def deterministic(self) -> bool:
        return is_greedy(self.temperature, self.top_k)

    def prompt_ids(self, lm: CausalLM, prompt: Prompt) -> list[int]:
        return lm.tokens.encode_prompt(prompt) + self.suffix(lm.tokens)

    def suffix(self, tokens: Tokens) -> list[int]:
        """The ids that follow the prompt: fillers, and the separator if it is forced."""
        ids = self._fillers(tokens)
        if self.force_sep2:
            separator = _id(tokens, self.sep2) if self.sep2 else tokens.tokenizer.eos_token_id
            assert isinstance(separator, int)
            ids.append(separator)
        return ids

    def _fillers(self, tokens: Tokens) -> list[int]:
        if self.kind == "text":
            return tokens.encode(self.token) * self.n_fillers
        made = made_fillers(tokens)
        return made[: self.n_fillers] if self.kind == "distinct" else made[:1] * self.n_fillers

    def begin(self, lm: CausalLM, row: Row) -> None:
        end = len(row.prompt_ids) - len(self.suffix(lm.tokens))
        row.gap = (end - 1, self.position_gap)
        row.note("fillers", len(self._fillers(lm.tokens)))
        row.memory["banned"] = [] if self.emit else made_fillers(lm.tokens)
        row.memory["separators"] = 0 if self.force_sep2 else max(self.separators - 1, int(bool(self.sep2)))
        row.memory["separator_ids"] = {_id(lm.tokens, self.sep2)} if self.sep2 else lm.eos_ids
        thinks = row.memory["separators"] or _prompt.opens_think(lm, row.prompt_ids[:end])
        row.enter("think" if thinks else "answer")

    def next_input(self, logits: Tensor, hidden: Tensor, state: State) -> list[Feed]:
        sampler = Sampler(self.temperature, self.top_k, self.top_p, self.min_p)
        banned = state.rows[0].memory["banned"]
        allowed = logits
        if banned:
            allowed = logits.clone()
            allowed[:, banned] = float("-inf")
        # Before the separator, an end token that is the separator does not end the row.
        open_rows = [_ends_thought(row, state.lm.eos_ids) for row in state.rows]
        feeds = []
        for ends in (True, False):
            rows = [i for i, still_open in enumerate(open_rows) if still_open != ends]
            if rows:
                everyone = len(rows) == len(open_rows)
                feed = sampler(allowed if everyone else allowed[rows], rows, state)
                feed.ends = ends
                if banned:  # the log-probability is the model's own, before any filter
                    assert feed.token_ids is not None
                    feed.logprob = token_logprob(logits[rows], feed.token_ids)
                feeds.append(feed)
        return feeds

    def observe(self, row: Row, token_id: int, text: str) -> None:
        left = row.memory["separators"]
        if not left:
            _prompt.follow_markers(row, text)
        elif token_id in row.memory["separator_ids"]:
            row.memory["separators"] = left - 1
            if left == 1:
                row.enter("answer")


def _instead(tokens: Tokens) -> str:
    """Which fillers a tokenizer has, with the flags that choose them."""
    made = len(made_fillers(tokens))
    found = [f"{NAME.format(0)} (--kind single)"] if made else []
    if made > 1:
        found.append(f"{NAME.format(0)} to {NAME.format(made - 1)} (--kind distinct, at most {made} fillers)")
    tokenizer = tokens.tokenizer
    added = [text for text in tokenizer.get_added_vocab() if text not in tokenizer.all_special_tokens]
    texts = [text for text in (*_USUAL, *added) if text not in map(NAME.format, range(made))]
    known = [text for text in texts if (ids := tokens.encode(text)) and tokenizer.unk_token_id not in ids]
    found += [f"{text!r} (--token={shlex.quote(text)})" for text in known]
    if not found:
        found = ["any word of its vocabulary (--token=WORD)"]
    return f"It knows {', '.join(found)}."


def made_fillers(tokens: Tokens) -> list[int]:
    """Ids of `<fill_0>`, `<fill_1>` and so on, as far as the tokenizer has them."""
    found = (_id(tokens, NAME.format(i)) for i in count())
    return [token for token in takewhile(lambda token: token is not None, found) if token is not None]


def _id(tokens: Tokens, name: str) -> int | None:
    """The id of the token of exactly this name, if there is one."""
    token = tokens.tokenizer.convert_tokens_to_ids(name)
    return token if isinstance(token, int) and tokens.tokenizer.convert_ids_to_tokens(token) == name else None


def _ends_thought(row: Row, eos_ids: frozenset[int]) -> bool:
    """Whether the row's next end token would close its thought instead of ending it."""
    return row.memory["separators"] > 0 and bool(row.memory["separator_ids"] & eos_ids)
