"""Filters, draws and statistics on logits, against references written in plain Python."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from unspoken.decoding import _sampling
from unspoken.decoding._sampling import Law, filtered, sample, tempered
from unspoken.decoding._tokens import TOP_SHOWN, Sampler

SEEDS = st.integers(0, 2**32 - 1)


def random_logits(seed: int, rows: int, width: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def dense(law: Law, width: int) -> Tensor:
    """The law over the whole vocabulary."""
    if law.ids is None:
        return law.probs
    assert all(len(set(row)) == len(row) for row in law.ids.tolist())
    return law.probs.new_zeros(law.probs.shape[0], width).scatter_add_(-1, law.ids, law.probs)


def reference(p: list[float], top_k: int, top_p: float, min_p: float) -> list[float]:
    """The canonical filters, one after another, on a sorted list. Undecidable cases are thrown away."""
    order = sorted(range(len(p)), key=lambda i: -p[i])
    kept = order[:top_k] if top_k else order
    mass = math.fsum(p[i] for i in kept)
    q = {i: p[i] / mass for i in kept}
    if top_p < 1.0:
        nucleus, total = [], 0.0
        for i in kept:
            assume(abs(total - top_p) > 1e-5)
            if total >= top_p:
                break
            nucleus.append(i)
            total += q[i]
        kept = nucleus
    best = q[kept[0]]
    if min_p > 0.0:
        assume(all(abs(q[i] / best - min_p) > 1e-5 for i in kept))
        kept = [i for i in kept if q[i] >= min_p * best]
    mass = math.fsum(q[i] for i in kept)
    return [q[i] / mass if i in kept else 0.0 for i in range(len(p))]


@settings(max_examples=80)
@given(
    seed=SEEDS,
    width=st.one_of(st.integers(1, 40), st.sampled_from([256, 257, 1400])),
    top_k=st.one_of(st.just(0), st.integers(1, 60)),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 0.999)),
    min_p=st.one_of(st.just(0.0), st.floats(0.001, 0.99)),
)
def test_filters_are_those_of_the_reference(
    seed: int, width: int, top_k: int, top_p: float, min_p: float
) -> None:
    # A flat law over 1400 tokens needs more than the head that is sorted first.
    probs = tempered(random_logits(seed, 2, width, 0.1 if seed % 2 else 3.0), 1.0)
    law = dense(filtered(probs, top_k=top_k, top_p=top_p, min_p=min_p), width)
    for row in range(2):
        want = reference(probs[row].double().tolist(), top_k, top_p, min_p)
        assert law[row].tolist() == pytest.approx(want, abs=2e-6)
        assert [x > 0 for x in law[row].tolist()] == [x > 0 for x in want]


def survivors(probs: list[float], **filters: float) -> list[int]:
    law = dense(filtered(torch.tensor([probs]), **filters), len(probs))[0]  # type: ignore[arg-type]
    assert law.sum().item() == pytest.approx(1.0)
    return [i for i, p in enumerate(law.tolist()) if p > 0]


def test_top_p_keeps_the_token_that_crosses() -> None:
    assert survivors([0.2, 0.5, 0.3], top_p=0.6) == [1, 2]
    assert survivors([0.2, 0.5, 0.3], top_p=0.5) == [1]
    assert survivors([0.2, 0.5, 0.3], top_p=1e-9) == [1]


def test_min_p_is_relative_to_the_best() -> None:
    assert survivors([0.4, 0.3, 0.2, 0.1], min_p=0.4) == [0, 1, 2]
    assert survivors([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], min_p=0.9) == list(range(10))


def test_top_k_comes_before_top_p_and_renormalises() -> None:
    # 0.4 / 0.7 of the two that top-k leaves is enough; of the whole law it would not be.
    assert survivors([0.4, 0.3, 0.2, 0.1], top_k=2, top_p=0.55) == [0]
    assert survivors([0.4, 0.3, 0.2, 0.1], top_p=0.55) == [0, 1]


def test_top_k_above_the_vocabulary_keeps_all() -> None:
    assert survivors([0.4, 0.3, 0.2, 0.1], top_k=9) == [0, 1, 2, 3]


@settings(max_examples=60)
@given(seed=SEEDS, width=st.integers(1, 3000), k=st.integers(1, 64))
def test_top_k_is_exact(seed: int, width: int, k: int) -> None:
    k = min(k, width)
    values = random_logits(seed, 3, width)
    values[0, ::3] = -math.inf
    values[1, -1] = 99.0  # in the part that fills no block
    found, index = _sampling.top_k(values, k)
    assert torch.equal(found, values.topk(k).values)
    assert torch.equal(values.gather(-1, index), found)
    assert all(len(set(row)) == k for row in index.tolist())


@pytest.mark.parametrize("temperature", [0.0, 1e-9, 0.3, 1.0, 2.5])
def test_tempered(temperature: float) -> None:
    logits = random_logits(1, 4, 30)
    p = tempered(logits, temperature)
    if temperature < 1e-6:
        assert torch.equal(p.argmax(-1), logits.argmax(-1)) and torch.equal(p.sum(-1), torch.ones(4))
        assert int((p > 0).sum()) == 4
    else:
        want = (logits.double() / temperature).softmax(-1)
        assert torch.allclose(p.double(), want, atol=1e-6)


def chi_square(counts: Tensor, probs: Tensor, draws: int) -> tuple[float, float]:
    """The statistic over bins of at least five expected draws, and a bound that it passes once in ten thousand."""
    expected = probs.double() * draws
    rare = expected < 5.0
    pairs = [(c, e) for c, e in zip(counts[~rare].tolist(), expected[~rare].tolist(), strict=True)]
    if float(expected[rare].sum()) >= 5.0:
        pairs.append((float(counts[rare].sum()), float(expected[rare].sum())))
    free = len(pairs) - 1
    return sum((c - e) ** 2 / e for c, e in pairs), free + 4.5 * math.sqrt(2 * free) + 8


@pytest.mark.parametrize("width", [7, 256, 257, 900, 1500])
@pytest.mark.parametrize("filters", [{}, {"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_draws_follow_the_law(width: int, filters: dict[str, Any]) -> None:
    draws = 30_000
    probs = tempered(random_logits(width, 1, width, 1.0), 1.0)
    probs[:, ::4] = 0.0  # holes, also at the ends
    probs[:, -1] = 0.0
    probs /= probs.sum(-1, keepdim=True)
    law = filtered(probs, **filters)
    many = Law(law.probs.expand(draws, -1), None if law.ids is None else law.ids.expand(draws, -1))
    uniform = torch.rand(draws, dtype=torch.float64, generator=torch.Generator().manual_seed(width))
    ids, logprob = sample(many, uniform)
    full = dense(law, width)[0]
    counts = torch.bincount(ids, minlength=width)
    assert int(counts[full == 0].sum()) == 0
    assert torch.allclose(logprob, full[ids].log())
    statistic, bound = chi_square(counts.double(), full, draws)
    assert statistic < bound


@pytest.mark.parametrize("width", [1, 5, 256, 300, 1024, 5000])
def test_extreme_uniform_numbers_never_give_an_impossible_token(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    edges = [0.0, 1e-300, 1e-17, 1.0 - 2**-53, 1.0 - 2**-24, 1.0 - 1e-8]
    for holes in (0.0, 0.5, 0.99):
        probs = torch.rand(len(edges), width, generator=generator)
        probs[torch.rand(len(edges), width, generator=generator) < holes] = 0.0
        probs[probs.sum(-1) == 0, width // 2] = 1.0
        probs /= probs.sum(-1, keepdim=True)
        ids, logprob = sample(Law(probs, None), torch.tensor(edges, dtype=torch.float64))
        assert torch.isfinite(logprob).all()
        alive = [row.nonzero()[:, 0].tolist() for row in probs]
        assert ids[0] == alive[0][0]  # at 0, the first that can be
        assert ids[3] == alive[3][-1]  # just below 1, the last


@pytest.mark.parametrize("width", [1, 5, 256, 300, 5000])
def test_a_law_that_is_not_one_gives_some_token(width: int) -> None:
    """A row of NaN ends by its log-probability; it must not take down the rows beside it."""
    probs = torch.full((2, width), 1 / width)
    probs[0] = float("nan")
    for filters in ({}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.5}):
        ids, _ = sample(filtered(probs, **filters), torch.tensor([0.5, 0.5], dtype=torch.float64))  # type: ignore[arg-type]
        assert ((ids >= 0) & (ids < width)).all()


@settings(max_examples=40)
@given(seed=SEEDS, width=st.one_of(st.integers(1, 256), st.integers(257, 2000)))
def test_one_uniform_number_names_one_token(seed: int, width: int) -> None:
    """The draw is the inverse of the distribution function, so that nothing else can influence it."""
    probs = tempered(random_logits(seed, 6, width), 1.0)
    uniform = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed ^ 1))
    ids, _ = sample(Law(probs, None), uniform)
    total = probs.double().cumsum(-1)
    for row in range(6):
        u = float(uniform[row] * total[row, -1])
        before = float(total[row, ids[row]]) - float(probs[row, ids[row]])
        assert before - 1e-6 <= u <= float(total[row, ids[row]]) + 1e-6


def test_logprob_and_entropy() -> None:
    logits = random_logits(3, 5, 50)
    ids = torch.tensor([0, 49, 7, 7, 3])
    exact = logits.double().log_softmax(-1)
    assert torch.allclose(_sampling.token_logprob(logits, ids).double(), exact[range(5), ids], atol=1e-5)
    p = tempered(logits, 0.7)
    want = [-math.fsum(x * math.log(x) for x in row if x > 0) for row in p.double().tolist()]
    assert _sampling.entropy(p, logits, 0.7).tolist() == pytest.approx(want, abs=1e-5)
    assert _sampling.entropy(tempered(logits, 0.0), logits, 0.0).tolist() == [0.0] * 5
    even = torch.zeros(1, 8)
    assert _sampling.entropy(torch.full((1, 8), 1 / 8), even, 1.0).item() == pytest.approx(math.log(8))
    even[0, 4:] = -torch.inf  # tokens that cannot be chosen
    assert _sampling.entropy(tempered(even, 1.0), even, 1.0).item() == pytest.approx(math.log(4))


# The sampler that strategies share


class _State:
    def __init__(self, level: str, uniform: list[float] | None = None) -> None:
        self.level, self.numbers = level, uniform

    def trace(self, rows: Any, level: str) -> bool:
        return level in {"none": (), "summary": ("summary",), "full": ("summary", "full")}[self.level]

    def uniform(self, rows: Any) -> Tensor:
        assert self.numbers is not None, "a greedy choice draws nothing"
        return torch.tensor([self.numbers[i] for i in rows], dtype=torch.float64)


def test_greedy_sampler() -> None:
    logits = random_logits(4, 3, 20)
    feed = Sampler(0.0, top_k=1)(logits, [2, 0, 1], _State("none"))  # type: ignore[arg-type]
    assert feed.token_ids is not None and torch.equal(feed.token_ids, logits.argmax(-1))
    assert feed.rows == [2, 0, 1] and not feed.trace
    assert feed.sampled_logprob is not None and feed.sampled_logprob.tolist() == [0.0] * 3
    assert feed.logprob is not None
    assert torch.allclose(feed.logprob, logits.log_softmax(-1).amax(-1))


def test_sampler_shows_the_token_it_chose() -> None:
    logits = random_logits(5, 4, 200, 0.2)
    feed = Sampler(2.0)(logits, range(4), _State("full", [0.0, 0.3, 0.6, 0.999]))  # type: ignore[arg-type]
    assert feed.token_ids is not None and feed.logprob is not None and feed.sampled_logprob is not None
    p, own = tempered(logits, 2.0), logits.log_softmax(-1)
    for row, token in enumerate(feed.token_ids.tolist()):
        ids = feed.trace["top_ids"][row].tolist()
        assert len(set(ids)) == TOP_SHOWN and ids[0] == int(logits[row].argmax())
        place = ids.index(token)
        assert feed.trace["top_weights"][row].tolist() == [float(i == place) for i in range(TOP_SHOWN)]
        assert torch.equal(feed.trace["top_probs"][row], p[row, ids])
        assert feed.logprob[row].item() == pytest.approx(own[row, token].item(), abs=1e-5)
        assert feed.sampled_logprob[row].item() == pytest.approx(p[row, token].log().item(), abs=1e-5)
    assert (feed.trace["top_ids"][:, -1] != logits.topk(TOP_SHOWN).indices[:, -1]).any()  # one was far down


def test_filter_problems_name_the_field_and_the_value() -> None:
    problems = _sampling.filter_problems(-1.0, -2, 0.0, 1.0, "2")
    assert [p.split()[0] for p in problems] == ["temperature2", "top_k2", "top_p2", "min_p2"]
    assert all(value in p for value, p in zip(("-1.0", "-2", "0.0", "1.0"), problems, strict=True))
    assert _sampling.filter_problems(math.nan, 0, math.nan, math.nan) != []
    assert _sampling.filter_problems(0.0, 0, 1.0, 0.0) == []
