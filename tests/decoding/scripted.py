"""A model whose logits are written down: what the loop and the strategies do can then be worked out by hand.

`ScriptedLM` stands in for a `CausalLM`, and `ScriptedDecoder` for the loop's `Decoder`: the logits of a row are
a function of its prompt and of how many vectors it has read since.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unspoken.decoding import Feed, Row, State, Strategy
from unspoken.errors import UnspokenError
from unspoken.lm.tokens import Tokens

WIDTH = 12
Script = Callable[["ScriptedLM", tuple[int, ...], int], Tensor]
"""(the model, prompt ids, vectors read since) to [V] logits."""


class ScriptedLM:
    """As much of a `CausalLM` as the loop and the strategies use."""

    def __init__(self, tokenizer: Any, script: Script, eos: Iterable[int] | None = None) -> None:
        self.tokens = Tokens(tokenizer)
        self.script = script
        self.vocab_size = len(tokenizer)
        self.eos_ids = frozenset([tokenizer.eos_token_id] if eos is None else eos)
        self.max_positions: int | None = None
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.table = torch.randn(self.vocab_size, WIDTH, generator=torch.Generator().manual_seed(0))
        self.decoders: list[ScriptedDecoder] = []
        (self.open,), (self.close,) = self.ids("<think>"), self.ids("</think>")

    @property
    def fed(self) -> dict[tuple[int, ...], list[Tensor]]:
        """The vectors that were read after each prompt (of rows with different prompts)."""
        return {row.prompt: row.fed for decoder in self.decoders for row in decoder.all_rows}

    @property
    def forwards(self) -> int:
        """Steps so far."""
        return sum(decoder.forwards for decoder in self.decoders)

    def ids(self, text: str) -> list[int]:
        return self.tokens.encode(text)

    def embed(self, ids: Tensor) -> Tensor:
        return self.table[ids]

    def mix(self, ids: Tensor, weights: Tensor) -> Tensor:
        return (self.table[ids] * weights[..., None]).sum(1)

    def element_wise_max(self, ids: Tensor) -> Tensor:
        return self.table[ids].amax(1)

    def law(self, probs: dict[int, float], spare: float = 1e-9) -> Tensor:
        """[V] logits whose softmax at temperature 1 gives these tokens these probabilities, and others next to none."""
        logits = torch.full((self.vocab_size,), math.log(spare))
        for token, p in probs.items():
            logits[token] = math.log(p)
        return logits


class _Row:
    def __init__(self, prompt: tuple[int, ...]) -> None:
        self.prompt = prompt
        self.fed: list[Tensor] = []


class ScriptedDecoder:
    """Keeps the rows as the ragged cache does: new ones at the end, the last one into the hole of a dropped one."""

    def __init__(self, lm: ScriptedLM, max_rows: int) -> None:
        self.lm, self.max_rows = lm, max_rows
        self.rows: list[_Row] = []
        self.all_rows: list[_Row] = []
        self.forwards = 0
        self.prefilled: list[list[tuple[int, ...]]] = []
        self.cache = self
        lm.decoders.append(self)

    def prefill(self, prompts: Sequence[Sequence[int]], gaps: Any = None) -> tuple[Tensor, Tensor]:
        new = [_Row(tuple(prompt)) for prompt in prompts]
        self._add(new)
        self.prefilled.append([row.prompt for row in new])
        return self._state(new)

    def step(self, vectors: Tensor, gaps: Any = None) -> tuple[Tensor, Tensor]:
        assert gaps is None and vectors.shape == (len(self.rows), WIDTH)
        self.forwards += 1
        for row, vector in zip(self.rows, vectors, strict=True):
            row.fed.append(vector.clone())
        return self._state(self.rows)

    def fork(self, row: int, length: int) -> int:
        assert length == len(self.rows[row].prompt)
        self._add([_Row(self.rows[row].prompt)])
        return len(self.rows) - 1

    def drop(self, row: int) -> None:
        self.rows[row] = self.rows[-1]
        self.rows.pop()

    def _add(self, new: list[_Row]) -> None:
        self.rows += new
        self.all_rows += new
        assert len(self.rows) <= self.max_rows

    def _state(self, rows: list[_Row]) -> tuple[Tensor, Tensor]:
        logits = torch.stack([self.lm.script(self.lm, row.prompt, len(row.fed)) for row in rows])
        return logits, torch.zeros(len(rows), WIDTH)


def speaker(make: Callable[..., ScriptedLM], texts: dict[tuple[int, ...], list[int]]) -> ScriptedLM:
    """A model of which a greedy row says these ids after its prompt, then the end token."""

    def script(lm: ScriptedLM, prompt: tuple[int, ...], read: int) -> Tensor:
        tokens = [*texts[prompt], *lm.eos_ids]
        return lm.law({tokens[min(read, len(tokens) - 1)]: 0.9, 99: 0.1})

    return make(script)


@dataclass(frozen=True)
class Scripted(Strategy):
    """Greedy, with a forced text, notes and vectors where asked."""

    forced_at: int = -1
    forced: tuple[int, ...] = ()
    vectors: bool = False
    backwards: bool = False
    fails_at: int = -1

    def begin(self, lm: Any, row: Row) -> None:
        row.note("began", len(row.prompt_ids))
        row.enter("think" if self.vectors else "answer")

    def next_input(self, logits: Tensor, hidden: Tensor, state: State) -> list[Feed]:
        rows = []
        for i, row in enumerate(state.rows):
            if row.steps == self.fails_at:
                raise UnspokenError("cannot go on")
            if row.steps == self.forced_at:
                row.note("forcing", row.steps)
                row.force(self.forced)
            else:
                rows.append(i)
        if self.backwards:
            rows.reverse()
        chosen = logits[rows].argmax(-1)
        if not rows:
            return []
        if self.vectors:
            return [Feed(rows, "latent", vectors=state.lm.embed(chosen))]
        own = logits[rows].log_softmax(-1).amax(-1)
        return [Feed(rows, "token", token_ids=chosen, logprob=own)]
