"""Intervals, paired tests and estimators, in closed form or by seeded resampling.

Only numpy and the standard library. Every function takes plain numbers, so that each can be checked
against a formula or an enumeration.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, mean, median, stdev
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from unspoken.evaluation.records import ResultRow

RESAMPLES = 5000


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval: its ends, its level and how it was made (`wilson` or `bootstrap`)."""

    low: float
    high: float
    level: float = 0.95
    method: str = "wilson"

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def wilson(correct: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion of independent outcomes; [0, 1] when there are none.

    Raises:
        ValueError: If `correct` is not within 0..n, or the level not within (0, 1).
    """
    if not 0 <= correct <= n:
        raise ValueError(f"correct must be within 0..{n}, not {correct}")
    if n == 0:
        return Interval(0.0, 1.0, level)
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p = correct / n
    middle = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At 0 and n the exact ends are 0 and 1; rounding would leave them a hair off.
    low = 0.0 if correct == 0 else (middle - half) / scale
    high = 1.0 if correct == n else (middle + half) / scale
    return Interval(low, high, level)


def bootstrap(
    groups: Sequence[Sequence[float]],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of the mean of all values, resampling whole groups.

    Args:
        groups: The values of each independent unit: one group an example, one value a sample. Samples of
            one example are not independent, so an example enters with all of its samples or not at all.
        level: Of confidence.
        resamples: Number of resamples.
        seed: Of the resampling; the same input gives the same interval.

    Raises:
        ValueError: If there are no groups or a group is empty.
    """
    if not groups or not all(len(g) for g in groups):
        raise ValueError("the bootstrap needs at least one group, and no empty ones")
    sums = np.array([math.fsum(g) for g in groups])
    sizes = np.array([len(g) for g in groups], dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    chunk = max(1, 1_000_000 // len(groups))  # bounds the index matrix to a million entries
    for first in range(0, resamples, chunk):
        last = min(resamples, first + chunk)
        picked = rng.integers(0, len(groups), size=(last - first, len(groups)))
        means[first:last] = sums[picked].sum(axis=1) / sizes[picked].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level, "bootstrap")


def accuracy_interval(outcomes: Sequence[Sequence[bool]], level: float = 0.95) -> Interval:
    """The interval of an accuracy: Wilson with one sample an example, else bootstrap over examples.

    Where all outcomes agree a bootstrap has no width and claims too much; Wilson's interval for as many
    outcomes as there are examples is given instead.
    """
    total, correct = sum(map(len, outcomes)), sum(map(sum, outcomes))
    if all(len(o) == 1 for o in outcomes):
        return wilson(correct, total, level)
    if correct in (0, total):
        return wilson(len(outcomes) if correct else 0, len(outcomes), level)
    return bootstrap([[float(x) for x in o] for o in outcomes], level=level)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k samples is correct (arXiv 2107.03374, eq. 1).

    Args:
        n: Samples drawn.
        correct: How many of them were correct.
        k: Samples of the hypothetical draw, at most n.

    Raises:
        ValueError: If the numbers are impossible.
    """
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(
            f"pass@k needs 0 <= correct <= n and 1 <= k <= n, not n={n}, correct={correct}, k={k}"
        )
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def clusters(answers: Sequence[str | None], equivalent: Callable[[str, str], bool]) -> list[int | None]:
    """Number the distinct answers, in order of first appearance; None stays None (it casts no vote)."""
    firsts: list[str] = []
    numbers: list[int | None] = []
    for answer in answers:
        if answer is None:
            numbers.append(None)
            continue
        same = (i for i, first in enumerate(firsts) if answer == first or equivalent(first, answer))
        found = next(same, None)
        if found is None:
            firsts.append(answer)
            found = len(firsts) - 1
        numbers.append(found)
    return numbers


def majority_at_k(votes: Sequence[int | None], right: Iterable[int], k: int) -> float:
    """Chance that the most frequent answer among k of the samples is correct.

    The mean over all subsets of size k, counted exactly: for each correct answer and each number of votes
    it may get, the ways to choose the rest such that no other answer has more. A tie between t answers
    gives 1/t to each. Samples without an answer cast no vote; a subset of only such samples is wrong.

    Args:
        votes: The number of each sample's answer (see `clusters`), or None.
        right: The numbers of correct answers.
        k: Samples of the hypothetical draw, at most the number of votes.

    Raises:
        ValueError: If k is impossible.
    """
    n = len(votes)
    if not 1 <= k <= n:
        raise ValueError(f"maj@k needs 1 <= k <= n, not n={n}, k={k}")
    counts = Counter(v for v in votes if v is not None)
    silent = n - sum(counts.values())
    won = 0.0
    for answer in set(right) & counts.keys():
        others = [count for other, count in counts.items() if other != answer]
        for got in range(1, min(k, counts[answer]) + 1):
            ways = _ways_not_above(others, silent, k - got, got)
            won += math.comb(counts[answer], got) * sum(w / (ties + 1) for ties, w in ways.items())
    return won / math.comb(n, k)


def _ways_not_above(others: Sequence[int], silent: int, draws: int, got: int) -> dict[int, int]:
    """Ways to draw from the other answers with none above `got` votes, by how many reach `got`."""
    table = {(used, 0): math.comb(silent, used) for used in range(min(silent, draws) + 1)}
    for count in others:
        grown: dict[tuple[int, int], int] = {}
        for (used, ties), ways in table.items():
            for take in range(min(count, got, draws - used) + 1):
                key = (used + take, ties + (take == got))
                grown[key] = grown.get(key, 0) + ways * math.comb(count, take)
        table = grown
    return {ties: ways for (used, ties), ways in table.items() if used == draws}


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided McNemar test of two paired sets of outcomes.

    Args:
        only_first: Pairs where only the first is correct.
        only_second: Pairs where only the second is correct.

    Returns:
        The p value: twice the smaller binomial tail at 1/2, at most 1; 1 when no pair differs.
    """
    n, smaller = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, i) for i in range(smaller + 1))
    return min(1.0, tail / 2 ** (n - 1)) if n else 1.0


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference of accuracies, second minus first.

    Attributes:
        mean: Of the differences of the examples.
        interval: Bootstrap over examples; from Wilson's bound where no example differs from another.
        n: Number of examples.
        p: Of the exact McNemar test.
        voted: Whether McNemar's test compared majority votes instead of single answers.
    """

    mean: float
    interval: Interval
    n: int
    p: float
    voted: bool = False

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is outside the interval."""
        tiny = 1e-9  # a mean of thirds that should be 0 is not always
        return self.interval.low > tiny or self.interval.high < -tiny

    @property
    def disputed(self) -> bool:
        """Whether the interval excludes 0 although the exact test of the same answers does not reject.

        With a handful of differing examples the bootstrap is too sure of itself.
        """
        return self.excludes_zero and not self.voted and self.p > 1 - self.interval.level

    @property
    def found(self) -> bool:
        """Whether a difference may be claimed: the interval excludes 0, and the exact test does not object."""
        return self.excludes_zero and not self.disputed


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    *,
    discordant: tuple[int, int],
    voted: bool = False,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """The difference of two scores of the same examples, with an interval over examples.

    Args:
        first: One score an example: the share of its samples that are correct.
        second: The same examples' scores under the other condition.
        discordant: Examples that only the first, and only the second, gets right, for McNemar's test.
        voted: Whether these are counts of majority votes.
        level: Of confidence.
        resamples: Number of resamples.
        seed: Of the resampling.

    Raises:
        ValueError: If there are no examples, or the lengths differ.
    """
    differences = [b - a for a, b in zip(first, second, strict=True)]
    if len(set(differences)) == 1:
        interval = _of_equal_values(differences[0], len(differences), level)
    else:
        interval = bootstrap([[d] for d in differences], level=level, resamples=resamples, seed=seed)
    mean_difference = math.fsum(differences) / len(differences)
    return Difference(mean_difference, interval, len(differences), mcnemar(*discordant), voted)


def _of_equal_values(value: float, n: int, level: float) -> Interval:
    """The interval of a mean of values in [-1, 1] of which n have been seen, all of them `value`.

    Resampling them would give no width at all. A share of others up to Wilson's bound for 0 of n is possible, and
    those may lie at either end.
    """
    others = wilson(0, n, level).high
    return Interval(value - others * (1 + value), value + others * (1 - value), level, "wilson")


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, median, sample standard deviation, least and greatest of some numbers."""

    mean: float
    median: float
    std: float
    min: float
    max: float


def spread(values: Sequence[float]) -> Spread:
    """Describe some numbers; the standard deviation of a single one is 0.

    Raises:
        ValueError: If there are none.
    """
    if not values:
        raise ValueError("no values to describe")
    deviation = stdev(values) if len(values) > 1 else 0.0
    return Spread(
        float(mean(values)), float(median(values)), float(deviation), float(min(values)), float(max(values))
    )


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """What the answers of a run cost.

    Attributes:
        n: Number of answers.
        tokens: Tokens chosen from the model's law, an answer.
        latent_steps: Soft and latent steps, an answer.
        forced_tokens: Forced and filler tokens, an answer.
        forward_passes: Forwards, an answer.
        phases: Mean number of steps in each phase.
        reasons: How many answers ended for each reason.
        notes: For each note with a word as its value (why thinking ended, say), how often each word came.
        latent_coverage: Share of the chosen steps that were latent.
        measures: Means over answers of what was measured at each step, such as entropy in nats.
    """

    n: int
    tokens: Spread
    latent_steps: Spread
    forced_tokens: Spread
    forward_passes: Spread
    phases: dict[str, float]
    reasons: dict[str, int]
    notes: dict[str, dict[str, int]]
    latent_coverage: float
    measures: dict[str, float]


def token_budget(rows: Sequence[ResultRow]) -> TokenBudget:
    """What the answers cost.

    Raises:
        ValueError: If there are no rows.
    """
    usages = [row.usage for row in rows]
    latent, tokens = sum(u.latent_steps for u in usages), sum(u.tokens for u in usages)
    notes: dict[str, Counter[str]] = {}
    measures: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.notes.items():
            if isinstance(value, str):
                notes.setdefault(name, Counter())[value] += 1
        for name, number in row.measures.items():
            measures.setdefault(name, []).append(number)
    phases = [phase for phase in ("think", "transition", "answer") if any(phase in r.phases for r in rows)]
    return TokenBudget(
        n=len(rows),
        tokens=spread([u.tokens for u in usages]),
        latent_steps=spread([u.latent_steps for u in usages]),
        forced_tokens=spread([u.forced_tokens for u in usages]),
        forward_passes=spread([u.forward_passes for u in usages]),
        phases={p: mean(row.phases.get(p, 0) for row in rows) for p in phases},
        reasons=dict(Counter(row.reason for row in rows).most_common()),
        notes={name: dict(counts.most_common()) for name, counts in sorted(notes.items())},
        latent_coverage=latent / (latent + tokens) if latent + tokens else 0.0,
        measures={name: mean(numbers) for name, numbers in sorted(measures.items())},
    )
