"""Completions of strategies that think: thoughts apart, and offsets, stop strings, log-probabilities of the text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from serving import WAIT, post, read_sse, serving

from unspoken.decoding._base import Row
from unspoken.decoding.cot import ChainOfThought
from unspoken.lm.model import CausalLM
from unspoken.types import Done, Step, Top, Usage
from unspoken.web._openai_text import Choice, Token, completion_logprobs
from unspoken.web.jobs import Engine

THOUGHTS = 5


@dataclass(frozen=True)
class Aloud(ChainOfThought):
    """Thinks in words for some tokens, then answers."""

    @property
    def name(self) -> str:
        return "cot"  # whose laws it has

    def begin(self, lm: CausalLM, row: Row) -> None:
        row.enter("think")

    def observe(self, row: Row, token_id: int, text: str) -> None:
        if row.steps >= THOUGHTS and row.phase == "think":
            row.enter("answer")


@pytest.fixture
def aloud(lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(lm, "strategy", Aloud(temperature=1.0), raising=False)
    with serving(Engine(lm)) as base:
        yield base


def complete(base: str, **options: Any) -> dict[str, Any]:
    body = {"model": "tiny", "prompt": "a", "max_tokens": 20, "seed": 3, "logprobs": 2, **options}
    response = post(base, "/v1/completions", body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()["choices"][0]
    return found


def test_text_offsets_and_logprobs_are_of_the_answer(aloud: str) -> None:
    choice = complete(aloud)
    text, logprobs = choice["text"], choice["logprobs"]
    assert text and choice["reasoning_content"]
    assert not text.startswith(choice["reasoning_content"])
    assert logprobs["text_offset"][0] == 0 and len(logprobs["tokens"]) == 20 - THOUGHTS
    for offset, token in zip(logprobs["text_offset"], logprobs["tokens"], strict=True):
        if token.startswith("<0x"):  # a byte, of a letter or of none
            assert not text[offset].isascii()
        else:
            assert text[offset:].startswith(token) or not token.isascii()


def test_a_stop_string_is_looked_for_in_the_text_that_is_given(aloud: str) -> None:
    whole = complete(aloud)
    for start in range(len(whole["text"]) - 1):
        stop = whole["text"][start : start + 2]
        choice = complete(aloud, stop=[stop])
        assert stop not in choice["text"] and choice["reasoning_content"] == whole["reasoning_content"]
        assert whole["text"].startswith(choice["text"]) and choice["finish_reason"] == "stop"


def test_a_stream_says_the_same(aloud: str) -> None:
    whole = complete(aloud)
    body = {"model": "tiny", "prompt": "a", "max_tokens": 20, "seed": 3, "logprobs": 2, "stream": True}
    text = httpx.post(f"{aloud}/v1/completions", json=body, timeout=WAIT).text
    pieces = [value["choices"][0] for _, value in read_sse(text)[:-1]]
    assert "".join(piece["text"] for piece in pieces) == whole["text"]
    assert "".join(piece.get("reasoning_content", "") for piece in pieces) == whole["reasoning_content"]
    offsets = [o for piece in pieces if piece["logprobs"] for o in piece["logprobs"]["text_offset"]]
    assert offsets == whole["logprobs"]["text_offset"]


def step(text: str, phase: Any, top: Top | None = None) -> Step:
    return Step("x", 0, phase, "token", 5, text, logprob=-1.0, top=top)


@pytest.mark.parametrize(
    ("steps", "offsets"),
    [
        ("t:hm</ a:so a:_on", [0, 2]),  # the thought's end was held back as the beginning of a marker
        ("a:< a:think t:>hm t:</think> a:so", [0]),  # what looked like the answer was the marker
        ("a:< a:b a:c", [0, 1, 2]),
    ],
)
def test_offsets_count_the_answer_only(steps: str, offsets: list[int]) -> None:
    choice, phases = Choice(0, (), False), {"a": "answer", "t": "think"}
    for item in steps.split(" "):
        choice.apply(step(item[2:].replace("_", " "), phases[item[0]]))
    choice.apply(Done("x", "length", Usage()))
    assert [token.begin for token in choice.tokens(frozenset())] == offsets


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_chosen_token_is_always_among_the_likeliest(lm: CausalLM, count: int) -> None:
    top = Top((7, 8, 5), (0.6, 0.3, 0.1), (0.0, 0.0, 1.0))
    tokens = [Token(step("x", "answer", top), 0)]
    (likeliest,) = completion_logprobs(tokens, lm, 1.0, count)["top_logprobs"]
    text = lm.tokens.token_text
    assert list(likeliest) == [text(i) for i in (7, 8, 5) if i == 5 or (7, 8).index(i) < count]
    assert likeliest[text(5)] == -1.0
