"""What the lab's interface refuses, beside which field it says so, and that nothing of it is a traceback."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import WAIT, GatedEngine, ask, post, refused, serving, until

from unspoken.lm.model import CausalLM

CHAT = "/v1/chat/completions"
ASKED = {"model": "...", "messages": [{"role": "user", "content": "..."}]}
HELLO = {**ASKED, "model": "tiny"}


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


@pytest.mark.parametrize(
    ("path", "content", "example"),
    [
        ("/api/stream", b"xx", {"prompt": "..."}),
        ("/api/cancel", b"xx", {"id": "..."}),
        ("/v1/completions", b'{"a": "\xff"}', {"model": "...", "prompt": "..."}),
        ("/v1/chat/completions", b"xx", ASKED),
        ("/v1/chat/completions", b"[]", ASKED),
        ("/v1/chat/completions", b"{}", ASKED),
    ],
)
def test_what_could_be_sent_is_shown(base: str, path: str, content: bytes, example: Any) -> None:
    response = httpx.post(base + path, content=content, headers={"Content-Type": "application/json"})
    error = response.json()["error"]
    said = f"{error['message']} {error.get('hint', '')}"
    assert f"Send a JSON object, such as {json.dumps(example)}." in said
    assert "dictionary" not in said
    filled = {**example, "model": "tiny"} if "model" in example else example
    assert post(base, path, filled).status_code == 200


# What was given, and what is allowed


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        ("/api/stream", {"max_new_tokens": -5}, "max_new_tokens must be at least 1, not -5."),
        ("/api/stream", {"max_new_tokens": 10**8}, "max_new_tokens must be at most 500, not 100000000."),
        ("/api/stream", {"seed": "x" * 99}, f"seed must be a whole number, not '{'x' * 59}…'."),
        ("/api/stream", {"seed": 1e3}, "must be a whole number without a point or an exponent, not 1000.0."),
        ("/api/stream", {"seed": {"a": 1}}, "seed must be a whole number, not an object."),
        ("/api/stream", {"seed": 2**63}, f"seed must be at most {2**63 - 1}, not {2**63}."),
        ("/api/stream", {"strategy": 5}, "strategy must be text, or an object, not 5."),
        ("/api/stream", {"stop": ["a"] * 17}, "stop must have at most 16 entries, not 17."),
        ("/api/stream", {"stop": [""]}, "stop.0 must not be empty."),
        ("/api/stream", {"depth": "x" * 65}, "depth must have at most 64 characters, not 65."),
        ("/api/stream", {"trace": "all"}, "trace must be 'none', 'summary' or 'full', not 'all'."),
        ("/api/stream", {"id": "a/b"}, "id must be 1 to 64 letters, digits or any of . _ : -, not 'a/b'."),
        ("/v1/completions", {"echo": True}, "echo must be false, not true."),
        ("/v1/completions", {"top_p": 0}, "top_p must be above 0, not 0."),
        ("/v1/completions", {"stream": "yes"}, "stream must be true or false, not 'yes'."),
    ],
)
def test_a_refusal_says_what_was_given(base: str, path: str, body: dict[str, Any], sentence: str) -> None:
    model = {"model": "tiny"} if path.startswith("/v1/") else {}
    status, error = refused(base, {"prompt": "a", **model, **body}, path)
    assert status in (400, 422) and error["message"].endswith(sentence), error


@pytest.mark.parametrize(
    ("path", "message", "hint"),
    [
        ("/api/runs?limit=x", "limit must be a whole number, not 'x'.", None),
        ("/api/runs?limit=201", "limit must be at most 200, not 201.", None),
        ("/api/run/nosuch", "There is no run 'nosuch'.", "GET /api/runs lists them."),
    ],
)
def test_an_address_is_refused_in_the_same_words(
    base: str, path: str, message: str, hint: str | None
) -> None:
    error = httpx.get(base + path).json()["error"]
    assert (error["message"], error["hint"]) == (message, hint)


@pytest.mark.parametrize("run", ["nosuch", "../../etc", "\u2028"])
def test_a_run_that_is_not_there(base: str, run: str) -> None:
    status, error = refused(base, {"run": run}, "/api/lens")
    assert status == 404 and error["message"] == f"There is no run {run!r}."
    assert error["hint"] == "GET /api/runs lists them." and list(error["fields"]) == ["run"]


# Names in the wrong place


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (CHAT, {"alpha": 0.5}, '"unspoken": {"strategy": {"name": "power", "alpha": 4.0}}'),
        (CHAT, {"unspoken": {"alpha": 5}}, '"unspoken": {"strategy": {"name": "power", "alpha": 5}}'),
        (CHAT, {"unspoken": {"alpha": 5}}, "Known here: strategy, depth."),
        (
            CHAT,
            {"unspoken": {"trace": "x"}},
            "unspoken.trace is not known here. Known here: strategy, depth.",
        ),
        (CHAT, {"block_size": 64, "model": "tiny:lookahead"}, '{"name": "lookahead", "block_size": 64}'),
        (CHAT, {"alpha": 2, "unspoken": {"strategy": "smc"}}, '{"name": "smc", "alpha": 2}'),
        (CHAT, {"depth": "1"}, '"unspoken": {"depth": ...}'),
        (CHAT, {"max_new_tokens": 4}, "Did you mean max_tokens? Known here: model, max_tokens,"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "a", "alpha": 1}]},
            "Known here: role, content, name.",
        ),
        ("/api/stream", {"alpha": 3}, 'as in "strategy": {"name": "power", "alpha": 3}.'),
        ("/api/stream", {"promt": "a"}, "Did you mean prompt? Known here: id, prompt,"),
        ("/api/lens", {"alpha": 3}, "alpha is not known here. Known here: run, first,"),
    ],
)
def test_a_name_that_is_not_known_here_is_told_where_it_goes(
    base: str, path: str, body: dict[str, Any], said: str
) -> None:
    status, error = refused(base, {**(HELLO if path == CHAT else {}), **body}, path)
    assert status in (400, 422) and said in error["message"], error
    if path == "/api/stream":
        assert error["hint"].startswith("GET /api/strategies")


def test_what_is_shown_of_a_misplaced_field_is_accepted(base: str) -> None:
    _, error = refused(base, {**HELLO, "alpha": 0.5, "max_tokens": 4}, CHAT)
    shown = json.loads("{" + error["message"].partition("as in ")[2].partition(". Known")[0] + "}")
    assert post(base, CHAT, {**HELLO, **shown, "max_tokens": 4}).status_code == 200


def test_many_unknown_names_do_not_make_a_long_answer(base: str) -> None:
    status, error = refused(base, {f"alpha{i}": 1 for i in range(1000)})
    assert status == 422 and len(error["fields"]) == 1000
    assert error["fields"]["alpha999"] == ["alpha999 is not known here."]


# Addresses


@pytest.mark.parametrize("path", ["/nothing", "/docs", "/api/rums", "/v1/nothing", "/chat/completions"])
def test_addresses_that_are_nowhere(base: str, path: str) -> None:
    response = httpx.get(base + path)
    error = response.json()["error"]
    said = f"{error['message']} {error.get('hint', '')}"
    assert response.status_code == 404 and f"There is nothing at {path}." in said
    for known in ("/api/runs", "/api/run/{run}", "/v1/models/{model},", "/v1/completions."):
        assert known in said
    near = {"/api/rums": "/api/runs", "/chat/completions": CHAT}.get(path)
    assert (f"Did you mean {near}?" in said) if near else "Did you mean" not in said


def test_a_model_that_is_not_served_is_told_which_are(base: str) -> None:
    looked = httpx.get(f"{base}/v1/models/nosuch").json()
    assert looked == post(base, CHAT, {**HELLO, "model": "nosuch"}).json()
    assert "Served: tiny, and tiny:STRATEGY for beam," in looked["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/api/stream", "POST"),
        ("POST", "/healthz", "GET"),
        ("POST", "/api/run/nosuch", "DELETE, GET"),
        ("DELETE", "/v1/chat/completions", "POST"),
    ],
)
def test_another_method_is_told_which_are_allowed(base: str, method: str, path: str, allowed: str) -> None:
    response = httpx.request(method, base + path, json={} if method == "POST" else None)
    assert response.status_code == 405 and response.headers["allow"] == allowed
    error = response.json()["error"]
    assert f"{method} is not allowed at {path}." in error["message"]
    assert f"Use {allowed.replace(', ', ' or ')}." in f"{error['message']} {error.get('hint', '')}"


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
