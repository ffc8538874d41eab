"""Exact laws of power sampling on models so small that every answer can be listed.

Sequences of generated tokens are tuples of ids. A law of what comes next is given for every sequence that may go
on; everything else is computed from it by enumeration: the target p^alpha, the matrix of one move, and the law of
what a whole run returns after any number of moves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from unspoken.decoding._power import Target
from unspoken.decoding.power import PowerSampling

Sequence = tuple[int, ...]
Array = NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Laws:
    """What comes next, under the model and under the proposal.

    Attributes:
        lp: For each sequence that may go on, the log-probability of each token under the model.
        lq: Under the proposal; the same tokens.
        ends: Tokens that end a sequence.
        limit: Most tokens of a sequence.
    """

    lp: Mapping[Sequence, Mapping[int, float]]
    lq: Mapping[Sequence, Mapping[int, float]]
    ends: frozenset[int]
    limit: int

    @cached_property
    def sequences(self) -> list[Sequence]:
        """All sequences up to the limit, the empty one first; a shorter one before a longer one."""
        found: list[Sequence] = [()]
        for sequence in found:  # it grows meanwhile
            if self.open(sequence) and len(sequence) < self.limit:
                found += [(*sequence, token) for token in self.lp[sequence]]
        return found

    @cached_property
    def _known(self) -> dict[object, Any]:
        return {}

    @cached_property
    def place(self) -> dict[Sequence, int]:
        """Where a sequence is in `sequences`, which every vector and matrix follows."""
        return {sequence: i for i, sequence in enumerate(self.sequences)}

    @cached_property
    def ended(self) -> NDArray[np.bool_]:
        """Which sequences end with an end token."""
        return np.array([not self.open(sequence) for sequence in self.sequences])

    def open(self, sequence: Sequence) -> bool:
        return not sequence or sequence[-1] not in self.ends

    def states(self, cap: int) -> list[int]:
        """Places of the legal states: ended within the cap, or as long as it."""
        return [
            i
            for i, s in enumerate(self.sequences)
            if s and len(s) <= cap and (len(s) == cap or not self.open(s))
        ]

    def numbers(self, sequence: Sequence) -> list[tuple[float, float]]:
        """`lp` and `lq` of each of its tokens."""
        return [
            (self.lp[sequence[:t]][token], self.lq[sequence[:t]][token]) for t, token in enumerate(sequence)
        ]

    def target(self, alpha: float) -> Array:
        """p^alpha on the states of the limit."""
        law = np.zeros(len(self.sequences))
        for i in self.states(self.limit):
            law[i] = math.exp(alpha * math.fsum(lp for lp, _ in self.numbers(self.sequences[i])))
        return np.asarray(law / law.sum())

    def start(self) -> Array:
        """All mass on the empty sequence."""
        law = np.zeros(len(self.sequences))
        law[0] = 1.0
        return law

    def extension(self, ends: Callable[[int], int], *, plain: bool = False) -> Array:
        """Matrix of going on by proposals (or by the model's own law) to an end token or the length `ends(n)`."""
        rows = np.eye(len(self.sequences))
        laws = self.lp if plain else self.lq
        for i, sequence in enumerate(self.sequences):
            until = ends(len(sequence))
            if self.open(sequence) and len(sequence) < until:
                rows[i] = 0.0
                for j, drawn in self._completions(sequence, until, laws):
                    rows[i, j] = drawn
        return rows

    def _completions(
        self, prefix: Sequence, cap: int, laws: Mapping[Sequence, Mapping[int, float]]
    ) -> list[tuple[int, float]]:
        """Places and probabilities of what may come of a prefix."""
        found, front = [], [(prefix, 0.0)]
        while front:
            sequence, logq = front.pop()
            if len(sequence) == cap or (sequence != prefix and not self.open(sequence)):
                found.append((self.place[sequence], math.exp(logq)))
            else:
                front += [((*sequence, token), logq + q) for token, q in laws[sequence].items()]
        return found

    def move(self, target: Target, cap: int) -> Array:
        """Matrix of one move at a cap, by the sampler's own weights, ratio and decision; rows of others stay."""

        def make() -> Array:
            matrix = np.zeros((len(self.sequences),) * 2)
            sums = {i: self._suffix_sums(i, target.weight) for i in self.states(cap)}
            for i, old in sums.items():
                n = len(old) - 1
                for cut in range(n):
                    chance = 1.0 / (n if target.corrected else cap)
                    for j, drawn in self._proposals(self.sequences[i][:cut], cap):
                        ratio = target.log_ratio(sums[j][cut], len(sums[j]) - 1, old[cut], n)
                        matrix[i, j] += chance * drawn * acceptance(target, ratio)
            return _filled(matrix)

        return self._once(("move", target, cap), make)

    def published_move(self, alpha: float) -> Array:
        """Matrix of one move of the published loop: sums cut at the proposal's length, which the present one caps."""

        def make() -> Array:
            matrix = np.zeros((len(self.sequences),) * 2)
            sums = [self._suffix_sums(i, lambda p, q: alpha * p - q) for i in range(len(self.sequences))]
            for i, old in enumerate(sums):
                n = len(old) - 1
                for cut in range(n):
                    for j, drawn in self._proposals(self.sequences[i][:cut], n):
                        ratio = sums[j][cut] - (old[cut] - old[len(sums[j]) - 1])
                        matrix[i, j] += drawn * math.exp(min(0.0, ratio)) / n
            return _filled(matrix)

        return self._once(("published", alpha), make)

    def _suffix_sums(self, place: int, weight: Callable[[float, float], float]) -> list[float]:
        """Sum of the weights from each position to the end; 0 at the end."""
        numbers = self.numbers(self.sequences[place])
        sums = [0.0]
        for pair in reversed(numbers):
            sums.append(sums[-1] + weight(*pair))
        return sums[::-1]

    def _proposals(self, prefix: Sequence, cap: int) -> list[tuple[int, float]]:
        """Places and probabilities of what a proposal may make of a prefix."""
        return self._once((prefix, cap), lambda: self._completions(prefix, cap, self.lq))

    def _once(self, key: object, make: Callable[[], T]) -> T:
        """What was computed before, or now."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]  # type: ignore[no-any-return]

    def result(self, strategy: PowerSampling) -> Array:
        """The law of what a run with these settings and the budget `limit` returns."""
        return (
            self._published_result(strategy) if strategy.mode == "reference" else self._exact_result(strategy)
        )

    def _exact_result(self, s: PowerSampling) -> Array:
        live, done = self.start(), np.zeros(len(self.sequences))
        caps = s.caps(self.limit)
        for cap in caps[:-1]:
            live = live @ self.extension(_to(cap))
            live = _repeated(live, self.move(s.target, cap), s.mcmc_steps)
            if s.stop_mode != "full":
                done, live = done + live * self.ended, live * ~self.ended
        if s.stop_mode != "original":
            live, done = live + done, np.zeros(len(self.sequences))
        live = live @ self.extension(_to(self.limit))
        steps = s.final_steps if s.stop_mode == "final" and s.final_steps is not None else s.mcmc_steps
        return done + _repeated(live, self.move(s.target, self.limit), steps)

    def _published_result(self, s: PowerSampling) -> Array:
        live, done = self.start(), np.zeros(len(self.sequences))
        caps = s.caps(self.limit)
        size, move = caps[0], self.published_move(s.target.alpha)
        for _ in caps:
            live = live @ self.extension(lambda n: min(n + size, self.limit))
            live = _repeated(live, move, s.mcmc_steps)
            done, live = done + live * self.ended, live * ~self.ended
        return done + live


def acceptance(target: Target, log_ratio: float) -> float:
    """The probability with which the sampler's decision accepts this ratio."""
    if target.swap:
        return float(target.accepts(log_ratio, 0.0))
    return math.exp(min(0.0, log_ratio))


def _to(cap: int) -> Callable[[int], int]:
    return lambda _: cap


def _filled(matrix: Array) -> Array:
    """What a move does not leave for stays."""
    matrix[np.diag_indices_from(matrix)] += 1.0 - matrix.sum(1)
    return matrix


def _repeated(law: Array, matrix: Array, times: int) -> Array:
    for _ in range(times):
        law = law @ matrix
    return law


def markov(size: int, limit: int, tau: float, *, seed: int, top_k: int = 0) -> Laws:
    """An order-2 Markov model with Dirichlet(0.7) rows; the last of its tokens ends a sequence.

    Args:
        size: Tokens.
        limit: Most tokens of a sequence.
        tau: Temperature of the proposals.
        seed: Of the table.
        top_k: How many tokens the proposals may take; 0 is all.
    """
    random = np.random.default_rng(seed)
    table = random.dirichlet(np.full(size, 0.7), (size + 1, size + 1)).clip(1e-12)
    lp: dict[Sequence, dict[int, float]] = {}
    lq: dict[Sequence, dict[int, float]] = {}
    front: list[Sequence] = [()]
    for sequence in front:
        before = (size, size, *sequence)[-2:]
        row = np.log(table[before] / table[before].sum())
        kept = np.argsort(-row, kind="stable")[: top_k or size].tolist()
        lp[sequence] = {token: float(row[token]) for token in kept}
        norm = math.log(math.fsum(math.exp(row[token] / tau) for token in kept))
        lq[sequence] = {token: float(row[token]) / tau - norm for token in kept}
        if len(sequence) + 1 < limit:
            front += [(*sequence, token) for token in kept if token != size - 1]
    return Laws(lp, lq, frozenset([size - 1]), limit)
