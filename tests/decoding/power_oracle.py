"""Power sampling worked out by listing every answer, from a next-token law alone.

Nothing here shares a formula with the sampler: acceptance probabilities come from whole-sequence probabilities and
the probabilities of proposals in both directions, not from sums of weights over suffixes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

Answer = tuple[int, ...]
Distribution = dict[Answer, float]
DEFECTS = frozenset({"C1", "C2", "C4"})


@dataclass(frozen=True, eq=False)
class Oracle:
    """A toy whose answers can be listed.

    Attributes:
        law: From the tokens so far to the [V] probabilities of the next one (temperature 1, no filter).
        ends: End tokens.
        limit: Most tokens of an answer.
        alpha: Exponent of the target.
        tau: Temperature of the proposals.
        top_k: How many tokens a proposal may take; 0 is all.
        cuts: `present` draws a cut from the tokens that are there, `block` from all places up to the cap.
        swap: Accept only what is likelier.
        defects: Of the published loop: C1 cuts the present answer's sums at the proposal's length, C2 caps a
            proposal at the present length, C4 forgets that two answers offer different numbers of cuts.
    """

    law: Callable[[Answer], np.ndarray]
    ends: frozenset[int]
    limit: int
    alpha: float = 2.0
    tau: float = 0.5
    top_k: int = 0
    cuts: str = "present"
    swap: bool = False
    defects: frozenset[str] = frozenset()
    _known: dict = field(default_factory=dict)

    def p(self, prefix: Answer) -> np.ndarray:
        """[V] the model's law."""
        key = "p", prefix
        if key not in self._known:
            self._known[key] = np.asarray(self.law(prefix), dtype=np.float64)
        return self._known[key]

    def q(self, prefix: Answer) -> np.ndarray:
        """[V] the proposal's law: p to the power 1/tau on the likeliest tokens, normalised."""
        key = "q", prefix
        if key not in self._known:
            p = self.p(prefix)
            powered = p ** (1.0 / self.tau)
            if self.top_k:
                powered = np.where(p >= np.sort(p)[::-1][min(self.top_k, len(p)) - 1], powered, 0.0)
            self._known[key] = powered / powered.sum()
        return self._known[key]

    def ended(self, answer: Answer) -> bool:
        return bool(answer) and answer[-1] in self.ends

    def whole(self, answer: Answer, until: int | None = None) -> float:
        """p(answer), of its first tokens if asked."""
        return math.prod(self.p(answer[:t])[token] for t, token in enumerate(answer[:until]))

    def drawn(self, answer: Answer, since: int, until: int | None = None) -> float:
        """Probability that proposals from the cut draw the rest of the answer."""
        return math.prod(self.q(answer[:t])[token] for t, token in enumerate(answer[:until]) if t >= since)

    def completions(self, prefix: Answer, cap: int) -> list[Answer]:
        """What a proposal may make of a prefix."""
        key = prefix, cap
        if key not in self._known:
            if len(prefix) == cap or self.ended(prefix):
                self._known[key] = [prefix]
            else:
                law = self.q(prefix)
                self._known[key] = [
                    answer
                    for token in np.flatnonzero(law).tolist()
                    for answer in self.completions((*prefix, token), cap)
                ]
        return self._known[key]

    @cached_property
    def _moves(self) -> dict[tuple[Answer, int], Distribution]:
        return {}

    def states(self, cap: int) -> list[Answer]:
        """The legal states: answers that have ended within the cap, or fill it."""
        return self.completions((), cap)

    def target(self, cap: int | None = None) -> Distribution:
        """p^alpha, normalised over the legal states."""
        weights = {x: self.whole(x) ** self.alpha for x in self.states(cap or self.limit)}
        total = math.fsum(weights.values())
        return {x: w / total for x, w in weights.items()}

    def accept(self, old: Answer, new: Answer, cut: int) -> float:
        """Probability to accept."""
        if self.swap:
            return float(self.whole(new) > self.whole(old))
        until = len(new) if "C1" in self.defects else None
        forward, back = self.drawn(new, cut), self.drawn(old, cut, until)
        gain = self.whole(new) ** self.alpha / self.whole(old, until) ** self.alpha
        ratio = gain * back / forward
        if self.cuts == "present" and "C4" not in self.defects:
            ratio *= len(old) / len(new)
        return min(1.0, ratio)

    def move(self, old: Answer, cap: int) -> Distribution:
        """The law of the state after one move."""
        if (old, cap) not in self._moves:
            out: Distribution = {}
            n = len(old)
            places = n if self.cuts == "present" else cap
            stays = 1.0
            for cut in range(min(n, places)):
                for new in self.completions(old[:cut], n if "C2" in self.defects else cap):
                    chance = self.drawn(new, cut) * self.accept(old, new, cut) / places
                    out[new] = out.get(new, 0.0) + chance
                    stays -= chance
            out[old] = out.get(old, 0.0) + stays
            self._moves[old, cap] = out
        return self._moves[old, cap]

    def matrix(self, cap: int) -> tuple[np.ndarray, np.ndarray]:
        """The kernel on the legal states, and the target there."""
        states = self.states(cap)
        place = {x: i for i, x in enumerate(states)}
        m = np.zeros((len(states), len(states)))
        for x in states:
            for y, chance in self.move(x, cap).items():
                if y in place:  # a defective kernel may leave the legal states: that mass is lost
                    m[place[x], place[y]] = chance
        target = self.target(cap)
        return m, np.array([target[x] for x in states])

    # -- whole runs -------------------------------------------------------------------------------

    def moved(self, start: Distribution, cap: int, steps: int) -> Distribution:
        for _ in range(steps):
            after: Distribution = {}
            for x, mass in start.items():
                for y, chance in self.move(x, cap).items():
                    after[y] = after.get(y, 0.0) + mass * chance
            start = after
        return start

    def extended(self, start: Distribution, end: Callable[[Answer], int]) -> Distribution:
        after: Distribution = {}
        for x, mass in start.items():
            until = end(x)
            options = [x] if self.ended(x) or len(x) >= until else self.completions(x, until)
            for y in options:
                after[y] = after.get(y, 0.0) + mass * self.drawn(y, len(x))
        return after

    def result(
        self, block: int, steps: int, stop_mode: str = "final", final_steps: int | None = None
    ) -> Distribution:
        """The law of the answer of a whole run."""
        live: Distribution = {(): 1.0}
        done: Distribution = {}
        cap = block
        while cap < self.limit:
            live = self.moved(self.extended(live, lambda x, cap=cap: cap), cap, steps)
            if stop_mode != "full":
                done = merged(done, {x: mass for x, mass in live.items() if self.ended(x)})
                live = {x: mass for x, mass in live.items() if not self.ended(x)}
            cap += block
        if stop_mode == "final":
            live, done = merged(live, done), {}
        live = self.extended(live, lambda x: self.limit)
        last = final_steps if stop_mode == "final" and final_steps is not None else steps
        return merged(done, self.moved(live, self.limit, last))

    def published(self, block: int, steps: int) -> Distribution:
        """The law of the answer of the published loop; needs all of its defects."""
        assert self.defects == DEFECTS
        live: Distribution = {(): 1.0}
        done: Distribution = {}
        for _ in range(-(-self.limit // block)):
            live = self.extended(live, lambda x: min(len(x) + block, self.limit))
            live = self.moved(live, 0, steps)  # there is no cap but the present length
            done = merged(done, {x: mass for x, mass in live.items() if self.ended(x)})
            live = {x: mass for x, mass in live.items() if not self.ended(x)}
        return merged(done, live)


def merged(a: Distribution, b: Distribution) -> Distribution:
    return {x: a.get(x, 0.0) + b.get(x, 0.0) for x in a.keys() | b.keys()}


def residual(m: np.ndarray, pi: np.ndarray) -> tuple[float, float]:
    """`max |pi M - pi|` and `max |pi_i M_ij - pi_j M_ji|`: is the target stationary, and in detailed balance?"""
    flow = pi[:, None] * m
    return float(np.abs(pi @ m - pi).max()), float(np.abs(flow - flow.T).max())


def distance(a: Distribution, b: Distribution) -> float:
    """Total variation."""
    return 0.5 * sum(abs(a.get(x, 0.0) - b.get(x, 0.0)) for x in a.keys() | b.keys())


def frequencies(answers: Iterable[Sequence[int]]) -> Distribution:
    """The empirical law."""
    counts = Counter(tuple(answer) for answer in answers)
    total = sum(counts.values())
    return {x: count / total for x, count in counts.items()}


def p_value(answers: Sequence[Sequence[int]], law: Distribution, least: float = 5.0) -> float:
    """Pearson's chi-square test; cells that expect fewer than `least` are pooled, 0 if one is impossible."""
    counts, n = Counter(tuple(answer) for answer in answers), len(answers)
    if any(law.get(x, 0.0) < 1e-13 for x in counts):
        return 0.0
    pooled, cells = [0.0, 0.0], []
    for x, mass in sorted(law.items(), key=lambda item: item[1]):
        if pooled[1] < least or n * mass < least:
            pooled[0] += counts[x]
            pooled[1] += n * mass
        else:
            cells.append((counts[x], n * mass))
    cells.append((pooled[0], pooled[1]))
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells)
    degrees = len(cells) - 1
    return float(torch.special.gammaincc(torch.tensor(degrees / 2), torch.tensor(statistic / 2)))
