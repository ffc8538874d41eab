"""Weighted particles: the law they target, the weights they carry, and what they cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from markov import Markov, distance, powered

from unspoken.decoding import smc
from unspoken.decoding._power import Proposal, effective_size, log_mean, normalised, systematic
from unspoken.decoding.smc import PowerSMC
from unspoken.errors import ConfigError
from unspoken.lm.model import CausalLM
from unspoken.types import Rewind, fold

ALPHA = 3.0
RAMPED = PowerSMC(alpha=ALPHA, particles=24, ramp=4, check_every=1)
SETTINGS = [
    RAMPED,
    PowerSMC(alpha=ALPHA, particles=24, ramp=4, check_every=2, ess_threshold=1.0),
    PowerSMC(alpha=ALPHA, particles=24, ramp=0, check_every=1),
    PowerSMC(alpha=ALPHA, particles=24, ramp=50, check_every=3),  # the ramp is not over when the answers are
]


@dataclass
class Seen:
    """Many runs of a strategy.

    Attributes:
        drawn: How often each answer was given, as a share.
        answered: Each answer's mean weight: the law of what is given, with less noise.
        mass: Each answer's share of the particles' weight, times the run's estimate of the normaliser: its mean over
            all runs is the answer's p^alpha, whatever the number of particles.
        error: Standard error of each.
    """

    drawn: dict[str, float]
    answered: dict[str, float]
    mass: dict[str, float]
    error: dict[str, float]
    total: float
    total_error: float

    @property
    def law(self) -> dict[str, float]:
        return {text: mass / self.total for text, mass in self.mass.items()}


def seen(strategy: PowerSMC, runs: int) -> Seen:
    toy = Markov(4, seed=7)
    drawn: Counter[str] = Counter()
    first: dict[str, float] = dict.fromkeys(toy.answers(), 0.0)
    second, answered, totals = dict(first), dict(first), []
    for seed in range(runs):
        branch, notes = toy.drive(strategy, seed)
        drawn[branch.text] += 1
        totals.append(math.exp(notes["smc"]["log_normaliser"]))
        masses: Counter[str] = Counter()
        for particle in notes["smc"]["particles"]:
            masses[particle["text"]] += totals[-1] * particle["weight"]
            answered[particle["text"]] += particle["weight"] / runs
        for text, mass in masses.items():
            first[text] += mass / runs
            second[text] += mass**2 / runs
    error = {text: math.sqrt(max(0.0, second[text] - first[text] ** 2) / runs) for text in first}
    total = sum(totals) / runs
    spread = math.sqrt(sum((t - total) ** 2 for t in totals) / runs / runs)
    return Seen({t: n / runs for t, n in drawn.items()}, answered, first, error, total, spread)


@pytest.mark.parametrize("strategy", SETTINGS, ids=lambda s: f"ramp{s.ramp}-every{s.check_every}")
def test_the_answer_follows_p_to_the_alpha(strategy: PowerSMC) -> None:
    logprobs = Markov(4, seed=7).answers()
    want, total = powered(logprobs, ALPHA)
    found = seen(strategy, 600)
    # The weighted particles are unbiased, answer by answer and in sum.
    assert abs(found.total - total) < 4 * found.total_error < 0.2 * total
    for text, p in want.items():
        assert abs(found.mass[text] - p * total) < 4.5 * found.error[text] + 1e-3 * total, text
    assert distance(found.law, want) < 0.03
    # One particle a run is drawn by weight.
    noise = 0.5 * sum(math.sqrt(2 * p * (1 - p) / (math.pi * 600)) for p in found.answered.values())
    assert distance(found.drawn, found.answered) < 1.6 * noise
    # Neither the model's own law nor low temperature would pass.
    assert distance(powered(logprobs, 1.0)[0], want) > 0.2
    assert distance(low_temperature(), want) > 0.1


def low_temperature() -> dict[str, float]:
    """The law of answers whose every token is drawn at temperature 1/alpha."""
    toy = Markov(4, seed=7)
    cold = Markov(4, seed=7)
    cold.table = [[[p**ALPHA / sum(q**ALPHA for q in law) for p in law] for law in row] for row in toy.table]
    return powered(cold.answers(), 1.0)[0]


def test_the_law_of_the_answer_tends_to_the_target() -> None:
    want, _ = powered(Markov(4, seed=7).answers(), ALPHA)
    few, many = seen(replace(RAMPED, particles=4), 400), seen(replace(RAMPED, particles=150), 60)
    assert distance(many.answered, want) < 0.07 < 0.14 < distance(few.answered, want)


def test_weights_without_the_past_would_miss_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weighing each token by its own exponent alone forgets that a rising exponent weighs earlier tokens anew."""
    want, total = powered(Markov(4, seed=7).answers(), ALPHA)
    right = seen(RAMPED, 300)
    monkeypatch.setattr(smc, "log_increment", lambda now, before, whole, past, lq: now * (whole - past) - lq)
    wrong = seen(RAMPED, 300)
    assert distance(right.law, want) < 0.05 < 0.1 < distance(wrong.law, want)
    assert abs(right.total - total) < 4 * right.total_error
    assert abs(wrong.total - total) > 10 * wrong.total_error


def test_alpha_one_is_plain_sampling() -> None:
    strategy = PowerSMC(alpha=1.0, particles=8, ramp=3, check_every=1, ess_threshold=1.0)
    toy = Markov(5)
    counts: Counter[str] = Counter()
    for seed in range(800):
        branch, notes = toy.drive(strategy, seed)
        counts[branch.text] += 1
        note = notes["smc"]
        assert [p["weight"] for p in note["particles"]] == pytest.approx([1 / 8] * 8)
        assert note["log_normaliser"] == pytest.approx(0.0, abs=1e-12)
        assert note["effective_size"] == pytest.approx(8)
    want, _ = powered(toy.answers(), 1.0)
    noise = 0.5 * sum(math.sqrt(2 * p * (1 - p) / (math.pi * 800)) for p in want.values())
    assert distance({t: n / 800 for t, n in counts.items()}, want) < 1.6 * noise


def test_blocks_temperatures_and_shared_parents() -> None:
    toy = Markov(5, seed=13)
    strategy = PowerSMC(alpha=4.0, particles=12, ramp=3, check_every=2, ess_threshold=1.0)
    _, notes = toy.drive(strategy, 1)
    exponents = [1 + 3 * 2 / 3, 4.0, 4.0]  # at 2, 4 and 5 tokens
    for spawns, exponent, start in zip(toy.spawned, exponents, (0, 2, 4), strict=True):
        assert {spawn.inner for spawn in spawns} == {Proposal(1 / exponent)}
        assert {spawn.keep for spawn in spawns} == {start} and sum(spawn.shown for spawn in spawns) == 1
        assert len({spawn.seed for spawn in spawns}) == len(spawns)
    checks = notes["smc"]["checks"]
    assert [check["position"] for check in checks] == [2, 4, 5] and checks[0]["resampled"]
    parents = [spawn.parent for spawn in toy.spawned[1]]
    assert len({id(parent) for parent in parents}) < len(parents)  # copies continue one branch
    # Those that had ended are not continued.
    assert all(parent is not None and not parent.complete for parent in parents)
    assert len(parents) < 12


@pytest.mark.parametrize(("threshold", "happens"), [(0.0, False), (1.0, True)])
def test_the_threshold_decides_when_to_resample(threshold: float, happens: bool) -> None:
    strategy = PowerSMC(alpha=4.0, particles=8, ramp=0, check_every=1, ess_threshold=threshold)
    _, notes = Markov(5).drive(strategy, 0)
    assert any(check["resampled"] for check in notes["smc"]["checks"]) == happens
    assert (notes["smc"]["ancestors"] < 8) == happens


def test_systematic_resampling() -> None:
    weights = normalised([0.0, math.log(2.0), math.log(5.0), -50.0])
    counts: Counter[int] = Counter()
    for seed in range(2000):
        chosen = systematic(weights, 4, seed)
        assert chosen == sorted(chosen) and len(chosen) == 4
        for index, weight in enumerate(weights):
            assert math.floor(4 * weight) <= chosen.count(index) <= math.ceil(4 * weight)
        counts.update(chosen)
    for index, weight in enumerate(weights):
        assert counts[index] / 8000 == pytest.approx(weight, abs=0.01)
    assert effective_size([0.25] * 4) == pytest.approx(4) and effective_size([1.0, 0.0]) == 1
    assert log_mean([-1000.0, -1000.0 + math.log(3.0)]) == pytest.approx(-1000 + math.log(2.0))


# On a model


def test_weights_against_a_full_forward(
    tiny_lm: Callable[[str], CausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every particle's weight again, from one forward over its whole text."""
    lm = tiny_lm("qwen3")
    clouds: list[Any] = []
    original = PowerSMC.drawn

    def spied(self: PowerSMC, row: Any, cloud: Any, *rest: Any) -> Any:
        clouds.append((row, cloud))
        return original(self, row, cloud, *rest)

    monkeypatch.setattr(PowerSMC, "drawn", spied)
    strategy = PowerSMC(alpha=1.5, particles=5, ramp=8, check_every=3, ess_threshold=0.0)
    out: Any = lm.generate("What is 12 + 30?", strategy, max_new_tokens=10, seed=5, batch_size=3)
    ((row, cloud),) = clouds
    logs = []
    for particle in cloud:
        ids = particle.branch.token_ids
        with torch.no_grad():
            logits = lm.model(torch.tensor([row.prompt_ids + ids]), use_cache=False).logits[0].double()
        logits = logits[len(row.prompt_ids) - 1 : -1]
        lp = logits.log_softmax(-1)[range(len(ids)), ids]
        lq = torch.stack(
            [
                (logits[t] * strategy.exponent(min(3 * (t // 3 + 1), 10))).log_softmax(-1)[token]
                for t, token in enumerate(ids)
            ]
        )
        logs.append(float(1.5 * lp.sum() - lq.sum()))
        assert particle.logprob == pytest.approx(float(lp.sum()), abs=1e-4)
        assert particle.log_weight == pytest.approx(logs[-1], abs=1e-3)
    note = out.notes["smc"]
    assert [p["weight"] for p in note["particles"]] == pytest.approx(normalised(logs), abs=1e-3)
    assert note["log_normaliser"] == pytest.approx(log_mean(logs), abs=1e-3)
    assert out.token_ids == cloud[note["chosen"]].branch.token_ids
    assert out.usage.tokens == sum(len(particle.branch.steps) for particle in cloud)


def test_resampling_on_a_model_continues_what_was_kept(tiny_lm: Callable[[str], CausalLM]) -> None:
    """The answer's log-probabilities are those of one forward over it, whatever was copied on the way."""
    lm = tiny_lm("llama")
    lm = CausalLM(lm.model, lm.tokenizer)
    lm.__dict__["eos_ids"] = frozenset()
    strategy = PowerSMC(alpha=4.0, particles=6, ramp=0, check_every=2, ess_threshold=1.0)
    events = list(lm.stream("Hi", strategy, max_new_tokens=9, seed=2))
    out = fold(events)[0]
    assert any(isinstance(event, Rewind) for event in events)
    assert out.reason == "length" and len(out.steps) == 9
    assert sum(check["resampled"] for check in out.notes["smc"]["checks"]) >= 3
    prompt = strategy.prompt_ids(lm, "Hi")
    with torch.no_grad():
        logits = lm.model(torch.tensor([prompt + out.token_ids]), use_cache=False).logits[
            0, len(prompt) - 1 : -1
        ]
    want = logits.double().log_softmax(-1)[range(9), out.token_ids].tolist()
    assert [step.logprob for step in out.steps] == pytest.approx(want, abs=1e-4)
    assert out.usage.tokens == 6 * 9


def test_the_context_ends_particles(tiny_lm: Callable[[str], CausalLM]) -> None:
    lm = CausalLM(tiny_lm("llama").model, tiny_lm("llama").tokenizer)
    lm.__dict__["eos_ids"] = frozenset()
    assert lm.max_positions is not None
    strategy = PowerSMC(particles=2, check_every=2)
    out: Any = lm.generate([5] * (lm.max_positions - 3), strategy, max_new_tokens=20)
    assert (out.reason, len(out.steps)) == ("context", 3)


def test_mistakes_come_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        PowerSMC(alpha=0.5, particles=0, ramp=-1, check_every=0, ess_threshold=1.5)
    assert len(error.value.problems) == 5
