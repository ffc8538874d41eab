"""The OpenAI-compatible interface, through the real client."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import torch
from openai import OpenAI
from serving import WAIT, GatedEngine, serving, until

from unspoken.decoding import Request, run
from unspoken.decoding._base import derive_seed
from unspoken.decoding.cot import ChainOfThought
from unspoken.decoding.soft import SoftThinking
from unspoken.lm.model import CausalLM
from unspoken.types import Done, Generation, RawText, Rewind, Step, Usage, fold
from unspoken.web._openai_text import Choice, Splitter
from unspoken.web._settings import Settings
from unspoken.web.jobs import Engine

HI: list[Any] = [{"role": "user", "content": "What is 2 + 2?"}]

BLOCKS = {"name": "power", "block_size": 64}


@pytest.fixture(scope="module")
def client(base: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{base}/v1", api_key="unused", max_retries=0, timeout=WAIT) as made:
        yield made


def alone(
    lm: CausalLM, prompt: Any, strategy: Any, tokens: int, seed: int, stop: tuple[str, ...] = ()
) -> Generation:
    return fold(run(lm, [Request(prompt, strategy, "x", tokens, seed, stop, "full")], live=True))["x"]


def test_models(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names[0] == "tiny" and "tiny:soft" in names
    assert client.models.retrieve("tiny:power").id == "tiny:power"


def test_a_chat_is_what_the_library_gives(client: OpenAI, lm: CausalLM) -> None:
    reply = client.chat.completions.create(
        model="tiny", messages=HI, max_tokens=15, seed=7, temperature=0.9, top_p=0.8
    )
    expected = alone(lm, HI, ChainOfThought(temperature=0.9, top_p=0.8), 15, 7)
    (choice,) = reply.choices
    assert choice.message.content == expected.text and choice.message.role == "assistant"
    assert choice.finish_reason == ("stop" if expected.reason == "eos" else "length")
    assert reply.usage is not None and reply.usage.prompt_tokens == expected.usage.prompt_tokens
    assert (
        reply.usage.completion_tokens
        == expected.usage.tokens
        == reply.usage.total_tokens - reply.usage.prompt_tokens
    )


def test_a_stream_says_the_same_and_ends_with_the_usage(client: OpenAI) -> None:
    options: Any = {"model": "tiny", "messages": HI, "max_tokens": 25, "seed": 11, "temperature": 1.2, "n": 2}
    whole = client.chat.completions.create(**options)
    texts, ends = ["", ""], [None, None]
    usage = None
    for chunk in client.chat.completions.create(
        **options, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for piece in chunk.choices:
            texts[piece.index] += piece.delta.content or ""
            ends[piece.index] = piece.finish_reason or ends[piece.index]  # type: ignore[call-overload]
    assert texts == [choice.message.content for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert usage is not None and usage.completion_tokens == whole.usage.completion_tokens  # type: ignore[union-attr]


def test_n_choices_have_seeds_of_their_own(client: OpenAI, lm: CausalLM) -> None:
    reply = client.chat.completions.create(
        model="tiny", messages=HI, max_tokens=8, seed=3, n=3, temperature=1.0
    )
    seeds = [3, derive_seed(3, 0, 1), derive_seed(3, 0, 2)]
    expected = [alone(lm, HI, ChainOfThought(temperature=1.0), 8, seed).text for seed in seeds]
    assert [choice.message.content for choice in reply.choices] == expected and len(set(expected)) > 1


@pytest.mark.parametrize("how", ["name", "body", "both"])
def test_a_strategy_is_chosen_by_name_or_by_body(client: OpenAI, lm: CausalLM, how: str) -> None:
    fields = {"T_e": 4, "k": 3, **({} if how == "both" else {"name": "soft"})}
    extra = {"unspoken": {"strategy": fields}}
    reply = client.chat.completions.create(
        model="tiny" if how == "body" else "tiny:soft",
        messages=HI,
        max_completion_tokens=14,
        seed=2,
        temperature=0.5,
        extra_body=extra,
    )
    expected = alone(lm, HI, SoftThinking(T_e=4, k=3, temperature=0.5), 14, 2)
    assert reply.choices[0].message.content == expected.answer_text
    used = reply.usage
    assert used is not None and used.completion_tokens_details is not None
    assert used.completion_tokens_details.reasoning_tokens == sum(s.phase != "answer" for s in expected.steps)
    assert used.completion_tokens == len(expected.steps)
    assert reply.model_extra is not None
    assert reply.model_extra["unspoken"]["notes"] == [expected.notes]
    assert (
        used.model_extra is not None
        and used.model_extra["unspoken"]["latent_steps"] == expected.usage.latent_steps
    )


def test_sampling_fields_go_to_the_strategy_inside(client: OpenAI, lm: CausalLM) -> None:
    reply = client.chat.completions.create(
        model="tiny",
        messages=HI,
        max_tokens=6,
        seed=1,
        temperature=0,
        extra_body={"unspoken": {"strategy": {"name": "vote", "n": 1}}},
    )
    assert reply.model_extra is not None
    assert reply.model_extra["unspoken"]["strategy"]["inner"]["temperature"] == 0.0
    assert reply.choices[0].message.content == alone(lm, HI, ChainOfThought(temperature=0.0), 6, 1).text


def test_text_that_may_be_taken_back_is_streamed_when_it_is_final(client: OpenAI) -> None:
    options: Any = {"model": "tiny:power", "messages": HI, "max_tokens": 12, "seed": 4}
    extra = {"unspoken": {"strategy": {"block_size": 6, "mcmc_steps": 3}}}
    whole = client.chat.completions.create(**options, extra_body=extra)
    chunks = list(client.chat.completions.create(**options, extra_body=extra, stream=True))
    texts = [c.choices[0].delta.content for c in chunks if c.choices[0].delta.content]
    assert texts == [whole.choices[0].message.content]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.3])
@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_the_model_s_own(client: OpenAI, lm: CausalLM, temperature: float, stream: bool) -> None:
    """Against a plain forward: temperature 1 and no filter, whatever was sampled from."""
    options: Any = {"model": "tiny", "messages": HI, "max_tokens": 9, "seed": 5, "temperature": temperature}
    options |= {"logprobs": True, "top_logprobs": 4}
    if stream:
        entries = []
        for chunk in client.chat.completions.create(**options, stream=True):
            entries += (chunk.choices[0].logprobs.content or []) if chunk.choices[0].logprobs else []
    else:
        reply = client.chat.completions.create(**options)
        assert reply.choices[0].logprobs is not None
        entries = reply.choices[0].logprobs.content or []
    made = alone(lm, HI, ChainOfThought(temperature=temperature), 9, 5)
    ids = [s.token_id for s in made.steps if s.token_id not in lm.eos_ids]
    prompt = ChainOfThought().prompt_ids(lm, HI)
    with torch.no_grad():
        laws = lm.model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)[len(prompt) - 1 :]
    assert len(entries) == len(ids)
    for entry, token, law in zip(entries, ids, laws, strict=False):
        assert token is not None
        assert entry.token == lm.tokens.token_text(token)
        assert entry.logprob == pytest.approx(law[token].item(), abs=1e-4)
        best = law.topk(3).values.tolist()
        assert [top.logprob for top in entry.top_logprobs[:3]] == pytest.approx(best, abs=2e-4)
        assert math.isclose(entry.logprob, entry.top_logprobs[0].logprob, abs_tol=2e-4) == (
            token == int(law.argmax())
        )


def test_bytes_of_tokens_that_are_no_text(client: OpenAI, lm: CausalLM) -> None:
    reply = client.chat.completions.create(
        model="tiny", messages=HI, max_tokens=40, seed=1, temperature=2.0, logprobs=True
    )
    assert reply.choices[0].logprobs is not None
    entries = reply.choices[0].logprobs.content or []
    joined = b"".join(bytes(entry.bytes or []) for entry in entries)
    assert any(b and b[0] > 127 for b in (entry.bytes for entry in entries))
    assert joined.decode("utf-8", "replace").replace("\ufffd", "") == (
        (reply.choices[0].message.content or "").replace("\ufffd", "")
    )


@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_ends_before_a_stop_string(client: OpenAI, lm: CausalLM, stream: bool) -> None:
    text = alone(lm, HI, ChainOfThought(temperature=1.0), 30, 9).text
    stop = text[4:7]  # spans tokens
    options: Any = {
        "model": "tiny",
        "messages": HI,
        "max_tokens": 30,
        "seed": 9,
        "temperature": 1.0,
        "stop": [stop],
    }
    if stream:
        pieces = [c.choices[0] for c in client.chat.completions.create(**options, stream=True)]
        got, end = "".join(p.delta.content or "" for p in pieces), pieces[-1].finish_reason
    else:
        reply = client.chat.completions.create(**options)
        got, end = reply.choices[0].message.content or "", reply.choices[0].finish_reason
    assert got == text[: text.index(stop)] and end == "stop"


def test_completions_read_text_as_it_stands(client: OpenAI, lm: CausalLM) -> None:
    ids = lm.tokens.encode("two and")
    reply = client.completions.create(
        model="tiny", prompt=["one and", "two and"], max_tokens=7, seed=6, temperature=0, logprobs=2
    )
    by_ids = client.completions.create(model="tiny", prompt=ids, max_tokens=7, seed=6, temperature=0)
    expected = [alone(lm, RawText(t), ChainOfThought(temperature=0.0), 7, 6) for t in ("one and", "two and")]
    assert [choice.text for choice in reply.choices] == [g.text for g in expected]
    assert by_ids.choices[0].text == expected[1].text
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None and logprobs.token_logprobs is not None and logprobs.top_logprobs is not None
    assert logprobs.token_logprobs == pytest.approx([s.logprob for s in expected[0].steps], abs=1e-5)
    assert all(len(top) == 2 for top in logprobs.top_logprobs)
    streamed = client.completions.create(
        model="tiny", prompt=ids, max_tokens=7, seed=6, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in streamed) == expected[1].text


def test_without_a_seed_answers_differ(client: OpenAI) -> None:
    texts = {
        client.completions.create(model="tiny", prompt="a", max_tokens=20, temperature=1.5).choices[0].text
        for _ in range(3)
    }
    assert len(texts) > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "other"}, "no model 'other'"),
        ({"model": "tiny:softly"}, "no model"),
        ({"messages": []}, r"messages must not be empty\."),
        ({"messages": [{"role": "robot", "content": "a"}]}, "role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "type",
        ),
        ({"messages": [{"role": "user", "content": " "}]}, "empty"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, not 0"),
        ({"max_tokens": 10**8}, "max_tokens must be at most 500, not 100000000"),
        ({"max_tokens": 10**8, "n": 0}, "(?s)n must be at least 1, not 0.*max_tokens must be at most 500"),
        ({"max_tokens": 8, "unspoken": {"strategy": BLOCKS}}, r"block_size .* or raise max_tokens\."),
        (
            {"max_completion_tokens": 8, "unspoken": {"strategy": {"name": "soft", "T_e": 30}}},
            "or raise T_total or max_completion_tokens above 30",
        ),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"n": 1000}, "n must be at most 128, not 1000"),
        ({"n": 128}, "more than 64 rows"),
        ({"frequency_penalty": 0.5}, "frequency_penalty: this has no effect here"),
        ({"logit_bias": {"5": 1}}, "logit_bias: single tokens cannot be favoured"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools: no tools can be called here"),
        ({"tool_choice": "required"}, "tool_choice: no tools can be called here"),
        ({"response_format": {"type": "json_object"}}, "response_format: answers are free text here"),
        ({"top_logprobs": 3}, "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"model": "tiny:smc", "logprobs": True, "top_logprobs": 2}, "does not tell"),
        ({"model": "tiny:beam", "temperature": 0.5}, "temperature is no field"),
        ({"max_tokens": 20, "unspoken": {"strategy": {"name": "soft", "T_e": 30}}}, "T_e"),
        ({"unspoken": {"strategy": {"name": "soft", "k": 0}}}, "k must be at least 1"),
        ({"unspoken": {"strategie": 1}}, "strategie"),
        ({"model": "tiny:cot", "unspoken": {"strategy": "soft"}}, "another one"),
        ({"surprise": 1}, "surprise is not known here. Known here: model, max_tokens, .*unspoken"),
    ],
)
def test_refusals_reach_the_client_as_its_own_errors(
    client: OpenAI, change: dict[str, Any], message: str
) -> None:
    body = {"model": "tiny", "messages": HI, **change}
    kind = openai.NotFoundError if change.get("model") in ("other", "tiny:softly") else openai.BadRequestError
    own = {name: body.pop(name) for name in ("unspoken", "surprise") if name in body}
    with pytest.raises(kind, match=message):
        client.chat.completions.create(**body, extra_body=own)


def test_a_full_queue_is_a_rate_limit(lm: CausalLM) -> None:
    engine = GatedEngine(lm, batch_size=1, max_waiting=1)
    with serving(engine) as base, OpenAI(base_url=f"{base}/v1", api_key="x", max_retries=0) as client:
        with (
            client.completions.create(model="tiny", prompt="a", stream=True),
            client.completions.create(model="tiny", prompt="a", stream=True),
        ):
            until(lambda: engine.running == engine.waiting == 1)
            with pytest.raises(openai.RateLimitError):
                client.completions.create(model="tiny", prompt="a")
        engine.release()
        until(lambda: engine.running == engine.waiting == 0)


def test_a_key_is_asked_for(lm: CausalLM) -> None:
    with serving(Engine(lm), Settings(name="tiny", api_key="right-key")) as base:
        with OpenAI(base_url=f"{base}/v1", api_key="right-key") as client:
            assert client.models.list().data
        with (
            OpenAI(base_url=f"{base}/v1", api_key="wrong-key", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()


def test_a_server_that_ends_tells_open_streams(lm: CausalLM) -> None:
    engine = GatedEngine(lm)
    pieces: list[str] = []
    with serving(engine) as base:
        engine.let(3)
        response = httpx.Client(timeout=WAIT).send(
            httpx.Request(
                "POST", f"{base}/v1/completions", json={"model": "tiny", "prompt": "a", "stream": True}
            ),
            stream=True,
        )
        pieces.append(next(response.iter_text()))
    assert response.status_code == 200 and pieces


# Text in pieces


def step(text: str, phase: Any = "answer", token: int = 5) -> Step:
    return Step("x", 0, phase, "token", token, text, logprob=-1.0)


@pytest.mark.parametrize(
    ("steps", "reasoning", "content"),
    [
        ("a:a a:b", "", "ab"),
        ("t:<think> t:hm t:</think> a:so", "hm", "so"),
        ("a:< a:think t:>hm t:m</ t:think>\n a:a", "hmm", "\na"),
        ("a:< a:b>", "", "<b>"),
        ("a:_<", "", " <"),
        ("t:hm t:_a_</b f:</think> a:so", "hm a </b", "so"),
        ("t: t: f:</think> f:<think> a:x", "", "x"),
        ("t:hm</thi", "hm</thi", ""),
    ],
)
def test_markers_belong_to_neither(steps: str, reasoning: str, content: str) -> None:
    split, phases = Splitter(), {"a": "answer", "t": "think", "f": "transition"}
    for item in steps.split(" "):
        split.push(step(item[2:].replace("_", " "), phases[item[0]]))
    split.flush()
    assert (split.reasoning, split.content) == (reasoning, content)


def test_pieces_join_to_the_whole_also_when_a_row_begins_again() -> None:
    choice = Choice(0, ["END"], whole=False)
    out, tokens = "", 0
    texts = ["a ", "E", "N", " b ", "EN", "D c"]
    events: list[Any] = [step(t) for t in texts[:4]] + [Rewind("x", 0)] + [step(t) for t in texts]
    for event in [*events, Done("x", "stop", Usage())]:
        choice.apply(event)
        content, _, new = choice.delta(frozenset())
        out, tokens = out + content, tokens + len(new)
        assert "END".startswith(out[-1:]) is False or out[-1:] in ("", " ", "N")
    assert out == "a EN b " and tokens == 4 and choice.finish == "stop"
