"""The contract of every strategy, on every family, in fp32: see `battery.py` for what is run."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from unspoken.config import field_docs, from_dict, to_dict
from unspoken.decoding import Request, Strategy, run
from unspoken.decoding._base import derive_seed
from unspoken.decoding.cot import ChainOfThought
from unspoken.decoding.soft import SoftThinking
from unspoken.discovery import STRATEGIES
from unspoken.lm.cache import RaggedCache
from unspoken.lm.model import CausalLM
from unspoken.types import Done, Event, Generation, RowId, Step, event_from_dict, event_to_dict, fold

from .battery import (
    BUDGETS,
    CASES,
    FAMILIES,
    PAIRS,
    PROMPTS,
    TOLERANCE,
    TURNS,
    Case,
    alone,
    assert_same,
    decode,
    ending_lm,
    path,
    recomputed_logprobs,
    requests,
    timeless,
    unending,
)

Tiny = Callable[[str], tuple[Any, Any]]
every_pair = pytest.mark.parametrize(("case", "family"), PAIRS, ids=str)
in_turns = pytest.mark.parametrize(("case", "family"), TURNS, ids=str)
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def lm(tiny_model: Tiny, family: str) -> CausalLM:
    return ending_lm(*tiny_model(family))


@every_family
def test_the_battery_has_rows_that_end_in_different_ways(lm: CausalLM) -> None:
    """Otherwise the tests below would pass on rows that all go on to the same length."""
    ends = {(g.reason, len(g.steps)) for case in CASES for g in alone(lm, case).values()}
    assert {"eos", "length"} == {reason for reason, _ in ends} and len(ends) > 15
    think_ends = {g.notes.get("think_end") for case in CASES for g in alone(lm, case).values()}
    assert {"budget", "eos_prob"} <= think_ends


def test_every_strategy_is_in_the_battery() -> None:
    assert {case.name for case in CASES} == set(STRATEGIES.names()) >= {"cot", "soft"}


# Batches


@pytest.mark.parametrize(
    ("case", "family", "batch_size"),
    [(*pair, size) for size in (2, 8) for pair in PAIRS]
    + [(*pair, size) for size in (1, 3) for pair in TURNS],
    ids=str,
)
def test_batch_order_and_refill_change_nothing(lm: CausalLM, case: Case, batch_size: int) -> None:
    asked = requests(case.strategy())
    random.Random(batch_size).shuffle(asked)
    together = decode(lm, asked, batch_size)
    assert together.keys() == alone(lm, case).keys()
    for row, want in alone(lm, case).items():
        assert_same(together[row], want)


@every_family
def test_strategies_share_a_batch(lm: CausalLM, family: str) -> None:
    """Rows of all strategies at once, as a server has them."""
    asked = [
        Request(prompt, case.strategy(), id=f"{n} {i}", max_new_tokens=BUDGETS[i], seed=100 + i, trace="full")
        for n, case in enumerate(CASES)
        for i, prompt in enumerate(PROMPTS[:2])
    ]
    random.Random(0).shuffle(asked)
    together = decode(lm, asked, batch_size=7)
    for n, case in enumerate(CASES):
        for i in range(2):
            assert path(together[f"{n} {i}"]) == path(alone(lm, case)[i]), case


@in_turns
def test_duplicates_of_a_prompt_are_as_if_separate(lm: CausalLM, case: Case) -> None:
    strategy = case.strategy()
    asked = [
        Request(PROMPTS[2 * (i % 2)], strategy, id=i, max_new_tokens=6 + i % 3, seed=i // 2, trace="full")
        for i in range(5)
    ]
    together = decode(lm, asked, batch_size=3)
    for request in asked:
        assert_same(together[request.id], decode(lm, [request], 1)[request.id])


# Seeds


@in_turns
def test_seeds(lm: CausalLM, case: Case) -> None:
    def events(shift: int) -> list[Event]:
        asked = requests(case.strategy())[:3]
        for request in asked:
            request.seed += shift
        return [timeless(event) for event in run(lm, asked, batch_size=2)]

    first = events(0)
    assert events(0) == first
    other = fold(events(1000))
    differs = any(
        path(other[row]) != path(g) or other[row].steps != g.steps for row, g in fold(first).items()
    )
    assert differs == case.random


# Streams and traces


@in_turns
def test_a_stream_folds_to_the_result(lm: CausalLM, case: Case) -> None:
    strategy = case.strategy()
    prompts = list(PROMPTS[:3])
    options: dict[str, Any] = {"max_new_tokens": 12, "seed": 3, "batch_size": 2, "trace": "full"}
    events = list(lm.stream(prompts, strategy, **options))
    assert [event_from_dict(event_to_dict(event)) for event in events] == events
    out = lm.generate(prompts, strategy, **options)
    assert isinstance(out, list)
    folded = fold(events)
    for i, generation in enumerate(out):
        assert generation.steps == folded[i].steps and generation.reason == folded[i].reason
        # A prompt's seed comes from the given one and its place, so one prompt of many can be had again.
        request = Request(prompts[i], strategy, max_new_tokens=12, seed=derive_seed(3, i), trace="full")
        assert_same(decode(lm, [request])[0], Generation(0, *_parts(generation)))


def _parts(generation: Generation) -> tuple[Any, ...]:
    return generation.steps, generation.reason, generation.usage, generation.notes


@in_turns
def test_traces_and_viewers_change_nothing(lm: CausalLM, case: Case) -> None:
    seen: dict[RowId, list[Event]] = {}

    def level(trace: Any, **options: Any) -> dict[RowId, Generation]:
        return decode(lm, requests(case.strategy(), trace=trace, **options), 3)

    none, summary = level("none"), level("summary")
    watched = level("full", sink=lambda event: seen.setdefault(event.row, []).append(event))
    mixed = requests(case.strategy())
    for i, request in enumerate(mixed):
        request.trace = ("none", "summary", "full")[i % 3]  # type: ignore[assignment]
    by_level = (none, summary, watched)
    for row, generation in decode(lm, mixed, 3).items():
        assert generation.steps == by_level[mixed[int(row)].id % 3][row].steps  # type: ignore[operator]
    for row, want in alone(lm, case).items():
        assert_same(watched[row], want)
        assert fold(seen[row])[row] == watched[row]
        assert path(none[row]) == path(summary[row]) == path(want)
        for bare, some, full in zip(none[row].steps, summary[row].steps, watched[row].steps, strict=True):
            # The model's own log-probability and the law's are kept at every level.
            assert (bare.logprob, bare.sampled_logprob) == (full.logprob, full.sampled_logprob)
            assert (bare.entropy, bare.end_prob, bare.norm_ratio, bare.top, some.top) == (None,) * 5
            assert (some.entropy, some.end_prob, some.norm_ratio) == (
                full.entropy,
                full.end_prob,
                full.norm_ratio,
            )
            if full.kind in ("token", "soft"):
                assert full.entropy is not None and full.top is not None
            if full.kind == "token":
                assert full.logprob is not None and full.sampled_logprob is not None


# The cache


@every_pair
def test_cached_is_recomputed(lm: CausalLM, case: Case) -> None:
    strategy = case.strategy()
    for row in (1, 3):
        steps = alone(lm, case)[row].steps
        for step, want in zip(steps, recomputed_logprobs(lm, strategy, PROMPTS[row], steps), strict=False):
            assert (
                step.logprob == pytest.approx(want, abs=TOLERANCE)
                if want is not None
                else step.token_id is None
            )


@pytest.fixture
def dropped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions that each row held when it was dropped, in the order of the `Done`s."""
    held: list[int] = []
    drop = RaggedCache.drop

    def spy(self: RaggedCache, row: int) -> None:
        held.append(self.lengths[row])
        drop(self, row)

    monkeypatch.setattr(RaggedCache, "drop", spy)
    return held


@in_turns
def test_the_cache_holds_the_prompt_and_what_was_read(
    lm: CausalLM, case: Case, dropped: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every way to end: cancelled, by a stop string, by the context, by the budget or an end token."""
    ending, lm = lm, unending(lm)
    strategy = case.strategy()
    asked = requests(strategy, max_new_tokens=14)
    asked[0].sink = lambda event: asked[0].cancel() if isinstance(event, Step) and event.index == 1 else None
    longest = max(len(strategy.prompt_ids(lm, request.prompt)) for request in asked)
    monkeypatch.setattr(CausalLM, "max_positions", property(lambda self: longest + 4))
    answer = [s.text for s in decode(lm, [asked[1]])[1].steps if s.phase == "answer" and s.kind == "token"]
    whole = [text for text in answer if text and "\ufffd" not in text]
    asked[1].stop = tuple(whole[-1:])  # something that it is going to say
    dropped.clear()
    asked.append(Request(PROMPTS[0], strategy, id=4, max_new_tokens=6, seed=1))
    events = [*run(lm, asked, batch_size=2, live=True)]
    events += run(
        ending, [Request(PROMPTS[i], strategy, id=5 + i, max_new_tokens=14, seed=i) for i in range(2)]
    )
    done = [event for event in events if isinstance(event, Done)]
    steps = {row: len(generation.steps) for row, generation in fold(events).items()}
    reasons = {event.row: event.reason for event in done}
    assert (reasons[0], reasons[1], reasons[2], reasons[4]) == (
        "cancelled",
        "stop" if whole else "length",
        "context",
        "length",
    )
    assert len(done) == len(dropped) == 7
    for event, held in zip(done, dropped, strict=True):
        # The step that ends a row is not read, whatever it is; a cancelled row has read all its steps.
        read = steps[event.row] - (event.reason != "cancelled")
        assert held == event.usage.prompt_tokens + read
        assert event.usage.forward_passes == 1 + read
        if event.reason == "context":
            assert event.usage.prompt_tokens + steps[event.row] == lm.max_positions


# Ends


@every_pair
def test_budgets_hold_and_usage_adds_up(lm: CausalLM, case: Case) -> None:
    strategy = case.strategy()
    for row, generation in alone(lm, case).items():
        request = requests(strategy)[int(row)]
        budget = strategy.budget(request)
        kinds = [step.kind for step in generation.steps]
        counted = sum(kind not in ("forced", "filler") for kind in kinds)
        assert 0 < counted <= budget
        assert [step.index for step in generation.steps] == list(range(len(kinds)))
        usage = generation.usage
        assert (usage.tokens, usage.latent_steps) == (
            kinds.count("token"),
            kinds.count("soft") + kinds.count("latent"),
        )
        assert usage.forced_tokens == len(kinds) - counted
        ends = [
            step.kind == "token" and step.phase == "answer" and step.token_id in lm.eos_ids
            for step in generation.steps
        ]
        assert not any(ends[:-1]) and ends[-1] == (generation.reason == "eos")
        if isinstance(strategy, SoftThinking):
            thought = generation.notes["think_steps"]
            assert thought == sum(step.phase == "think" for step in generation.steps) <= strategy.T_e
            if generation.reason == "length":
                lost = strategy.T_e - thought if strategy.budget_mode == "fixed" else 0
                assert counted == budget - lost
        elif generation.reason == "length":
            assert counted == budget


@in_turns
def test_cancelling_ends_a_row_within_one_step_and_no_other(lm: CausalLM, case: Case) -> None:
    asked = requests(case.strategy())
    patient = next(int(row) for row, g in alone(lm, case).items() if len(g.steps) > 3)
    asked[patient].sink = lambda event: (
        asked[patient].cancel() if isinstance(event, Step) and event.index == 2 else None
    )
    out = decode(lm, asked, batch_size=3, live=True)
    for row, want in alone(lm, case).items():
        if row == patient:
            assert out[row].reason == "cancelled" and path(out[row]) == path(want)[:3]
        else:
            assert_same(out[row], want)


@in_turns
def test_a_row_that_fails_takes_no_other_with_it(
    lm: CausalLM, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = case.strategy()
    limit = lm.max_positions
    assert limit is not None
    bad: list[Any] = ["", "  ", [], [{"role": "user", "content": ""}], [5] * limit, [5] * (limit + 1)]
    bad += [[0, lm.vocab_size], [-1], [{"role": "user"}], 17]
    asked = requests(strategy)
    for i, prompt in enumerate(bad):
        asked.insert(2 * i % len(asked), Request(prompt, strategy, id=f"bad {i}", max_new_tokens=20))
    out = decode(lm, asked, batch_size=2)
    for i, prompt in enumerate(bad):
        failed = out[f"bad {i}"]
        assert failed.reason.startswith("error: ") and not failed.steps, prompt
    longest = len(strategy.prompt_ids(lm, [5] * limit))  # some strategies add to a prompt
    assert f"{longest} tokens, but the model's context holds {limit}" in out["bad 4"].reason
    for row, want in alone(lm, case).items():
        assert_same(out[row], want)


@in_turns
def test_the_context_is_used_to_its_last_position(lm: CausalLM, case: Case) -> None:
    """Without an end token, a prompt that leaves three positions gets three steps."""
    limit = lm.max_positions
    assert limit is not None
    prompt, strategy = [5, 6, 7] * (limit // 3), case.strategy()
    added = len(strategy.prompt_ids(lm, prompt[:1])) - 1
    out = decode(unending(lm), [Request(prompt[: limit - 3 - added], strategy, max_new_tokens=30)])[0]
    assert (out.reason, len(out.steps)) == ("context", 3) and out.truncated


@in_turns
def test_stop_strings_end_the_answer(lm: CausalLM, case: Case) -> None:
    stops = tuple("aeiorst 0123456789")
    out = decode(unending(lm), requests(case.strategy(), max_new_tokens=20, stop=stops), 3)
    answered = [g for g in out.values() if any(step.phase == "answer" for step in g.steps)]
    # A row whose thought is closed by an end token alone never answers here.
    assert "stop" in {g.reason for g in answered} or (not answered and "separators" in case.label)
    for generation in out.values():
        answer = [step.text for step in generation.steps if step.phase == "answer" and step.kind == "token"]
        before, last = "".join(answer[:-1]), "".join(answer)
        assert not any(stop in before for stop in stops)
        assert any(stop in last for stop in stops) == (generation.reason == "stop")


# What strategies are as configurations


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_strategy_is_its_configuration(case: Case) -> None:
    strategy = case.strategy()
    assert from_dict(type(strategy), to_dict(strategy)) == strategy
    assert hash(strategy) == hash(case.strategy()) and strategy.name == case.name
    documented = field_docs(type(strategy))
    assert [f.name for f in fields(strategy) if not documented.get(f.name)] == []
    # An alias means a field of the strategy, or the budget that every command has.
    assert set(type(strategy).aliases.values()) <= {f.name for f in fields(strategy)} | {"max_new_tokens"}
    assert STRATEGIES.summary(case.name) and type(strategy).__doc__
    with pytest.raises(AttributeError):
        strategy.anything = 1  # type: ignore[attr-defined]


MINE = '''
"""Say the second likeliest token, every second step."""
from dataclasses import dataclass
from unspoken.decoding import Feed, Strategy


@dataclass(frozen=True)
class Mine(Strategy):
    """Every other step, the runner-up."""

    every: int = 2
    """How often."""

    def next_input(self, logits, hidden, state):
        best = logits.topk(2).indices
        turn = [int(row.steps % self.every == 0) for row in state.rows]
        ids = best[range(len(turn)), turn]
        return [Feed(list(range(len(turn))), "token", ids, logprob=logits.log_softmax(-1)[range(len(turn)), ids])]
'''


@every_family
def test_a_strategy_of_one_s_own_is_a_file(lm: CausalLM, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    cls = STRATEGIES.find(str(file))
    assert field_docs(cls)["every"] == "How often."
    strategy: Strategy = from_dict(cls, {"every": 3})
    out = decode(lm, requests(strategy), batch_size=2)
    for row, request in enumerate(requests(strategy)):
        assert_same(decode(lm, [request], 1)[row], out[row])
    # Against the plain model, token by token.
    ids = torch.tensor([strategy.prompt_ids(lm, PROMPTS[0])])
    for step in out[0].steps:
        with torch.no_grad():
            best = lm.model(ids, use_cache=False).logits[0, -1].topk(2).indices
        assert step.token_id == best[int(step.index % 3 == 0)]
        ids = torch.cat([ids, torch.tensor([[step.token_id]])], dim=-1)


# What the settings come down to


@every_family
def test_greedy_chain_of_thought_is_the_model_s_own_greedy_search(lm: CausalLM) -> None:
    strategy = ChainOfThought(temperature=0.0)
    asked = requests(strategy, max_new_tokens=40)
    out = decode(lm, asked, batch_size=3)
    for i, request in enumerate(asked):
        ids = torch.tensor([strategy.prompt_ids(lm, request.prompt)])
        want = lm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=40,
            eos_token_id=sorted(lm.eos_ids),
            pad_token_id=0,
        )
        assert out[i].token_ids == want[0, ids.shape[1] :].tolist()


@every_family
def test_one_candidate_is_greedy_decoding(lm: CausalLM) -> None:
    greedy = alone_greedy(lm)
    for settings in (
        {"mixture": "non_uniform", "k": 1},
        {"mixture": "uniform", "k": 1},
        {"mixture": "element_wise_max", "k": 1},
        {"mixture": "dirichlet", "k": 1},
        {"mixture": "nucleus", "nucleus_p": 1e-6},
        {"mixture": "hard_argmax"},
        {"mixture": "hard_sample", "k": 1},
        {"mixture": "non_uniform", "temperature": 0.0},
    ):
        strategy = SoftThinking(**{"T_e": 12, "T_total": 14, "min_end_prob": 1.0, **settings})  # type: ignore[arg-type]
        out = decode(unending(lm), _ask(greedy, strategy), 3)
        for i, want in enumerate(greedy.values()):
            read = []
            for step in out[i].steps[:12]:
                assert step.top is not None and step.phase == "think"
                read += [token for token, w in zip(step.top.ids, step.top.weights, strict=True) if w > 0.5]
            assert read == want, settings


def _ask(prompts: Any, strategy: Strategy) -> list[Request]:
    return [Request(p, strategy, id=i, max_new_tokens=12, trace="full") for i, p in enumerate(prompts)]


def alone_greedy(lm: CausalLM) -> dict[tuple[int, ...], list[int]]:
    prompts = [
        tuple(lm.tokens.encode_prompt(text)) for text in ("Hi", "What is 12 + 30?", "Tom has 3 apples.")
    ]
    strategy = ChainOfThought(temperature=0.0)
    out = decode(unending(lm), _ask(prompts, strategy))
    return {prompt: out[i].token_ids for i, prompt in enumerate(prompts)}


@pytest.mark.parametrize("settings", [{}, {"temperature2": 1.3, "top_k2": 30, "top_p2": 0.8, "min_p2": 0.01}])
@every_family
def test_no_thinking_steps_are_ordinary_sampling_after_the_transition(lm: CausalLM, settings: Any) -> None:
    soft = SoftThinking(**{"T_e": 0, "temperature": 1.0, **settings})
    ordinary = ChainOfThought(
        temperature=soft.temperature if soft.temperature2 is None else soft.temperature2,
        top_k=soft.top_k2,
        top_p=soft.top_p2,
        min_p=soft.min_p2,
    )
    transition = lm.tokens.encode("</think>") + lm.tokens.encode("<think>")
    asked = requests(soft)
    longer = [
        Request(
            [*soft.prompt_ids(lm, r.prompt), *transition],
            ordinary,
            id=r.id,
            max_new_tokens=r.max_new_tokens,
            seed=r.seed,
        )
        for r in asked
    ]
    mine, theirs = decode(lm, asked, 2), decode(lm, longer, 3)
    for row in mine:
        assert mine[row].token_ids == transition + theirs[row].token_ids
        assert mine[row].reason == theirs[row].reason


@every_family
def test_thinking_begins_where_the_prompt_ends(lm: CausalLM) -> None:
    """With an opener in the prompt, chain of thought and soft thinking read the same prompt."""
    for prompt in PROMPTS:
        cot = ChainOfThought(think_open="assistant_prefix").prompt_ids(lm, prompt)
        assert SoftThinking().prompt_ids(lm, prompt) == cot
