"""The lab's interface: streams, whole results, what it says about itself."""

from __future__ import annotations

import socket
from typing import Any

import httpx
import pytest
from serving import SOFT, WAIT, GatedEngine, ask, place, post, read_sse, serving

from unspoken.decoding import Request, run
from unspoken.decoding.soft import SoftThinking
from unspoken.discovery import STRATEGIES
from unspoken.lm.model import CausalLM
from unspoken.types import Rewind, event_from_dict, fold
from unspoken.web._settings import Settings

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
    small = {
        "smc": {"particles": 4},
        "importance": {"n": 3},
        "lookahead": {"candidates": 2, "rollouts": 2, "block_size": 4},
        "power": {"mcmc_steps": 2, "block_size": 4},
    }
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
    with socket.create_connection(place(base)) as raw:  # clients tidy such paths up before they send them
        raw.sendall(
            b"GET /static/../../pyproject.toml HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        )
        assert b" 404 " in raw.recv(4096).split(b"\r\n")[0]
