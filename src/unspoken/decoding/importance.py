"""Importance resampling: one of several low-temperature answers, drawn so that it follows p^alpha."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from unspoken.decoding import _prompt
from unspoken.decoding._base import Prompt, Row, derive_seed
from unspoken.decoding._candidates import described
from unspoken.decoding._power import Proposal, draw, effective_size, log_mean, normalised
from unspoken.decoding._sequence import SequenceStrategy, Spawn, Work

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM


@dataclass(frozen=True)
class Importance(SequenceStrategy):
    """Sampling importance resampling with the target p(x)^alpha over whole answers.

    n answers are drawn at temperature 1/alpha, and one of them is kept with probability proportional to
    `exp(sum over its tokens of alpha lp - lq)`, where lp and lq are log-probabilities under the model and under the
    proposal. The law of the answer tends to p^alpha as n grows; how far n answers go, the effective sample size of
    the notes says. Answers that the budget cut off are states like others.
    """

    formula: ClassVar[str] = "x ~ p(x)^α, by weighing n answers"

    alpha: float = 4.0
    """Exponent of the target, at least 1."""
    n: int = 16
    """Number of answers that are drawn."""
    think_open: Literal["none", "assistant_prefix", "user_suffix"] = "none"
    """Open a thinking block: at the start of the answer, at the end of the question, or not at all."""

    def problems(self) -> list[str]:
        found = []
        if not 1.0 <= self.alpha < math.inf:
            found.append(f"alpha must be at least 1 and finite, not {self.alpha}.")
        if self.n < 1:
            found.append(f"n must be at least 1, not {self.n}.")
        return found

    def prompt_ids(self, lm: CausalLM, prompt: Prompt) -> list[int]:
        return _prompt.with_opener(lm, prompt, self.think_open)

    @property
    def width(self) -> int:
        return self.n

    def run(self, lm: CausalLM, row: Row) -> Work:
        seed, proposal = row.request.seed, Proposal(1.0 / self.alpha)
        branches = yield [
            Spawn(
                proposal,
                row.budget,
                derive_seed(seed, "answer", i),
                shown=i == 0,
                held=False,
            )
            for i in range(self.n)
        ]
        logs = [
            self.alpha * math.fsum(branch.memory["lp"]) - math.fsum(branch.memory["lq"])
            for branch in branches
        ]
        weights = normalised(logs)
        chosen = draw(weights, derive_seed(seed, "choice"))
        listed = [{"weight": w, **described(b)} for b, w in zip(branches, weights, strict=True)]
        note = {
            "alpha": self.alpha,
            "chosen": chosen,
            "effective_size": effective_size(weights),
            "log_normaliser": log_mean(logs),
            "candidates": listed,
        }
        row.note("importance", note)
        return branches[chosen]
