"""Texts for a lens: read from files, rows of tasks or the model itself, and packed into rows of one length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unspoken.errors import ConfigError, DataError
from unspoken.tasks._chains import MARKER, Chain
from unspoken.tasks._data import check_utf8, read_rows, read_text, text_field

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM


@dataclass(frozen=True)
class Document:
    """One text: its ids, and its length in bytes of UTF-8."""

    ids: tuple[int, ...]
    size: int


@dataclass(frozen=True, eq=False)
class Packed:
    """Documents end to end, an end token after each, cut into rows of one length.

    Attributes:
        rows: [N, T] ids.
        nats_to_bpb: Factor from nats a token to bits a byte: tokens / bytes / ln 2, over all documents.
    """

    rows: Tensor
    nats_to_bpb: float

    def __len__(self) -> int:
        return len(self.rows)


def chain_text(chain: Chain) -> str:
    """A row of a task as running text."""
    answer = f"{MARKER} {chain.answer}" if chain.answer else ""
    return "\n".join(part for part in (chain.question, chain.cot, answer) if part)


def read_texts(path: str | Path) -> list[Chain]:
    """The texts of a file, as rows that have only a question.

    JSONL, JSON or CSV gives one text a row, of its field `text`, or of `question` (or `problem`) and `answer` (or
    `solution`); anything else is one text.

    Raises:
        DataError: If the file cannot be read or has no text.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() in (".jsonl", ".json", ".csv"):
        return read_rows(path, lambda row, _index: Chain(_field_text(row), "", ""))
    text = read_text(path)
    try:
        check_utf8(text)
    except ValueError as error:
        raise DataError(f"The data file {str(path)!r} is {error}.") from error
    if not text.strip():
        raise DataError(f"The data file {str(path)!r} is empty.")
    return [Chain(text.strip(), "", "")]


def _field_text(row: dict[str, Any]) -> str:
    if "text" in row:
        return text_field(row, "text")
    return f"{text_field(row, 'question', 'problem')}\n{text_field(row, 'solution', 'answer')}"


def encode(lm: CausalLM, texts: Sequence[str]) -> list[Document]:
    """Tokenise texts, without special tokens."""
    return [Document(tuple(lm.tokens.encode(text)), len(text.encode())) for text in texts if text.strip()]


def sample(
    lm: CausalLM, count: int, length: int, *, seed: int, prompt: str = "", batch_size: int = 8
) -> list[Document]:
    """Texts that the model samples at temperature 1 with no filter: the same ones for the same seed.

    Args:
        lm: The model.
        count: How many.
        length: Most tokens of each.
        seed: Of the sampling.
        prompt: What each begins with; empty for the token that begins texts.
        batch_size: Sampled together.
    """
    from unspoken.decoding.cot import ChainOfThought

    start = lm.tokens.encode(prompt) if prompt else [_first(lm)]
    done = lm.generate(
        [start] * count,
        ChainOfThought(temperature=1.0),
        max_new_tokens=length,
        seed=seed,
        batch_size=batch_size,
        trace="summary",
    )
    documents = []
    for generation in done if isinstance(done, list) else [done]:
        ids = [*start, *generation.token_ids]
        if len(ids) > len(start) + 1:
            text = lm.tokenizer.decode(ids, skip_special_tokens=True)
            documents.append(Document(tuple(ids), len(str(text).encode())))
    if not documents:
        raise DataError(
            "The model ends every text at once, so its samples cannot be trained on.", "Give texts."
        )
    return documents


def _first(lm: CausalLM) -> int:
    """The token that begins texts, else the one that ends them."""
    for token in (lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    raise ConfigError("The tokenizer has no token that begins a text.", "Give one with sample_prompt.")


def pack(lm: CausalLM, documents: Sequence[Document], length: int) -> Packed:
    """Rows of `length` tokens; what is left over at the end is dropped, unless it is all there is.

    Raises:
        DataError: If there are not even two tokens.
    """
    ends = [i for i in (lm.tokenizer.eos_token_id,) if isinstance(i, int)]
    flat: list[int] = []
    for document in documents:
        flat += document.ids
        if ends and (not document.ids or document.ids[-1] != ends[0]):
            flat += ends
    if len(flat) < 2:
        raise DataError("The texts have less than two tokens.")
    length = min(length, len(flat))
    whole = len(flat) // length * length
    tokens, size = sum(len(d.ids) for d in documents), sum(d.size for d in documents)
    return Packed(
        torch.tensor(flat[:whole]).view(-1, length), tokens / max(size, 1) / float(torch.tensor(2.0).log())
    )
