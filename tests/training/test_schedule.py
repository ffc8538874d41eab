"""The removal schedule and the law of the random offsets, against published values and closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from unspoken.training._schedule import Gate, Schedule, Stage, draw_offsets, offset_law


def counts(schedule: Schedule, steps: list[int]) -> list[float]:
    return [schedule.stage(t).count for t in steps]


def test_eight_tokens_an_epoch() -> None:
    schedule = Schedule("count", 100, 400, per_epoch=8)
    assert schedule.steps_per_unit == 12
    steps = [0, 11, 12, 13, 24, 99, 100, 199, 299]
    assert counts(schedule, steps) == [0, 0, 1, 1, 2, 8, 8, 16, 24]


def test_pretraining_delays_everything() -> None:
    schedule = Schedule("count", 100, 400, per_epoch=8, begin=100, smoothing=4.0)
    assert counts(schedule, [0, 99, 100, 111, 112]) == [0, 0, 0, 0, 1]
    assert math.isinf(schedule.stage(99).smoothing), "no offsets while pretraining"
    assert schedule.stage(100).smoothing == 4.0


def test_paper_sizes() -> None:
    multiplication = Schedule("count", 25_250, 25_250 * 10, per_epoch=8)
    assert multiplication.steps_per_unit == 3156
    assert multiplication.stage(25_250).count == 8
    gsm8k = Schedule("count", 12_051, 12_051 * 10, per_epoch=8, all_beyond=39)
    assert gsm8k.steps_per_unit == 1506
    assert counts(gsm8k, [12_051 * epoch for epoch in (1, 2, 3, 4)]) == [8, 16, 24, 32]
    assert counts(gsm8k, [58_733, 58_734, 10**6]) == [38, math.inf, math.inf]


def test_more_than_one_token_a_step() -> None:
    schedule = Schedule("count", 3, 30, per_epoch=8, begin=3)
    assert counts(schedule, [0, 2, 3, 4, 5, 6]) == [0, 0, 2, 5, 8, 10]


def test_half_rounds_to_even_and_zero_never_removes() -> None:
    assert Schedule("count", 20, 60, per_epoch=8).steps_per_unit == 2
    assert counts(Schedule("count", 10, 60, per_epoch=0, start=2), [0, 50]) == [2, 2]
    assert counts(Schedule("count", 10, 60, start=math.inf, begin=5), [0, 5, 50]) == [math.inf] * 3


def test_steps_of_the_switching_command() -> None:
    schedule = Schedule("count", 1000, 9000, every=250, start=3, begin=500)
    assert counts(schedule, [0, 499, 500, 749, 750, 1000]) == [3, 3, 3, 3, 4, 5]


def test_grows_only_at_finite_increments_and_the_one_that_removes_all() -> None:
    schedule = Schedule("count", 100, 400, per_epoch=8, all_beyond=3)
    assert [t for t in range(100) if schedule.grows(t)] == [12, 24, 36]
    assert math.isinf(schedule.stage(36).count)


@pytest.mark.parametrize(
    ("smoothing", "first", "mean"),
    [
        (1.0, [0.632121, 0.232544, 0.085548, 0.031471, 0.011578], 0.58198),
        (2.0, [0.864665, 0.117020, 0.015837, 0.002143, 0.000290], 0.15652),
        (4.0, [0.981684, 0.017980, 0.000329, 6.03e-6, 1.10e-7], 0.01866),
        (math.inf, [1, 0, 0, 0, 0], 0.0),
    ],
)
def test_offset_law(smoothing: float, first: list[float], mean: float) -> None:
    law = offset_law(smoothing)
    assert law[:5].tolist() == pytest.approx(first, abs=1e-6)
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-6)
    assert float((law * torch.arange(100)).sum()) == pytest.approx(mean, abs=1e-5)


def test_the_tail_lies_on_the_last_offset() -> None:
    law = offset_law(0.01)
    assert float(law[99]) == pytest.approx(math.exp(-0.99))


@pytest.mark.parametrize("smoothing", [0.05, 1.0, 2.0, 4.0])
def test_draws_follow_the_law(smoothing: float) -> None:
    n = 1_000_000
    drawn = draw_offsets(n, smoothing, torch.Generator().manual_seed(3))
    seen = torch.bincount(drawn, minlength=100).double()
    expected = offset_law(smoothing) * n
    common = expected >= 5
    table = [(seen[common], expected[common]), (seen[~common].sum()[None], expected[~common].sum()[None])]
    chi2 = sum(float(((s - e) ** 2 / e.clamp(min=1e-9)).sum()) for s, e in table if float(e.sum()) > 1e-9)
    freedom = int(common.sum())
    assert chi2 < freedom + 6 * math.sqrt(2 * freedom)


def test_no_draws_without_smoothing() -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert draw_offsets(5, math.inf, generator).tolist() == [0] * 5
    assert torch.equal(generator.get_state(), before)


def test_removals_are_capped_by_the_chain() -> None:
    units = torch.tensor([0, 2, 9])
    assert Stage("count", 5.0).removals(units, None).tolist() == [0, 2, 5]
    assert Stage("count", math.inf).removals(units, None).tolist() == [0, 2, 9]
    drawn = Stage("count", 1.0, smoothing=0.1).removals(units.repeat(50), torch.Generator().manual_seed(0))
    assert bool((drawn <= units.repeat(50)).all()) and int(drawn.max()) > 2


def test_ramps() -> None:
    schedule = Schedule("fraction", 100, 1000, begin=100, share_from=0.2, ramp_end=0.6)
    assert [schedule.share(t) for t in (0, 99, 100, 350, 600, 999)] == pytest.approx([0, 0, 0.2, 0.6, 1, 1])
    assert schedule.stage(350).removals(torch.tensor([5, 10, 1, 0]), None).tolist() == [3, 6, 1, 0]


def test_random_shares() -> None:
    units, generator = torch.full((20_000,), 4), torch.Generator().manual_seed(1)
    uniform = Stage("joint", share=1.0).removals(units, generator)
    assert (torch.bincount(uniform, minlength=5) / 20_000).tolist() == pytest.approx([0.2] * 5, abs=0.02)
    humped = Stage("joint", share=1.0, beta=4.0).removals(units, generator)
    assert (humped == 2).sum() > (uniform == 2).sum()
    assert Stage("joint", share=1.0).removals(units, None).eq(4).all(), "evaluated with all removed"
    switched = Stage("switch", share=0.25).removals(units, generator)
    assert float(switched.double().mean()) == pytest.approx(1.0, abs=0.03)


def test_the_gate_opens_on_accuracy_or_patience_and_resumes() -> None:
    gate = Gate(0.9, 100, begin=5, lag=4)
    for t in range(60):
        gate.observe(t, 95, 100)
    assert gate.raises[:2] == [28, 51], (
        "20 accurate micro-batches from the start, and 20 more after the effect"
    )
    assert [gate.raised(t) for t in (27, 28, 51)] == [0, 1, 2]
    again = Gate(0.9, 100, begin=5, lag=4)
    again.restore(gate.state())
    for t in range(60, 400):
        gate.observe(t, 10, 100)
        again.observe(t, 10, 100)
    assert gate.raises == again.raises and gate.state() == again.state()
    assert len(gate.raises) == 5, "then only patience opens it"
