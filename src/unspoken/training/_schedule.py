"""How much of the chain of thought is removed at each micro-batch.

The count schedule is that of stepwise internalisation (arXiv 2405.14838): with `B` micro-batches an epoch and
`R` units removed an epoch, `S = round(B / R)` (half to even), and after `t` micro-batches `s(t) = s0 + t // S`
units are to go, from the micro-batch on at which that reaches `K` all of them. Each row loses `o` units more,
drawn anew at every step from `P(o) ~ exp(-L o)`. A unit is a token or a whole step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor

MAX_OFFSET = 99

Kind = Literal["count", "accuracy_gated", "fraction", "joint", "switch"]


def offset_law(smoothing: float) -> Tensor:
    """[100] float64: probability of each random offset; the tail's mass lies on the last.

    Args:
        smoothing: L, above 0; infinite means no offset.
    """
    if math.isinf(smoothing):
        return torch.eye(MAX_OFFSET + 1, dtype=torch.float64)[0]
    k = torch.arange(MAX_OFFSET + 2, dtype=torch.float64)
    at_least = torch.exp(-smoothing * k)
    law = at_least[:-1] - at_least[1:]
    law[-1] = at_least[-2]
    return law


def draw_offsets(n: int, smoothing: float, generator: torch.Generator) -> Tensor:
    """[n] int64: independent offsets by `offset_law`, from one draw of n uniform numbers."""
    if math.isinf(smoothing):
        return torch.zeros(n, dtype=torch.int64)
    u = 1.0 - torch.rand(n, generator=generator, dtype=torch.float64)  # in (0, 1]
    return torch.floor(-torch.log(u) / smoothing).clamp_(max=MAX_OFFSET).to(torch.int64)


@dataclass(frozen=True)
class Stage:
    """What a schedule says at one micro-batch.

    Attributes:
        kind: Of the schedule.
        count: Units to remove from every row, may be infinite (kinds `count` and `accuracy_gated`).
        share: Share of each row to remove (the other kinds); the row's own is drawn for `joint` and `switch`.
        smoothing: L of the random offsets of training; infinite means none.
        beta: Of `joint`, whose shares are Beta(beta, beta).
    """

    kind: Kind
    count: float = 0.0
    share: float = 0.0
    smoothing: float = math.inf
    beta: float = 1.0

    def removals(self, units: Tensor, generator: torch.Generator | None) -> Tensor:
        """How many units each row loses.

        Args:
            units: [n] int64, how many each row has.
            generator: Of the random draws; None is the schedule without randomness, as for evaluation.

        Returns:
            [n] int64, at most `units`.
        """
        if self.kind in ("count", "accuracy_gated"):
            if math.isinf(self.count):
                return units.clone()
            removed = torch.full_like(units, int(self.count))
        elif self.kind == "joint" and generator is not None:
            removed = torch.floor(self._beta(len(units), generator) * (units + 1)).to(torch.int64)
        elif self.kind == "switch" and generator is not None:
            share = torch.full(units.shape, self.share, dtype=torch.float64)
            removed = torch.binomial(units.double(), share, generator=generator).to(torch.int64)
        else:
            removed = torch.ceil(self.share * units.double() - 1e-9).to(torch.int64)
        if generator is not None:
            removed = removed + draw_offsets(len(units), self.smoothing, generator)
        return torch.minimum(removed, units)

    def _beta(self, n: int, generator: torch.Generator) -> Tensor:
        if self.beta == 1.0:
            return torch.rand(n, generator=generator, dtype=torch.float64)
        gammas = torch._standard_gamma(
            torch.full((2, n), self.beta, dtype=torch.float64), generator=generator
        )
        return gammas[0] / gammas.sum(dim=0)


@dataclass(frozen=True)
class Schedule:
    """A removal schedule. Except for `accuracy_gated`, a pure function of the number of the micro-batch.

    Attributes:
        kind: Which law; see `stage`.
        epoch_steps: B, micro-batches of an epoch.
        total_steps: Micro-batches of the run.
        per_epoch: R, units removed an epoch; 0 removes none.
        every: Micro-batches per unit, instead of `round(B / R)`; 0 takes that.
        start: s0.
        all_beyond: K.
        smoothing: L.
        begin: Micro-batches before anything begins (pretraining); may be infinite.
        share_from: Share at the beginning of a ramp.
        ramp_end: The part of the run at which a ramp reaches 1.
        beta: See `Stage`.
    """

    kind: Kind
    epoch_steps: int
    total_steps: int
    per_epoch: float = 8.0
    every: int = 0
    start: float = 0.0
    all_beyond: float = math.inf
    smoothing: float = math.inf
    begin: float = 0.0
    share_from: float = 0.0
    ramp_end: float = 1.0
    beta: float = 1.0

    @property
    def steps_per_unit(self) -> float:
        """S; 0 where more than one unit goes at a step, infinite where none ever goes."""
        if self.every:
            return self.every
        return math.inf if self.per_epoch == 0 else round(self.epoch_steps / self.per_epoch)

    def planned(self, t: int) -> float:
        """Units to remove at micro-batch t by the count law, before the threshold K applies."""
        done = t - self.begin
        if math.isinf(self.start) or done < 0 or math.isinf(self.steps_per_unit):
            return self.start
        if self.steps_per_unit == 0:
            return self.start + math.floor(Fraction(self.per_epoch) * (int(done) + 1) / self.epoch_steps)
        return self.start + done // self.steps_per_unit

    def capped(self, count: float) -> float:
        """The count, or infinity from the threshold K on."""
        return math.inf if count >= self.all_beyond else count

    def share(self, t: int) -> float:
        """The ramp: `p0 + (1 - p0) (t - t0) / (T - t0)`, 0 before t0 and 1 after T."""
        if t < self.begin:
            return 0.0
        end = self.ramp_end * self.total_steps
        if t >= end:
            return 1.0
        return self.share_from + (1.0 - self.share_from) * (t - self.begin) / (end - self.begin)

    def stage(self, t: int, raised: int = 0) -> Stage:
        """What is removed at micro-batch t.

        Args:
            t: Number of the micro-batch.
            raised: How often an accuracy gate has opened by then.
        """
        smoothing = self.smoothing if t >= self.begin else math.inf
        if self.kind == "count":
            return Stage(self.kind, self.capped(self.planned(t)), smoothing=smoothing)
        if self.kind == "accuracy_gated":
            return Stage(self.kind, self.capped(self.start + raised), smoothing=smoothing)
        if self.kind == "joint":
            if t < self.begin:
                return Stage("fraction")
            return Stage("joint", share=1.0, smoothing=smoothing, beta=self.beta)
        return Stage(self.kind, share=self.share(t), smoothing=smoothing)

    def grows(self, t: int) -> bool:
        """Whether micro-batch t removes a unit more than the one before it did."""
        if self.kind != "count" or t == 0 or math.isinf(self.capped(self.planned(t - 1))):
            return False
        return self.planned(t) > self.planned(t - 1)


class Gate:
    """Raises the count when the model has learned the present stage: the schedule with a state.

    A decision on micro-batch t takes effect `lag` micro-batches later, so that batches may be prepared ahead
    (a whole accumulation window and one more) without the result depending on how far ahead.

    Args:
        threshold: Mean token accuracy over the window at which the count is raised.
        max_steps: Raise it after so many micro-batches anyhow; 0 never does.
        begin: Micro-batches before the first decision.
        lag: Micro-batches from a decision to its effect.
    """

    WINDOW = 20

    def __init__(self, threshold: float, max_steps: int, begin: float, lag: int) -> None:
        self.threshold, self.max_steps, self.begin, self.lag = threshold, max_steps, begin, lag
        self.raises: list[int] = []
        self.window: list[list[float]] = []

    def raised(self, t: int) -> int:
        """How often the count has been raised by micro-batch t."""
        return sum(at <= t for at in self.raises)

    def observe(self, t: int, correct: float, items: float) -> None:
        """Note the accuracy of micro-batch t; to be called once for each, in order."""
        last = self.raises[-1] if self.raises else 0
        if t < self.begin or t < last:
            return  # what was seen before a raise took effect says nothing about the stage after it
        self.window = [*self.window, [float(correct), float(items)]][-self.WINDOW :]
        right, seen = (sum(column) for column in zip(*self.window, strict=True))
        learned = len(self.window) == self.WINDOW and right >= self.threshold * max(seen, 1.0)
        if learned or (self.max_steps and t + 1 - max(last, self.begin) >= self.max_steps):
            self.raises.append(t + self.lag)
            self.window = []

    def state(self) -> dict[str, Any]:
        """All it remembers, JSON-ready."""
        return {"raises": list(self.raises), "window": [list(pair) for pair in self.window]}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        self.raises = [int(at) for at in state["raises"]]
        self.window = [list(map(float, pair)) for pair in state["window"]]
