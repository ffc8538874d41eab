"""Best of n: candidates as if decoded alone, their scores, and what is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from unspoken.decoding import Request, run
from unspoken.decoding._base import derive_seed
from unspoken.decoding._sequence import Branch
from unspoken.decoding.beam import BeamSearch
from unspoken.decoding.best_of_n import BestOfN
from unspoken.decoding.cot import ChainOfThought
from unspoken.decoding.power import PowerSampling
from unspoken.decoding.soft import SoftThinking
from unspoken.errors import ConfigError
from unspoken.lm.model import CausalLM
from unspoken.types import Generation, Rewind, Step, fold

Tiny = Callable[[str], CausalLM]
QUESTION = "What is 12 + 30?"


def alone(lm: CausalLM, inner: Any, n: int, seed: int, **options: Any) -> list[Generation]:
    """The candidates, each decoded by itself."""
    found = []
    for i in range(n):
        request = Request(QUESTION, inner, seed=derive_seed(seed, "candidate", i), **options)
        found.append(fold(run(lm, [request]))[0])
    return found


def said(generation: Generation) -> list[Any]:
    return [(step.kind, step.token_id, step.text) for step in generation.steps]


@pytest.mark.parametrize("by", ["sum", "mean"])
@pytest.mark.parametrize(
    "inner",
    [ChainOfThought(temperature=1.0), SoftThinking(T_e=3, min_end_prob=0.6, temperature=0.8)],
    ids=str,
)
def test_the_likeliest_of_independent_answers(tiny_lm: Tiny, inner: Any, by: Any) -> None:
    lm = tiny_lm("llama")
    request = Request(QUESTION, BestOfN(inner, 5, by=by), seed=7, max_new_tokens=9)
    (out,) = fold(run(lm, [request], batch_size=3)).values()
    candidates = alone(lm, inner, 5, 7, max_new_tokens=9)
    scores = []
    for candidate in candidates:
        chosen = [s.logprob for s in candidate.steps if s.kind == "token" and s.logprob is not None]
        scores.append(sum(chosen) / (len(chosen) if by == "mean" else 1))
    note = out.notes["best_of_n"]
    assert [c["score"] for c in note["candidates"]] == pytest.approx(scores, abs=1e-4)
    assert note["chosen"] == scores.index(max(scores)) and note["by"] == by
    assert said(out) == said(candidates[note["chosen"]])
    assert [c["text"] for c in note["candidates"]] == [c.answer_text for c in candidates]
    assert [c["length"] for c in note["candidates"]] == [len(c.steps) for c in candidates]
    # All work is counted, whatever is kept.
    for name in ("tokens", "latent_steps", "forced_tokens", "forward_passes"):
        assert getattr(out.usage, name) == sum(getattr(c.usage, name) for c in candidates)


def test_the_score_is_the_model_s_own_log_probability(tiny_lm: Tiny) -> None:
    lm, strategy = tiny_lm("qwen3"), BestOfN(ChainOfThought(temperature=0.7, top_k=5), 3)
    out: Any = lm.generate(QUESTION, strategy, max_new_tokens=6, seed=1)
    prompt = strategy.prompt_ids(lm, QUESTION)
    with torch.no_grad():
        logits = lm.model(torch.tensor([prompt + out.token_ids]), use_cache=False).logits[
            0, len(prompt) - 1 : -1
        ]
    want = logits.double().log_softmax(-1)[range(len(out.steps)), out.token_ids].sum()
    assert max(c["score"] for c in out.notes["best_of_n"]["candidates"]) == pytest.approx(
        float(want), abs=1e-4
    )


def test_sum_and_mean_differ_and_ties_go_to_the_first() -> None:
    def branch(*logprobs: float) -> Branch:
        return Branch([Step(0, i, "answer", "token", 1, "x", p) for i, p in enumerate(logprobs)], "eos")

    short, long = branch(-2.0), branch(-1.5, -1.5)
    assert BestOfN(by="sum").score(short) > BestOfN(by="sum").score(long)
    assert BestOfN(by="mean").score(short) < BestOfN(by="mean").score(long)
    forced = branch(-2.0, -9.0)
    forced.steps[1] = replace(forced.steps[1], kind="forced")
    assert BestOfN(by="mean").score(forced) == -2.0
    assert BestOfN().score(Branch([])) == float("-inf")


def test_equal_candidates_keep_the_first(tiny_lm: Tiny) -> None:
    out: Any = tiny_lm("llama").generate(
        QUESTION, BestOfN(ChainOfThought(temperature=0.0), 3), max_new_tokens=5
    )
    assert out.notes["best_of_n"]["chosen"] == 0


def test_the_first_is_shown_and_then_the_best(tiny_lm: Tiny) -> None:
    lm, strategy = tiny_lm("llama"), BestOfN(n=6)
    events = [e for s in range(4) for e in lm.stream(QUESTION, strategy, max_new_tokens=8, seed=s)]
    assert any(isinstance(event, Rewind) for event in events)
    for seed in range(4):
        out = fold(lm.stream(QUESTION, strategy, max_new_tokens=8, seed=seed))[0]
        note = out.notes["best_of_n"]
        assert out.answer_text == note["candidates"][note["chosen"]]["text"]
        assert [step.index for step in out.steps] == list(range(len(out.steps)))


@pytest.mark.parametrize(
    "inner", [BestOfN(n=2), BeamSearch(2), PowerSampling(mcmc_steps=2)], ids=lambda s: s.name
)
def test_other_sequence_strategies_inside(tiny_lm: Tiny, inner: Any) -> None:
    lm = tiny_lm("llama")
    request = Request(QUESTION, BestOfN(inner, 3), seed=2, max_new_tokens=6)
    (out,) = fold(run(lm, [request], batch_size=4)).values()
    candidates = alone(lm, inner, 3, 2, max_new_tokens=6)
    assert said(out) == said(candidates[out.notes["best_of_n"]["chosen"]])
    assert out.usage.tokens == sum(c.usage.tokens for c in candidates)
    assert inner.name == "best_of_n" or inner.name in out.notes


def test_what_the_inner_strategy_refuses_is_refused(tiny_lm: Tiny) -> None:
    with pytest.raises(ConfigError, match="T_e"):
        tiny_lm("llama").generate(QUESTION, BestOfN(SoftThinking(T_e=50)), max_new_tokens=20)
    with pytest.raises(ConfigError, match="n must be at least 1"):
        BestOfN(n=0)
