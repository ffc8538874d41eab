"""Clients that go away, break off, cancel, or never read: their rows are freed, and nobody else is harmed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from serving import WAIT, SlowEngine, ask, place, post, refused, serving, until

from unspoken.decoding import Request
from unspoken.discovery import STRATEGIES
from unspoken.lm.model import CausalLM
from unspoken.web._settings import Settings
from unspoken.web.jobs import Engine


def test_a_client_of_a_whole_result_that_goes_away_frees_its_row(lm: CausalLM) -> None:
    engine = SlowEngine(lm)
    with serving(engine) as base:
        for path, body in (
            ("/api/generate", {"prompt": "hi", "strategy": "cot", "max_new_tokens": 900}),
            # 229 tokens; without a seed it may end at once.
            ("/v1/completions", {"model": "tiny", "prompt": "hi", "max_tokens": 900, "seed": 1}),
        ):
            with contextlib.suppress(httpx.ReadTimeout):
                httpx.post(base + path, json=body, timeout=0.3)
                pytest.fail("it was not slow")
            until(lambda: engine.running == 0)


def test_a_stream_that_never_begins_frees_its_row(lm: CausalLM) -> None:
    from unspoken.web._runs import EventStream

    async def body() -> list[bool]:
        engine = Engine(lm)
        job = engine.submit(Request("hi", STRATEGIES.find("cot")(), "a"), "a")

        async def content() -> AsyncIterator[bytes]:
            yield b""

        async def broken(_: Any) -> None:
            raise OSError("gone")

        with contextlib.suppress(Exception):  # starlette has an error of its own for it
            await EventStream(content(), [job])(
                {"type": "http", "asgi": {"spec_version": "2.4"}}, broken, broken
            )
        return [job.request.cancelled, engine.waiting == 0]

    # The response fails before its body is asked for anything.
    assert asyncio.run(body()) == [True, True]


def test_cancel_by_id(lm: CausalLM) -> None:
    engine = SlowEngine(lm)
    with serving(engine) as base:
        found: list[Any] = []
        body = {"id": "mine", "prompt": "hi", "strategy": "cot", "max_new_tokens": 900}
        thread = threading.Thread(target=lambda: found.extend(ask(base, **body)))
        thread.start()
        until(lambda: engine.running == 1)
        status, error = refused(base, body)
        assert status == 409 and "id" in error["fields"]
        assert post(base, "/api/cancel", {"id": "mine"}).json() == {"cancelled": True}
        thread.join(WAIT)
        assert found[-1][1]["reason"] == "cancelled"
        assert httpx.post(f"{base}/api/cancel/mine", json={}).json() == {"cancelled": False}
        assert refused(base, body)[0] == 409  # an id is never given twice


def _post_bytes(body: bytes, path: str = "/api/stream") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def test_clients_that_break_off_anywhere_harm_nobody(lm: CausalLM) -> None:
    engine = SlowEngine(lm, batch_size=4)
    body = json.dumps({"prompt": "hi", "strategy": "cot", "max_new_tokens": 300}).encode()
    whole = _post_bytes(body)
    with serving(engine, Settings(name="tiny", body_seconds=0.3)) as base:
        for data in (
            whole[:30],
            whole[:-5],
            whole,
            whole + whole,
            b"\x00\x01\x02\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
        ):
            with socket.create_connection(place(base)) as raw:
                raw.sendall(data)
        with socket.create_connection(place(base)) as slow:  # sends half of its body and waits
            slow.sendall(whole[:-5])
            slow.settimeout(WAIT)
            assert b" 408 " in slow.recv(4096).split(b"\r\n")[0]
        with socket.create_connection(place(base)) as deaf:  # never reads
            deaf.sendall(whole)
            until(lambda: engine.running == 1)
            assert ask(base, prompt="hi", strategy="cot", max_new_tokens=4)[-1][0] == "done"
        until(lambda: engine.running + engine.waiting == 0)


def test_a_server_that_ends_ends_its_streams(lm: CausalLM) -> None:
    engine = SlowEngine(lm)
    found: list[Any] = []
    with serving(engine) as base:
        body = {"prompt": "hi", "strategy": "cot", "max_new_tokens": 900}
        thread = threading.Thread(target=lambda: found.extend(ask(base, **body)))
        thread.start()
        until(lambda: engine.running == 1)
    thread.join(WAIT)
    assert found[-1][0] == "done" and found[-1][1]["reason"] == "cancelled"
