from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unspoken.evaluation import stats


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        # Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29 (score method without continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_published_values(correct: int, n: int, low: float, high: float) -> None:
    interval = stats.wilson(correct, n)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_solves_the_score_equation_and_is_symmetric(pair: tuple[int, int]) -> None:
    correct, n = pair
    interval, mirrored = stats.wilson(correct, n), stats.wilson(n - correct, n)
    assert interval.low == pytest.approx(1 - mirrored.high, abs=1e-12)
    assert correct / n in interval
    for end in (interval.low, interval.high):
        if 0 < end < 1:
            z = abs(correct / n - end) / math.sqrt(end * (1 - end) / n)
            assert z == pytest.approx(1.959964, abs=1e-5)


def test_wilson_of_nothing_is_everything_and_nonsense_is_refused() -> None:
    assert (stats.wilson(0, 0).low, stats.wilson(0, 0).high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="0..3"):
        stats.wilson(4, 3)


def test_bootstrap_agrees_with_the_enumeration_of_all_resamples() -> None:
    groups = [[0.0], [1.0], [1.0], [4.0]]
    means = sorted(sum(g[0] for g in picked) / 4 for picked in itertools.product(groups, repeat=4))
    interval = stats.bootstrap(groups, resamples=20_000)
    assert interval.low == means[int(0.025 * len(means))]
    assert interval.high == means[int(0.975 * len(means))]
    assert interval == stats.bootstrap(groups, resamples=20_000)
    assert interval != stats.bootstrap([[float(i)] for i in range(50)], seed=1)


def test_bootstrap_keeps_the_samples_of_an_example_together() -> None:
    rng = random.Random(0)
    outcomes = [[float(rng.random() < 0.5)] * 8 for _ in range(40)]  # perfectly correlated samples
    clustered = stats.bootstrap(outcomes)
    single = stats.bootstrap([o[:1] for o in outcomes])
    loose = stats.bootstrap([[x] for o in outcomes for x in o])
    width = clustered.high - clustered.low
    assert width == pytest.approx(single.high - single.low, rel=0.1)
    assert width > 2 * (loose.high - loose.low)


def test_bootstrap_needs_values() -> None:
    for groups in ([], [[1.0], []]):
        with pytest.raises(ValueError, match="at least one group"):
            stats.bootstrap(groups)


def test_accuracy_interval_chooses_its_method_and_never_collapses() -> None:
    assert stats.accuracy_interval([[True], [False]]).method == "wilson"
    assert stats.accuracy_interval([[True, False], [False, True], [True, True]]).method == "bootstrap"
    assert stats.accuracy_interval([[True] * 4] * 10) == stats.wilson(10, 10)
    assert stats.accuracy_interval([[False] * 4] * 10) == stats.wilson(0, 10)


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_the_mean_over_all_subsets(outcomes: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(outcomes)))
    subsets = list(itertools.combinations(outcomes, k))
    expected = sum(any(s) for s in subsets) / len(subsets)
    assert stats.pass_at_k(len(outcomes), sum(outcomes), k) == pytest.approx(expected)


def test_pass_at_k_refuses_more_samples_than_there_are() -> None:
    with pytest.raises(ValueError, match="k=3"):
        stats.pass_at_k(2, 1, 3)


def _credit(votes: tuple[int | None, ...], right: set[int]) -> float:
    counts = {v: votes.count(v) for v in votes if v is not None}
    best = [v for v, c in counts.items() if c == max(counts.values())]
    return sum(v in right for v in best) / len(best) if best else 0.0


@settings(max_examples=200)
@given(
    st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=1, max_size=8),
    st.sets(st.integers(0, 3), max_size=2),
    st.data(),
)
def test_majority_at_k_is_the_mean_over_all_subsets(
    votes: list[int | None], right: set[int], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(votes)))
    subsets = list(itertools.combinations(votes, k))
    expected = sum(_credit(s, right) for s in subsets) / len(subsets)
    assert stats.majority_at_k(votes, right, k) == pytest.approx(expected)


def test_majority_at_1_is_the_accuracy_and_large_samples_are_quick() -> None:
    votes: list[int | None] = [0, 1, 1, None]
    assert stats.majority_at_k(votes, {0}, 1) == pytest.approx(0.25)
    many: list[int | None] = [i % 7 for i in range(64)]
    assert 0 < stats.majority_at_k(many, {0}, 32) < 1


def test_clusters_use_the_given_equivalence_and_silence_is_no_vote() -> None:
    def same(a: str, b: str) -> bool:
        return float(a) == float(b)

    assert stats.clusters(["1", "2", "1.0", None, "2.00"], same) == [0, 1, 0, None, 1]


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 5), (3, 12), (40, 20)])
def test_mcnemar_is_twice_the_binomial_tail(b: int, c: int) -> None:
    n = b + c
    probabilities = [math.comb(n, i) / 2**n for i in range(n + 1)]
    # Symmetric law: the outcomes at most as likely as the one seen are the two equal tails.
    expected = sum(p for p in probabilities if p <= probabilities[b] * (1 + 1e-9))
    assert stats.mcnemar(b, c) == pytest.approx(min(1.0, expected))
    assert stats.mcnemar(b, c) == stats.mcnemar(c, b)


def test_paired_difference_uses_the_pairing() -> None:
    rng = random.Random(1)
    first = [float(rng.random() < 0.5) for _ in range(200)]
    second = [1.0 if i < 10 else x for i, x in enumerate(first)]  # never worse, better on some
    better = sum(b > a for a, b in zip(first, second, strict=True))
    difference = stats.paired_difference(first, second, discordant=(0, better))
    assert difference.mean == pytest.approx(better / 200)
    assert difference.interval.high - difference.interval.low < 0.06  # unpaired: about 0.2
    same = stats.paired_difference(first, first, discordant=(0, 0))
    assert not same.found and same.p == 1.0
    with pytest.raises(ValueError):
        stats.paired_difference(first, second[:-1], discordant=(0, 0))


def test_pairs_that_never_differ_leave_a_width() -> None:
    """24 of 24 pairs equal: a tenth of differing pairs would still be seen nowhere in one case of twelve."""
    none = stats.paired_difference([0.0] * 24, [0.0] * 24, discordant=(0, 0))
    bound = 1.959964**2 / (24 + 1.959964**2)  # Wilson's for 0 of 24, in closed form
    assert none.mean == 0.0 and not none.found
    assert (none.interval.low, none.interval.high) == pytest.approx((-bound, bound), abs=1e-6)
    every = stats.paired_difference([0.0] * 24, [1.0] * 24, discordant=(0, 24))
    assert (every.interval.low, every.interval.high) == pytest.approx((1 - 2 * bound, 1.0), abs=1e-6)
    assert every.found


def test_spread() -> None:
    assert stats.spread([1, 2, 3, 10]) == stats.Spread(4.0, 2.5, pytest.approx(4.08248, abs=1e-4), 1.0, 10.0)
    assert stats.spread([3]).std == 0.0
    with pytest.raises(ValueError):
        stats.spread([])
