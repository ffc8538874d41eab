"""Importance resampling: weights, the law of the answer, and what the notes say."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from markov import Markov, distance, powered

from unspoken.decoding._power import normalised
from unspoken.decoding.importance import Importance
from unspoken.errors import ConfigError
from unspoken.lm.model import CausalLM


def law(n: int, runs: int, alpha: float = 2.0) -> dict[str, float]:
    toy, weighted = Markov(5), Counter[str]()
    for seed in range(runs):
        _, notes = toy.drive(Importance(alpha, n), seed)
        for candidate in notes["importance"]["candidates"]:
            weighted[candidate["text"]] += candidate["weight"]
    return {text: weight / runs for text, weight in weighted.items()}


def test_the_law_tends_to_p_to_the_alpha() -> None:
    want, _ = powered(Markov(5).answers(), 2.0)
    far, near = distance(law(1, 3000), want), distance(law(64, 150), want)
    assert near < 0.05 < far  # one answer is only low temperature


def test_the_answer_is_drawn_by_weight() -> None:
    toy, shares, hits = Markov(5), 0.0, 0
    for seed in range(1500):
        branch, notes = toy.drive(Importance(3.0, 4), seed)
        note = notes["importance"]
        best = max(range(4), key=lambda i: note["candidates"][i]["weight"])
        shares += note["candidates"][best]["weight"]
        hits += note["chosen"] == best
        assert note["candidates"][note["chosen"]]["text"] == branch.text
        squares = sum(c["weight"] ** 2 for c in note["candidates"])
        assert note["effective_size"] == pytest.approx(1 / squares)
    assert hits / 1500 == pytest.approx(shares / 1500, abs=0.05)


def test_the_normaliser_is_unbiased() -> None:
    toy = Markov(5)
    _, total = powered(toy.answers(), 2.0)
    found = [
        math.exp(toy.drive(Importance(2.0, 8), seed)[1]["importance"]["log_normaliser"])
        for seed in range(400)
    ]
    mean = sum(found) / 400
    error = math.sqrt(sum((x - mean) ** 2 for x in found) / 400 / 399)
    assert abs(mean - total) < 4 * error < 0.2 * total


def test_weights_against_a_full_forward(tiny_lm: Callable[[str], CausalLM]) -> None:
    lm = tiny_lm("llama")
    strategy = Importance(alpha=1.3, n=4)
    out: Any = lm.generate("Hi", strategy, max_new_tokens=7, seed=3, trace="full")
    note = out.notes["importance"]
    # The answer is one of four; its weight against that of the others needs only its log-probabilities.
    prompt = strategy.prompt_ids(lm, "Hi")
    with torch.no_grad():
        logits = lm.model(torch.tensor([prompt + out.token_ids]), use_cache=False).logits[
            0, len(prompt) - 1 : -1
        ]
    logits, ids = logits.double(), out.token_ids
    lp = logits.log_softmax(-1)[range(len(ids)), ids]
    lq = (1.3 * logits).log_softmax(-1)[range(len(ids)), ids]
    assert [s.logprob for s in out.steps] == pytest.approx(lp.tolist(), abs=1e-4)
    assert [s.sampled_logprob for s in out.steps] == pytest.approx(lq.tolist(), abs=1e-4)
    weight = note["candidates"][note["chosen"]]["weight"]
    mine = math.exp(float(1.3 * lp.sum() - lq.sum()) - note["log_normaliser"]) / 4
    assert weight == pytest.approx(mine, abs=1e-3)
    assert out.usage.tokens == sum(candidate["tokens"] for candidate in note["candidates"])


def test_alpha_one_weighs_all_alike(tiny_lm: Callable[[str], CausalLM]) -> None:
    out: Any = tiny_lm("gpt2").generate("Hi", Importance(alpha=1.0, n=3), max_new_tokens=5, seed=0)
    note = out.notes["importance"]
    assert [c["weight"] for c in note["candidates"]] == pytest.approx([1 / 3] * 3)
    assert note["effective_size"] == pytest.approx(3)


def test_very_unequal_weights_do_not_overflow() -> None:
    assert normalised([-2000.0, -1000.0]) == [0.0, 1.0]


def test_mistakes_come_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        Importance(alpha=0.0, n=0)
    assert len(error.value.problems) == 2
