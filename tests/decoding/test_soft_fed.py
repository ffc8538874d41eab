"""What soft thinking feeds, and what it reports of it, on logits that are written down."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scripted import ScriptedLM
from soft_help import BASES, PROMPT, A, B, C, D, MakeLM, Tiny, always, kinds, soft, solve

from unspoken.decoding import Request, run
from unspoken.decoding.soft import SoftThinking
from unspoken.errors import ConfigError
from unspoken.types import Generation, fold

# What is fed


def test_the_mixtures_that_are_fed(scripted_lm: MakeLM) -> None:
    """Tempered probabilities of the k best, renormalised: worked out here from the script."""
    law = {A: 0.5, B: 0.3, C: 0.15, D: 0.05}
    lm = scripted_lm(always(law))
    tempered = {token: p ** (1 / 0.7) for token, p in law.items()}
    total = sum(tempered.values())
    p = {token: x / total for token, x in tempered.items()}
    top = [A, B, C]
    share = [p[t] / sum(p[t] for t in top) for t in top]
    inverse = [1 / s for s in share]
    parts = lm.table[top]
    want = {
        "non_uniform": torch.tensor(share) @ parts,
        "uniform": parts.mean(0),
        "inverse_p": torch.tensor(inverse) @ parts / sum(inverse),
        "element_wise_max": parts.amax(0),
        "hard_argmax": lm.table[A],
    }
    for mixture, vector in want.items():
        lm = scripted_lm(lm.script)
        out = solve(lm, soft(mixture=mixture, k=3, temperature=0.7))
        assert torch.allclose(torch.stack(lm.fed[tuple(PROMPT)][:6]), vector.expand(6, -1), atol=1e-5), (
            mixture
        )
        first = out.steps[0]
        assert first.top is not None and first.top.ids == (A, B, C)
        assert first.top.probs == pytest.approx([p[t] for t in top], rel=1e-4)
    lm = scripted_lm(lm.script)
    out = solve(lm, soft(mixture="nucleus", nucleus_p=0.79, temperature=1.0, k=1))
    want_nucleus = torch.tensor([0.5, 0.3]) @ lm.table[[A, B]] / 0.8
    assert torch.allclose(lm.fed[tuple(PROMPT)][0], want_nucleus, atol=1e-5)
    assert out.steps[0].top is not None and out.steps[0].top.weights == pytest.approx([0.625, 0.375])


def test_the_weights_reported_are_the_weights_fed(scripted_lm: MakeLM) -> None:
    law = {A: 0.4, B: 0.3, C: 0.2, D: 0.1}
    for mixture in (
        "non_uniform",
        "inverse_p",
        "dirichlet",
        "nucleus",
        "uniform",
        "hard_argmax",
        "hard_sample",
    ):
        lm = scripted_lm(always(law))
        out = solve(lm, soft(mixture=mixture, k=4, nucleus_p=0.85))
        for step, vector in zip(out.steps[:6], lm.fed[tuple(PROMPT)], strict=False):
            assert step.top is not None and sum(step.top.weights) == pytest.approx(1.0)
            mixed = torch.tensor(step.top.weights) @ lm.table[list(step.top.ids)]
            assert torch.allclose(mixed, vector, atol=1e-5), mixture


def test_norms_are_reported_and_matched(scripted_lm: MakeLM) -> None:
    law = {A: 0.5, B: 0.3, C: 0.2}

    def first(**fields: Any) -> tuple[Any, torch.Tensor]:
        lm = scripted_lm(always(law))
        out = solve(lm, soft(k=3, **fields))
        return out.steps[0], lm.fed[tuple(PROMPT)][0]

    table = scripted_lm(always(law)).table
    for mixture in ("non_uniform", "element_wise_max"):
        plain, vector = first(mixture=mixture)
        norms = table[[A, B, C]].norm(dim=-1)
        own = (torch.tensor([0.5, 0.3, 0.2]) * norms).sum()
        assert plain.norm_ratio == pytest.approx(float(vector.norm() / own), rel=1e-4)
        assert abs(plain.norm_ratio - 1) > 0.05
        matched, rescaled = first(mixture=mixture, mix_norm="match")
        assert matched.norm_ratio == 1.0
        assert torch.allclose(rescaled, vector * (own / vector.norm()), atol=1e-5)


@pytest.mark.parametrize("mixture", BASES)
def test_temperature_zero_feeds_the_arg_max(scripted_lm: MakeLM, mixture: str) -> None:
    lm = scripted_lm(always({A: 0.6, B: 0.4}))
    out = solve(lm, soft(mixture=mixture, temperature=0.0, temperature2=1.0))
    assert out.notes["think_steps"] == 6
    assert torch.allclose(torch.stack(lm.fed[tuple(PROMPT)][:6]), lm.table[A].expand(6, -1), atol=1e-6)


@pytest.mark.parametrize("mixture", ["hard_argmax", "hard_sample"])
def test_an_end_token_that_is_thought_does_not_end_the_row(scripted_lm: MakeLM, mixture: str) -> None:
    """It is one candidate like another, fed like the mixtures that the control is compared with."""
    lm = scripted_lm(always({A: 0.99, B: 0.01}), eos=[A])
    out = solve(lm, soft(mixture=mixture, min_end_prob=1.0, temperature2=5.0, min_p2=0.9))
    assert kinds(out)[:6] == [("think", "token")] * 6
    assert [s.token_id for s in out.steps[:6]].count(A) >= 5
    # In the answer it does.
    assert (out.reason, out.steps[-1].token_id, out.steps[-1].phase) == ("eos", A, "answer")


def test_hard_choices_report_both_log_probabilities(scripted_lm: MakeLM) -> None:
    lm = scripted_lm(always({A: 0.5, B: 0.3, C: 0.2}))
    out = solve(lm, soft(mixture="hard_sample", k=2, T_e=12, T_total=20), seed=3)
    own, kept = {A: 0.5, B: 0.3}, {A: 0.625, B: 0.375}
    seen = set()
    for step in out.steps[:12]:
        assert step.token_id is not None and step.logprob is not None and step.sampled_logprob is not None
        seen.add(step.token_id)
        assert step.logprob == pytest.approx(torch.tensor(own[step.token_id]).log().item(), abs=1e-4)
        assert step.sampled_logprob == pytest.approx(torch.tensor(kept[step.token_id]).log().item(), abs=1e-4)
    assert seen == {A, B}
    greedy = solve(lm, soft(mixture="hard_argmax"))
    assert {s.sampled_logprob for s in greedy.steps[:6]} == {0.0}


def test_the_answer_has_filters_of_its_own(scripted_lm: MakeLM) -> None:
    lm = scripted_lm(always({A: 0.4, B: 0.35, C: 0.25}))
    for fields, allowed in (
        ({"top_k2": 1}, {A}),
        ({"top_k2": 2}, {A, B}),
        ({"top_p2": 0.5}, {A, B}),
        ({"min_p2": 0.8}, {A, B}),
        ({"temperature2": 0.0}, {A}),
        ({"temperature2": None}, {A, B, C}),
    ):
        strategy = soft(**{"T_e": 2, "temperature2": 1.0, "top_p2": 1.0, **fields})
        out = solve(lm, strategy, max_new_tokens=42)
        assert {s.token_id for s in out.steps if s.phase == "answer"} == allowed, fields
        assert out.steps[0].top is not None and len(out.steps[0].top.ids) == 5  # thinking is not filtered


@pytest.mark.parametrize("mixture", ["non_uniform", "dirichlet", "hard_sample"])
def test_the_answer_s_temperature_does_not_touch_thinking(tiny_lm: Tiny, mixture: Any) -> None:
    lm = tiny_lm("llama")

    def at(temperature2: float | None) -> Generation:
        strategy = SoftThinking(
            mixture=mixture, T_e=8, temperature=0.6, temperature2=temperature2, min_end_prob=1.0
        )
        out = lm.generate("What is 12 + 30?", strategy, max_new_tokens=24, seed=5)
        assert isinstance(out, Generation)
        return out

    cold, hot, same, unset = at(0.01), at(3.0), at(0.6), at(None)
    assert cold.steps[:8] == hot.steps[:8] == unset.steps[:8]
    assert cold.token_ids != hot.token_ids
    assert unset.steps == same.steps


@pytest.mark.parametrize("trace", ["none", "summary"])
@pytest.mark.parametrize("mixture", BASES)
def test_a_broken_row_does_not_disturb_its_neighbours(scripted_lm: MakeLM, mixture: str, trace: Any) -> None:
    def script(lm: ScriptedLM, prompt: tuple[int, ...], read: int) -> torch.Tensor:
        return lm.law({A: 0.7, B: 0.3}) * (float("nan") if prompt == (6,) and read >= 2 else 1.0)

    requests = [Request([p], soft(mixture=mixture), id=p, max_new_tokens=12, trace=trace) for p in (5, 6)]
    out = fold(run(scripted_lm(script), requests))  # type: ignore[arg-type]
    assert out[6].reason.startswith("error: the model gave logits that are not finite")
    alone = fold(run(scripted_lm(script), requests[:1]))[5]  # type: ignore[arg-type]
    assert out[5].steps == alone.steps and out[5].reason == "length"


def test_python_takes_the_originals_names_and_refuses_what_it_does_not_know() -> None:
    assert SoftThinking(strategy="uniform", top_p=0.5) == SoftThinking(mixture="uniform", top_p2=0.5)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="same field"):
        SoftThinking(strategy="uniform", mixture="uniform")  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="Did you mean 'mixture'"):
        SoftThinking(mixtur="uniform")  # type: ignore[call-arg]
    with pytest.raises(ConfigError) as caught:
        SoftThinking(mixture="unifrom", T_e="5", budget_mode="x")  # type: ignore[arg-type]
    assert len(caught.value.problems) == 3 and "did you mean 'uniform'" in str(caught.value)
