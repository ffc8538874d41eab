"""The rows of a run as flat arrays: tokenised once, their separators found once and checked for every row."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from unspoken.errors import ConfigError, DataError
from unspoken.lm.tokens import Tokens
from unspoken.tasks._chains import MARKER, Chain
from unspoken.training import _rows_cache
from unspoken.training._edit import Source

_CHUNK = 8192  # rows tokenised at once


@dataclass(frozen=True)
class Template:
    """How a row is written: `" {question} {before}{sep1} {cot} {sep2} #### {answer} {eos}"`.

    Attributes:
        sep1: Ends the question.
        sep2: Ends the chain of thought.
        eos: Ends the row.
        before: What stands right before `sep1`.
    """

    sep1: str
    sep2: str
    eos: str
    before: str = ""

    def prompt(self, question: str) -> str:
        """The row up to and including `sep1`."""
        return f" {question.strip()} {self.before}{self.sep1}"

    def row(self, chain: Chain) -> str:
        """The whole row."""
        answer = f"{MARKER} {chain.answer.strip()}"
        return f"{self.prompt(chain.question)} {chain.cot.strip()} {self.sep2} {answer} {self.eos}"

    def word_ids(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
        """The id of each separator.

        Raises:
            ConfigError: If one is not a single token.
        """
        found, problems = {}, []
        for word in dict.fromkeys([self.sep1, self.sep2, self.eos, self.before]):
            if word:
                ids = single_id(tokenizer, word)
                if ids is None:
                    problems.append(f"The separator {word!r} is not a single token of the model's tokenizer.")
                else:
                    found[word] = ids
        if problems:
            raise ConfigError(
                problems, "Use --sep-mode distinct, which adds <sep1> and <sep2> to the tokenizer."
            )
        return found


def single_id(tokenizer: PreTrainedTokenizerBase, word: str) -> int | None:
    """The id of a word after a space, or None if it is more than one token or unknown."""
    if word in tokenizer.get_added_vocab():
        return int(tokenizer.convert_tokens_to_ids(word))  # type: ignore[arg-type]
    for text in (f" {word.lstrip()}", word):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            return int(ids[0])
    return None


def _wrapping(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int]:
    """Ids that the tokenizer puts before a text, and how many it puts after it."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for first in range(len(whole) - len(bare) + 1):
        if whole[first : first + len(bare)] == bare:
            return whole[:first], len(whole) - first - len(bare)
    return [], 0


@dataclass(frozen=True)
class Steps:
    """Where the steps of each chain of thought end.

    Attributes:
        ends: [all steps] how many tokens of its chain each step and those before it have.
        first: [n] where the steps of each row begin in `ends`.
        count: [n] steps of each row.
    """

    ends: Tensor
    first: Tensor
    count: Tensor

    def tokens(self, rows: Tensor, removed: Tensor, c: Tensor, side: str) -> Tensor:
        """[n] tokens in the first or last `removed` steps of these rows."""
        count = self.count[rows]
        kept = count - removed if side == "right" else removed
        at = (self.first[rows] + kept - 1).clamp(0, max(len(self.ends) - 1, 0))
        tokens = torch.where(kept > 0, self.ends[at] if len(self.ends) else 0, 0)
        return c - tokens if side == "right" else tokens


@dataclass(frozen=True)
class Rows:
    """Tokenised rows.

    Attributes:
        source: The tokens and where each part is.
        kept: [n] number of each row among the chains given.
        dropped: How many rows were left out, by reason.
        steps: Where steps end, if they were asked for.
        tail: Tokens of SEP2 and `####` at the end of each chain, if they count as part of it.
    """

    source: Source
    kept: Tensor
    dropped: dict[str, int] = field(default_factory=dict)
    steps: Steps | None = None
    tail: int = 0

    def __len__(self) -> int:
        return len(self.kept)

    @classmethod
    def build(
        cls,
        chains: Sequence[Chain],
        tokens: Tokens,
        template: Template,
        *,
        longest: int | None = None,
        delimiters: Sequence[str] = (),
        with_separator: bool = False,
    ) -> Rows:
        """Tokenise rows and find their parts.

        Args:
            chains: The rows.
            tokens: The tokenizer.
            template: How a row is written; its separators must be tokens by now.
            longest: Rows of more tokens are left out.
            delimiters: Texts that end a step, if steps are wanted.
            with_separator: Whether SEP2 and `####` count as the last tokens of the chain.

        Raises:
            DataError: If no row is left, or prompts do not tokenise as in rows.
        """
        flat, lengths, lead = _tokenise(chains, tokens.tokenizer, template)
        start = np.concatenate([[0], np.cumsum(lengths)])[:-1].astype(np.int64)
        words = template.word_ids(tokens.tokenizer)
        order = [words[w] for w in (template.before, template.sep1, template.sep2, template.eos) if w]
        marks, good = _separators(flat, start, lengths, order, lead)
        dropped = {"with a stray or missing separator": int((~good).sum())}
        if longest is not None:
            fits = lengths <= longest
            dropped[f"of more than {longest} tokens"] = int((good & ~fits).sum())
            good &= fits
        kept = np.flatnonzero(good)
        if len(chains) and not len(kept):
            reasons = ", ".join(f"{count} {why}" for why, count in dropped.items() if count)
            raise DataError(f"None of the {len(chains)} rows can be used: {reasons}.")
        at = len(order) - 3  # place of sep1 among the separators
        q = marks[kept, at] - start[kept] + 1
        c = marks[kept, at + 1] - start[kept] - q
        tail = 0
        if with_separator:
            tail = 1 + len(tokens.tokenizer(f" {MARKER}", add_special_tokens=False)["input_ids"])
            c += tail
        source = Source(
            torch.from_numpy(flat), *(torch.from_numpy(x) for x in (start[kept], q, c, lengths[kept]))
        )
        rows = cls(
            source,
            torch.from_numpy(kept),
            {why: count for why, count in dropped.items() if count},
            _find_steps(source, tokens, delimiters) if delimiters else None,
            tail,
        )
        rows._check_prompts(chains, tokens, template)
        return rows

    def prompt(self, row: int) -> list[int]:
        """The ids of a row up to and including SEP1."""
        first = int(self.source.start[row])
        return self.source.flat[first : first + int(self.source.q[row])].tolist()

    def _check_prompts(self, chains: Sequence[Chain], tokens: Tokens, template: Template) -> None:
        for row in range(min(len(self), 8)):
            text = template.prompt(chains[int(self.kept[row])].question)
            lead = _wrapping(tokens.tokenizer)[0]
            alone = lead + list(tokens.tokenizer(text, add_special_tokens=False)["input_ids"])
            if alone != self.prompt(row):
                raise DataError(
                    f"The prompt {text!r} has other tokens alone than in its row, so the model could not be asked "
                    f"what it was taught.",
                    "Use --sep-mode distinct.",
                )


def compact_dtype(largest: int) -> type[np.integer]:
    """The smallest integer type that torch can index with and that holds ids up to this one."""
    return np.uint8 if largest < 256 else np.int16 if largest < 2**15 else np.int32


def _tokenise(
    chains: Sequence[Chain], tokenizer: PreTrainedTokenizerBase, template: Template
) -> tuple[NDArray[np.integer], NDArray[np.int64], int]:
    """All ids in one array, the length of each row, and how many ids the tokenizer put before each row.

    Where there are many rows, the arrays are those of an earlier start, if there was one.
    """
    lead, trail = _wrapping(tokenizer)
    dtype = compact_dtype(len(tokenizer))

    def chunks() -> Iterator[list[str]]:
        for begin in range(0, len(chains), _CHUNK):
            yield [template.row(chain) for chain in chains[begin : begin + _CHUNK]]

    folder = _rows_cache.entry(chunks(), tokenizer, dtype)
    arrays = folder and _rows_cache.load(folder)
    if not arrays:
        arrays = _encode(chunks(), tokenizer, trail, dtype)
        if folder:
            _rows_cache.save(folder, arrays)
            arrays = _rows_cache.load(folder) or arrays  # mapped to memory, once for all processes
    return *arrays, len(lead)


def _encode(
    chunks: Iterable[list[str]], tokenizer: PreTrainedTokenizerBase, trail: int, dtype: type[np.integer]
) -> _rows_cache.Arrays:
    """Tokenise; the last `trail` ids of each row are left out."""
    # Truncation and padding are off in it since transformers' own call, in `_wrapping`, has set them as it needs them.
    core = _rows_cache.backend(tokenizer)
    pieces, lengths = [np.zeros(0, dtype)], []
    for texts in chunks:
        if core is not None:
            # Without offsets, which transformers asks for: 0.8 to 0.95 of the time on one core, 0.5 to 0.7 on two.
            rows = [encoding.ids for encoding in core.encode_batch_fast(texts)]
        else:
            options = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
            rows = tokenizer(texts, **options)["input_ids"]
        if trail:
            rows = [row[:-trail] for row in rows]
        sizes = [len(row) for row in rows]
        lengths += sizes
        pieces.append(np.fromiter(itertools.chain.from_iterable(rows), dtype, sum(sizes)))
    return np.concatenate(pieces), np.array(lengths, dtype=np.int64)


def _separators(
    flat: NDArray[np.integer],
    start: NDArray[np.int64],
    lengths: NDArray[np.int64],
    order: list[int],
    lead: int,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Find the separators of each row.

    Returns:
        [n, len(order)] their places in `flat`, where the row is good; [n] whether it holds exactly these, in
        this order, the last one at its end. The `lead` ids that a tokenizer puts first are not looked at:
        in some families they are the end token, too.
    """
    places = np.flatnonzero(np.isin(flat, np.array(order)))
    row = np.searchsorted(start, places, side="right") - 1
    inside = places - start[row] >= lead
    places, row = places[inside], row[inside]
    count = np.bincount(row, minlength=len(start))
    first = np.cumsum(count) - count
    good = count == len(order)
    marks = np.zeros((len(start), len(order)), np.int64)
    marks[good] = places[first[good, None] + np.arange(len(order))]
    good &= (flat[marks] == np.array(order)).all(axis=1) if len(flat) else False
    good &= marks[:, -1] == start + lengths - 1
    return marks, good


def _find_steps(source: Source, tokens: Tokens, delimiters: Sequence[str]) -> Steps:
    """A step ends with the last of a run of delimiters (and blanks), or with the chain."""
    n, flat = len(source.start), source.flat.numpy()
    first = (source.start + source.q).numpy()
    c = source.c.numpy()
    row = np.repeat(np.arange(n), c)
    local = np.arange(len(row)) - np.repeat(np.cumsum(c) - c, c)
    ids = flat[first[row] + local]
    texts = {int(i): tokens.token_text(int(i)) for i in np.unique(ids)}
    ending = [i for i, text in texts.items() if not text.strip() or any(d in text for d in delimiters)]
    ends_here = np.isin(ids, np.array(ending, dtype=ids.dtype))
    last = local == c[row] - 1
    follows = np.append(ends_here[1:], False)
    ends = last | (ends_here & ~follows)
    count = np.bincount(row[ends], minlength=n)
    return Steps(
        torch.from_numpy(local[ends] + 1), torch.from_numpy(np.cumsum(count) - count), torch.from_numpy(count)
    )
