"""The two phases of soft thinking, on logits that are written down."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from soft_help import BASES, PROMPT, A, C, D, Ids, MakeLM, Tiny, always, end_at, kinds, soft, solve

from unspoken.config import from_dict
from unspoken.decoding import Request, run
from unspoken.decoding.cot import ChainOfThought
from unspoken.decoding.soft import SoftThinking
from unspoken.errors import ConfigError
from unspoken.lm.model import CausalLM
from unspoken.types import RawText, fold

# When thinking ends


def test_thinking_stops_before_the_mixture_of_the_step(scripted_lm: MakeLM) -> None:
    lm = scripted_lm(end_at(3, 0.2))
    out = solve(lm, soft())
    answer = 16 - 6
    forced = [lm.close, lm.open]
    assert (
        kinds(out)
        == [("think", "soft")] * 3 + [("transition", "forced")] * 2 + [("answer", "token")] * answer
    )
    assert out.token_ids[:2] == forced
    assert (out.notes["think_end"], out.notes["think_steps"]) == ("end_prob", 3)
    # One vector was read for each step but the last: nothing was appended for the step that stopped.
    fed = lm.fed[tuple(PROMPT)]
    assert len(fed) == 3 + 2 + answer - 1
    assert torch.equal(torch.stack(fed[3:5]), lm.table[forced])


@pytest.mark.parametrize(("p_end", "steps"), [(0.0499, 6), (0.0501, 2)])
def test_the_end_of_thinking_counts_at_the_threshold(scripted_lm: MakeLM, p_end: float, steps: int) -> None:
    out = solve(scripted_lm(end_at(2, p_end)), soft(min_end_prob=0.05))
    assert out.notes["think_steps"] == steps
    assert out.notes["think_end"] == ("end_prob" if steps == 2 else "budget")


def test_the_end_counts_even_outside_the_mixture(scripted_lm: MakeLM) -> None:
    out = solve(scripted_lm(end_at(2, 0.06)), soft(k=1))
    assert (out.notes["think_end"], out.notes["think_steps"]) == ("end_prob", 2)


@pytest.mark.parametrize(("temperature", "stops"), [(1.0, True), (0.5, False)])
def test_the_end_is_measured_on_the_tempered_law(
    scripted_lm: MakeLM, temperature: float, stops: bool
) -> None:
    """0.1 against 0.9 is 0.012 against 0.988 at half the temperature."""
    lm = scripted_lm(lambda lm, prompt, read: lm.law({lm.close: 0.1, A: 0.9}))
    out = solve(lm, soft(temperature=temperature))
    assert (out.notes["think_end"] == "end_prob") is stops
    if not stops:
        assert out.steps[0].end_prob == pytest.approx(0.01 / 0.82, rel=1e-4)


def test_the_end_of_the_text_ends_thinking_with_all_its_tokens_together(scripted_lm: MakeLM) -> None:
    lm = scripted_lm(always({A: 0.94, C: 0.03, D: 0.03}), eos=[C, D])
    out = solve(lm, soft())
    assert (out.notes["think_end"], out.notes["think_steps"]) == ("eos_prob", 0)
    assert solve(scripted_lm(lm.script, eos=[C]), soft()).notes["think_end"] == "budget"


def test_several_end_of_think_tokens_count_together(scripted_lm: MakeLM) -> None:
    lm = scripted_lm(always({A: 0.94, C: 0.03, D: 0.03}))
    lm.tokens.__dict__["end_of_think_ids"] = (C, D)
    assert solve(lm, soft()).notes["think_end"] == "end_prob"


def test_thinking_steps_report_the_probability_of_the_end(scripted_lm: MakeLM) -> None:
    out = solve(scripted_lm(end_at(2, 0.04)), soft())
    assert [s.end_prob for s in out.steps[:4]] == pytest.approx([0.001, 0.001, 0.04, 0.001], rel=1e-3)
    assert all(s.end_prob is None for s in out.steps[6:])


def test_t_e_of_zero_skips_thinking(scripted_lm: MakeLM) -> None:
    out = solve(scripted_lm(end_at(0, 0.9)), soft(T_e=0))
    assert kinds(out)[:3] == [("transition", "forced")] * 2 + [("answer", "token")]
    assert out.usage.latent_steps == 0 and out.notes["think_end"] == "budget"


# Budgets


@pytest.mark.parametrize(
    ("mode", "stop", "answer"), [("fixed", 3, 4), ("refund", 3, 11), ("fixed", 99, 4), ("refund", 99, 4)]
)
def test_unused_thinking_steps_are_lost_or_refunded(
    scripted_lm: MakeLM, mode: str, stop: int, answer: int
) -> None:
    lm = scripted_lm(end_at(stop, 0.5))
    # T_total overrides max_new_tokens, in both directions.
    for most in (12, 500):
        out = solve(lm, soft(T_e=10, T_total=14, budget_mode=mode), max_new_tokens=most)
        assert sum(step.phase == "answer" for step in out.steps) == answer
        assert out.reason == "length" and out.truncated
        assert out.usage.latent_steps == min(stop, 10) and out.usage.forced_tokens == 2


@pytest.mark.parametrize("stop", [0, 3, 99])
@pytest.mark.parametrize("mode", ["fixed", "refund"])
@pytest.mark.parametrize("forced", ["</think>", ""])
def test_a_budget_with_no_room_for_an_answer_holds(
    scripted_lm: MakeLM, stop: int, mode: str, forced: str
) -> None:
    strategy = soft(T_e=6, T_total=6, budget_mode=mode, transition=forced, opener="")
    out = solve(scripted_lm(end_at(stop, 0.5)), strategy)
    assert out.reason == "length"
    counted = [step for step in out.steps if step.kind != "forced"]
    assert len(counted) <= 6
    assert sum(step.phase == "answer" for step in out.steps) == (0 if mode == "fixed" else 6 - min(stop, 6))


def test_budgets_that_cannot_be_are_refused(scripted_lm: MakeLM) -> None:
    with pytest.raises(ConfigError, match=r"T_e \(9\) must not exceed T_total \(8\)"):
        SoftThinking(T_e=9, T_total=8)
    lm = scripted_lm(end_at(0, 0.5))
    with pytest.raises(ConfigError, match=r"T_e \(20\) must not exceed the whole budget \(16 steps\)"):
        soft(T_e=20).stream(lm, [PROMPT], max_new_tokens=16)  # type: ignore[arg-type]
    events = run(
        lm,  # type: ignore[arg-type]
        [Request(PROMPT, soft(T_e=20), id="bad", max_new_tokens=16), Request(PROMPT, soft(), id="good")],
    )
    done = fold(events)
    assert done["bad"].reason.startswith("error: T_e (20)") and not done["bad"].steps
    assert done["good"].reason == "length"


def test_k_above_the_vocabulary_is_refused(scripted_lm: MakeLM) -> None:
    lm = scripted_lm(end_at(0, 0.5))
    with pytest.raises(ConfigError, match=f"k is {lm.vocab_size + 1}, but the model's vocabulary has"):
        soft(k=lm.vocab_size + 1).stream(lm, [PROMPT])  # type: ignore[arg-type]
    assert solve(lm, soft(k=lm.vocab_size + 1)).reason.startswith("error: k is")
    assert solve(scripted_lm(end_at(9, 0.5)), soft(k=lm.vocab_size)).notes["think_steps"] == 6


def test_all_bad_parameters_are_listed_in_one_error() -> None:
    bad = {
        "k": 0,
        "T_e": -1,
        "T_total": 0,
        "temperature": -0.1,
        "min_end_prob": 0.0,
        "temperature2": -1.0,
        "top_k2": -1,
        "top_p2": 1.5,
        "min_p2": 1.0,
        "dirichlet_alpha": 0.0,
        "nucleus_p": 0.0,
        "nucleus_cap": 0,
    }
    with pytest.raises(ConfigError) as caught:
        SoftThinking(**bad)
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == len(bad)
    assert all(name in text and str(value) in text for name, value in bad.items())
    with pytest.raises(ConfigError) as caught:
        from_dict(SoftThinking, {"mixture": "non_unifrom", "T_ee": 3, "k": "five"})
    assert len(caught.value.problems) == 3
    assert "did you mean 'non_uniform'" in str(caught.value)


def test_names_of_the_originals() -> None:
    given = {"strategy": "inverse_p", "top_p": 0.8, "T_e": 50, "T_total": 250}
    assert from_dict(SoftThinking, given, aliases=SoftThinking.aliases) == SoftThinking(
        mixture="inverse_p", top_p2=0.8, T_e=50, T_total=250
    )


# Forced text


def test_transition_and_opener_are_encoded_apart(scripted_lm: MakeLM, ids: Ids) -> None:
    first, second = "appl", "es"
    assert ids(first + second) != ids(first) + ids(second)
    out = solve(scripted_lm(end_at(1, 0.5)), soft(transition=first, opener=second))
    forced = [step for step in out.steps if step.kind == "forced"]
    assert [step.token_id for step in forced] == ids(first) + ids(second)
    assert "".join(step.text for step in forced) == "apples"
    assert all(step.phase == "transition" and step.sampled_logprob is None for step in forced)
    assert all(step.logprob is not None and step.logprob < 0 for step in forced)


@pytest.mark.parametrize("base", BASES)
def test_answer_directly_differs_in_the_opener_only(scripted_lm: MakeLM, base: str) -> None:
    lm = scripted_lm(end_at(3, 0.5))
    plain, direct = (solve(lm, soft(mixture=prefix + base)) for prefix in ("", "answer_directly_"))
    assert plain.steps[:3] == direct.steps[:3]
    for out, opener in ((plain, "<think>"), (direct, "<answer>")):
        forced = [step.token_id for step in out.steps if step.kind == "forced"]
        assert forced == [lm.close, *lm.ids(opener)]


@pytest.mark.parametrize(("opener", "text"), [("", "</think>"), ("So: ", "</think>So: ")])
def test_an_opener_may_be_anything(scripted_lm: MakeLM, opener: str, text: str) -> None:
    out = solve(scripted_lm(end_at(1, 0.5)), soft(mixture="answer_directly_uniform", opener=opener))
    assert "".join(step.text for step in out.steps if step.phase == "transition") == text


def test_no_forced_text_goes_straight_to_the_answer(scripted_lm: MakeLM) -> None:
    out = solve(scripted_lm(end_at(2, 0.5)), soft(transition="", opener=""))
    assert kinds(out)[:4] == [("think", "soft")] * 2 + [("answer", "token")] * 2
    assert len(out.steps) == 2 + 16 - 6


@pytest.mark.parametrize("think_open", ["assistant_prefix", "user_suffix", "none"])
@pytest.mark.parametrize("kind", ["text", "messages"])
def test_think_open(tiny_lm: Tiny, think_open: Any, kind: str) -> None:
    lm = tiny_lm("llama")
    question: Any = "Hi" if kind == "text" else [{"role": "user", "content": "Hi"}]
    want = {
        "assistant_prefix": [*lm.tokens.encode_prompt("Hi"), *lm.tokens.encode("<think>")],
        "user_suffix": lm.tokens.encode_prompt("Hi\n<think>"),
        "none": lm.tokens.encode_prompt("Hi"),
    }[think_open]
    for strategy in (SoftThinking(think_open=think_open), ChainOfThought(think_open=think_open)):
        assert strategy.prompt_ids(lm, question) == want
        assert strategy.prompt_ids(lm, PROMPT) == PROMPT
        with pytest.raises(ConfigError, match="empty"):
            strategy.prompt_ids(lm, [])


def test_raw_text_gets_neither_template_nor_opener(tiny_lm: Tiny) -> None:
    lm = tiny_lm("llama")
    for strategy in (SoftThinking(), SoftThinking(think_open="user_suffix"), ChainOfThought()):
        assert strategy.prompt_ids(lm, RawText("Hi")) == lm.tokens.encode("Hi")


def test_a_template_that_opens_thinking_gets_no_second_opener(tiny_lm: Tiny, tiny_model: Any) -> None:
    import copy

    model, tokenizer = tiny_model("llama")
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{{ messages[0]['content'] }}<think>\n"
    lm = CausalLM(model, tokenizer)
    assert SoftThinking().prompt_ids(lm, "Hi") == lm.tokens.encode_prompt("Hi")
    assert lm.tokens.decode(lm.tokens.encode_prompt("Hi")).count("<think>") == 1
