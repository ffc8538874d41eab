"""The lab's interface: streams, whole results, kept runs, the lens, refusals with the names of fields."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from serving import WAIT, GatedEngine, SlowEngine, ask, read_sse, serving, until

from unspoken.decoding import Request, run
from unspoken.decoding.soft import SoftThinking
from unspoken.discovery import STRATEGIES
from unspoken.lm.model import CausalLM
from unspoken.types import Rewind, event_from_dict, fold
from unspoken.web._settings import Settings
from unspoken.web.jobs import Engine

SOFT = {"name": "soft", "T_e": 4, "k": 3}


def post(base: str, path: str, body: Any, **options: Any) -> httpx.Response:
    return httpx.post(f"{base}{path}", json=body, timeout=WAIT, **options)


def refused(base: str, body: Any, path: str = "/api/stream") -> tuple[int, dict[str, Any]]:
    response = post(base, path, body)
    return response.status_code, response.json()["error"]


# Streams


def test_a_stream_is_start_events_done_and_folds_to_what_the_library_gives(base: str, lm: CausalLM) -> None:
    messages = ask(base, prompt="What is 2 + 2?", strategy=SOFT, max_new_tokens=12, seed=5)
    names = [name for name, _ in messages]
    assert names[0] == "start" and names[-1] == "done" and set(names[1:-1]) == {"step", "note"}
    start, done = messages[0][1], messages[-1][1]
    assert start["strategy"]["k"] == 3 and start["strategy"]["name"] == "soft"
    assert start["max_new_tokens"] == 12 and start["seed"] == 5 and start["thresholds"] == {"end_prob": 0.05}
    assert start["prompt_tokens"] == len(SoftThinking(T_e=4).prompt_ids(lm, "What is 2 + 2?"))
    assert "What is 2 + 2?" in start["prompt_text"] and start["end_ids"] == list(lm.tokens.end_of_think_ids)
    asked = Request("What is 2 + 2?", SoftThinking(T_e=4, k=3), start["id"], 12, 5, trace="full")
    expected = fold(run(lm, [asked], live=True))[start["id"]]
    got = fold(event_from_dict(value) for name, value in messages[1:-1])[start["id"]]
    assert got.steps == expected.steps and got.notes == expected.notes
    assert done["text"] == expected.text and done["answer_text"] == expected.answer_text
    assert done["reason"] == expected.reason and done["usage"]["tokens"] == expected.usage.tokens


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_every_strategy_streams_by_name(base: str, name: str) -> None:
    small = {"smc": {"particles": 4}, "importance": {"n": 3}, "power": {"mcmc_steps": 2, "block_size": 4}}
    strategy = {"name": name, **small.get(name, {}), **({"T_e": 2} if name == "soft" else {})}
    messages = ask(base, prompt="hi", strategy=strategy, max_new_tokens=8)
    assert messages[-1][0] == "done" and messages[-1][1]["reason"] in ("eos", "length")


def test_rewinds_come_through(base: str) -> None:
    messages = ask(
        base,
        prompt="hi",
        strategy={"name": "power", "mcmc_steps": 6, "block_size": 8},
        max_new_tokens=16,
        seed=3,
    )
    rewinds = [value for name, value in messages if name == "rewind"]
    assert rewinds and all(isinstance(event_from_dict(value), Rewind) for value in rewinds)
    got = fold(event_from_dict(value) for _, value in messages[1:-1])
    assert next(iter(got.values())).text == messages[-1][1]["text"]


def test_candidates_beyond_twenty_are_counted(base: str) -> None:
    messages = ask(base, prompt="hi", strategy={"name": "soft", "k": 50, "T_e": 2}, max_new_tokens=4)
    step = next(value for name, value in messages if name == "step" and value["kind"] == "soft")
    top = step["top"]
    assert len(top["ids"]) == len(top["texts"]) == 20 and top["rest"]["count"] == 30
    assert sum(top["weights"]) + top["rest"]["weight"] == pytest.approx(1.0, abs=1e-5)


def test_a_gold_answer_is_graded(base: str) -> None:
    messages = ask(base, prompt="hi", strategy={"name": "cot"}, max_new_tokens=8, gold="4")
    assert messages[-1][1]["grade"]["status"] in ("correct", "wrong", "unparsed", "truncated")
    assert "grade" not in ask(base, prompt="hi", strategy={"name": "cot"}, max_new_tokens=8)[-1][1]


def test_a_depth_is_a_view(base: str, lm: CausalLM) -> None:
    messages = ask(base, prompt="hi", strategy={"name": "cot", "temperature": 0}, max_new_tokens=6, depth="1")
    view = lm.truncated("1")
    asked = Request("hi", STRATEGIES.find("cot")(temperature=0.0), "x", 6)
    assert messages[-1][1]["text"] == fold(run(view, [asked]))["x"].text


def test_silence_is_filled_with_comments(lm: CausalLM) -> None:
    engine = GatedEngine(lm)
    with serving(engine, Settings(name="tiny", heartbeat=0.05)) as base:
        body = {"prompt": "hi", "strategy": "cot", "max_new_tokens": 2}
        with httpx.stream("POST", f"{base}/api/stream", json=body, timeout=WAIT) as response:
            seen = ""
            for text in response.iter_text():
                seen += text
                if ": keep-alive" in seen:
                    engine.release()
        assert [name for name, _ in read_sse(seen)][-1] == "done"


# Whole results


def test_the_whole_result_has_the_original_s_keys(base: str) -> None:
    body = {
        "system_prompt": "Be brief.",
        "user_prompt": "hi",
        "k": 3,
        "T_e": 2,
        "T_total": 9,
        "temperature": 0.7,
    }
    response = post(base, "/api/generate", {**body, "strategy": "uniform", "experiment_name": "e1"})
    assert response.status_code == 200, response.text
    value = response.json()
    assert value["success"] is True and value["generated_text"] == value["text"]
    assert (
        value["parameters"] | {"mixture": "uniform", "k": 3, "experiment_name": "e1"} == value["parameters"]
    )
    info = value["phase_info"]
    assert info["phase1_rounds_requested"] == 2 and info["phase2_rounds_requested"] == 7
    assert info["total_tokens"] == len(value["steps"])
    for ids, weights in info["phase1_token_ids"]:
        assert len(ids) == len(weights) == 3 and sum(weights) == pytest.approx(1, abs=1e-5)
        assert all(str(i) in value["token_texts"] for i in ids)
    assert "Be brief." in value["prompt_used"]
    assert value["run"] and value["usage"]["latent_steps"] == info["phase1_rounds_completed"]


# About the server


def test_what_is_said_about_the_server(base: str, lm: CausalLM) -> None:
    def get(path: str) -> Any:
        response = httpx.get(base + path)
        assert response.status_code == 200, response.text
        return response.json()

    assert get("/healthz") == {"status": "ok", "model": "tiny", "waiting": 0, "running": 0}
    status = get("/api/model-status")
    assert status["loaded"] is True and status["vocab_size"] == lm.vocab_size
    assert status["eos_ids"] == sorted(lm.eos_ids) and status["model"]["weights_hash"] == lm.weights_hash
    assert get("/api/models")[0]["name"] == "tiny"
    space = next(i for i in range(lm.vocab_size) if lm.tokens.token_text(i) == " ")
    assert get(f"/api/token-text/{space}") == {"id": space, "text": " ", "display": "·"}
    assert httpx.get(f"{base}/api/token-text/{lm.vocab_size}").status_code == 404


def test_the_page_is_a_fixed_list_of_files(base: str) -> None:
    page = httpx.get(f"{base}/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    for path in ("/static/app.py", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static//etc/passwd"):
        assert httpx.get(base + path).status_code == 404, path
    with socket.create_connection(_place(base)) as raw:  # clients tidy such paths up before they send them
        raw.sendall(
            b"GET /static/../../pyproject.toml HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        )
        assert b" 404 " in raw.recv(4096).split(b"\r\n")[0]


# Kept runs


def test_runs_are_kept_listed_read_and_deleted(base: str) -> None:
    first, second = (ask(base, prompt=f"question {i}", strategy=SOFT, max_new_tokens=6) for i in range(2))
    ids = [messages[-1][1]["run"] for messages in (second, first)]
    listed = httpx.get(f"{base}/api/runs?limit=2").json()
    assert [entry["id"] for entry in listed] == ids
    assert listed[0]["prompt"] == "question 1" and listed[0]["strategy"] == "soft"
    older = httpx.get(f"{base}/api/runs?limit=1&before={ids[0]}").json()
    assert [entry["id"] for entry in older] == [ids[1]]
    kept = httpx.get(f"{base}/api/run/{ids[0]}").json()
    assert kept["done"] == second[-1][1] and kept["start"] == second[0][1]
    assert kept["events"] == [value for _, value in second[1:-1]]
    assert httpx.delete(f"{base}/api/run/{ids[0]}").json() == {"deleted": True}
    assert httpx.get(f"{base}/api/run/{ids[0]}").status_code == 404
    assert httpx.delete(f"{base}/api/run/{ids[0]}").status_code == 404
    for bad in ("..%2f..%2fetc%2fpasswd", "%2e%2e", "x" * 65, "a b", "....jsonl"):
        assert httpx.get(f"{base}/api/run/{bad}").status_code in (404, 422)


def test_a_browser_that_goes_away_frees_its_row_and_leaves_what_there_was(lm: CausalLM, folder: Path) -> None:
    engine = SlowEngine(lm)
    with serving(engine, Settings(name="tiny", history=folder)) as base:
        body = {"prompt": "hi", "strategy": {"name": "cot", "temperature": 1.5}, "max_new_tokens": 900}
        with httpx.stream("POST", f"{base}/api/stream", json=body, timeout=WAIT) as response:
            text = ""
            for piece in response.iter_text():
                text += piece
                if text.count("event: step") >= 3:
                    break
        until(lambda: engine.running == 0)
        until(lambda: httpx.get(f"{base}/api/runs").json())
        (entry,) = httpx.get(f"{base}/api/runs").json()
        assert entry["reason"] == "cancelled"
        assert len(httpx.get(f"{base}/api/run/{entry['id']}").json()["events"]) < 800


def test_a_client_of_a_whole_result_that_goes_away_frees_its_row(lm: CausalLM) -> None:
    engine = SlowEngine(lm)
    with serving(engine) as base:
        for path, body in (
            ("/api/generate", {"prompt": "hi", "strategy": "cot", "max_new_tokens": 900}),
            ("/v1/completions", {"model": "tiny", "prompt": "hi", "max_tokens": 900}),
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


def test_a_lens_while_others_run_changes_nothing(lm: CausalLM, folder: Path) -> None:
    engine = SlowEngine(lm, batch_size=1)
    with serving(engine, Settings(name="tiny", history=folder)) as base:
        run_id = ask(base, prompt="hi", strategy=SOFT, max_new_tokens=12)[-1][1]["run"]
        expected = post(base, "/api/lens", {"run": run_id}).json()
        found: list[Any] = []
        body = {"prompt": "go on", "strategy": {"name": "soft", "T_e": 20}, "max_new_tokens": 120, "seed": 1}
        thread = threading.Thread(target=lambda: found.extend(ask(base, **body)))
        thread.start()
        until(lambda: engine.running == 1)
        grids = [post(base, "/api/lens", {"run": run_id}).json() for _ in range(3)]
        assert engine.running == 1  # they did not wait for its end
        thread.join(WAIT)
    asked = Request("go on", SoftThinking(T_e=20), "x", 120, 1)
    assert found[-1][1]["text"] == fold(run(lm, [asked], live=True))["x"].text
    assert grids == [expected] * 3


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


# The lens


def test_the_lens_reads_soft_steps_of_a_kept_run_as_the_library_does(base: str, lm: CausalLM) -> None:
    from unspoken.analysis.lens import LogitLens

    strategy = SoftThinking(T_e=4, k=3)
    messages = ask(base, prompt="What is 2 + 2?", strategy=SOFT, max_new_tokens=12, seed=1)
    start, done = messages[0][1], messages[-1][1]
    grid = post(base, "/api/lens", {"run": done["run"], "first": 1, "last": 6}).json()
    assert grid["steps"] == [1, 2, 3, 4, 5, 6] and grid["layers"] == [-1, 0, 1]
    assert grid["kinds"][0] == "soft" and grid["labels"][0].startswith("‹")
    got = fold(event_from_dict(value) for _, value in messages[1:-1])[start["id"]]
    places = [start["prompt_tokens"] + i for i in grid["steps"]]
    expected = LogitLens(lm)(got, prompt="What is 2 + 2?", strategy=strategy, positions=places)
    for name in ("kl", "entropy"):
        assert grid["values"][name] == [pytest.approx(row, abs=2e-6) for row in expected[name].tolist()]
    assert grid["values"]["rank"][-1] == [1.0] * 6 or grid["values"]["rank"][-1] == [0.0] * 6
    assert grid["top"] == [[expected.texts[i] for i in row] for row in expected.top_ids[:, :, 0].tolist()]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"first": 99}, "first"),
        ({"first": 3, "last": 2}, "last"),
        ({"last": 99}, "last"),
        ({"metric": "x"}, "metric"),
    ],
)
def test_a_span_that_is_not_there(base: str, body: dict[str, Any], field: str) -> None:
    run_id = ask(base, prompt="hi", strategy=SOFT, max_new_tokens=8)[-1][1]["run"]
    status, error = refused(base, {"run": run_id, **body}, "/api/lens")
    assert status == 422 and field in error["fields"]


def test_the_lens_of_nothing_and_of_another_model(
    base: str, lm: CausalLM, tiny_lm: Any, folder: Path
) -> None:
    assert refused(base, {"run": "20200101-no-such-run"}, "/api/lens")[0] == 404
    with serving(Engine(lm), Settings(name="one", history=folder)) as one:
        run_id = ask(one, prompt="hi", strategy="cot", max_new_tokens=4)[-1][1]["run"]
    with serving(Engine(tiny_lm("gpt2")), Settings(name="two", history=folder)) as two:
        assert httpx.get(f"{two}/api/runs").json()[0]["id"] == run_id  # another lab's runs are seen
        status, error = refused(two, {"run": run_id}, "/api/lens")
        assert status == 422 and "another model (one)" in error["message"]


# Refusals


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
        ({"prompt": "a", "strategy": {"name": "soft"}, "max_new_tokens": 50}, 422, ["strategy.T_e"]),
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


# Clients that are no good


def _place(base: str) -> tuple[str, int]:
    parts = urlsplit(base)
    assert parts.hostname and parts.port
    return parts.hostname, parts.port


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
            with socket.create_connection(_place(base)) as raw:
                raw.sendall(data)
        with socket.create_connection(_place(base)) as slow:  # sends half of its body and waits
            slow.sendall(whole[:-5])
            slow.settimeout(WAIT)
            assert b" 408 " in slow.recv(4096).split(b"\r\n")[0]
        with socket.create_connection(_place(base)) as deaf:  # never reads
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
