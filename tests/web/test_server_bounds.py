"""What one client can take of the server: connections, places in the queue, memory, the event loop's time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import WAIT, GatedEngine, SlowEngine, ask, place, post, refused, serving, until

from unspoken.lm.model import CausalLM
from unspoken.types import Step, Top
from unspoken.web import _json
from unspoken.web._cut import CutTop, cut
from unspoken.web._errors import ApiError
from unspoken.web._settings import Settings
from unspoken.web._strategies import MOST_CANDIDATES
from unspoken.web.jobs import Engine

HALF = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "
WHOLE = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def everything(raw: socket.socket) -> bytes:
    """What comes until the other side closes."""
    raw.settimeout(WAIT)
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := raw.recv(4096):
            found += piece
    return found


@contextlib.contextmanager
def connections(base: str, count: int, data: bytes = b"") -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.create_connection(place(base))) for _ in range(count)]
        for raw in found:
            with contextlib.suppress(OSError):  # it may be closed at once
                raw.sendall(data)
        yield found


def parts(reply: bytes) -> tuple[int, str, dict[str, Any]]:
    """Status, head in lower case, and the error of an answer."""
    head, _, body = reply.partition(b"\r\n\r\n")
    return int(head.split()[1]), head.decode().lower(), json.loads(body)["error"]


# Connections


@pytest.mark.parametrize("before", [b"", WHOLE])
def test_a_head_that_never_ends_is_given_up(lm: CausalLM, before: bytes) -> None:
    """Also that of a connection's second request, for which no timer of the framework counts."""
    with serving(Engine(lm), Settings(name="tiny", head_seconds=0.2)) as base:
        with connections(base, 1) as (raw,):
            if before:
                raw.sendall(before)
                answered = b""
                while not answered.endswith(b"}"):
                    answered += raw.recv(4096)
            raw.sendall(HALF)
            status, head, error = parts(everything(raw))
        assert status == 408 and "0.2 seconds" in error["message"]
        assert (
            "content-security-policy" in head and "application/json" in head and "connection: close" in head
        )
        with connections(base, 1) as (silent,):
            assert everything(silent) == b""  # nothing was asked, so nothing is answered


def test_a_slow_answer_is_no_slow_head(lm: CausalLM) -> None:
    engine = GatedEngine(lm)
    with serving(engine, Settings(name="tiny", head_seconds=0.1, heartbeat=0.05)) as base:
        threading.Timer(0.5, engine.release).start()
        assert ask(base, prompt="hi", strategy="cot", max_new_tokens=3)[-1][0] == "done"


def test_half_open_connections_of_one_address_stop_nobody_else(lm: CausalLM) -> None:
    """Others are served while they are open, and that address is again once they were given up."""
    settings = Settings(name="tiny", max_per_peer=4, head_seconds=1.0)
    with serving(Engine(lm), settings) as base:
        with connections(base, 100, HALF) as many:
            with socket.socket() as other:
                other.bind(("127.0.0.2", 0))  # another address of this computer
                other.connect(place(base))
                other.sendall(WHOLE)
                assert b" 200 " in other.recv(4096)
            assert everything(many[-1]) == b""  # far beyond the limit: closed at once
            for raw in many[:4]:
                assert parts(everything(raw))[0] == 408

        def served() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{base}/healthz").status_code == 200
            return False

        until(served)


def test_one_connection_too_many_is_told_so(lm: CausalLM) -> None:
    with (
        serving(Engine(lm), Settings(name="tiny", max_per_peer=2)) as base,
        connections(base, 2),
        connections(base, 1, WHOLE) as (third,),
    ):
        status, head, error = parts(everything(third))
        assert status == 429 and "2 are allowed" in error["message"]
        assert "retry-after: " in head and "content-security-policy" in head
        assert httpx.get(f"{base}/v1/models").json()["error"]["type"] == "rate_limit_error"


def test_when_all_connections_are_taken_the_key_is_still_asked_for(lm: CausalLM) -> None:
    settings = Settings(name="tiny", max_connections=1, api_key="long-enough")
    with serving(Engine(lm), settings) as base, connections(base, 1):
        assert httpx.get(f"{base}/api/runs").status_code == 401
        response = httpx.get(f"{base}/api/runs", headers={"Authorization": "Bearer long-enough"})
        assert response.status_code == 503 and int(response.headers["retry-after"]) > 0
        assert response.json()["error"]["message"] == "Too many connections are open."


def test_what_is_no_http_is_answered_like_everything_else(base: str) -> None:
    with connections(base, 1, b"\x00\x01\r\n\r\n") as (raw,):
        status, head, _ = parts(everything(raw))
    assert status == 400 and "content-security-policy" in head


# Places in the queue


@pytest.mark.parametrize("max_waiting", [8, 64])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_all_choices_that_a_request_may_have_find_room(lm: CausalLM, max_waiting: int, path: str) -> None:
    asked = {"prompt": "a"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "a"}]}
    with serving(Engine(lm, batch_size=16, max_waiting=max_waiting)) as base:
        body = {"model": "tiny", "max_tokens": 2, "n": 64, **asked}
        response = post(base, path, body)
        assert response.status_code == 200, response.text
        assert [choice["index"] for choice in response.json()["choices"]] == list(range(64))
        status, error = refused(base, {**body, "n": 65}, path)
        assert status == 400 and error["param"] == "n" and "64 rows" in error["message"]


def test_prompts_beyond_the_rows_are_named(base: str) -> None:
    body = {"model": "tiny", "max_tokens": 1, "prompt": ["a"] * 33, "n": 2}
    status, error = refused(base, body, "/v1/completions")
    assert status == 400 and error["param"] == "n" and "33 prompts" in error["message"]
    body = {"model": "tiny:vote", "max_tokens": 1, "prompt": ["a"] * 9}
    status, error = refused(base, body, "/v1/completions")
    assert status == 400 and error["param"] == "prompt"


def test_choices_take_one_place_together(lm: CausalLM) -> None:
    engine = GatedEngine(lm, batch_size=1, max_waiting=4)
    body = {"model": "tiny", "prompt": "a", "max_tokens": 1, "n": 5, "user": "one"}
    with serving(engine) as base:
        threads = [
            threading.Thread(target=post, args=(base, "/v1/completions", {**body, "user": str(i)}))
            for i in range(4)
        ]
        for count, thread in enumerate(threads, 1):
            thread.start()
            until(lambda c=count: engine.waiting == c)
        assert engine.running == 1  # the first of its choices; the other four still are one that waits
        assert post(base, "/v1/completions", body).status_code == 429
        engine.release()
        for thread in threads:
            thread.join(WAIT)


def test_every_choice_is_read_while_it_runs(lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits for its reader would be given up for being too far behind."""
    monkeypatch.setattr("unspoken.web._job.MOST_UNREAD", 60)
    with serving(SlowEngine(lm, batch_size=4)) as base:
        body = {"model": "tiny", "prompt": "a", "max_tokens": 150, "n": 4, "temperature": 0.1}
        response = post(base, "/v1/completions", body)
        assert response.status_code == 200, response.text


# Memory


def test_cut_keeps_what_was_fed_most() -> None:
    top = Top((5, 6, 7, 8), (0.4, 0.3, 0.2, 0.1), (0.0, 0.5, 0.1, 0.4), ("a", "b", "c", "d"))
    short = cut(top, 2)
    assert isinstance(short, CutTop) and (short.ids, short.texts) == ((6, 8), ("b", "d"))
    assert short.others == 2 and short.others_weight == pytest.approx(0.1)
    shorter = cut(short, 1)
    assert isinstance(shorter, CutTop) and (shorter.ids, shorter.others) == ((6,), 3)
    assert shorter.others_weight == pytest.approx(0.5)
    assert cut(top, 4) is top


def test_steps_leave_the_engine_with_a_bounded_number_of_candidates(
    lm: CausalLM, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unspoken.web.jobs.KEPT", 30)
    strategy = {"name": "soft", "k": 50, "T_e": 3, "min_end_prob": 1.0}
    with serving(Engine(lm), Settings(name="tiny", history=folder)) as base:
        messages = ask(base, prompt="hi", strategy=strategy, max_new_tokens=5)
        sent = [value["top"] for name, value in messages if name == "step" and value["kind"] == "soft"]
        assert len(sent) == 3 and all(len(t["ids"]) == 20 and t["rest"]["count"] == 30 for t in sent)
        kept = httpx.get(f"{base}/api/run/{messages[-1][1]['run']}").json()["events"]
        tops = [event["top"] for event in kept if event.get("kind") == "soft"]
        assert all(len(t["ids"]) == 30 and t["rest"]["count"] == 20 for t in tops)
        for top in (*sent, *tops):
            assert sum(top["weights"]) + top["rest"]["weight"] == pytest.approx(1, abs=1e-5)
        whole = post(
            base, "/api/generate", {"prompt": "hi", "strategy": strategy, "max_new_tokens": 5}
        ).json()
        assert len(whole["phase_info"]["phase1_token_ids"][0][0]) == 30


@pytest.mark.parametrize(
    ("strategy", "body", "fields"),
    [
        ({"name": "soft", "k": 1024, "T_e": 1025}, {}, ["strategy.T_e", "strategy.k"]),
        (
            {"name": "vote", "n": 8, "inner": {"name": "soft", "k": 300, "T_e": 500}},
            {},
            ["strategy.inner.T_e", "strategy.inner.k"],
        ),
        (
            {"name": "soft", "mixture": "nucleus", "nucleus_cap": 10**6, "T_e": 1025},
            {},
            ["strategy.T_e", "strategy.nucleus_cap"],
        ),
        ({"name": "vote", "n": 64}, {"max_new_tokens": 1024}, ["max_new_tokens"]),
    ],
)
def test_candidates_of_a_run_are_bounded(
    lm: CausalLM,
    strategy: dict[str, Any],
    body: dict[str, Any],
    fields: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = {"prompt": "hi", "strategy": strategy, "max_new_tokens": 2000, **body}
    with serving(Engine(lm)) as base:
        monkeypatch.setattr(type(lm), "vocab_size", 49152)  # else k is too large for the model first
        status, error = refused(base, asked)
        assert (status, sorted(error["fields"])) == (422, fields), error
        assert str(MOST_CANDIDATES) in error["message"] or str(MOST_CANDIDATES // 20) in error["message"]
        assert all(s.startswith(f.split(".")[-1]) for f, (s,) in error["fields"].items())


def test_a_cancelled_run_is_let_go(lm: CausalLM) -> None:
    """Its steps are freed, and none of them had kept its candidates."""

    def held() -> list[Any]:
        gc.collect()
        return [o for o in gc.get_objects() if type(o) is Step and o.row == "large"]

    engine = SlowEngine(lm)
    strategy = {"name": "soft", "k": 50, "T_e": 400, "min_end_prob": 1.0}
    body = {"id": "large", "prompt": "hi", "strategy": strategy, "max_new_tokens": 500}
    with serving(engine) as base:
        with httpx.stream("POST", f"{base}/api/stream", json=body, timeout=WAIT) as response:
            text = ""
            for piece in response.iter_text():
                text += piece
                if text.count("event: step") >= 20:
                    break
            assert sum(step.top is not None for step in held()) < 10  # those on their way
        until(lambda: engine.running == 0)
        until(lambda: not held())


def test_a_record_that_grows_too_long_is_not_kept(
    lm: CausalLM, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unspoken.web._runs.MOST_RECORD", 2000)
    with serving(Engine(lm), Settings(name="tiny", history=folder)) as base:
        done = ask(base, prompt="hi", strategy={"name": "soft", "T_e": 20}, max_new_tokens=40)[-1][1]
        assert done["run"] is None and "longer than" in done["not_kept"]
        assert httpx.get(f"{base}/api/runs").json() == []


# Time of the event loop


def test_names_of_this_computer_are_looked_up_once(monkeypatch: pytest.MonkeyPatch, lm: CausalLM) -> None:
    asked: list[str] = []

    def slow() -> str:
        asked.append(threading.current_thread().name)
        return "box.example"

    monkeypatch.setattr(socket, "getfqdn", slow)
    settings = Settings(host="0.0.0.0", insecure=True)
    with serving(Engine(lm), settings) as base:
        assert asked == ["MainThread"]  # at the start
        for host in ("evil.example", "other.example"):
            assert httpx.get(f"{base}/healthz", headers={"Host": host}).status_code == 403
        assert httpx.get(f"{base}/healthz", headers={"Host": "BOX.example"}).status_code == 200
    assert len(asked) == 1


def test_the_schema_is_made_once_at_the_start(lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Engine(lm)) as base:
        monkeypatch.setattr("unspoken.web._schema.describe", lambda *_: pytest.fail("made again"))
        assert len(httpx.get(f"{base}/api/strategies").json()) > 5


def test_names_are_compared_without_case() -> None:
    assert Settings(host="LOCALHOST").local
    assert Settings(allowed_hosts=("Lab.Example",)).allows_host("lab.example")


# JSON that readers do not agree about


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"seed": 1, "seed": 2}', "seed is given twice"),
        ('{"strategy": {"name": "soft", "k": 1, "k": 2}}', "k is given twice"),
        ('{"temperature": NaN}', "NaN is no number"),
        ('{"strategy": {"temperature": -Infinity}}', "-Infinity is no number"),
        ('{"strategy": {"temperature": 1e999}}', "1e999 is too large"),
        ('{"seed": ' + "9" * 5000 + "}", "5000 digits"),
        ("[" * 200_000, "nested too deeply"),
    ],
)
def test_numbers_and_names_are_unmistakable(base: str, text: str, message: str) -> None:
    with pytest.raises(ApiError, match=message):
        _json.check(text.encode())
    for body in (text, text + " " * 40_000):  # large bodies are looked at in another thread
        response = httpx.post(
            f"{base}/api/stream", content=body, headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 400 and message in response.json()["error"]["message"]


def test_ordinary_json_passes() -> None:
    _json.check(b'{"a": {"x": 1}, "b": {"x": 2}, "c": [1e10, -3, 0.5, null]}')
    _json.check(b"no json: somebody else says so")


# Waiting for work whose client has gone


def test_a_wait_that_is_ended_ends() -> None:
    """Also while it waits for the work to stop: its own cancellation is not swallowed."""
    from unspoken.web._runs import unless_gone

    class Request:
        async def receive(self) -> dict[str, str]:
            return {"type": "http.disconnect"}

    async def body() -> bool:
        stubborn = asyncio.Event()

        async def work() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                await stubborn.wait()

        waiting = asyncio.create_task(unless_gone(Request(), [], work()))  # type: ignore[arg-type]
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.wait({waiting}, timeout=5)
        stubborn.set()
        return waiting.cancelled()

    assert asyncio.run(body())
