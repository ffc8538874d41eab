"""Beam search against a search by whole forwards, and against that of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from unspoken.decoding.beam import BeamSearch
from unspoken.decoding.cot import ChainOfThought
from unspoken.errors import ConfigError
from unspoken.lm.model import CausalLM
from unspoken.types import fold

Tiny = Callable[[str], CausalLM]
QUESTION = "What is 12 + 30?"


def ending(lm: CausalLM, every: int = 11) -> CausalLM:
    """The model with an end token in so many."""
    made = CausalLM(lm.model, lm.tokenizer)
    made.__dict__["eos_ids"] = frozenset(range(3, lm.vocab_size, every)) if every else frozenset()
    return made


def laws(lm: CausalLM, prompt: list[int], texts: list[tuple[int, ...]]) -> Any:
    """[n, V] log-probabilities after each text, from a forward over all of it."""
    with torch.no_grad():
        rows = [lm.model(torch.tensor([[*prompt, *text]]), use_cache=False).logits[0, -1] for text in texts]
    return torch.stack(rows).double().log_softmax(-1).numpy()


def by_hand(
    lm: CausalLM, prompt: list[int], width: int, penalty: float, longest: int
) -> tuple[float, tuple[int, ...]]:
    """The same search, without a cache and without stopping before the longest answers."""
    going: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    finished: list[tuple[float, tuple[int, ...]]] = []
    for length in range(1, longest + 1):
        scores = laws(lm, prompt, [text for _, text in going]) + np.array([[s] for s, _ in going])
        order = np.argsort(-scores, axis=None)[: width * (1 + len(lm.eos_ids))]
        extended = [
            (float(scores[i, t]), (*going[i][1], int(t)))
            for i, t in zip(*np.unravel_index(order, scores.shape), strict=True)
        ]
        ends = [length == longest or text[-1] in lm.eos_ids for _, text in extended]
        finished += [
            (s / length**penalty, text) for (s, text), e in zip(extended[:width], ends, strict=False) if e
        ]
        going = [pair for pair, end in zip(extended, ends, strict=True) if not end][:width]
        if not going:
            break
    return max(finished)


@pytest.mark.parametrize("penalty", [0.0, 1.0, -1.0])
@pytest.mark.parametrize("every", [0, 11, 40])
def test_against_a_search_by_whole_forwards(tiny_lm: Tiny, family: str, every: int, penalty: float) -> None:
    lm, strategy = ending(tiny_lm(family), every), BeamSearch(3, length_penalty=penalty)
    out: Any = lm.generate(QUESTION, strategy, max_new_tokens=6, batch_size=2)
    score, text = by_hand(lm, strategy.prompt_ids(lm, QUESTION), 3, penalty, 6)
    assert tuple(out.token_ids) == text
    best = out.notes["beam"]["finished"][0]
    assert best["score"] == pytest.approx(score, abs=1e-4) and best["length"] == len(text)
    assert best["logprob"] == pytest.approx(sum(step.logprob for step in out.steps), abs=1e-4)
    assert out.reason == ("eos" if text[-1] in lm.eos_ids else "length")


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_against_transformers(tiny_lm: Tiny, family: str, penalty: float) -> None:
    lm = ending(tiny_lm(family), 40)
    for width in (1, 4):
        strategy = BeamSearch(width, length_penalty=penalty)
        out: Any = lm.generate(QUESTION, strategy, max_new_tokens=12)
        ids = torch.tensor([strategy.prompt_ids(lm, QUESTION)])
        want = lm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=width,
            do_sample=False,
            max_new_tokens=12,
            length_penalty=penalty,
            early_stopping="never" if width > 1 else False,
            eos_token_id=sorted(lm.eos_ids),
            pad_token_id=0,
        )
        if width > 1:
            assert out.token_ids == want[0, ids.shape[1] :].tolist()


def test_one_beam_without_ends_is_greedy(tiny_lm: Tiny, family: str) -> None:
    lm = ending(tiny_lm(family), 0)
    greedy: Any = lm.generate(QUESTION, ChainOfThought(temperature=0.0), max_new_tokens=12)
    out: Any = lm.generate(QUESTION, BeamSearch(1), max_new_tokens=12)
    assert out.token_ids == greedy.token_ids and out.text == greedy.text and out.reason == "length"
    assert [s.logprob for s in out.steps] == pytest.approx([s.logprob for s in greedy.steps], abs=1e-4)
    assert {s.sampled_logprob for s in out.steps} == {0.0}
    # One forward a token: what was read is never read again.
    assert out.usage.forward_passes == greedy.usage.forward_passes
    assert out.usage.tokens == 12


def test_the_search_ends_when_nothing_can_become_better(tiny_lm: Tiny) -> None:
    lm = ending(tiny_lm("llama"), 5)
    short: Any = lm.generate(QUESTION, BeamSearch(4), max_new_tokens=40)
    assert short.notes["beam"]["depth"] < 40
    assert short.notes["beam"]["depth"] >= len(short.steps)


def test_stop_strings_finish_an_answer(tiny_lm: Tiny) -> None:
    lm = ending(tiny_lm("llama"), 0)
    plain: Any = lm.generate(QUESTION, BeamSearch(2), max_new_tokens=8)
    stop = next(step.text for step in plain.steps[1:] if step.text.strip())
    out: Any = lm.generate(QUESTION, BeamSearch(2), max_new_tokens=8, stop=[stop])
    assert out.reason == "stop" and stop in out.answer_text


def test_the_budget_and_the_context(tiny_lm: Tiny) -> None:
    lm = ending(tiny_lm("gpt2"), 0)
    assert lm.max_positions is not None
    one: Any = lm.generate(QUESTION, BeamSearch(3), max_new_tokens=1)
    assert (one.reason, len(one.steps)) == ("length", 1)
    out: Any = lm.generate([5] * (lm.max_positions - 3), BeamSearch(3), max_new_tokens=9)
    assert (out.reason, len(out.steps)) == ("context", 3)


def test_events_fold_to_the_best_answer(tiny_lm: Tiny) -> None:
    lm = ending(tiny_lm("llama"))
    strategy = BeamSearch(4, length_penalty=1.0)
    out: Any = lm.generate(QUESTION, strategy, max_new_tokens=9)
    folded = fold(lm.stream([QUESTION], strategy, max_new_tokens=9, batch_size=1))[0]
    assert folded.token_ids == out.token_ids
    assert [step.index for step in folded.steps] == list(range(len(folded.steps)))


def test_a_beam_wider_than_the_vocabulary(tiny_lm: Tiny) -> None:
    lm = ending(tiny_lm("llama"), 0)
    out: Any = lm.generate(QUESTION, BeamSearch(lm.vocab_size + 5), max_new_tokens=2, batch_size=64)
    _, text = by_hand(lm, BeamSearch(1).prompt_ids(lm, QUESTION), lm.vocab_size + 5, 0.0, 2)
    assert tuple(out.token_ids) == text
    # That was every answer of two tokens: a narrow beam finds none that is likelier.
    narrow: Any = lm.generate(QUESTION, BeamSearch(1), max_new_tokens=2)
    assert narrow.notes["beam"]["finished"][0]["logprob"] <= out.notes["beam"]["finished"][0]["logprob"]


def test_mistakes_come_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        BeamSearch(width=0, length_penalty=float("inf"))
    assert len(error.value.problems) == 2
    for penalty in (500.0, -2000.0, float("nan")):  # a length to this power is no float
        with pytest.raises(ConfigError, match="length_penalty must be from -10 to 10"):
            BeamSearch(length_penalty=penalty)
