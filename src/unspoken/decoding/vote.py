"""Vote: several answers, of which the most frequent is kept (self-consistency)."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from unspoken.decoding._base import Answers, Row
from unspoken.decoding._candidates import OneOfMany, described
from unspoken.decoding._sequence import Branch, Work
from unspoken.errors import RunError

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM

_NUMBER = re.compile(r"(?:(?<![\w)])-)?\d[\d,]*(?:\.\d+)?")


def read_plainly(text: str, truncated: bool) -> str | None:
    """The answer of a text where no task says how to read it.

    It is the last number of the last line, or else the line itself without case, marks at its ends and repeated
    spaces. A text that was cut off has no last line yet.
    """
    lines = [line for line in text.splitlines() if line.strip(" \t.*_#`\"'")]
    if truncated or not lines:
        return None
    numbers = _NUMBER.findall(lines[-1])
    if numbers:
        number = f"{Decimal(numbers[-1].replace(',', '')):f}"  # exact; normalising would round to 28 digits
        number = number.rstrip("0").rstrip(".") if "." in number else number
        return "0" if number == "-0" else number
    return " ".join(lines[-1].casefold().split()).strip(" .!*_#`\"'") or None


PLAIN = Answers(read_plainly, operator.eq)


@dataclass(frozen=True)
class _Class:
    """Candidates that give the same answer.

    Attributes:
        answer: As the first of them gives it.
        members: Their places.
        weight: Of all their votes.
        logprob: Sum of their log-probabilities.
    """

    answer: str
    members: tuple[int, ...]
    weight: float
    logprob: float


@dataclass(frozen=True)
class Vote(OneOfMany):
    """Self-consistency: the answer that most candidates agree on (arXiv 2203.11171).

    An evaluation's task says how answers are read and which of them are the same; elsewhere the last line counts.
    Candidates that failed or give no answer do not vote. Of classes with equal votes the one with the highest sum of
    log-probabilities wins, and of the winning class the likeliest candidate is kept. Where nobody votes, it is the
    likeliest of all.
    """

    formula: ClassVar[str] = "the answer that most of n give"

    weights: Literal["count", "probability"] = "count"
    """Each candidate has one vote, or its probability, normalised by its length (the paper's equation 1)."""

    def run(self, lm: CausalLM, row: Row) -> Work:
        branches = yield from self.candidates(row)
        classes = self.classes(branches, row.request.answers or PLAIN)
        alive = [i for i, branch in enumerate(branches) if not branch.failed]
        winner = max(classes, key=lambda c: (c.weight, c.logprob), default=None)
        chosen = max(winner.members if winner else alive, key=lambda i: branches[i].logprob)
        note: dict[str, Any] = {
            "chosen": chosen,
            "answer": winner.answer if winner else None,
            "classes": [
                {"answer": c.answer, "size": len(c.members), "weight": c.weight, "members": list(c.members)}
                for c in sorted(classes, key=lambda c: (c.weight, c.logprob), reverse=True)
            ],
            "without_answer": len(alive) - sum(len(c.members) for c in classes),
            "candidates": [described(branch) for branch in branches],
        }
        row.note("vote", note)
        return branches[chosen]

    def classes(self, branches: Sequence[Branch], answers: Answers) -> list[_Class]:
        """The candidates by what they answer, in order of first appearance."""
        groups: list[tuple[str, list[int]]] = []
        try:
            for i, branch in enumerate(branches):
                if branch.failed:
                    continue
                answer = answers.read(branch.answer_text, branch.reason in ("length", "context"))
                if answer is None:
                    continue
                for first, members in groups:
                    if first == answer or answers.same(first, answer):
                        members.append(i)
                        break
                else:
                    groups.append((answer, [i]))
        except Exception as error:  # the task's own code: its mistake must not end other rows
            raise RunError(f"The answers could not be compared: {type(error).__name__}: {error}") from error
        return [
            _Class(
                answer,
                tuple(members),
                math.fsum(self.weight(branches[i]) for i in members),
                math.fsum(branches[i].logprob for i in members),
            )
            for answer, members in groups
        ]

    def weight(self, branch: Branch) -> float:
        """What the candidate's vote counts."""
        logprobs = branch.logprobs
        if self.weights == "count":
            return 1.0
        return math.exp(math.fsum(logprobs) / len(logprobs)) if logprobs else 0.0
