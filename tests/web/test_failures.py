"""Faults and mistakes are told apart: what the server failed on, and what a client asked for wrongly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import torch
from serving import WAIT, ask, post, read_sse, refused, serving

from unspoken.decoding._base import Feed, Row, State
from unspoken.decoding.cot import ChainOfThought
from unspoken.decoding.filler import Filler
from unspoken.errors import RunError
from unspoken.lm.model import CausalLM
from unspoken.web._strategies import without_flags
from unspoken.web.jobs import Engine


@dataclass(frozen=True)
class Faulty(ChainOfThought):
    """Has a fault in its third step."""

    def observe(self, row: Row, token_id: int, text: str) -> None:
        if row.steps >= 3:
            raise AttributeError("secret inside")


@dataclass(frozen=True)
class Unfit(ChainOfThought):
    """Refuses to go on, in words for whoever asked."""

    def next_input(self, logits: torch.Tensor, hidden: torch.Tensor, state: State) -> list[Feed]:
        raise RunError("This cannot be thought.")


@dataclass(frozen=True)
class Infinite(ChainOfThought):
    """The model's numbers are spoilt."""

    def next_input(self, logits: torch.Tensor, hidden: torch.Tensor, state: State) -> list[Feed]:
        return super().next_input(logits * float("nan"), hidden, state)


@pytest.fixture(params=[Faulty, Infinite, Unfit])
def failing(request: pytest.FixtureRequest, lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server whose own strategy fails, and the class of the failure."""
    monkeypatch.setattr(lm, "strategy", request.param(temperature=0.0), raising=False)
    with serving(Engine(lm)) as base:
        yield base, request.param


def test_a_fault_is_the_server_s_and_a_refusal_the_client_s(
    failing: tuple[str, type], capsys: pytest.CaptureFixture[str]
) -> None:
    base, kind = failing
    ours = kind is not Unfit
    response = post(base, "/api/generate", {"prompt": "hi", "max_new_tokens": 9})
    assert response.status_code == (500 if ours else 422)
    answers = [response.text]
    for path, asked in (
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
    ):
        body = {"model": "tiny", "max_tokens": 9, **asked}
        response = post(base, path, body)
        error = response.json()["error"]
        assert response.status_code == (500 if ours else 400)
        assert error["type"] == ("server_error" if ours else "invalid_request_error")
        streamed = httpx.post(base + path, json={**body, "stream": True}, timeout=WAIT).text
        assert read_sse(streamed)[-1][1]["error"]["type"] == error["type"]
        answers += [response.text, streamed]
    done = ask(base, prompt="hi", max_new_tokens=9)[-1][1]
    assert done["reason"].startswith("error")
    answers.append(done["reason"])
    said = capsys.readouterr().err
    for text in answers:
        assert "AttributeError" not in text and "secret" not in text
        assert ("cannot be thought" in text) == (kind is Unfit)
    if kind is Faulty:
        assert "AttributeError: secret inside" in said and "in observe" in said  # with the place where it was
    else:
        assert "Traceback" not in said
    assert httpx.get(f"{base}/healthz").json()["running"] == 0


# Names of fields

SPOILT = {"name": "soft", "k": 0}


@pytest.mark.parametrize(
    ("path", "body", "names"),
    [
        ("/api/stream", {"prompt": "a", "strategy": 5}, ["strategy"]),
        ("/api/stream", {"prompt": "a", "strategy": [1]}, ["strategy"]),
        ("/v1/completions", {"prompt": "a", "stop": 5}, ["stop"]),
        ("/v1/completions", {"prompt": "a", "stop": ""}, ["stop"]),
        ("/v1/completions", {"prompt": "a", "stop": ["a", ""]}, ["stop.1"]),
        ("/v1/completions", {"prompt": {}}, ["prompt"]),
        ("/v1/completions", {"prompt": ["a"] * 65}, ["prompt"]),
        ("/v1/completions", {"prompt": ["a", 3]}, ["prompt.1"]),
        ("/v1/completions", {"prompt": "a", "unspoken": {"strategy": 5}}, ["unspoken.strategy"]),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]}, ["messages.0.content"]),
        ("/v1/completions", {"prompt": "a", "unspoken": {"strategy": SPOILT}}, ["unspoken.strategy.k"]),
        ("/v1/completions", {"prompt": "a", "unspoken": {"strategy": "sof"}}, ["unspoken.strategy"]),
        ("/v1/completions", {"prompt": "a", "unspoken": {"depth": "99+last"}}, ["unspoken.depth"]),
        ("/v1/completions", {"prompt": "a", "unspoken": {"alpha": 4}}, ["unspoken.alpha"]),
        ("/v1/completions", {"prompt": "a", "max_tokens": 10**5}, ["max_tokens"]),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 10**5},
            ["max_completion_tokens"],
        ),
    ],
)  # fmt: skip
def test_fields_have_the_names_that_the_client_gave_them(
    base: str, path: str, body: dict[str, Any], names: list[str]
) -> None:
    openai = path.startswith("/v1/")
    status, error = refused(base, {"model": "tiny", **body} if openai else body, path)
    assert status in (400, 422)
    assert ([error["param"]] if openai else list(error["fields"])) == names
    for word in ("constrained", "dict[", "list[", ".str:", ".int:", "max_new_tokens"):
        assert word not in error["message"], error
    assert "problems" not in error["message"] or not openai  # one mistake is one problem


# Everything at once


def test_mistakes_of_every_kind_are_said_at_once(base: str) -> None:
    strategy = {"name": "soft", "k": 0, "temperature": -1}
    _, error = refused(base, {"prompt": "a", "seed": "x", "max_new_tokens": 0, "strategy": strategy})
    assert set(error["fields"]) == {"seed", "max_new_tokens", "strategy.k", "strategy.temperature"}
    _, error = refused(base, {"prompt": " ", "strategy": strategy})
    assert set(error["fields"]) == {"prompt", "strategy.k", "strategy.temperature"}
    _, error = refused(
        base, {"prompt": "a" * 300_000, "max_new_tokens": 10**4, "strategy": {"name": "soft", "k": 10**5}}
    )
    assert set(error["fields"]) == {"prompt", "max_new_tokens", "strategy.k"}
    body = {"model": "tiny", "prompt": "a", "seed": "x", "unspoken": {"strategy": strategy}}
    _, error = refused(base, body, "/v1/completions")
    for name in ("seed", "k must", "temperature must"):
        assert name in error["message"]


# Words for the command line


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("It knows '-' (--token=-).", "It knows '-' (token=-)."),
        ("It knows ' .' (--token=' .'), '-' (--token=-).", "It knows ' .' (token=' .'), '-' (token=-)."),
        ("<fill_0> (--kind single)", "<fill_0> (kind=single)"),
        ("a temperature (--temperature 0.7), n = 1 (--n 1).", "a temperature (temperature=0.7), n = 1 (n=1)."),
        ("its limit is --max-swap (max_swap=True).", "its limit is max_swap=True."),
        ("1 -- 2 - 3", "1 -- 2 - 3"),
    ],
)  # fmt: skip
def test_hints_for_the_command_line_become_fields(sentence: str, expected: str) -> None:
    assert without_flags(sentence) == expected


def test_no_flag_reaches_a_client(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Filler, "check", lambda *_: ["The tokenizer does not know it. It knows '-' (--token=-)."]
    )
    status, error = refused(base, {"prompt": "a", "strategy": "filler"})
    assert status == 422 and "--" not in error["message"] and "token=-" in error["message"]
    body = {"prompt": "a", "strategy": {"name": "vote", "inner": {"name": "cot", "temperature": 0}}}
    status, error = refused(base, body)
    assert status == 422 and "--" not in error["message"]
    status, error = refused(base, {"prompt": "a", "strategy": {"name": "power", "alpha": 0.5}})
    assert status == 422 and "--" not in error["message"]


# Thinking that fits the limit


@pytest.mark.parametrize(
    ("strategy", "limit", "T_e"),
    [
        ({"name": "soft"}, 100, 50),
        ({"name": "soft"}, 200, 200),
        ({"name": "soft", "T_total": 90}, 400, 45),
        ({"name": "soft", "k": 3}, 1, 0),
        ({"name": "vote", "n": 2, "inner": {"name": "soft", "k": 3}}, 30, 15),
        ({"name": "vote", "n": 2, "inner": "soft"}, 30, 15),
    ],
)
def test_thinking_that_nobody_asked_for_fits_the_limit(
    base: str, strategy: dict[str, Any], limit: int, T_e: int
) -> None:
    start = ask(base, prompt="hi", strategy=strategy, max_new_tokens=limit)[0][1]
    used = start["strategy"].get("inner", start["strategy"])
    assert used["T_e"] == T_e
    assert len(start["fitted"]) == int(T_e != 200) and all(
        f"T_e is {T_e} instead" in s for s in start["fitted"]
    )


@pytest.mark.parametrize(
    "strategy", [{"name": "soft", "T_e": 200}, {"name": "soft", "T_e": 60, "T_total": 50}]
)
def test_thinking_that_was_asked_for_is_not_changed(base: str, strategy: dict[str, Any]) -> None:
    status, error = refused(base, {"prompt": "hi", "strategy": strategy, "max_new_tokens": 100})
    assert status == 422 and list(error["fields"]) == ["strategy.T_e"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_openai_client_is_told_what_was_fitted(base: str, stream: bool) -> None:
    body = {"model": "tiny:soft", "prompt": "hi", "max_tokens": 40, "stream": stream}
    response = httpx.post(f"{base}/v1/completions", json=body, timeout=WAIT)
    assert response.status_code == 200, response.text
    last = read_sse(response.text)[-2][1] if stream else response.json()
    assert last["unspoken"]["strategy"]["T_e"] == 20 and "20 instead of 200" in last["unspoken"]["fitted"][0]
