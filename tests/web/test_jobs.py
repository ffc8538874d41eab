"""The engine: fair turns, limits, cancellation, faults that harm nobody, work between steps, views."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from serving import GatedEngine, until

from unspoken.decoding import Feed, Request, State, Strategy, run
from unspoken.decoding._base import Row
from unspoken.decoding.cot import ChainOfThought
from unspoken.decoding.power import PowerSampling
from unspoken.decoding.soft import SoftThinking
from unspoken.decoding.vote import Vote
from unspoken.errors import ConfigError
from unspoken.lm.model import CausalLM
from unspoken.types import Done, Event, Generation, Rewind, fold
from unspoken.web.jobs import FAULT, Engine, Job, QueueFull, RepeatedId, ShuttingDown

COT = ChainOfThought(temperature=1.0)


@dataclass(frozen=True)
class Broken(ChainOfThought):
    """Breaks the loop at a step of its own, with an error that is none of the library's."""

    at: int = 3

    def observe(self, row: Row, token_id: int, text: str) -> None:
        if row.steps >= self.at:
            raise ZeroDivisionError("broken on purpose")


def request(name: str, strategy: Strategy = COT, tokens: int = 12, **options: Any) -> Request:
    return Request(f"question {name}", strategy, id=name, max_new_tokens=tokens, seed=len(name), **options)


async def collect(job: Job) -> list[Event]:
    return [event async for event in job.events()]


def together(
    engine: Engine, requests: Sequence[Request], clients: Sequence[str] = ()
) -> dict[Any, Generation]:
    """All of them through one engine at once."""

    async def main() -> list[list[Event]]:
        owners = clients or [str(r.id) for r in requests]
        jobs = [engine.submit(r, client) for r, client in zip(requests, owners, strict=True)]
        engine.start()
        try:
            return await asyncio.wait_for(asyncio.gather(*map(collect, jobs)), 60)
        finally:
            await asyncio.to_thread(engine.close)

    return fold(event for events in asyncio.run(main()) for event in events)


def alone(lm: CausalLM, asked: Request) -> Generation:
    fresh = Request(
        asked.prompt, asked.strategy, asked.id, asked.max_new_tokens, asked.seed, asked.stop, asked.trace
    )
    return fold(run(lm, [fresh], live=True))[asked.id]


def same(a: Generation, b: Generation) -> bool:
    return (
        [(s.phase, s.kind, s.token_id, s.text) for s in a.steps]
        == [(s.phase, s.kind, s.token_id, s.text) for s in b.steps]
        and a.reason == b.reason
        and a.usage.tokens == b.usage.tokens
    )


def mixed() -> list[Request]:
    soft = SoftThinking(T_e=4)
    strategies = [
        COT,
        soft,
        Vote(inner=COT, n=3),
        PowerSampling(block_size=6, mcmc_steps=2),
        ChainOfThought(temperature=0.0),
        SoftThinking(mixture="dirichlet", T_e=5),
    ]
    return [request(f"r{i}", strategies[i % 6], 10 + i % 7, trace="full") for i in range(18)]


def test_mixed_strategies_in_one_batch_give_what_each_gives_alone(lm: CausalLM) -> None:
    requests = mixed()
    found = together(Engine(lm, batch_size=5), requests)
    assert len(found) == 18
    for asked in requests:
        assert same(found[asked.id], alone(lm, asked)), asked.id


def test_a_request_that_breaks_the_loop_harms_nobody(lm: CausalLM) -> None:
    requests = [
        request("a", tokens=20),
        request("bad", Broken(temperature=1.0)),
        request("c", SoftThinking(T_e=3)),
    ]
    found = together(Engine(lm, batch_size=4), requests)
    assert found["bad"].reason == FAULT
    for asked in (requests[0], requests[2]):
        assert same(found[asked.id], alone(lm, asked))


def test_after_a_fault_its_neighbours_begin_again_with_a_rewind(lm: CausalLM) -> None:
    async def main() -> tuple[list[Event], list[Event]]:
        engine = Engine(lm, batch_size=4)
        good, bad = engine.submit(request("a"), "a"), engine.submit(request("bad", Broken()), "b")
        engine.start()
        try:
            return await asyncio.gather(collect(good), collect(bad))  # type: ignore[return-value]
        finally:
            await asyncio.to_thread(engine.close)

    good, bad = asyncio.run(main())
    assert Rewind("a", 0) in good and isinstance(good[-1], Done) and good[-1].reason in ("eos", "length")
    assert isinstance(bad[-1], Done) and bad[-1].reason.startswith("error")


def test_one_that_breaks_alone_is_not_tried_twice(lm: CausalLM) -> None:
    found = together(Engine(lm), [request("bad", Broken())])
    assert found["bad"].reason == FAULT


def gated(lm: CausalLM, body: Callable[[GatedEngine], Any], **options: Any) -> Any:
    """Run a coroutine with an engine that takes steps only when it is let."""

    async def main() -> Any:
        engine = GatedEngine(lm, **options)
        engine.start()
        try:
            return await asyncio.wait_for(body(engine), 60)
        finally:
            engine.release()
            await asyncio.to_thread(engine.close)

    return asyncio.run(main())


async def eventually(condition: Callable[[], Any]) -> None:
    await asyncio.to_thread(until, condition)


@pytest.mark.parametrize("how", ["cancel", "leave"])
def test_a_cancelled_row_is_free_within_one_step(lm: CausalLM, how: str) -> None:
    async def body(engine: GatedEngine) -> None:
        job = engine.submit(request("a", tokens=400), "a")
        events = job.events()
        engine.let(3)
        seen = [await anext(events) for _ in range(3)]
        assert engine.running == 1
        if how == "cancel":
            assert engine.cancel("a")
        else:
            await events.aclose()
        engine.let(1)
        await eventually(lambda: engine.running == 0)
        if how == "cancel":
            rest = [event async for event in events]
            assert len(seen) + len(rest) <= 4 + 1 and rest[-1].reason == "cancelled"  # type: ignore[union-attr]

    gated(lm, body)


def test_who_waits_and_leaves_frees_the_place_at_once(lm: CausalLM) -> None:
    async def body(engine: GatedEngine) -> None:
        engine.submit(request("a", tokens=400), "a")
        await eventually(lambda: engine.running == 1)
        second, third = engine.submit(request("b"), "b"), engine.submit(request("c"), "c")
        assert engine.waiting == 2
        second.cancel()
        assert engine.cancel("c") and engine.waiting == 0  # no step was taken
        for job in (second, third):
            (end,) = await collect(job)
            assert isinstance(end, Done) and end.reason == "cancelled"
        assert not engine.cancel("nobody")

    gated(lm, body, batch_size=1)


def test_clients_are_served_by_turns(lm: CausalLM) -> None:
    async def body(engine: GatedEngine) -> list[Any]:
        order: list[Any] = []

        async def watch(job: Job) -> None:
            async for event in job.events():
                if isinstance(event, Done):
                    order.append(event.row)

        first = engine.submit(request("first", tokens=2), "greedy")
        await eventually(lambda: engine.running == 1)
        many = [engine.submit(request(f"g{i}", tokens=2), "greedy") for i in range(4)]
        few = [engine.submit(request(f"m{i}", tokens=2), "modest") for i in range(2)]
        engine.release()
        await asyncio.gather(*map(watch, [first, *many, *few]))
        return order

    order = gated(lm, body, batch_size=1)
    assert order == ["first", "g0", "m0", "g1", "m1", "g2", "g3"]


def test_the_queue_is_bounded_and_one_client_cannot_fill_it(lm: CausalLM) -> None:
    async def body(engine: GatedEngine) -> None:
        engine.submit(request("a", tokens=400), "a")
        await eventually(lambda: engine.running == 1)
        for i in range(3):
            engine.submit(request(f"x{i}"), "flood")
        with pytest.raises(QueueFull, match="3 of your requests wait") as full:
            engine.submit(request("x3"), "flood")
        assert full.value.retry_after > 0
        engine.submit(request("y"), "other")
        with pytest.raises(QueueFull, match="4 requests wait"):
            engine.submit(request("z"), "third")
        with pytest.raises(RepeatedId):
            engine.submit(request("y"), "other")

    gated(lm, body, batch_size=1, max_waiting=4)


def test_an_id_is_not_used_twice_but_one_that_was_refused_may_come_again(lm: CausalLM) -> None:
    async def body(engine: GatedEngine) -> None:
        engine.release()
        await collect(engine.submit(request("a"), "a"))
        with pytest.raises(RepeatedId, match="'a' was used"):
            engine.submit(request("a"), "a")

    gated(lm, body)


def test_work_on_the_model_is_done_between_steps_and_when_idle(lm: CausalLM) -> None:
    """Also while the batch is full, when the loop asks for no work."""

    async def body(engine: GatedEngine) -> None:
        idle = engine.call(lambda: "idle")
        assert await asyncio.wrap_future(idle) == "idle"
        job = engine.submit(request("a", tokens=400), "a")
        events = job.events()
        engine.let(1)
        await anext(events)
        assert await asyncio.wrap_future(engine.call(lambda: 1 + 1)) == 2
        with pytest.raises(ZeroDivisionError):
            await asyncio.wrap_future(engine.call(lambda: 1 // 0))
        assert engine.running == 1
        await events.aclose()

    gated(lm, body, batch_size=1)


def test_other_forwards_between_steps_change_nothing(lm: CausalLM) -> None:
    asked = request("a", SoftThinking(T_e=6), 30)
    expected = alone(lm, asked)

    async def body(engine: GatedEngine) -> Generation:
        async def poke() -> None:
            for _ in range(20):
                await asyncio.wrap_future(engine.call(lambda: lm.model(torch.arange(9)[None])))

        job = engine.submit(asked, "a")
        engine.release()
        events, _ = await asyncio.gather(collect(job), poke())
        return fold(events)["a"]

    assert same(gated(lm, body), expected)


def test_views_wait_for_each_other_and_give_what_they_give_alone(lm: CausalLM) -> None:
    view = lm.truncated("1")
    requests = [request(f"r{i}") for i in range(6)]

    async def main() -> list[list[Event]]:
        engine = Engine(lm, batch_size=4)
        jobs = [engine.submit(r, "a", view if i % 2 else None) for i, r in enumerate(requests)]
        engine.start()
        try:
            return await asyncio.wait_for(asyncio.gather(*map(collect, jobs)), 60)
        finally:
            await asyncio.to_thread(engine.close)

    found = fold(event for events in asyncio.run(main()) for event in events)
    for i, asked in enumerate(requests):
        assert same(found[asked.id], alone(view if i % 2 else lm, asked))


def test_closing_ends_all_as_cancelled_and_refuses_more(lm: CausalLM) -> None:
    async def body(engine: GatedEngine) -> None:
        running, waiting = engine.submit(request("a", tokens=400), "a"), engine.submit(request("b"), "b")
        await eventually(lambda: engine.running == 1)
        engine.drain()
        with pytest.raises(ShuttingDown):
            engine.submit(request("c"), "c")
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        for job in (running, waiting):
            events = await collect(job)
            assert isinstance(events[-1], Done) and events[-1].reason == "cancelled"
        await closing
        assert engine.call(lambda: 1).cancelled()

    gated(lm, body, batch_size=1)


def test_a_reader_that_falls_too_far_behind_is_given_up(
    lm: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unspoken.web._job.MOST_UNREAD", 5)

    async def body(engine: GatedEngine) -> None:
        job = engine.submit(request("a", tokens=400), "a")
        engine.release()
        await eventually(lambda: job.request.cancelled)  # nobody reads
        events = await collect(job)
        assert isinstance(events[-1], Done) and events[-1].reason == "cancelled"
        assert len(events) < 60

    gated(lm, body)


def test_a_silence_is_told(lm: CausalLM) -> None:
    async def body(engine: GatedEngine) -> None:
        batches = engine.submit(request("a"), "a").batches(0.01)
        assert await anext(batches) == []
        await batches.aclose()  # type: ignore[attr-defined]

    gated(lm, body)


def test_numbers_below_one_are_refused(lm: CausalLM) -> None:
    with pytest.raises(ConfigError, match="batch_size must be at least 1, not 0") as error:
        Engine(lm, batch_size=0, max_waiting=0)
    assert len(error.value.problems) == 2


@dataclass(frozen=True)
class Nonsense(Strategy):
    """Answers with rows that are not there."""

    def next_input(self, logits: torch.Tensor, hidden: torch.Tensor, state: State) -> list[Feed]:
        return [Feed([99], "token", torch.zeros(1, dtype=torch.long))]


def test_a_strategy_that_answers_nonsense_fails_alone(lm: CausalLM) -> None:
    found = together(Engine(lm), [request("a"), request("bad", Nonsense())])
    assert found["bad"].reason.startswith("error: ")
    assert same(found["a"], alone(lm, request("a")))
