"""A request's life in the server: its events as messages, its end graded, its record kept."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Request as HttpRequest
from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.types import Receive, Scope, Send

from unspoken.errors import UnspokenError
from unspoken.tasks import _answers
from unspoken.types import Done, Event, Generation, Note, Step, event_to_dict
from unspoken.web import _log
from unspoken.web._cut import CutTop, cut
from unspoken.web._errors import ApiError, of_library
from unspoken.web._history import new_id, now
from unspoken.web._prepare import Prepared
from unspoken.web.jobs import SERVER_FAULTS

if TYPE_CHECKING:
    from unspoken.web._history import History
    from unspoken.web._job import Job
    from unspoken.web.jobs import Engine

T = TypeVar("T")
Message = tuple[str, str]
"""A name and JSON."""
SHOWN = 20
"""Candidates of a step that are sent; the others are counted."""
MOST_RECORD = 64 * 2**20
"""Bytes of a run's record; of a longer one nothing is kept."""
KEEP_ALIVE = format_sse_event(comment="keep-alive")


def submit(engine: Engine, prepared: Sequence[Prepared]) -> list[Job]:
    """Put the requests of one call into the queue.

    Raises:
        ApiError: 409, 429 or 503.
    """
    first = prepared[0]
    try:
        return engine.submit_all([p.request for p in prepared], first.client, first.lm)
    except UnspokenError as error:
        raise of_library(error) from error


def as_json(value: Any) -> str:
    """A value on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def raise_failure(reason: str) -> None:
    """Refuse a request whose generation ended with an error.

    Raises:
        ApiError: 500 where the server is to blame, 422 for what the library refused.
    """
    if reason in SERVER_FAULTS:
        raise ApiError(500, reason.removeprefix("error: ").capitalize() + ".")
    if reason.startswith("error"):
        raise ApiError(422, f"The generation failed: {reason.removeprefix('error: ')}")


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
        whole: Whether `generation` keeps the candidates of its steps; who reads the messages has them already.
    """

    def __init__(
        self, job: Job, prepared: Prepared, history: History | None, heartbeat: float, whole: bool = False
    ) -> None:
        self.job, self.prepared, self.history, self.heartbeat = job, prepared, history, heartbeat
        self.start = {**prepared.start, "time": now()}
        self.generation = Generation(prepared.request.id)
        self.whole = whole
        self.events: list[bytes] = []  # as JSON, which is a quarter of the objects' size
        self.done: dict[str, Any] = {}
        self._size = 0

    async def messages(self) -> AsyncIterator[list[Message] | None]:
        """The start, every event, and the end, as many at a time as there are; None after a silence.

        Leaving early ends the run, and what there was is kept.
        """
        batches = self.job.batches(self.heartbeat)
        try:
            yield [("start", as_json(self.start))]
            async for batch in batches:
                out = [self._taken(event) for event in batch if not isinstance(event, Done)]
                if batch and isinstance(batch[-1], Done):
                    self.generation.apply(batch[-1])
                    await self._end()
                    out.append(("done", as_json(self.done)))
                yield out or None
        finally:
            with contextlib.suppress(RuntimeError):
                await batches.aclose()  # type: ignore[attr-defined]
            if not self.done and self.generation.steps:
                self.generation.reason = "cancelled"
                self.done = self._closing(None, None)
                saved = self._keep(asyncio.get_running_loop())
                if saved is not None:
                    saved.add_done_callback(_tell_unkept)

    def steps(self) -> list[dict[str, Any]]:
        """The steps that were kept in the end."""
        every = (said(shown(step)) for step in self.generation.steps)
        return [{k: v for k, v in step.items() if k not in ("event", "row")} for step in every]

    async def finished(self) -> Generation:
        """Wait for the end."""
        async for _ in self.messages():
            pass
        return self.generation

    def _taken(self, event: Event) -> Message:
        """Keep an event, and say it."""
        bare = isinstance(event, Step) and not self.whole
        self.generation.apply(replace(event, top=None) if bare else event)  # type: ignore[arg-type]
        line = as_json(said(event))
        self._record(line)
        short = shown(event)
        return type(event).__name__.lower(), line if short is event else as_json(said(short))

    def _record(self, line: str) -> None:
        if self.history is None or self._size > MOST_RECORD:
            return
        self.events.append(line.encode())
        self._size += len(self.events[-1])
        if self._size > MOST_RECORD:
            self.events = []

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
        elif self._size > MOST_RECORD:
            self.done["not_kept"] = f"The run could not be kept: it is longer than {MOST_RECORD >> 20} MiB."

    def _keep(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None] | None:
        if self.history is None or not self.generation.steps or self._size > MOST_RECORD:
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
    text = generation.answer_text
    found = _answers.extract(text)
    answer = None if found is None else found.text
    if gold is None or not gold.strip() or generation.reason.startswith(("error", "cancelled")):
        return answer, None
    grade = _answers.grade(gold.strip(), text, truncated=generation.truncated)
    return answer, {"status": grade.status, "answer": grade.answer, "rule": grade.rule}


def _tell_unkept(saved: asyncio.Future[None]) -> None:
    """The reader of a run is gone: that it could not be kept is told to whoever runs the server."""
    error = None if saved.cancelled() else saved.exception()
    if isinstance(error, OSError):
        _log.say(f"A run could not be kept: {error}")
    elif error is not None:
        _log.failure("A run could not be kept", error)


def said(event: Event) -> dict[str, Any]:
    """An event as JSON can hold it: numbers that are not finite are left out, in notes they become text.

    Where candidates were left out, `rest` counts them and sums the weight that was fed of them.
    """
    values = event_to_dict(event)
    if isinstance(event, Step) and isinstance(event.top, CutTop):
        top = values["top"]
        values["top"] = {name: top[name] for name in ("ids", "probs", "weights", "texts") if top[name]}
        values["top"]["rest"] = {"count": top["others"], "weight": top["others_weight"]}
    if isinstance(event, Note):
        values["value"] = finite(values["value"])
    return {k: v for k, v in values.items() if not isinstance(v, float) or math.isfinite(v)}


def shown(event: Event) -> Event:
    """An event with as many candidates as are sent."""
    if not isinstance(event, Step) or event.top is None or len(event.top.ids) <= SHOWN:
        return event
    return replace(event, top=cut(event.top, SHOWN))


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
        task.cancel()
        for job in jobs:
            job.cancel()
        await asyncio.wait({task})  # unlike awaiting the task, it lets a cancellation of its own through
        if not task.cancelled():
            task.exception()  # seen: nobody waits for it any more
