"""What the lab's interface refuses, beside which field it says so, and that nothing of it is a traceback."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import WAIT, GatedEngine, ask, post, refused, serving, until

from unspoken.lm.model import CausalLM


@pytest.mark.parametrize(
    ("body", "status", "fields"),
    [
        ({}, 422, ["prompt"]),
        ({"prompt": "  "}, 422, ["prompt"]),
        ({"prompt": 5}, 400, ["prompt"]),
        ({"prompt": "a", "promt": "b"}, 422, ["promt"]),
        ({"prompt": "a", "user_prompt": "b"}, 422, ["user_prompt"]),
        ({"prompt": "a", "max_new_tokens": 0}, 422, ["max_new_tokens"]),
        ({"prompt": "a", "max_new_tokens": 501}, 422, ["max_new_tokens"]),
        ({"prompt": "a", "max_new_tokens": "5"}, 400, ["max_new_tokens"]),
        ({"prompt": "a", "max_new_tokens": True}, 400, ["max_new_tokens"]),
        ({"prompt": "a", "seed": -1}, 422, ["seed"]),
        ({"prompt": "a", "stop": [""]}, 422, ["stop.0"]),
        ({"prompt": "a", "trace": "all"}, 422, ["trace"]),
        ({"prompt": "a", "id": "a/../b"}, 422, ["id"]),
        ({"prompt": "a", "depth": "zz"}, 422, ["depth"]),
        ({"prompt": "a", "strategy": "sof"}, 422, ["strategy"]),
        ({"prompt": "a", "strategy": {}}, 422, ["strategy"]),
        ({"prompt": "a", "strategy": {"name": 5}}, 400, ["strategy"]),
        (
            {"prompt": "a", "strategy": {"name": "soft", "k": 0, "T_e": -1}},
            422,
            ["strategy.k", "strategy.T_e"],
        ),
        ({"prompt": "a", "strategy": {"name": "soft", "k": "x"}}, 400, ["strategy.k"]),
        ({"prompt": "a", "strategy": {"name": "soft", "kk": 1}}, 422, ["strategy.kk"]),
        ({"prompt": "a", "strategy": {"name": "soft", "mixture": "mean"}}, 422, ["strategy.mixture"]),
        ({"prompt": "a", "strategy": {"name": "soft", "k": 10**5}}, 422, ["strategy.k"]),
        (
            {"prompt": "a", "strategy": {"name": "soft", "T_e": 60}, "max_new_tokens": 50},
            422,
            ["strategy.T_e"],
        ),
        ({"prompt": "a", "strategy": {"name": "vote", "n": 10**6}}, 422, ["strategy"]),
        ({"prompt": "a", "strategy": {"name": "cot", "top_k": 10**9}}, 400, ["strategy.top_k"]),
        ({"prompt": "a", "strategy": {"name": "soft", "k": 3}, "k": 3}, 422, ["k"]),
        ({"prompt": "q7?" * 1200, "strategy": "cot"}, 422, ["prompt"]),
    ],
)
def test_what_is_wrong_is_said_beside_its_field(
    base: str, body: dict[str, Any], status: int, fields: list[str]
) -> None:
    got, error = refused(base, body)
    assert (got, sorted(error["fields"])) == (status, sorted(fields)), error
    assert error["message"] and all(s for sentences in error["fields"].values() for s in sentences)


@pytest.mark.parametrize("inner", ["./evil.py", "/etc/passwd", {"name": "./evil.py"}])
@pytest.mark.parametrize("outer", ["vote", "best_of_n"])
def test_no_path_in_a_request_reaches_the_file_system(
    base: str, outer: str, inner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "imported"
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    for strategy in (
        {"name": outer, "inner": inner},
        {"name": outer, "inner": {"name": "vote", "inner": inner}},
    ):
        status, error = refused(base, {"prompt": "a", "strategy": strategy})
        assert status == 422 and "There is no strategy" in error["message"]
    assert refused(base, {"prompt": "a", "strategy": str(inner)})[0] == 422
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b'{"prompt": "\xff"}',
        b"[]",
        b"null",
        b'"text"',
        b"[" * 100_000,
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": "a", "strategy": {"name": "cot", "temperature": 1e999}}',
        b'{"prompt": "a", "strategy": {"name": "cot", "temperature": NaN}}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a\\ud800"}',
        b'{"prompt": "a", "strategy": "\\ud800"}',
        b'{"prompt": "a", "strategy": {"name": "cot", "\\ud800": 1}}',
        b'{"prompt": "a", "stop": ["\\udfff"]}',
        b'{"\\ud800": "a"}',
    ],
)
def test_what_is_no_proper_json_is_refused_without_a_traceback(base: str, content: bytes) -> None:
    for path in ("/api/stream", "/api/generate", "/v1/chat/completions"):
        response = httpx.post(base + path, content=content, headers={"Content-Type": "application/json"})
        assert response.status_code in (400, 422), (path, response.text)
        assert "Traceback" not in response.text and response.json()["error"]["message"]


def test_names_that_are_nowhere(base: str) -> None:
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", "/api/stream", 405),
        ("POST", "/healthz", 405),
        ("GET", "/docs", 404),
        ("GET", "/v1/models/other", 404),
    ):
        response = httpx.request(method, base + path, json={} if method == "POST" else None)
        assert response.status_code == status and response.json()["error"]["message"]


def test_a_full_queue_says_when_to_come_again(lm: CausalLM) -> None:
    engine = GatedEngine(lm, batch_size=1, max_waiting=1)
    with serving(engine) as base:
        body = {"prompt": "hi", "strategy": "cot", "max_new_tokens": 4}
        found: list[Any] = []
        threads = []
        for count in (1, 2):
            threads.append(threading.Thread(target=lambda: found.append(ask(base, **body))))
            threads[-1].start()
            until(lambda c=count: engine.running + engine.waiting == c)
        for path, asked in (
            ("/api/stream", body),
            ("/v1/completions", {"model": "tiny", "prompt": "hi", "n": 2}),
        ):
            response = post(base, path, asked)
            assert response.status_code == 429 and int(response.headers["Retry-After"]) > 0
        assert engine.waiting == 1
        engine.release()
        for thread in threads:
            thread.join(WAIT)
        assert [messages[-1][1]["reason"] for messages in found] == ["length", "length"] or len(found) == 2
