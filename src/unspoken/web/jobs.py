"""One model, one engine thread: requests wait in a fair, bounded queue and join the running batch.

The engine thread runs the decoding loop for as long as the server lives. Each of its steps asks for work; a
request that joins is one more row of the batch, whatever its strategy. Events go back to whoever waits for
them in the server's event loop. Nothing else touches the model: other work on it is done in the same thread,
between two steps.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from unspoken.decoding import Request, run
from unspoken.decoding._trace import NOT_FINITE
from unspoken.errors import ConfigError, RunError, UnspokenError
from unspoken.types import Done, Event, Rewind, RowId, Step, Usage
from unspoken.web import _log
from unspoken.web._cut import KEPT, cut
from unspoken.web._job import Job

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM

T = TypeVar("T")

RETRY_SECONDS = 2
"""What a client that finds the queue full is told to wait."""
USED_IDS = 10_000
"""Ids of past requests that are remembered, so that none is given twice."""
FAULT = "error: something went wrong in the server; its own output says what"
"""The end of a request that the server failed on: what failed is no concern of its client."""
SERVER_FAULTS = (FAULT, NOT_FINITE)
"""Ends that no change of the request would have averted."""
SHARE = 0.75
"""Of the places to wait, what one client may hold."""


class QueueFull(RunError):
    """There is no room for another request."""

    retry_after = RETRY_SECONDS


class ShuttingDown(RunError):
    """The server takes no more requests."""


class RepeatedId(ConfigError):
    """A request's id was used before."""


class Engine:
    """Runs all requests of a server on one model.

    A request that breaks the loop harms nobody: the rows that were live then are run again, each by itself. They
    give what they gave before, since a row depends on nothing but its request; whoever reads them is sent a
    `Rewind` to the beginning first.

    Args:
        lm: The model.
        batch_size: Most rows at once.
        max_waiting: Most requests that wait for a row. One client may hold three quarters of these places, and
            clients are served by turns.

    Raises:
        ConfigError: If one of the numbers is below 1.
    """

    def __init__(self, lm: CausalLM, *, batch_size: int = 16, max_waiting: int = 64) -> None:
        problems = [
            f"{name} must be at least 1, not {value}."
            for name, value in (("batch_size", batch_size), ("max_waiting", max_waiting))
            if value < 1
        ]
        if problems:
            raise ConfigError(problems)
        self.lm = lm
        self.batch_size = batch_size
        self.max_waiting = max_waiting
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()  # by client, next turn first
        self._running: dict[RowId, Job] = {}
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._used: OrderedDict[RowId, None] = OrderedDict()
        self._changed = threading.Condition()
        self._draining = self._closing = False
        self._thread = threading.Thread(target=self._serve, name="unspoken-engine", daemon=True)

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that wait for a row; those that were submitted together are one."""
        with self._changed:
            return self._count()

    @property
    def running(self) -> int:
        """Requests that have a row."""
        with self._changed:
            return len(self._running)

    @property
    def draining(self) -> bool:
        """Whether new requests are refused."""
        return self._draining

    def submit(self, request: Request, client: str, lm: CausalLM | None = None) -> Job:
        """Put a request into the queue; as `submit_all` for one."""
        return self.submit_all([request], client, lm)[0]

    def submit_all(self, requests: Sequence[Request], client: str, lm: CausalLM | None = None) -> list[Job]:
        """Put requests that belong together into the queue, where they take one place; all of them, or none.

        Called in the server's event loop.

        Args:
            requests: With ids that were not used before.
            client: Whose they are.
            lm: A view of the model that the request is for. Requests for another view than the one that runs
                wait until its rows are done.

        Raises:
            QueueFull: If there is no room.
            RepeatedId: If the id was used before.
            ShuttingDown: If the server is closing.
        """
        loop, call = asyncio.get_running_loop(), object()
        jobs = [Job(request, client, lm or self.lm, call, self, loop) for request in requests]
        with self._changed:
            if self._draining:
                raise ShuttingDown("The server is shutting down.")
            for request in requests:
                if request.id in self._used:
                    raise RepeatedId(
                        f"The id {request.id!r} was used before.", "Leave it out, or choose another."
                    )
            waiting, mine = self._count(), _places(self._waiting.get(client, ()))
            if waiting >= self.max_waiting or mine >= max(1, int(SHARE * self.max_waiting)):
                who = (
                    f"{mine} of your requests wait"
                    if waiting < self.max_waiting
                    else f"{waiting} requests wait"
                )
                raise QueueFull(f"{who}, which is the limit.", "Try again in a moment.")
            for job in jobs:
                job.request.sink = partial(self._deliver, job)
                self._used[job.request.id] = None
            while len(self._used) > USED_IDS:
                self._used.popitem(last=False)
            self._waiting.setdefault(client, deque()).extend(jobs)
            self._changed.notify()
        return jobs

    def cancel(self, request_id: str) -> bool:
        """Cancel a request that waits or runs; whether there was one."""
        with self._changed:
            jobs = [*self._running.values(), *(job for queue in self._waiting.values() for job in queue)]
        found = [job for job in jobs if job.request.id == request_id]
        for job in found:
            self.drop(job)
        return bool(found)

    def drop(self, job: Job) -> None:
        """Cancel a request: a row ends with the next step, one that waits for a row leaves the queue now."""
        job.request.cancel()
        with self._changed:
            queue = self._waiting.get(job.client)
            waited = queue is not None and job in queue
            if queue is not None and waited:
                queue.remove(job)
                if not queue:
                    del self._waiting[job.client]
        if waited:
            job.push(_cancelled(job))

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Have work on the model done between two steps, in the engine's thread.

        Args:
            function: The work. All rows wait for it, so it should be short.

        Returns:
            Its outcome. It is cancelled if the engine is closing.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._closing or not self._thread.is_alive():
                future.cancel()
            else:
                self._calls.append((function, future))
                self._changed.notify()
        return future

    async def ask(self, function: Callable[[], T]) -> T:
        """As `call`, waited for in the server's event loop.

        Raises:
            ShuttingDown: If the engine is closing.
        """
        future = self.call(function)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # it is the caller that ends
            raise ShuttingDown("The server is shutting down.") from None

    def drain(self) -> None:
        """Take no more requests; those that wait or run go on."""
        with self._changed:
            self._draining = True

    def close(self, timeout: float = 10.0) -> None:
        """Cancel everything and end the thread. What waits or runs ends as `cancelled`."""
        with self._changed:
            self._draining = self._closing = True
            for job in self._running.values():
                job.request.cancel()
            waiting = [job for queue in self._waiting.values() for job in queue]
            self._waiting.clear()
            self._changed.notify()
        for job in waiting:
            job.push(_cancelled(job))
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    # -- the engine's thread ------------------------------------------------------------------------

    def _serve(self) -> None:
        lm = self.lm
        try:
            while not self._closing:
                try:
                    for _event in run(
                        lm, self._work(lm), batch_size=self.batch_size, live=True, between=self._between
                    ):
                        pass  # sinks have it
                except Exception as error:
                    self._one_by_one(error)
                with self._changed:
                    lm = next(iter(self._waiting.values()))[0].lm if self._waiting else self.lm
        finally:
            with self._changed:
                self._draining = self._closing = True
                left = [*self._running.values(), *(job for queue in self._waiting.values() for job in queue)]
                calls = list(self._calls)
                self._running, self._waiting = {}, OrderedDict()
                self._calls.clear()
            for job in left:
                job.push(_cancelled(job))
            for _, future in calls:
                future.cancel()

    def _work(self, lm: CausalLM) -> Iterator[Request | None]:
        """Requests for this view by turns of their clients; None while rows are live and nobody waits."""
        while True:
            self._do_calls()
            with self._changed:
                while not (self._waiting or self._running or self._calls or self._closing):
                    self._changed.wait()
                if self._closing:
                    return
                if self._waiting and next(iter(self._waiting.values()))[0].lm is not lm:
                    return
                job = self._next()
                if job is not None:
                    self._running[job.request.id] = job
                elif not self._running:
                    continue  # woken for a call
            yield None if job is None else job.request

    def _next(self) -> Job | None:
        """The next client's oldest request; the client goes to the end of the line."""
        if not self._waiting:
            return None
        client, queue = self._waiting.popitem(last=False)
        job = queue.popleft()
        if queue:
            self._waiting[client] = queue
        return job

    def _between(self) -> None:
        """Called before each step."""
        self._do_calls()

    def _do_calls(self) -> None:
        while self._calls:
            with self._changed:
                function, future = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

    def _deliver(self, job: Job, event: Event) -> None:
        if isinstance(event, Done):
            with self._changed:
                self._running.pop(event.row, None)
            job.request.sink = None  # what nobody else holds goes at once, without a cycle through the sink
        elif isinstance(event, Step) and event.top is not None and len(event.top.ids) > KEPT:
            event = replace(event, top=cut(event.top, KEPT))
        job.push(event)

    def _one_by_one(self, error: Exception) -> None:
        """The loop has failed: run each of its rows by itself, so that only the one that breaks it fails."""
        with self._changed:
            jobs = list(self._running.values())
        if len(jobs) == 1:
            self._fail(jobs[0], error)
            return
        for job in jobs:
            if job.started:
                job.push(Rewind(job.request.id, 0))
            try:
                for _event in run(
                    job.lm, [job.request], batch_size=self.batch_size, live=True, between=self._between
                ):
                    pass
            except Exception as again:
                self._fail(job, again)

    def _fail(self, job: Job, error: Exception) -> None:
        if isinstance(error, UnspokenError):
            reason = f"error: {error}"
        else:
            reason = FAULT
            _log.failure(f"request {job.request.id!r} ({job.request.strategy.name})", error)
        self._deliver(job, Done(job.request.id, reason, Usage()))

    def _count(self) -> int:
        return sum(map(_places, self._waiting.values()))


def _places(jobs: Iterable[Job]) -> int:
    """Places in the queue that these take."""
    return len({id(job.call) for job in jobs})


def _cancelled(job: Job) -> Done:
    return Done(job.request.id, "cancelled", Usage())
