"""The contract of every strategy, on every family, in fp32: see `battery.py` for what is run."""

from __future__ import annotations

import random
from collections.abc import Callable
from operator import ge
from typing import Any

import pytest

from unspoken.decoding import Request, run
from unspoken.decoding._base import derive_seed
from unspoken.decoding._sequence import SequenceStrategy
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
    about_sequences,
    alone,
    assert_same,
    decode,
    path,
    recomputed_logprobs,
    requests,
    timeless,
    unending,
)

Tiny = Callable[[str], tuple[Any, Any]]
every_pair = pytest.mark.parametrize(("case", "family"), PAIRS, ids=str)
in_turns = pytest.mark.parametrize(("case", "family"), TURNS, ids=str)
step_by_step = pytest.mark.parametrize(
    ("case", "family"), [pair for pair in TURNS if not about_sequences(pair[0])], ids=str
)
whole_sequences = pytest.mark.parametrize(
    ("case", "family"), [pair for pair in TURNS if about_sequences(pair[0])], ids=str
)
every_family = pytest.mark.parametrize("family", FAMILIES)


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
    assert case.strategy().deterministic == (not case.random)


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
            # Where two sequences part, the token may be known before any forward: it has no candidates.
            if full.kind in ("token", "soft") and not isinstance(case.strategy(), SequenceStrategy):
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


@step_by_step
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


@whole_sequences
def test_the_work_of_all_branches_is_counted(
    lm: CausalLM, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forwards and tokens of the rows that were in the batch, kept or not; afterwards no row is left."""
    read = {"rows": 0, "live": 0}
    prefill, step, drop = RaggedCache.begin_prefill, RaggedCache.begin_step, RaggedCache.drop
    append = RaggedCache.append

    def spy_prefill(self: RaggedCache, lengths: Any, device: Any) -> Any:
        read["rows"] += len(lengths)
        read["live"] += len(lengths)
        return prefill(self, lengths, device)

    def spy_step(self: RaggedCache, *args: Any) -> Any:
        assert self.rows == read["live"]
        read["rows"] += self.rows
        return step(self, *args)

    def spy_append(self: RaggedCache, prefix: Any) -> int:
        read["live"] += 1
        return append(self, prefix)

    def spy_drop(self: RaggedCache, row: int) -> None:
        read["live"] -= 1
        drop(self, row)

    for name, spy in (("begin_prefill", spy_prefill), ("begin_step", spy_step)):
        monkeypatch.setattr(RaggedCache, name, spy)
    monkeypatch.setattr(RaggedCache, "append", spy_append)
    monkeypatch.setattr(RaggedCache, "drop", spy_drop)
    out = decode(lm, requests(case.strategy()), 3)
    assert read["live"] == 0
    forwards = sum(g.usage.forward_passes for g in out.values())
    # A branch that begins at the prompt again counts its forward, which is shared.
    assert read["rows"] <= forwards <= read["rows"] + sum(g.usage.tokens for g in out.values())
    for generation in out.values():
        kept = sum(step.kind not in ("forced", "filler") for step in generation.steps)
        assert generation.usage.tokens + generation.usage.latent_steps >= kept


@whole_sequences
def test_sequences_end_in_every_way(lm: CausalLM, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled, by the context or by the budget, while others of the batch go on."""
    lm = unending(lm)
    strategy = case.strategy()
    asked = requests(strategy, max_new_tokens=14)
    asked[0].sink = lambda event: asked[0].cancel() if isinstance(event, Step) and event.index == 1 else None
    longest = max(len(strategy.prompt_ids(lm, request.prompt)) for request in asked)
    monkeypatch.setattr(CausalLM, "max_positions", property(lambda self: longest + 4))
    out = decode(lm, asked, batch_size=2, live=True)
    # The published loop's proposals may stop short of the budget.
    assert (out[0].reason, out[2].reason) == ("cancelled", "context")
    assert len(out[2].steps) == 4
    for row in (1, 3):
        assert out[row].reason == "length" and len(out[row].steps) <= 14


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
        work = (usage.tokens, usage.latent_steps, usage.forced_tokens)
        kept = (kinds.count("token"), kinds.count("soft") + kinds.count("latent"), len(kinds) - counted)
        assert all(map(ge, work, kept)) if about_sequences(case) else work == kept
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
        elif generation.reason == "length" and getattr(strategy, "mode", "") != "reference":
            assert counted == budget  # of the published power sampling, proposals may stop short


@in_turns
def test_cancelling_ends_a_row_within_one_step_and_no_other(lm: CausalLM, case: Case) -> None:
    asked = requests(case.strategy())
    # The row with the most work; of a choice among sequences, the one that is kept may be shown only at the end.
    last = 0 if about_sequences(case) else 2
    patient = max(alone(lm, case).values(), key=lambda g: g.usage.tokens + g.usage.latent_steps).row
    patient = int(patient)
    asked[patient].sink = lambda event: (
        asked[patient].cancel() if isinstance(event, Step) and event.index == last else None
    )
    out = decode(lm, asked, batch_size=3, live=True)
    for row, want in alone(lm, case).items():
        if row == patient:
            assert out[row].reason == "cancelled"
            # What a sequence strategy shows at that time need not be what it keeps in the end.
            assert about_sequences(case) or path(out[row]) == path(want)[:3]
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
