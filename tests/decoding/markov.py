"""A language of two letters and an end whose every answer can be listed, and a stand-in for the loop that speaks it.

The next token depends on the last two; `drive` runs the generator of a sequence strategy with it.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from unspoken.decoding import Request, Row
from unspoken.decoding._power import Proposal
from unspoken.decoding._sequence import Branch, SequenceStrategy, Spawn
from unspoken.types import Step, Usage

LETTERS = "ab."
END = 2


@dataclass
class Markov:
    """The language.

    Attributes:
        longest: Most tokens of an answer.
        max_positions: As of a `CausalLM`.
    """

    longest: int
    seed: int = 0
    max_positions: int | None = None
    spawned: list[list[Spawn]] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = random.Random(self.seed)
        self.table = [[_simplex(rng) for _ in range(3)] for _ in range(3)]
        self.rng = rng
        self.tempered: dict[tuple[int, int, float], list[float]] = {}

    def law(self, text: Sequence[int], tau: float = 1.0) -> list[float]:
        """Probabilities of the next token."""
        a, b = (END, END, *text[-2:])[-2:]
        if (a, b, tau) not in self.tempered:
            raw = [p ** (1.0 / tau) for p in self.table[a][b]]
            self.tempered[a, b, tau] = [p / sum(raw) for p in raw]
        return self.tempered[a, b, tau]

    def answers(self) -> dict[str, float]:
        """Every answer with its log-probability: those that end, and those that fill the budget."""
        found = {}
        for length in range(1, self.longest + 1):
            for text in itertools.product(range(3), repeat=length):
                if END in text[:-1] or (text[-1] != END and length < self.longest):
                    continue
                logprob = sum(math.log(self.law(text[:i])[t]) for i, t in enumerate(text))
                found["".join(LETTERS[t] for t in text)] = logprob
        return found

    def decode(self, spawn: Spawn) -> Branch:
        """One branch, as the loop would decode it."""
        assert isinstance(spawn.inner, Proposal)
        branch = Branch(spawn.parent.steps[: spawn.keep] if spawn.parent else [])
        branch.memory = {"lp": [], "lq": []}
        text = [LETTERS.index(step.text) for step in branch.steps]
        for _ in range(spawn.max_new_tokens):
            law, tempered = self.law(text), self.law(text, spawn.inner.tau)
            (token,) = self.rng.choices(range(3), tempered)
            lp, lq = math.log(law[token]), math.log(tempered[token])
            branch.memory["lp"].append(lp)
            branch.memory["lq"].append(lq)
            text.append(token)
            branch.steps.append(Step(0, len(text) - 1, "answer", "token", token, LETTERS[token], lp, lq))
            if token == END:
                break
        branch.reason = "eos" if text[-1] == END else "length"
        branch.usage = Usage(tokens=len(branch.memory["lp"]))
        return branch

    def drive(self, strategy: SequenceStrategy, seed: int) -> tuple[Branch, dict[str, Any]]:
        """What the strategy returns, and its notes."""
        request = Request([0], strategy, seed=seed, max_new_tokens=self.longest)
        row = Row(request, [0], self.longest, torch.Generator())
        lm: Any = self
        work = strategy.run(lm, row)
        self.spawned = [next(work)]
        try:
            while True:
                self.spawned.append(work.send([self.decode(spawn) for spawn in self.spawned[-1]]))
        except StopIteration as stop:
            return stop.value, dict(row.notes)


def _simplex(rng: random.Random) -> list[float]:
    """Two letters and an end, the end rarer than either."""
    raw = [rng.gammavariate(1.5, 1.0), rng.gammavariate(1.5, 1.0), rng.gammavariate(0.8, 1.0)]
    return [x / sum(raw) for x in raw]


def powered(logprobs: dict[str, float], alpha: float) -> tuple[dict[str, float], float]:
    """The law p^alpha, and the sum of p^alpha."""
    raw = {text: math.exp(alpha * value) for text, value in logprobs.items()}
    total = sum(raw.values())
    return {text: value / total for text, value in raw.items()}, total


def distance(one: dict[str, float], other: dict[str, float]) -> float:
    """Total variation."""
    return 0.5 * sum(abs(one.get(t, 0.0) - other.get(t, 0.0)) for t in one.keys() | other.keys())
