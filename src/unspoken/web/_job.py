"""A request on its way through the engine: events come from its thread, and are read in the server's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from unspoken.decoding import Request
from unspoken.types import Done, Event

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM
    from unspoken.web.jobs import Engine

HEARTBEAT = 10.0
"""Seconds without an event after which a reader is told that nothing has happened."""
MOST_UNREAD = 50_000
"""Events that wait for their reader; a request whose reader has fallen farther behind is cancelled."""


@dataclass(eq=False)
class Job:
    """A request on its way through the engine.

    Attributes:
        request: The request; its events come to `batches`.
        client: Whose it is: the queue takes clients by turns.
        lm: The model, or a view of it.
        call: What it was submitted with: together they take one place in the queue.
    """

    request: Request
    client: str
    lm: CausalLM
    call: object
    _engine: Engine
    _loop: asyncio.AbstractEventLoop
    _queue: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    started: bool = False
    _pushed: int = 0  # counted by the engine's thread
    _read: int = 0  # counted by the reader

    def push(self, event: Event) -> None:
        """Hand over an event, from the engine's thread."""
        self.started = True
        self._pushed += 1
        if self._pushed - self._read > MOST_UNREAD:
            self.request.cancel()
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)
        except RuntimeError:  # the server's loop is closed: nobody waits any more
            self.request.cancel()

    async def batches(self, heartbeat: float = HEARTBEAT) -> AsyncIterator[list[Event]]:
        """The request's events up to its `Done`, all that have come at a time; an empty list if none has for a while.

        Leaving early cancels the request, which frees its row within a step, or its place in the queue at once.

        Args:
            heartbeat: Seconds without an event after which an empty list is given.
        """
        try:
            while True:
                batch: list[Event] = []
                try:
                    async with asyncio.timeout(heartbeat):
                        batch.append(await self._queue.get())
                except TimeoutError:
                    yield batch
                    continue
                while not self._queue.empty():
                    batch.append(self._queue.get_nowait())
                self._read += len(batch)
                yield batch
                if isinstance(batch[-1], Done):
                    return
        finally:
            self.cancel()

    async def events(self) -> AsyncIterator[Event]:
        """The request's events one at a time, up to its `Done`."""
        batches = self.batches()
        try:
            async for batch in batches:
                for event in batch:
                    yield event
        finally:
            await batches.aclose()  # type: ignore[attr-defined]

    def cancel(self) -> None:
        """End the request: `cancelled` comes as its end."""
        self._engine.drop(self)
