"""Best of n: candidates as if decoded alone, their scores, and what is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from unspoken.decoding import Feed, Request, Row, State, run
from unspoken.decoding._base import derive_seed
from unspoken.decoding._sequence import Branch
from unspoken.decoding.beam import BeamSearch
from unspoken.decoding.best_of_n import BestOfN
from unspoken.decoding.cot import ChainOfThought
from unspoken.decoding.filler import Filler
from unspoken.decoding.power import PowerSampling
from unspoken.decoding.smc import PowerSMC
from unspoken.decoding.soft import SoftThinking
from unspoken.decoding.vote import Vote
from unspoken.errors import ConfigError, UnspokenError
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


def test_equal_scores_keep_the_first() -> None:
    def branch(text: str) -> Branch:
        return Branch([Step(0, 0, "answer", "token", 1, text, -1.0)], "eos")

    assert keep(BestOfN(n=3), [branch("a"), branch("b"), branch("c")])[0] == 0


def keep(strategy: BestOfN, branches: list[Branch]) -> tuple[int, dict[str, Any]]:
    """What is kept of these candidates, and all notes."""
    row, lm = Row(Request([0], strategy), [0], 9, torch.Generator()), None
    work = strategy.run(lm, row)  # type: ignore[arg-type]
    assert len(next(work)) == len(branches)
    with pytest.raises(StopIteration) as stop:
        work.send(branches)
    return branches.index(stop.value.value), dict(row.notes)


def test_a_failed_candidate_is_never_kept() -> None:
    """Not even against candidates that have no token, and so no score."""
    good = Step(0, 0, "answer", "token", 1, "x", -0.1)
    failed = Branch([good], "error: oh")
    chosen, notes = keep(BestOfN(n=3), [failed, Branch([], "eos"), Branch([good], "error: no")])
    assert chosen == 1 and notes["failed_candidates"] == "2 of 3: oh; no"
    candidates = notes["best_of_n"]["candidates"]
    assert [c["reason"] for c in candidates] == ["error: oh", "eos", "error: no"]
    assert [c["score"] for c in candidates] == [None, None, None] and candidates[0]["logprob"] is None


@dataclass(frozen=True)
class Fragile(ChainOfThought):
    """Fails after its second token where its first one is even, or at once."""

    temperature: float = 1.0
    never: bool = False

    def begin(self, lm: CausalLM, row: Row) -> None:
        super().begin(lm, row)
        if self.never:
            raise UnspokenError("broken from the start")

    def observe(self, row: Row, token_id: int, text: str) -> None:
        super().observe(row, token_id, text)
        row.memory.setdefault("first", token_id)

    def next_input(self, logits: Tensor, hidden: Tensor, state: State) -> list[Feed]:
        for row in state.rows:
            if row.steps == 2 and row.memory["first"] % 2 == 0:
                raise UnspokenError("even")
        return super().next_input(logits, hidden, state)


@pytest.mark.parametrize("outer", [BestOfN, Vote])
def test_the_others_go_on_when_a_candidate_fails(tiny_lm: Tiny, outer: Any) -> None:
    lm, inner, n = tiny_lm("llama"), Fragile(), 6
    # A seed for which some candidates fail, and some do not.
    seed = next(
        s for s in range(40) if {dead(c) for c in alone(lm, inner, n, s, max_new_tokens=5)} == {True, False}
    )
    candidates = alone(lm, inner, n, seed, max_new_tokens=5)
    failed = [i for i, c in enumerate(candidates) if dead(c)]
    # One row at a time, so that a failure is of one candidate.
    request = Request(QUESTION, outer(inner, n), seed=seed, max_new_tokens=5)
    (out,) = fold(run(lm, [request], batch_size=1)).values()
    note = out.notes["vote" if outer is Vote else "best_of_n"]
    assert out.reason in ("eos", "length") and note["chosen"] not in failed
    assert said(out) == said(candidates[note["chosen"]])
    assert [i for i, c in enumerate(note["candidates"]) if c["reason"] == "error: even"] == failed
    assert out.notes["failed_candidates"] == f"{len(failed)} of {n}: even"
    assert out.usage.tokens == sum(c.usage.tokens for c in candidates)  # lost work is counted, too
    # The same inside another choice: the inner one goes on, and the outer one sees no failure.
    request = Request(QUESTION, BestOfN(outer(inner, n), 1), seed=seed, max_new_tokens=5)
    (nested,) = fold(run(lm, [request], batch_size=1)).values()
    assert nested.reason in ("eos", "length")


def dead(generation: Generation) -> bool:
    return generation.reason == "error: even"


def test_the_row_fails_when_all_candidates_fail(tiny_lm: Tiny) -> None:
    asked = [
        Request("Hi", BestOfN(Fragile(never=True), 3), id=0),
        Request("Hi", BestOfN(n=2), id=1, max_new_tokens=4),
    ]
    out = fold(run(tiny_lm("llama"), asked))
    assert out[0].reason == "error: All 3 candidates failed: broken from the start"
    assert out[1].reason in ("eos", "length")


@pytest.mark.parametrize("outer", [BestOfN, Vote])
@pytest.mark.parametrize(
    ("inner", "words"),
    [
        (
            ChainOfThought(temperature=0.0),
            "cot with temperature 0 leaves nothing to chance: let it draw (--temp",
        ),
        (ChainOfThought(top_k=1), "cot with top_k 1 leaves nothing to chance: let it draw (--top_k 0)"),
        (Filler(), "filler with temperature 0 leaves"),
        (
            SoftThinking(temperature2=0.0),
            "soft with temperature2 0 leaves nothing to chance: let it draw (--temperature2",
        ),
        (BeamSearch(2), "beam leaves nothing to chance: choose another"),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_candidates_that_would_all_be_the_same_are_refused(
    tiny_lm: Tiny, outer: Any, inner: Any, words: str
) -> None:
    lm = tiny_lm("llama")
    (problem,) = outer(inner, 3).check(lm)
    assert (
        problem.startswith("All 3 candidates would be the same, since the inner strategy")
        and words in problem
    )
    assert "--n 1" in problem and outer(inner, 1).check(lm) == []
    assert len(Vote(outer(inner, 3), 2).check(lm)) == 1  # said once, where it is to be changed
    with pytest.raises(ConfigError, match="All 3 candidates"):
        lm.generate(QUESTION, outer(inner, 3), max_new_tokens=5)


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
    "inner", [BestOfN(n=2), PowerSMC(particles=3), PowerSampling(mcmc_steps=2)], ids=lambda s: s.name
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
