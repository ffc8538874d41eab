"""From a body to a request for the engine: everything that can be wrong is found before anything runs."""

from __future__ import annotations

import dataclasses
import secrets
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unspoken.decoding import Request, Strategy
from unspoken.discovery import STRATEGIES
from unspoken.errors import ConfigError, UnspokenError
from unspoken.types import Message, Trace
from unspoken.web._bodies import Ask, Body
from unspoken.web._errors import ApiError, merged, printable, wrong
from unspoken.web._settings import Settings
from unspoken.web._strategies import (
    broken,
    candidate_problems,
    field_of,
    read_fitted,
    resolved,
    without_flags,
)

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM

DEFAULT_NEW_TOKENS = 512
ORIGINAL_FIELDS = ("k", "T_e", "T_total", "temperature")
Prompt = str | list[Message] | list[int]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A request that can run, and what is said about it first.

    Attributes:
        request: For the engine.
        lm: The model, or the view that was asked for.
        client: Whose it is.
        start: The first message of its stream.
        prompt: As it was asked.
        gold: The answer it is graded by.
    """

    request: Request
    lm: CausalLM
    client: str
    start: dict[str, Any]
    prompt: Prompt
    gold: str | None = None


def prepare_ask(
    body: Ask, lm: CausalLM, settings: Settings, client: str, views: Mapping[str, CausalLM]
) -> Prepared:
    """The request of a lab's body.

    Args:
        body: What was sent.
        lm: The model.
        settings: The server's limits.
        client: Where it came from, if it names no session.
        views: Views of the model by what the body calls their depth.

    Raises:
        ApiError: With everything that is wrong.
    """
    view = views[body.depth] if body.depth else lm
    problems: dict[str, list[str]] = {}
    question = _one_of(body, "prompt", "user_prompt", problems)
    system = _one_of(body, "system", "system_prompt", problems)
    if not (question or "").strip() and "prompt" not in problems:
        problems["prompt"] = ["prompt must not be empty."]
    for name, value in (("system", system), ("gold", body.gold)):
        if value is not None:
            problems.update(_unreadable(name, value))
    refusals = [wrong(problems)] if problems else []
    steps = most_steps(body.max_new_tokens, settings)
    try:
        strategy, fitted = read_fitted(_asked(body), lm, steps)
    except ApiError as error:
        raise merged([*refusals, error]) from error
    if refusals:
        raise refusals[0]
    assert question is not None
    prepared = prepare(
        conversation(question, system),
        strategy,
        view,
        settings,
        id=body.id,
        client=body.session or client,
        max_new_tokens=steps,
        seed=body.seed,
        stop=body.stop,
        trace=body.trace,
        fitted=fitted,
    )
    prepared.start["depth"] = body.depth
    prepared.start["prompt"] = {"user": question, "system": system}
    return dataclasses.replace(prepared, gold=body.gold)


def most_steps(asked: int | None, settings: Settings) -> int:
    """Most steps of a request that asks for so many, or does not say."""
    return asked or min(DEFAULT_NEW_TOKENS, settings.max_new_tokens)


def limit_refusal(body: Any, model: type[Body], settings: Settings) -> ApiError | None:
    """What is beyond the server's limit in a body that is refused already, so that all is said at once.

    Args:
        body: Of any route.
        model: What it may hold.
        settings: The server's limits.
    """
    fields = {}
    for name in {"max_new_tokens", "max_tokens", "max_completion_tokens"} & set(model.model_fields):
        value = body.get(name) if isinstance(body, dict) else None
        if type(value) is int and value > settings.max_new_tokens:
            fields[name] = [_too_many(name, value, settings)]
    return wrong(fields) if fields else None


def _too_many(name: str, steps: int, settings: Settings) -> str:
    return f"{name} must be at most {settings.max_new_tokens}, not {printable(str(steps), 60)}."


def conversation(question: str, system: str | None) -> Prompt:
    """What is asked, with the system message before it if there is one."""
    if system is None or not system.strip():
        return question
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def prepare(
    prompt: Prompt,
    strategy: Strategy,
    lm: CausalLM,
    settings: Settings,
    *,
    id: str | None,
    client: str,
    max_new_tokens: int,
    seed: int,
    stop: Sequence[str],
    trace: Trace,
    fitted: Sequence[str] = (),
) -> Prepared:
    """A request that is known to fit the model, its context and the server's limits.

    Raises:
        ApiError: With everything that is wrong.
    """
    problems: dict[str, list[str]] = _text_problems(prompt, stop, settings)
    request = Request(
        prompt,
        strategy,
        id=id or f"r-{secrets.token_hex(8)}",
        max_new_tokens=max_new_tokens,
        seed=seed,
        stop=tuple(stop),
        trace=trace,
    )
    hint = None
    budget, ids = 0, list[int]()
    if strategy.width > settings.max_rows:
        problems["strategy"] = [
            f"The strategy uses {strategy.width} rows at once; at most {settings.max_rows} here."
        ]
    misfits = [without_flags(sentence) for sentence in strategy.check(lm)]
    for sentence in misfits:
        problems.setdefault(field_of(sentence, strategy), []).append(sentence)
    try:
        budget = strategy.budget(request)
        if not misfits and "prompt" not in problems:
            ids = strategy.prompt_ids(lm, prompt)
    except UnspokenError as error:
        sentences = error.problems if isinstance(error, ConfigError) else [error.message]
        other = "prompt" if "prompt" in sentences[0].lower() or "message" in sentences[0] else "strategy"
        hint = error.hint
        problems.setdefault(field_of(sentences[0], strategy, other), []).extend(sentences)
    if budget > settings.max_new_tokens:
        problems["max_new_tokens"] = [_too_many("max_new_tokens", budget, settings)]
    elif trace == "full" and "strategy" not in problems:
        for name, found in candidate_problems(strategy, budget).items():
            problems.setdefault(name, []).extend(found)
    if lm.max_positions is not None and len(ids) >= lm.max_positions:
        problems["prompt"] = [
            f"prompt has {len(ids)} tokens, but the model's context holds {lm.max_positions}."
        ]
    if problems:
        raise wrong(problems, hint=hint)
    start = _start(request, lm, settings, ids, budget)
    return Prepared(request, lm, client, {**start, "fitted": list(fitted)}, prompt)


def _text_problems(prompt: Prompt, stop: Sequence[str], settings: Settings) -> dict[str, list[str]]:
    """What is wrong with the texts of a request."""
    problems: dict[str, list[str]] = {}
    texts = [prompt] if isinstance(prompt, str) else [m["content"] for m in prompt if isinstance(m, dict)]
    for text in texts:
        problems.update(_unreadable("prompt", text))
    length = sum(map(len, texts)) if texts else len(prompt)
    if length > settings.max_prompt:
        problems.setdefault("prompt", []).append(
            f"prompt must have at most {settings.max_prompt} characters, not {length}."
        )
    for text in stop:
        problems.update(_unreadable("stop", text))
    return problems


def _start(request: Request, lm: CausalLM, settings: Settings, ids: list[int], budget: int) -> dict[str, Any]:
    strategy = request.strategy
    return {
        "id": request.id,
        "model": settings.name or lm.source,
        "weights_hash": lm.weights_hash,
        "prompt_text": lm.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        ),
        "prompt_tokens": len(ids),
        "strategy": resolved(strategy),
        "seed": request.seed,
        "max_new_tokens": budget,
        "stop": list(request.stop),
        "trace": request.trace,
        "end_ids": list(lm.tokens.end_of_think_ids),
        "end_texts": [lm.tokens.token_text(i) for i in lm.tokens.end_of_think_ids],
        "thresholds": _thresholds(strategy),
    }


def _thresholds(strategy: Strategy) -> dict[str, float]:
    """What the numbers of a step are compared with, by the number's name."""
    value = getattr(strategy, "min_end_prob", None)
    return {} if value is None else {"end_prob": float(value)}


def _asked(body: Ask) -> dict[str, Any] | None:
    """The strategy that a body asks for, in the lab's form."""
    flat = {name: value for name in ORIGINAL_FIELDS if (value := getattr(body, name)) is not None}
    given = body.strategy
    if isinstance(given, dict):
        if flat:
            sentence = "{} belongs into strategy, beside its name."
            raise wrong({name: [sentence.format(name)] for name in flat})
        return given
    if given is None:
        return {"name": "soft", **flat} if flat else None
    mixtures = _mixtures()
    if given not in STRATEGIES.names() and given in mixtures:
        return {"name": "soft", "mixture": given, **flat}
    return {"name": given, **flat}


def _mixtures() -> tuple[str, ...]:
    names: tuple[str, ...] = typing.get_args(typing.get_type_hints(STRATEGIES.find("soft"))["mixture"])
    return names


def _one_of(body: Ask, name: str, original: str, problems: dict[str, list[str]]) -> str | None:
    first, second = getattr(body, name), getattr(body, original)
    if first is not None and second is not None:
        problems[original] = [f"{original} is another name for {name}: give one of them."]
    value: str | None = first if first is not None else second
    return value


def _unreadable(name: str, text: str) -> dict[str, list[str]]:
    return (
        {name: [f"{name} must be readable text (half of a surrogate pair was found)."]}
        if broken(text)
        else {}
    )
