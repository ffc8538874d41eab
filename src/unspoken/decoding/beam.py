"""Beam search: the likeliest answers that are found by extending the best few beginnings together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from unspoken.decoding import _prompt, _sampling
from unspoken.decoding._base import Feed, Prompt, Row, State, Strategy
from unspoken.decoding._sequence import Branch, Decided, SequenceStrategy, Spawn, Work, room
from unspoken.errors import RunError

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM

STEEPEST = 10
"""Greatest length penalty: a length to a higher power may be beyond what a float holds."""


@dataclass(frozen=True)
class _Lookout(Strategy):
    """Looks at what may come next and takes no step; the search takes them.

    The row's memory gets `next`: (token, log-probability, whether it ends) for the likeliest tokens of all, and of
    those that end nothing.
    """

    count: int = 1
    """How many of each."""

    def begin(self, lm: CausalLM, row: Row) -> None:
        row.enter("think" if _prompt.opens_think(lm, row.prompt_ids) else "answer")

    def next_input(self, logits: Tensor, hidden: Tensor, state: State) -> list[Feed]:
        ends = state.lm.eos_ids
        k = min(self.count, logits.shape[-1])
        base = torch.logsumexp(logits, -1, keepdim=True)
        best, ids = _sampling.top_k(logits, k)
        going = logits.index_fill(
            -1, torch.tensor(sorted(ends), device=logits.device, dtype=torch.long), -math.inf
        )
        best_going, going_ids = _sampling.top_k(going, k)
        numbers = (torch.cat([best, best_going], -1).double() - base.double()).tolist()
        tokens = torch.cat([ids, going_ids], -1).tolist()
        for row, values, chosen in zip(state.rows, numbers, tokens, strict=True):
            found = dict(zip(chosen, values, strict=True))  # a token may be among both
            row.memory["next"] = [(t, lp, t in ends) for t, lp in found.items() if math.isfinite(lp)]
            row.counted = row.budget  # the row ends here, without a step
        return []

    def observe(self, row: Row, token_id: int, text: str) -> None:
        _prompt.follow_markers(row, text)


@dataclass(frozen=True)
class _Extension:
    """One more token after a beginning."""

    parent: Branch
    token: int
    logprob: float
    ends: bool
    total: float


@dataclass
class _Hypothesis:
    """A finished answer: decoded, or an extension by an end token, of which only the best is ever decoded."""

    found: Branch | _Extension
    total: float
    length: int
    score: float = field(default=0.0)


@dataclass(frozen=True)
class BeamSearch(SequenceStrategy):
    """Keep the `width` likeliest beginnings, and return the best finished answer.

    In each step every beginning is extended by every token. Extensions by an end token that are among the `width` best
    of all are finished answers; the `width` best of the others go on. The search ends when no beginning can become
    better than the best finished answer. What is found is often short or repeats itself: the likeliest text is not
    the best one.
    """

    formula: ClassVar[str] = "argmax log p(x) over the best beginnings"

    width: int = 4
    """Number of beginnings."""
    length_penalty: float = 0.0
    """Finished answers are compared by log-probability over length to this power; 0 compares log-probabilities."""
    think_open: Literal["none", "assistant_prefix", "user_suffix"] = "none"
    """Open a thinking block: at the start of the answer, at the end of the question, or not at all."""

    def problems(self) -> list[str]:
        found = [] if self.width >= 1 else [f"width must be at least 1, not {self.width}."]
        if not abs(self.length_penalty) <= STEEPEST:
            found.append(
                f"length_penalty must be from -{STEEPEST} to {STEEPEST}, not {self.length_penalty} (1 is the mean)."
            )
        return found

    @property
    def deterministic(self) -> bool:
        return True

    def prompt_ids(self, lm: CausalLM, prompt: Prompt) -> list[int]:
        return _prompt.with_opener(lm, prompt, self.think_open)

    def run(self, lm: CausalLM, row: Row) -> Work:
        longest = room(lm, row)
        look, seed = _Lookout(self.width), row.request.seed
        (root,) = yield [Spawn(look, row.budget, seed)]
        beginnings: list[tuple[Branch, float]] = [(root, 0.0)]
        finished: list[_Hypothesis] = []
        depth = 0
        while beginnings:
            ended, extended = self.extensions(beginnings)
            depth += 1
            finished = self.best(finished + [_Hypothesis(e, e.total, depth) for e in ended])
            if not extended or (finished and self.settled(finished[0], extended[0].total, depth, longest)):
                break
            branches = yield [
                Spawn(
                    look,
                    row.budget - depth + 1,
                    seed,
                    parent=e.parent,
                    keep=depth - 1,
                    decided=Decided(e.token, e.logprob, 0.0),
                    shown=place == 0,
                )
                for place, e in enumerate(extended)
            ]
            pairs = [(branch, e.total) for branch, e in zip(branches, extended, strict=True)]
            # One that its token has ended (the budget, a stop string) was not asked what comes next.
            beginnings = [pair for pair in pairs if "next" in pair[0].memory]
            done = [_Hypothesis(b, total, depth) for b, total in pairs if "next" not in b.memory]
            finished = self.best(finished + done)
        if not finished:
            raise RunError("The model gives no token a probability; there is nothing to search.")
        row.note("beam", self.summary(finished, depth))
        won = finished[0].found
        if isinstance(won, Branch):
            return won
        keep = len(won.parent.steps)
        end = Decided(won.token, won.logprob, 0.0)
        (branch,) = yield [
            Spawn(look, row.budget - keep, seed, parent=won.parent, keep=keep, decided=end, held=False)
        ]
        return branch

    def extensions(self, beginnings: list[tuple[Branch, float]]) -> tuple[list[_Extension], list[_Extension]]:
        """The best extensions that end, and that go on, each best first."""
        every = [
            _Extension(branch, token, logprob, ends, total + logprob)
            for branch, total in beginnings
            for token, logprob, ends in branch.memory["next"]
        ]
        every.sort(key=lambda e: -e.total)
        return [e for e in every[: self.width] if e.ends], [e for e in every if not e.ends][: self.width]

    def score(self, total: float, length: int) -> float:
        """What finished answers are compared by."""
        compared: float = total / length**self.length_penalty
        return compared

    def best(self, hypotheses: list[_Hypothesis]) -> list[_Hypothesis]:
        """The `width` best, best first."""
        for hypothesis in hypotheses:
            hypothesis.score = self.score(hypothesis.total, hypothesis.length)
        return sorted(hypotheses, key=lambda h: -h.score)[: self.width]

    def settled(self, best: _Hypothesis, total: float, length: int, longest: int) -> bool:
        """Whether no answer that begins with one of this log-probability and length can be better than the best.

        Log-probabilities only fall. A positive penalty favours long answers: the bound takes the greatest length.
        """
        return best.score >= self.score(total, longest if self.length_penalty > 0 else length)

    @staticmethod
    def summary(finished: list[_Hypothesis], depth: int) -> dict[str, Any]:
        """What was found, for a note."""
        listed = [{"score": h.score, "logprob": h.total, "length": h.length} for h in finished]
        return {"depth": depth, "finished": listed}
