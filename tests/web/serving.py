"""A real server on a free port, in a thread of the test's process, with engines whose steps a test can hold."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from unspoken.lm.model import CausalLM
from unspoken.web._settings import Settings
from unspoken.web.app import create_app
from unspoken.web.jobs import Engine
from unspoken.web.server import address, bind, make_server

WAIT = 20.0
SOFT = {"name": "soft", "T_e": 4, "k": 3}


class GatedEngine(Engine):
    """An engine that takes a step only when it is let."""

    def __init__(self, lm: CausalLM, **options: Any) -> None:
        super().__init__(lm, **options)
        self.gate = threading.Semaphore(0)
        self.open = False

    def let(self, steps: int) -> None:
        for _ in range(steps):
            self.gate.release()

    def release(self) -> None:
        self.open = True
        self.gate.release()

    def _between(self) -> None:
        super()._between()
        while not (self.open or self._closing or self.gate.acquire(timeout=0.05)):
            super()._between()


class SlowEngine(Engine):
    """An engine whose steps take at least `pause` seconds."""

    pause = 0.01

    def _between(self) -> None:
        super()._between()
        time.sleep(self.pause)


@contextmanager
def serving(engine: Engine, settings: Settings | None = None, grace: float = 0.2) -> Iterator[str]:
    """The base address of a running server."""
    settings = settings or Settings(name="tiny")
    app = create_app(engine, settings)
    server = make_server(app, engine, settings, grace)
    sock = bind("127.0.0.1", 0, "unspoken lab")
    thread = threading.Thread(target=lambda: server.run(sockets=[sock]), daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield address(sock)
    finally:
        server.should_exit = True
        thread.join(WAIT)
        assert not thread.is_alive(), "the server did not end"


def until(condition: Callable[[], Any], seconds: float = WAIT) -> None:
    """Wait for something that must come."""
    last = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < last, "it did not happen"
        time.sleep(0.005)


def read_sse(text: str) -> list[tuple[str, Any]]:
    """The messages of a stream; comments are left out."""
    found = []
    for block in text.split("\n\n"):
        name, data = "message", []
        for line in block.split("\n"):
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                data.append(line[6:])
        if data:
            joined = "\n".join(data)
            found.append((name, joined if joined == "[DONE]" else json.loads(joined)))
    return found


def ask(base: str, **body: Any) -> list[tuple[str, Any]]:
    """The messages of a run."""
    response = httpx.post(f"{base}/api/stream", json=body, timeout=WAIT)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return read_sse(response.text)


def post(base: str, path: str, body: Any, **options: Any) -> httpx.Response:
    """The answer to a body."""
    return httpx.post(f"{base}{path}", json=body, timeout=WAIT, **options)


def refused(base: str, body: Any, path: str = "/api/stream") -> tuple[int, dict[str, Any]]:
    """The status and the error that answer a body."""
    response = post(base, path, body)
    return response.status_code, response.json()["error"]


def place(base: str) -> tuple[str, int]:
    """Host and port of an address."""
    parts = urlsplit(base)
    assert parts.hostname and parts.port
    return parts.hostname, parts.port
