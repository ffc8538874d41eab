"""Best of n: several answers, of which the one that the model finds likeliest is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from unspoken.decoding._base import Row
from unspoken.decoding._candidates import OneOfMany, described
from unspoken.decoding._sequence import Branch, Work

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM


@dataclass(frozen=True)
class BestOfN(OneOfMany):
    """Keep the candidate with the highest log-probability under the model.

    Scored are the tokens that were chosen, thoughts included, at temperature 1 and without filters. Candidates that
    the budget cut off count by what there is of them, and those that failed do not count; of equal scores the first is
    kept.
    """

    formula: ClassVar[str] = "argmaxᵢ log p(xᵢ) over n answers"

    by: Literal["sum", "mean"] = "sum"
    """Score by the sum of the tokens' log-probabilities, which favours short answers, or by their mean."""

    def score(self, branch: Branch) -> float:
        """What candidates are compared by; minus infinity for one without any token."""
        logprobs = branch.logprobs
        if not logprobs:
            return -math.inf
        return math.fsum(logprobs) / (len(logprobs) if self.by == "mean" else 1)

    def run(self, lm: CausalLM, row: Row) -> Work:
        branches = yield from self.candidates(row)
        scores = [-math.inf if branch.failed else self.score(branch) for branch in branches]
        alive = [i for i, branch in enumerate(branches) if not branch.failed]
        chosen = max(alive, key=lambda i: scores[i])
        listed = [
            {"score": score if score > -math.inf else None, **described(branch)}
            for branch, score in zip(branches, scores, strict=True)
        ]
        row.note("best_of_n", {"by": self.by, "chosen": chosen, "candidates": listed})
        return branches[chosen]
