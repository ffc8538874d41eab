"""A request's life in the server: its events as messages, its end graded, its record kept."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Request as HttpRequest
from fastapi.sse import EventSourceResponse
from starlette.types import Receive, Scope, Send

from unspoken.errors import UnspokenError
from unspoken.types import Done, Event, Generation, Note, event_to_dict
from unspoken.web._errors import of_library
from unspoken.web._history import new_id, now
from unspoken.web._prepare import Prepared

if TYPE_CHECKING:
    from unspoken.web._history import History
    from unspoken.web.jobs import Engine, Job

T = TypeVar("T")
Message = tuple[str, dict[str, Any]]
SHOWN = 20
"""Candidates of a step that are sent; the others are counted."""
KEPT = 1024
"""Candidates of a step that are kept."""


def submit(engine: Engine, prepared: Prepared) -> Job:
    """Put a prepared request into the queue.

    Raises:
        ApiError: 409, 429 or 503.
    """
    try:
        return engine.submit(prepared.request, prepared.client, prepared.lm)
    except UnspokenError as error:
        raise of_library(error) from error


class EventStream(EventSourceResponse):
    """Server-sent events of some jobs; however the response ends, also before its first byte, the jobs end with it.

    Args:
        content: The bytes.
        jobs: What they tell of.
    """

    def __init__(self, content: AsyncIterator[bytes], jobs: Sequence[Job]) -> None:
        super().__init__(content)
        self.jobs = jobs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            for job in self.jobs:
                job.cancel()


class Session:
    """One run of the lab.

    Args:
        job: The request in the engine.
        prepared: What it is.
        history: Where it is kept; None keeps it nowhere.
        heartbeat: Seconds of silence after which None is given instead of messages.
    """

    def __init__(self, job: Job, prepared: Prepared, history: History | None, heartbeat: float) -> None:
        self.job, self.prepared, self.history, self.heartbeat = job, prepared, history, heartbeat
        self.start = {**prepared.start, "time": now()}
        self.generation = Generation(prepared.request.id)
        self.events: list[dict[str, Any]] = []
        self.done: dict[str, Any] = {}

    async def messages(self) -> AsyncIterator[list[Message] | None]:
        """The start, every event, and the end, as many at a time as there are; None after a silence.

        Leaving early ends the run, and what there was is kept.
        """
        batches = self.job.batches(self.heartbeat)
        try:
            yield [("start", self.start)]
            async for batch in batches:
                out = [self._taken(event) for event in batch if not isinstance(event, Done)]
                if batch and isinstance(batch[-1], Done):
                    self._take(batch[-1])
                    await self._end()
                    out.append(("done", self.done))
                yield out or None
        finally:
            with contextlib.suppress(RuntimeError):
                await batches.aclose()  # type: ignore[attr-defined]
            if not self.done and self.generation.steps:
                self.generation.reason = "cancelled"
                self.done = self._closing(None, None)
                self._keep(asyncio.get_running_loop())

    def steps(self) -> list[dict[str, Any]]:
        """The steps that were kept in the end."""
        every = (shortened(said(step), SHOWN) for step in self.generation.steps)
        return [{k: v for k, v in step.items() if k not in ("event", "row")} for step in every]

    async def finished(self) -> Generation:
        """Wait for the end."""
        async for _ in self.messages():
            pass
        return self.generation

    def _take(self, event: Event) -> None:
        self.generation.apply(event)

    def _taken(self, event: Event) -> Message:
        """Keep an event, and say it."""
        self._take(event)
        values = said(event)
        self.events.append(shortened(values, KEPT))
        return str(values["event"]), shortened(values, SHOWN)

    async def _end(self) -> None:
        loop = asyncio.get_running_loop()
        gold, generation = self.prepared.gold, self.generation
        answer, grade = await loop.run_in_executor(None, _graded, generation, gold)
        self.done = self._closing(answer, grade)
        saved = self._keep(loop)
        if saved is not None:
            try:
                await saved
            except OSError as error:
                self.done |= {"run": None, "not_kept": f"The run could not be kept: {error.strerror}."}

    def _keep(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None] | None:
        if self.history is None or not self.generation.steps:
            return None
        self.done["run"] = run = new_id()
        return loop.run_in_executor(None, self.history.save, run, self.start, self.events, self.done)

    def _closing(self, answer: str | None, grade: dict[str, Any] | None) -> dict[str, Any]:
        generation = self.generation
        done: dict[str, Any] = {
            "reason": generation.reason,
            "usage": asdict(generation.usage),
            "text": generation.text,
            "answer_text": generation.answer_text,
            "thinking_text": generation.thinking_text,
            "answer": answer,
            "run": None,
        }
        return done if grade is None else {**done, "grade": grade}


def _graded(generation: Generation, gold: str | None) -> tuple[str | None, dict[str, Any] | None]:
    """The answer that the text gives, and its grade if there is a gold answer."""
    from unspoken.tasks import _answers

    text = generation.answer_text
    found = _answers.extract(text)
    answer = None if found is None else found.text
    if gold is None or not gold.strip() or generation.reason.startswith(("error", "cancelled")):
        return answer, None
    grade = _answers.grade(gold.strip(), text, truncated=generation.truncated)
    return answer, {"status": grade.status, "answer": grade.answer, "rule": grade.rule}


def said(event: Event) -> dict[str, Any]:
    """An event as JSON can hold it: numbers that are not finite are left out, in notes they become text."""
    values = event_to_dict(event)
    if isinstance(event, Note):
        values["value"] = finite(values["value"])
    return {k: v for k, v in values.items() if not isinstance(v, float) or math.isfinite(v)}


def shortened(values: dict[str, Any], most: int) -> dict[str, Any]:
    """An event with its best candidates only; `rest` counts the others and sums the weight that was fed of them."""
    top = values.get("top")
    if not top or len(top["ids"]) <= most:
        return values
    order = sorted(range(len(top["ids"])), key=lambda i: (-top["weights"][i], -top["probs"][i]))
    kept = sorted(order[:most])
    short: dict[str, Any] = {name: [items[i] for i in kept] for name, items in top.items() if items}
    short["rest"] = {"count": len(order) - most, "weight": sum(top["weights"][i] for i in order[most:])}
    return {**values, "top": short}


def finite(value: Any) -> Any:
    """A note's value as JSON can hold it: numbers that are not finite become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


async def unless_gone(request: HttpRequest, jobs: Sequence[Job], work: Awaitable[T]) -> T | None:
    """The outcome of some work on jobs, which end when the client goes away; None if it has."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for job in jobs:
            job.cancel()
