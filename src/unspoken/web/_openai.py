"""The OpenAI-compatible interface: models, chat completions, completions."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import Response
from fastapi.sse import format_sse_event
from starlette.concurrency import run_in_threadpool

from unspoken.decoding._base import derive_seed
from unspoken.decoding._sequence import SequenceStrategy
from unspoken.discovery import STRATEGIES
from unspoken.types import Done, Event, Message, RawText
from unspoken.web._bodies import MOST_SEED
from unspoken.web._errors import ApiError, printable, wrong
from unspoken.web._openai_bodies import ChatBody, Common, CompletionBody
from unspoken.web._openai_strategy import strategy_of, unknown_model
from unspoken.web._openai_text import Choice, chat_logprobs, completion_logprobs, law_temperature
from unspoken.web._prepare import Prepared, Prompt, most_steps, prepare
from unspoken.web._runs import (
    KEEP_ALIVE,
    EventStream,
    as_json,
    finite,
    raise_failure,
    submit,
    unless_gone,
)
from unspoken.web._strategies import resolved

if TYPE_CHECKING:
    from unspoken.decoding import Strategy
    from unspoken.lm.model import CausalLM
    from unspoken.web._job import Job
    from unspoken.web._settings import Settings
    from unspoken.web._views import Views
    from unspoken.web.jobs import Engine

Kind = Literal["chat", "completion"]


@dataclass(frozen=True, eq=False)
class Call:
    """One request of a client, and the choices that it is given."""

    kind: Kind
    body: Common
    strategy: Strategy
    prepared: list[Prepared]
    seed: int
    id: str
    created: int
    logprobs: int | None

    @property
    def stem(self) -> dict[str, Any]:
        """What every message begins with."""
        return {"id": self.id, "created": self.created, "model": self.body.model}

    @property
    def description(self) -> dict[str, Any]:
        """How it was answered; `fitted` says which fields of the strategy were fitted to the limit of tokens."""
        fitted = self.prepared[0].start["fitted"]
        return {"strategy": resolved(self.strategy), "fitted": fitted, "seed": self.seed}


def add_routes(app: FastAPI, engine: Engine, settings: Settings, views: Views) -> None:
    """Add `/v1/...` to the application."""
    server = _Server(engine, settings, views)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": server.models()}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        found = next((entry for entry in server.models() if entry["id"] == model), None)
        if found is None:
            raise unknown_model(model, server.name)
        return found

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatBody, request: HttpRequest) -> Any:
        return await server.answer("chat", body, request)

    @app.post("/v1/completions", response_model=None)
    async def completions(body: CompletionBody, request: HttpRequest) -> Any:
        return await server.answer("completion", body, request)


class _Server:
    def __init__(self, engine: Engine, settings: Settings, views: Views) -> None:
        self.engine, self.settings, self.views = engine, settings, views
        self.name = settings.name or engine.lm.source
        self.started = int(time.time())

    @property
    def lm(self) -> CausalLM:
        return self.engine.lm

    def models(self) -> list[dict[str, Any]]:
        names = [self.name, *(f"{self.name}:{strategy}" for strategy in STRATEGIES.names())]
        shared = {"object": "model", "created": self.started, "owned_by": "unspoken"}
        return [{"id": name, **shared} for name in names]

    async def answer(self, kind: Kind, body: ChatBody | CompletionBody, request: HttpRequest) -> Any:
        depth = body.unspoken.depth if body.unspoken else None
        client = body.user or (request.client.host if request.client else "unknown")
        try:
            views = await self.views.of(depth)
            call = await run_in_threadpool(
                self.prepare, kind, body, client, views[depth] if depth else self.lm
            )
        except ApiError as error:
            raise _renamed(error, body) from error
        jobs = submit(self.engine, call.prepared)
        if body.stream:
            return EventStream(self.stream(call, jobs), jobs)
        reply = await unless_gone(request, jobs, self.whole(call, jobs))
        return Response(status_code=499) if reply is None else reply

    # -- what is asked --------------------------------------------------------------------------

    def prepare(self, kind: Kind, body: ChatBody | CompletionBody, client: str, lm: CausalLM) -> Call:
        asked, logprobs = body.max_tokens, None
        if isinstance(body, ChatBody):
            prompts: list[Prompt] = [_messages(body)]
            if body.max_completion_tokens is not None:
                if asked not in (None, body.max_completion_tokens):
                    sentence = "max_tokens and max_completion_tokens are the same: give one of them."
                    raise wrong({"max_tokens": [sentence]})
                asked = body.max_completion_tokens
            if body.top_logprobs and not body.logprobs:
                raise wrong({"top_logprobs": ["top_logprobs needs logprobs to be true."]})
            logprobs = (body.top_logprobs or 0) if body.logprobs else None
        else:
            prompts, logprobs = _prompts(body), body.logprobs
        steps = most_steps(asked, self.settings)
        strategy, fitted = strategy_of(body, self.name, lm, steps)
        if logprobs and law_temperature(strategy) is None:
            sentence = f"The strategy {strategy.name} does not tell the probabilities of other tokens."
            raise wrong({"top_logprobs" if kind == "chat" else "logprobs": [sentence]})
        choices = body.n or 1
        rows = len(prompts) * choices
        if rows > 1 and rows * strategy.width > self.settings.max_rows:
            of = f" of each of {len(prompts)} prompts" if len(prompts) > 1 else ""
            each = f", {strategy.width} rows each," if strategy.width > 1 else ""
            sentence = f"n: {choices} choices{of}{each} would use more than {self.settings.max_rows} rows."
            raise wrong({"n" if choices > 1 else "prompt": [sentence]})
        seed = secrets.randbits(63) if body.seed is None else body.seed & MOST_SEED
        name = f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{secrets.token_hex(12)}"
        prepared = [
            prepare(
                prompt,
                strategy,
                lm,
                self.settings,
                id=f"{name}-{i * choices + j}",
                client=printable(client, 64),
                max_new_tokens=steps,
                seed=seed if i == j == 0 else derive_seed(seed, i, j),
                stop=body.stops,
                trace="full" if logprobs else "none",
                fitted=fitted,
            )
            for i, prompt in enumerate(prompts)
            for j in range(choices)
        ]
        return Call(kind, body, strategy, prepared, seed, name, int(time.time()), logprobs)

    # -- what is answered -----------------------------------------------------------------------

    async def whole(self, call: Call, jobs: list[Job]) -> dict[str, Any]:
        """The reply in one piece.

        Raises:
            ApiError: If one of its choices failed.
        """
        choices = self._choices(call)
        merged = _merged(jobs, self.settings.heartbeat)
        try:
            async for index, events in merged:
                if index is not None:
                    for event in events:
                        choices[index].apply(event)
                    _raise_failure(choices[index])
        finally:
            await merged.aclose()  # type: ignore[attr-defined]
        kind = "chat.completion" if call.kind == "chat" else "text_completion"
        return {
            **call.stem,
            "object": kind,
            "system_fingerprint": self.lm.weights_hash,
            "choices": [self._final(call, choice) for choice in choices],
            "usage": _usage(call, choices),
            "unspoken": {
                **call.description,
                "notes": [finite(c.generation.notes) for c in choices],
            },
        }

    def _choices(self, call: Call) -> list[Choice]:
        whole = isinstance(call.strategy, SequenceStrategy)
        return [Choice(i, call.body.stops, whole) for i in range(len(call.prepared))]

    def _final(self, call: Call, choice: Choice) -> dict[str, Any]:
        shared = {
            "index": choice.index,
            "finish_reason": choice.finish,
            "logprobs": self._logprobs(call, choice.tokens(self.lm.eos_ids)),
        }
        if call.kind == "completion":
            # As with a chat, thoughts are apart: stop strings and logprobs are of the text.
            return {**shared, "text": choice.content, "reasoning_content": choice.reasoning or None}
        message = {
            "role": "assistant",
            "content": choice.content,
            "reasoning_content": choice.reasoning or None,
            "refusal": None,
        }
        return {**shared, "message": message}

    def _logprobs(self, call: Call, tokens: list[Any]) -> dict[str, Any] | None:
        if call.logprobs is None:
            return None
        temperature = law_temperature(call.strategy) or 1.0
        write = chat_logprobs if call.kind == "chat" else completion_logprobs
        return write(tokens, self.lm, temperature, call.logprobs)

    async def stream(self, call: Call, jobs: list[Job]) -> AsyncIterator[bytes]:
        """The reply in pieces, and `[DONE]`."""
        choices = self._choices(call)
        kind = "chat.completion.chunk" if call.kind == "chat" else "text_completion"
        head = {**call.stem, "object": kind, "system_fingerprint": self.lm.weights_hash}

        def line(**values: Any) -> bytes:
            return _data({**head, **values})

        merged = _merged(jobs, self.settings.heartbeat)
        try:
            if call.kind == "chat":
                for choice in choices:
                    delta = {"role": "assistant", "content": ""}
                    first = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}
                    yield line(choices=[first])
            async for index, events in merged:
                if index is None:
                    yield KEEP_ALIVE
                    continue
                choice = choices[index]
                for event in events:
                    choice.apply(event)
                _raise_failure(choice)
                for piece in self._pieces(call, choice):
                    ends = piece["finish_reason"] is not None
                    yield line(choices=[piece], **({"unspoken": call.description} if ends else {}))
            options = call.body.stream_options
            if options is not None and options.include_usage:
                yield line(choices=[], usage=_usage(call, choices))
            yield format_sse_event(data_str="[DONE]")
        except ApiError as error:
            kind = "invalid_request_error" if error.status < 500 else "server_error"
            yield _data({"error": {"message": error.message, "type": kind, "param": None, "code": None}})
        finally:
            await merged.aclose()  # type: ignore[attr-defined]

    def _pieces(self, call: Call, choice: Choice) -> list[dict[str, Any]]:
        """What is new of a choice: reasoning, then content, then its end."""
        content, reasoning, tokens = choice.delta(self.lm.eos_ids)
        shared: dict[str, Any] = {"index": choice.index, "finish_reason": None, "logprobs": None}
        pieces = []
        if call.kind == "completion":
            if reasoning:
                pieces.append({**shared, "text": "", "reasoning_content": reasoning})
            if content or tokens:
                pieces.append({**shared, "text": content, "logprobs": self._logprobs(call, tokens)})
        else:
            if reasoning:
                pieces.append({**shared, "delta": {"reasoning_content": reasoning}})
            if content or tokens:
                logprobs = self._logprobs(call, tokens)
                pieces.append({**shared, "delta": {"content": content}, "logprobs": logprobs})
        if choice.reason:
            end: dict[str, Any] = {"text": ""} if call.kind == "completion" else {"delta": {}}
            pieces.append({**shared, **end, "finish_reason": choice.finish})
        return pieces


def _messages(body: ChatBody) -> list[Message]:
    """The conversation, as templates know it."""
    found = []
    for message in body.messages:
        parts = message.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        found.append({"role": "system" if message.role == "developer" else message.role, "content": text})
    return found


def _prompts(body: CompletionBody) -> list[Prompt]:
    """The prompts of a completion: text is read as it stands, without a template."""
    given: Any = body.prompt
    if isinstance(given, str):
        return [RawText(given)]
    if isinstance(given[0], int):
        return [given]
    return [RawText(item) if isinstance(item, str) else item for item in given]


def _usage(call: Call, choices: list[Choice]) -> dict[str, Any]:
    """Work done. Prompts count once each, and soft steps as tokens of reasoning."""
    repeated = call.body.n or 1
    prompt = sum(p.start["prompt_tokens"] for p in call.prepared[::repeated])
    used = [choice.generation.usage for choice in choices]
    done = sum(u.tokens + u.latent_steps + u.forced_tokens for u in used)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": done,
        "total_tokens": prompt + done,
        "completion_tokens_details": {"reasoning_tokens": sum(c.thinking_steps for c in choices)},
        "unspoken": {
            "latent_steps": sum(u.latent_steps for u in used),
            "forced_tokens": sum(u.forced_tokens for u in used),
            "forward_passes": sum(u.forward_passes for u in used),
            "seconds": max(u.seconds for u in used),
        },
    }


def _raise_failure(choice: Choice) -> None:
    raise_failure(choice.reason)
    if choice.reason == "cancelled":
        raise ApiError(503, "The generation was cancelled.")


async def _merged(jobs: list[Job], heartbeat: float) -> AsyncIterator[tuple[int | None, list[Event]]]:
    """Events of several jobs as they come, with the job's number; None after a silence."""
    queue: asyncio.Queue[tuple[int, list[Event]]] = asyncio.Queue()

    async def pump(index: int, job: Job) -> None:
        async for batch in job.batches(3600.0):
            if batch:
                queue.put_nowait((index, batch))

    tasks = [asyncio.create_task(pump(i, job)) for i, job in enumerate(jobs)]
    try:
        left = len(jobs)
        while left:
            try:
                async with asyncio.timeout(heartbeat):
                    index, batch = await queue.get()
            except TimeoutError:
                yield None, []
                continue
            left -= isinstance(batch[-1], Done)
            yield index, batch
    finally:
        for task, job in zip(tasks, jobs, strict=True):
            task.cancel()
            job.cancel()
        await asyncio.wait(tasks)


def _data(value: Any) -> bytes:
    return format_sse_event(data_str=as_json(value))


def _renamed(error: ApiError, body: ChatBody | CompletionBody) -> ApiError:
    """A refusal in the words of these bodies."""
    chat = isinstance(body, ChatBody)
    newer = isinstance(body, ChatBody) and body.max_completion_tokens is not None
    limit = "max_completion_tokens" if newer else "max_tokens"
    own = body.unspoken is not None and body.unspoken.strategy is not None
    names = {
        "max_new_tokens": limit,
        "strategy": "unspoken.strategy" if own else "model",
        "depth": "unspoken.depth",
    }
    if chat:
        names["prompt"] = "messages"

    def renamed(sentence: str) -> str:
        return re.sub(r"^prompt\b|\bmax_new_tokens\b", lambda m: names.get(m[0], m[0]), sentence)

    fields: dict[str, list[str]] = {}
    for name, sentences in error.fields.items():
        inside = name.startswith("strategy.")
        new = f"unspoken.{name}" if inside else names.get(name, name)
        fields[new] = list(map(renamed, sentences))
    if error.code is not None or not fields:
        return error
    return wrong(fields, error.status, error.hint and renamed(error.hint))
