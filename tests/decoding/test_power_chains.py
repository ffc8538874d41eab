"""Chains of the real engine against the exact law that the whole algorithm has after so many moves."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from power_help import chains, model, oracle
from power_oracle import DEFECTS, distance, frequencies, p_value

from unspoken.decoding import Request, _power, run
from unspoken.decoding._power import Laws, Target
from unspoken.decoding.power import PowerSampling
from unspoken.discovery import STRATEGIES
from unspoken.errors import ConfigError
from unspoken.lm.model import CausalLM
from unspoken.types import fold

LIMIT, BLOCK = 4, 2
UNLIKELY = 1e-3

SETTINGS: list[dict[str, Any]] = [
    {},
    {"cut": "no_op", "stop_mode": "full"},
    {"stop_mode": "original", "mcmc_steps": 3, "early_rejection": False},
    {"top_k": 2, "final_steps": 1, "skip_agreement": False},
    {"temperature": 0.8, "early_rejection": False, "skip_agreement": False},
    {"temperature": 0.3, "cut": "no_op"},  # proposals sharper than the target: none can be rejected early
    {"alpha": 4.0, "mcmc_steps": 5, "block_size": 3},
    {"max_swap": True, "alpha": None},
    {"mode": "reference"},
]


def answers(strategy: PowerSampling, count: int, seed: int = 0, lm: CausalLM | None = None) -> list[Any]:
    return [tuple(g.token_ids) for g in chains(lm or model(), strategy, LIMIT, count, seed)]


def listed(lm: CausalLM, s: PowerSampling) -> dict[Any, float]:
    """The law of what a run returns, from the oracle."""
    tau = s.temperature or (0.25 if s.max_swap else 1 / s.alpha)  # type: ignore[operator]
    reference = s.mode == "reference"
    toy = oracle(
        lm,
        LIMIT,
        alpha=s.alpha,
        tau=tau,
        top_k=s.top_k,
        cuts="present" if s.cut == "corrected" else "block",
        swap=s.max_swap,
        defects=DEFECTS if reference else frozenset(),
    )
    assert s.block_size is not None
    if reference:
        return toy.published(s.block_size, s.mcmc_steps)
    return toy.result(s.block_size, s.mcmc_steps, s.stop_mode, s.final_steps)


@pytest.mark.parametrize("fields", SETTINGS, ids=lambda f: " ".join(f"{k}={v}" for k, v in f.items()) or "-")
def test_chains_have_the_exact_law_of_finitely_many_moves(fields: dict[str, Any]) -> None:
    strategy = PowerSampling(**{"alpha": 2.0, "block_size": BLOCK, "mcmc_steps": 2, **fields})
    law = listed(model(), strategy)
    assert math.isclose(sum(law.values()), 1.0, abs_tol=1e-12)
    assert p_value(answers(strategy, 200), law) > UNLIKELY


def test_candidates_that_are_not_all_of_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer candidates kept than there are tokens, draws outside them are made from the rest."""
    monkeypatch.setattr(_power, "STORED", 2)
    strategy = PowerSampling(alpha=1.2, block_size=BLOCK, mcmc_steps=2)
    assert p_value(answers(strategy, 200), listed(model(), strategy)) > UNLIKELY


def test_alpha_1_accepts_what_is_no_longer_than_before() -> None:
    """p itself is the target and the proposal; with cuts from the whole block every proposal is accepted."""
    done = chains(model(), PowerSampling(alpha=1.0, block_size=BLOCK, mcmc_steps=2, cut="no_op"), LIMIT, 40)
    assert {g.notes["power"]["acceptance"] for g in done} == {1.0}


def test_the_test_notices_the_published_defects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains without the correction for cuts, and those of the published loop, against the exact law."""
    exact = PowerSampling(alpha=2.0, block_size=LIMIT, mcmc_steps=5)
    law = listed(model(), exact)
    assert p_value(answers(exact, 200), law) > UNLIKELY
    published = PowerSampling(alpha=2.0, block_size=LIMIT, mcmc_steps=5, mode="reference")
    assert p_value(answers(published, 200), law) < 1e-6
    monkeypatch.setattr(Target, "log_ratio", lambda self, new, n_new, old, n_old: new - old)
    assert p_value(answers(exact, 200), law) < UNLIKELY


@pytest.mark.slow
def test_a_long_chain_samples_from_the_power() -> None:
    """Total variation of n answers after 100 moves a block, against what n independent draws would have."""
    n, pi = 120, oracle(model(), LIMIT).target()
    expected = 0.5 * sum(math.sqrt(2 * p * (1 - p) / (math.pi * n)) for p in pi.values())
    drawn = answers(PowerSampling(alpha=2.0, block_size=LIMIT, mcmc_steps=100), n)
    assert distance(frequencies(drawn), pi) < 1.5 * expected
    plain = answers(PowerSampling(alpha=2.0, block_size=LIMIT, mcmc_steps=0), n)
    assert distance(frequencies(plain), pi) > 1.5 * expected


@pytest.mark.parametrize(
    "fields", [{}, {"cut": "no_op"}, {"top_k": 2}, {"temperature": 0.9}, {"stored": 2}], ids=str
)
def test_shortcuts_change_no_decision(fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Early rejection and skipped agreement: the same moves from the same random numbers, with less work."""
    fields = dict(fields)
    if "stored" in fields:
        monkeypatch.setattr(_power, "STORED", fields.pop("stored"))
    strategy = PowerSampling(**{"alpha": 2.0, "block_size": 5, "mcmc_steps": 4, **fields})
    made = {}
    for early in (True, False):
        for skip in (True, False):
            fast = PowerSampling(**{**_fields(strategy), "early_rejection": early, "skip_agreement": skip})
            made[early, skip] = chains(model("tiny"), fast, 10, 40)
    slow = made.pop((False, False))
    for quick in made.values():
        for a, b in zip(quick, slow, strict=True):
            assert a.token_ids == b.token_ids and a.reason == b.reason
            mine, theirs = a.notes["power"], b.notes["power"]
            assert mine["acceptance_by_block"] == theirs["acceptance_by_block"]
            assert mine["logprob_trace"] == pytest.approx(theirs["logprob_trace"], abs=1e-9)
    tokens = {key: sum(g.usage.tokens for g in done) for key, done in made.items()}
    whole = sum(g.usage.tokens for g in slow)
    assert tokens[True, True] < min(tokens[True, False], tokens[False, True])
    assert max(tokens.values()) < whole
    assert sum(g.notes["power"]["ended_early"] for g in made[True, True]) > 0
    assert sum(g.notes["power"]["skipped_tokens"] for g in made[False, True]) > 0


def _fields(strategy: PowerSampling) -> dict[str, Any]:
    return {name: value for name, value in vars(strategy).items()}


def test_laws_give_the_same_token_as_a_fresh_draw() -> None:
    """Candidates best first; a number beyond them is none of them, and a closed law has none beyond."""
    logits = torch.log(torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]], dtype=torch.float64))
    law = Laws.of(logits, 0.5, 0)
    squares = torch.tensor([[0.36, 0.09, 0.01], [0.25, 0.09, 0.04]], dtype=torch.float64)
    q = squares / squares.sum(-1, keepdim=True)
    assert law.closed and law.ids.tolist() == [[1, 2, 0], [0, 2, 1]]
    for place in range(3):
        lp, lq = law.numbers(torch.full((2,), place))
        assert torch.allclose(lq, q[:, place].log()) and torch.allclose(2 * lp, squares[:, place].log())
        below = q[:, :place].sum(-1)
        assert law.places(below + 1e-9).tolist() == [place, place]
    assert law.places(torch.tensor([1 - 1e-16, 0.999], dtype=torch.float64)).tolist()[0] == 2
    assert Laws.of(logits, 0.5, 2).numbers(torch.tensor([0, 0]))[1].exp()[0] == pytest.approx(0.8)


@pytest.mark.parametrize("top_k", [0, 50])
@pytest.mark.parametrize("tau", [0.25, 1e-5, 1e-30])
def test_laws_have_their_whole_mass_at_large_logits(tau: float, top_k: int) -> None:
    """What float32 would lose of the sum must not be given to the least likely candidate."""
    logits = torch.linspace(0.0, 20.0, 64).repeat(40, 1)
    logits[:, 7] = torch.linspace(24.0, 39.0, 40)
    law = Laws.of(logits, tau, top_k)
    mass = torch.exp(law.logits.double() / tau - law.proposal[:, None]).sum(-1)
    assert float((mass - 1).abs().max()) < 1e-7
    almost = torch.full((40,), 1 - 1e-6, dtype=torch.float64)
    assert law.places(almost).unique().tolist() == [0]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"alpha": 0.5}, "at least 1"),
        ({"temperature": 0.0}, "above 0"),
        ({"temperature": 2.0}, "below 1"),
        ({"alpha": 2.0, "max_swap": True}, "leave alpha out"),
        ({"max_swap": True, "mode": "reference"}, "no reference mode"),
        ({"block_size": 2, "num_blocks": 2}, "give one"),
        ({"mcmc_steps": -1}, "at least 0"),
        ({"final_steps": 2, "stop_mode": "full"}, "belongs to stop_mode='final'"),
    ],
)
def test_wrong_settings(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        PowerSampling(**fields)


def test_a_block_beyond_the_budget_is_refused() -> None:
    asked = Request([0], PowerSampling(block_size=9), max_new_tokens=4)
    assert "must not exceed the budget of 4" in fold(run(model(), [asked]))[0].reason


@pytest.mark.parametrize("name", ["power", "smc", "importance", "lookahead", "beam", "vote"])
def test_a_token_that_the_model_rules_out_never_comes(name: str) -> None:
    """Its logit is minus infinity: no weight, ratio or score may become NaN by it."""
    whole = copy.deepcopy(model().model)
    bias = torch.zeros(4, dtype=torch.float64)
    bias[1] = -torch.inf
    whole.lm_head.bias = torch.nn.Parameter(bias)  # type: ignore[union-attr]
    lm = CausalLM(whole, model().tokenizer)
    for field in ({"block_size": 1}, {"block_size": 2}) if name == "lookahead" else ({},):
        for out in chains(lm, STRATEGIES.find(name)(**field), LIMIT, 6):
            assert out.reason in ("eos", "length") and 1 not in out.token_ids
            assert all(step.logprob is not None and math.isfinite(step.logprob) for step in out.steps)
