"""What the loop itself does: admission, order of events, forced text, usage, failures, closing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from scripted import Scripted, ScriptedLM, speaker
from torch import Tensor

from unspoken.decoding import Request, Strategy, run
from unspoken.decoding._base import derive_seed
from unspoken.decoding._loop import BLOCK_STEPS
from unspoken.decoding.cot import ChainOfThought
from unspoken.errors import ConfigError
from unspoken.lm.decode import Decoder
from unspoken.lm.model import CausalLM
from unspoken.types import Done, Event, Generation, Note, Step, Usage, fold

MakeLM = Callable[..., ScriptedLM]
Ids = Callable[[str], list[int]]
Tiny = Callable[[str], CausalLM]
GREEDY = ChainOfThought(temperature=0.0)


def timeless(event: Event) -> Event:
    return replace(event, usage=replace(event.usage, seconds=0.0)) if isinstance(event, Done) else event


def by_row(events: Sequence[Event]) -> dict[Any, list[Event]]:
    rows: dict[Any, list[Event]] = {}
    for event in events:
        rows.setdefault(event.row, []).append(timeless(event))
    return rows


# Order of events


@pytest.mark.parametrize("live", [True, False])
def test_a_row_s_events_are_its_notes_its_steps_and_done(scripted_lm: MakeLM, ids: Ids, live: bool) -> None:
    text = ids("The answer is 7.")
    lm = speaker(scripted_lm, {(5,): text, (6,): text[:2]})
    strategy = Scripted(forced_at=1, forced=(40, 41))
    events = by_row(list(run(lm, [Request([p], strategy, id=p) for p in (5, 6)], live=live)))  # type: ignore[arg-type]
    for prompt, said in ((5, text), (6, text[:2])):
        row = events[prompt]
        assert row[0] == Note(prompt, "began", 1)
        assert isinstance(row[-1], Done) and row[-1].reason == "eos"
        assert sum(isinstance(event, Done) for event in row) == 1
        steps = [event for event in row if isinstance(event, Step)]
        assert [step.index for step in steps] == list(range(len(steps)))
        # What is forced is read in the place of what would have been said there.
        assert [step.token_id for step in steps[:3]] == [said[0], 40, 41]
        assert [step.kind for step in steps[:4]] == ["token", "forced", "forced", "token"]
        assert [step.phase for step in steps[:4]] == ["answer", "transition", "transition", "answer"]
        note = row.index(Note(prompt, "forcing", 1))
        assert row[note - 1] == steps[1]  # right after the step in which it was made


def test_blocks_change_nothing_but_when_events_come(tiny_lm: Tiny, family: str) -> None:
    lm = tiny_lm(family)
    requests = [
        Request(p, ChainOfThought(temperature=1.0), id=p, max_new_tokens=n, seed=n, trace="full")
        for p, n in (("Hi", 40), ("What is 2 + 2?", 3), ("Tom has 3 apples.", 23), ("Go", 17))
    ]
    live = list(run(lm, requests, batch_size=2, live=True))
    blocks = list(run(lm, requests, batch_size=2, live=False))
    assert [timeless(e) for e in live] == [timeless(e) for e in blocks]


def test_live_events_come_after_every_step_and_blocks_after_many(scripted_lm: MakeLM) -> None:
    lm = speaker(scripted_lm, {(5,): [40] * 50})
    request = Request([5], GREEDY, max_new_tokens=45)
    seen = []
    for event in run(lm, [request], live=True):  # type: ignore[arg-type]
        seen.append(lm.forwards)
        if isinstance(event, Step):
            assert lm.forwards == min(event.index + 1, 44)
    lm = speaker(scripted_lm, {(5,): [40] * 50})
    first = next(iter(run(lm, [request])))  # type: ignore[arg-type]
    assert isinstance(first, Step) and lm.forwards == BLOCK_STEPS > 1


def test_sinks_get_the_events_of_their_row(scripted_lm: MakeLM) -> None:
    lm = speaker(scripted_lm, {(5,): [40] * 4, (6,): [41] * 30, (7,): []})
    sinks: dict[int, list[Event]] = {5: [], 6: []}
    requests = [Request([p], GREEDY, id=p, sink=sinks[p].append if p in sinks else None) for p in (5, 6, 7)]
    requests.append(Request([], GREEDY, id=8, sink=sinks.setdefault(8, []).append))
    events = by_row(list(run(lm, requests, batch_size=2)))  # type: ignore[arg-type]
    assert {row: [timeless(e) for e in sink] for row, sink in sinks.items()} == {
        p: events[p] for p in (5, 6, 8)
    }


# The source of requests


def test_none_means_nothing_now(tiny_lm: Tiny) -> None:
    lm = tiny_lm("llama")
    strategy = ChainOfThought(temperature=1.0)
    prompts = {"a": "Hi", "b": "What is 2 + 2?", "c": "Tom has 3 apples."}
    make = {
        name: (lambda n=name, p=p: Request(p, strategy, id=n, max_new_tokens=9, seed=4))
        for name, p in prompts.items()
    }
    alone = {name: fold(run(lm, [request()]))[name] for name, request in make.items()}
    polls: list[int] = []
    steps_of_a: list[int] = []

    def source() -> Iterator[Request | None]:
        yield None
        yield None  # no row is live: asked again at once
        yield make["a"]()
        for _ in range(4):
            polls.append(len(steps_of_a))
            yield None  # rows are live: asked again after each step
        yield make["b"]()
        for _ in range(30):  # until all rows are done, and on
            yield None
        yield make["c"]()

    events = []
    for event in run(lm, source(), batch_size=3, live=True):
        events.append(event)
        if isinstance(event, Step) and event.row == "a":
            steps_of_a.append(event.index)
    assert polls == [0, 1, 2, 3]
    together = fold(events)
    assert list(together) == ["a", "b", "c"]
    for name, generation in alone.items():
        assert [s.token_id for s in together[name].steps] == [s.token_id for s in generation.steps]
    order = [(e.row, getattr(e, "index", "done")) for e in events if isinstance(e, (Step, Done))]
    assert order.index(("b", 0)) > order.index(("a", 3)) and order.index(("b", 0)) < order.index(
        ("a", "done")
    )
    assert order.index(("c", 0)) > order.index(("b", "done"))


def test_finished_rows_are_replaced_at_once_and_no_request_is_taken_early(scripted_lm: MakeLM) -> None:
    lengths = {5: 9, 6: 2, 7: 3, 8: 4, 9: 2}
    lm = speaker(scripted_lm, {(p,): [40] * n for p, n in lengths.items()})
    taken: list[int] = []

    def source() -> Iterator[Request]:
        for prompt in lengths:
            taken.append(prompt)
            yield Request([prompt], GREEDY, id=prompt)

    live: set[Any] = set()
    done: list[Any] = []
    for event in run(lm, source(), batch_size=2, live=True):  # type: ignore[arg-type]
        if isinstance(event, Done):
            done.append(event.row)
            assert event.usage.tokens == lengths[event.row] + 1
        assert len(taken) <= 2 + len(done)
        live |= {event.row}
    assert done == [6, 7, 5, 8, 9]
    # Row 9 takes the place of row 5 for steps 11 to 13, the last of which is not read.
    assert lm.forwards == 12


def test_one_prompt_is_read_once_for_all_rows_that_ask_it(scripted_lm: MakeLM) -> None:
    lm = speaker(scripted_lm, {(5, 6): [40, 41], (7,): [42]})
    prompts = [[5, 6], [7], [5, 6], [5, 6], [7]]
    requests = [Request(p, GREEDY, id=i) for i, p in enumerate(prompts)]
    for batch_size, reads in ((5, [(5, 6), (7,)]), (4, [(5, 6), (7,), (7,)])):
        # In the smaller batch the last row comes when no row that reads (7,) is left.
        out = fold(run(lm, requests, batch_size=batch_size))  # type: ignore[arg-type]
        assert sorted(p for group in lm.decoders[-1].prefilled for p in group) == reads
        assert [out[i].token_ids[:-1] for i in range(5)] == [[40, 41], [42], [40, 41], [40, 41], [42]]
    late = fold(run(lm, [requests[0], requests[1], requests[2]], batch_size=2))  # type: ignore[arg-type]
    assert late[2].token_ids == late[0].token_ids  # forked from a row that had gone on
    assert sorted(p for group in lm.decoders[-1].prefilled for p in group) == [(5, 6), (7,)]
    assert all(g.usage.forward_passes == len(g.steps) for g in out.values())


def test_prompts_of_unlike_lengths_are_not_padded_to_the_longest(scripted_lm: MakeLM) -> None:
    prompts = [[5] * n for n in (3, 100, 4, 99, 3)]
    prompts[4] = [6] * 3
    lm = speaker(scripted_lm, {tuple(p): [40] for p in prompts})
    list(run(lm, [Request(p, GREEDY, id=i) for i, p in enumerate(prompts)], batch_size=5))  # type: ignore[arg-type]
    groups = [sorted(map(len, group)) for group in lm.decoders[0].prefilled]
    assert sorted(groups) == [[3, 3, 4], [99, 100]]


@pytest.mark.parametrize("apart", [0, 3])
def test_two_live_rows_of_one_name_are_refused(tiny_lm: Tiny, apart: int) -> None:
    def source() -> Iterator[Request | None]:
        yield Request("Hi", GREEDY, id="x", max_new_tokens=6)
        yield from [None] * apart
        yield Request("Go", GREEDY, id="x", max_new_tokens=6)

    events = list(run(tiny_lm("llama"), source(), live=True))
    reasons = [event.reason for event in events if isinstance(event, Done)]
    assert sorted(reason.split(":")[0] for reason in reasons) == ["error", "length"]
    assert any("'x' is already live" in reason for reason in reasons)
    assert [e.index for e in events if isinstance(e, Step)] == list(range(6))


def test_a_name_may_come_again_when_its_row_is_done(tiny_lm: Tiny) -> None:
    requests = [Request("Hi", GREEDY, id="x", max_new_tokens=2) for _ in range(2)]
    events = list(run(tiny_lm("llama"), requests, batch_size=1))
    assert [e.reason for e in events if isinstance(e, Done)] == ["length", "length"]


def test_nothing_to_do_is_done_at_once(tiny_lm: Tiny) -> None:
    assert list(run(tiny_lm("llama"), [])) == []
    with pytest.raises(ConfigError, match="batch_size must be at least 1, not 0"):
        run(tiny_lm("llama"), [], batch_size=0)


def test_all_that_is_wrong_with_a_request_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Request("Hi", GREEDY, max_new_tokens=0, trace="all", stop=("",))  # type: ignore[arg-type]
    assert len(caught.value.problems) == 3


def test_seeds_of_rows_are_stable_and_differ() -> None:
    assert derive_seed(0, "a", 1) == derive_seed(0, "a", 1) == 2567054096787269053
    assert len({derive_seed(0, i) for i in range(50)} | {derive_seed(i, 0) for i in range(50)}) == 99
    assert derive_seed(1, 23) != derive_seed(12, 3)


# Usage


def test_usage_counts_the_work(scripted_lm: MakeLM) -> None:
    lm = speaker(scripted_lm, {(5, 6, 7): [40] * 20})
    token, latent = (Scripted(forced_at=2, forced=(30, 31, 32), vectors=v) for v in (False, True))
    out = fold(
        run(lm, [Request([5, 6, 7], s, id=i, max_new_tokens=9) for i, s in enumerate((token, latent))])
    )  # type: ignore[arg-type]
    # Nine steps count; the three forced ones do not. The last step is not read.
    assert [len(out[i].steps) for i in (0, 1)] == [12, 12]
    assert [out[i].reason for i in (0, 1)] == ["length", "length"]
    for i, (tokens, soft) in enumerate(((9, 0), (0, 9))):
        usage = out[i].usage
        assert replace(usage, seconds=0.0) == Usage(3, tokens, soft, 3, 1 + 11)
        assert usage.seconds > 0.0
    assert [step.kind for step in out[1].steps] == ["latent"] * 2 + ["forced"] * 3 + ["latent"] * 7
    assert all(step.token_id is None and step.text == "" for step in out[1].steps if step.kind == "latent")


# Text


def test_characters_of_several_tokens_come_when_they_are_whole(scripted_lm: MakeLM, ids: Ids) -> None:
    euro = ids("€")
    assert len(euro) == 3
    lm = speaker(scripted_lm, {(5,): [*ids("7"), *euro, *ids("!")], (6,): euro[:2]})
    out = fold(run(lm, [Request([p], GREEDY, id=p) for p in (5, 6)]))  # type: ignore[arg-type]
    assert [step.text for step in out[5].steps] == ["7", "", "", "€", "!", ""]
    # What never became whole shows at the end of the row, not in another one.
    assert out[6].text == "\ufffd" and out[6].steps[-1].text == "\ufffd"


@pytest.mark.parametrize("word", ["<think>", "< think>"])
def test_a_block_that_the_model_opens_is_thinking(scripted_lm: MakeLM, ids: Ids, word: str) -> None:
    thought, answer = ids(" so 3 + 4"), ids("It is 7.")
    text = [*ids(word), *thought, *ids("</think>"), *answer]
    out = fold(run(speaker(scripted_lm, {(5,): text}), [Request([5], GREEDY)]))[0]  # type: ignore[arg-type]
    if word == "<think>":
        assert out.thinking_text == "<think> so 3 + 4</think>"
        assert out.answer_text == "It is 7."
    else:
        assert out.thinking_text == ""


def test_a_block_in_the_middle_of_an_answer_is_part_of_it(scripted_lm: MakeLM, ids: Ids) -> None:
    thought = " 1 2 3 4 5 6 7 8 9" * 6  # longer than what is remembered of a text
    text = [*ids("Well "), *ids("<think>"), *ids(thought), *ids("</think>"), *ids("7")]
    out = fold(run(speaker(scripted_lm, {(5,): text}), [Request([5], GREEDY)]))[0]  # type: ignore[arg-type]
    assert out.answer_text == out.text == f"Well <think>{thought}</think>7"


def test_a_prompt_that_opens_a_block_begins_with_thinking(scripted_lm: MakeLM, ids: Ids) -> None:
    prompt = tuple(ids("Hi<think>"))
    lm = speaker(scripted_lm, {prompt: [*ids("so"), *ids("</think>"), *ids("7")]})
    out = fold(run(lm, [Request(prompt, GREEDY)]))[0]  # type: ignore[arg-type]
    assert (out.thinking_text, out.answer_text) == ("so</think>", "7")


@pytest.mark.parametrize("stop", ["= 4", "2", "6 *"])
def test_stop_strings_may_span_tokens(scripted_lm: MakeLM, ids: Ids, stop: str) -> None:
    text = ids("6 * 7 = 42. What is")
    lm = speaker(scripted_lm, {(5,): text})
    out = fold(run(lm, [Request([5], GREEDY, stop=("never", stop))]))[0]  # type: ignore[arg-type]
    assert out.reason == "stop" and stop in out.text
    assert stop not in "".join(step.text for step in out.steps[:-1])


def test_stop_strings_do_not_stop_thoughts(scripted_lm: MakeLM, ids: Ids) -> None:
    text = [*ids("<think>"), *ids("42"), *ids("</think>"), *ids("It is 42. And")]
    out = fold(run(speaker(scripted_lm, {(5,): text}), [Request([5], GREEDY, stop=("42",))]))[0]  # type: ignore[arg-type]
    assert out.reason == "stop" and out.answer_text.startswith("It is 42") and "And" not in out.text


# Failures


def test_a_strategy_that_fails_ends_its_own_rows(scripted_lm: MakeLM) -> None:
    lm = speaker(scripted_lm, {(p,): [40 + p] * 6 for p in (5, 6, 7)})
    strategies = {5: GREEDY, 6: Scripted(fails_at=3), 7: Scripted()}
    out = fold(run(lm, [Request([p], s, id=p) for p, s in strategies.items()]))  # type: ignore[arg-type]
    assert out[6].reason == "error: cannot go on" and len(out[6].steps) == 3
    assert [out[p].token_ids[:6] for p in (5, 7)] == [[45] * 6, [47] * 6]


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize(
    "strategy", [GREEDY, ChainOfThought(temperature=1.0, top_p=0.9)], ids=["greedy", "sampled"]
)
def test_logits_that_are_not_finite_end_their_row(
    scripted_lm: MakeLM, live: bool, strategy: Strategy
) -> None:
    def script(lm: ScriptedLM, prompt: tuple[int, ...], read: int) -> Tensor:
        if prompt == (6,) and read >= 2:
            return torch.full((lm.vocab_size,), float("nan"))
        return lm.law({40: 1.0})

    lm = scripted_lm(script)
    for most in (40, 3):  # a short row is over before a block is looked at
        requests = [Request([p], strategy, id=p, max_new_tokens=most) for p in (5, 6)]
        out = fold(run(lm, requests, live=live))  # type: ignore[arg-type]
        assert out[6].reason == "error: the model gave logits that are not finite"
        assert len(out[6].steps) <= (4 if live else 3 + BLOCK_STEPS)
        assert out[5].reason == "length" and out[5].token_ids == [40] * most


def test_rows_may_be_answered_in_any_order(scripted_lm: MakeLM) -> None:
    for vectors in (False, True):
        lm = scripted_lm(lambda lm, prompt, read: lm.law({prompt[0] + 30: 0.9, 99: 0.1}))
        strategy = Scripted(backwards=True, vectors=vectors)
        list(run(lm, [Request([p], strategy, id=p, max_new_tokens=5) for p in (5, 6, 7)]))  # type: ignore[arg-type]
        for prompt in (5, 6, 7):
            assert torch.equal(torch.stack(lm.fed[(prompt,)]), lm.table[prompt + 30].expand(4, -1))


# Closing


def test_closing_the_stream_drops_everything(tiny_lm: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    steps = []
    monkeypatch.setattr(
        Decoder,
        "step",
        lambda self, v, gaps=None, real=Decoder.step: (steps.append(1), real(self, v, gaps))[1],
    )
    taken = []

    def source() -> Iterator[Request]:
        for i in range(9):
            taken.append(i)
            yield Request("Hi", ChainOfThought(), id=i, max_new_tokens=30, seed=i)

    events = run(lm, source(), batch_size=2, live=True)
    for _ in range(5):
        next(events)
    before = len(steps)
    events.close()  # type: ignore[attr-defined]
    assert list(events) == [] and len(steps) == before and taken == [0, 1]
    assert not lm.model.training and lm.model.config._attn_implementation == "sdpa"
    again = lm.generate("Hi", ChainOfThought(), max_new_tokens=30, seed=7)
    assert isinstance(again, Generation) and again.reason in ("length", "eos")


def test_cancelling_before_the_first_step_gives_no_steps(tiny_lm: Tiny) -> None:
    request = Request("Hi", GREEDY, max_new_tokens=5)
    request.cancel()
    out = fold(run(tiny_lm("llama"), [request, Request("Go", GREEDY, id=1, max_new_tokens=5)]))
    assert (out[0].reason, out[0].steps, out[0].usage.forward_passes) == ("cancelled", [], 1)
    assert len(out[1].steps) == 5
