"""From a body to a request for the engine: everything that can be wrong is found before anything runs."""

from __future__ import annotations

import dataclasses
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unspoken.config import from_dict, named_kind, to_dict
from unspoken.decoding import Request, Strategy
from unspoken.discovery import STRATEGIES
from unspoken.errors import ConfigError, UnspokenError, suggest
from unspoken.types import Message, Trace
from unspoken.web._bodies import Ask
from unspoken.web._errors import printable, wrong
from unspoken.web._schema import field_names, plain
from unspoken.web._settings import Settings

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM

DEFAULT_NEW_TOKENS = 512
MOST = 10**6
"""Largest whole number that a field of a strategy may be given here."""
DEEPEST = 8
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
    if problems:
        raise wrong(problems)
    assert question is not None
    prompt: Prompt = question
    if system is not None and system.strip():
        prompt = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    prepared = prepare(
        prompt,
        read_strategy(_asked(body), lm),
        view,
        settings,
        id=body.id,
        client=body.session or client,
        max_new_tokens=body.max_new_tokens,
        seed=body.seed,
        stop=body.stop,
        trace=body.trace,
    )
    prepared.start["depth"] = body.depth
    prepared.start["prompt"] = {"user": question, "system": system}
    return dataclasses.replace(prepared, gold=body.gold)


def prepare(
    prompt: Prompt,
    strategy: Strategy,
    lm: CausalLM,
    settings: Settings,
    *,
    id: str | None,
    client: str,
    max_new_tokens: int | None,
    seed: int,
    stop: Sequence[str],
    trace: Trace,
) -> Prepared:
    """A request that is known to fit the model, its context and the server's limits.

    Raises:
        ApiError: With everything that is wrong.
    """
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
    steps = max_new_tokens or min(DEFAULT_NEW_TOKENS, settings.max_new_tokens)
    if strategy.width > settings.max_rows:
        problems["strategy"] = [
            f"The strategy uses {strategy.width} rows at once; at most {settings.max_rows} here."
        ]
    for sentence in strategy.check(lm):
        problems.setdefault(_field_of(sentence, strategy), []).append(sentence)
    if problems:
        raise wrong(problems)
    request = Request(
        prompt,
        strategy,
        id=id or f"r-{secrets.token_hex(8)}",
        max_new_tokens=steps,
        seed=seed,
        stop=tuple(stop),
        trace=trace,
    )
    try:
        budget = strategy.budget(request)
        ids = strategy.prompt_ids(lm, prompt)
    except UnspokenError as error:
        first = error.problems[0] if isinstance(error, ConfigError) else error.message
        place = _field_of(
            first, strategy, "prompt" if "prompt" in first.lower() or "message" in first else "strategy"
        )
        raise wrong({place: getattr(error, "problems", [error.message])}, hint=error.hint) from error
    if budget > settings.max_new_tokens:
        raise wrong(
            {"max_new_tokens": [f"max_new_tokens must be at most {settings.max_new_tokens}, not {budget}."]}
        )
    if lm.max_positions is not None and len(ids) >= lm.max_positions:
        raise wrong(
            {"prompt": [f"prompt has {len(ids)} tokens, but the model's context holds {lm.max_positions}."]}
        )
    return Prepared(request, lm, client, _start(request, lm, settings, ids, budget), prompt)


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


def resolved(strategy: Strategy) -> dict[str, Any]:
    """A strategy's name and all its fields, as JSON."""
    return {"name": strategy.name, **{k: plain(v) for k, v in to_dict(strategy).items()}}


def _thresholds(strategy: Strategy) -> dict[str, float]:
    """What the numbers of a step are compared with, by the number's name."""
    value = getattr(strategy, "min_end_prob", None)
    return {} if value is None else {"end_prob": float(value)}


# -- the strategy ---------------------------------------------------------------------------------


def default_strategy(lm: CausalLM) -> Strategy:
    """The model's own strategy, else chain of thought."""
    made: Strategy = lm.strategy or STRATEGIES.find("cot")()
    return made


def read_strategy(given: Mapping[str, Any] | None, lm: CausalLM) -> Strategy:
    """A strategy from a mapping of its name and fields.

    Only strategies that are listed can be named: a path in a request never reaches the file system.

    Raises:
        ApiError: 400 for values of a wrong type, 422 for names and values that are not allowed.
    """
    if given is None:
        return default_strategy(lm)
    fields = dict(given)
    name = fields.pop("name", None)
    if name is None:
        raise wrong({"strategy": ["strategy needs a name."]}, hint=f"Known: {', '.join(STRATEGIES.names())}.")
    cls = _find(name, "strategy")
    found = {printable(key, 80): what for key, what in unusable(fields).items()}
    if found:
        raise wrong({f"strategy.{key}": [f"{key} {what}"] for key, what in found.items()}, 400)
    _check_names(cls, fields, "strategy")
    try:
        return from_dict(cls, fields, aliases=cls.aliases)
    except ConfigError as error:
        problems: dict[str, list[str]] = {}
        for sentence in error.problems:
            plainly = re.sub(r"^\w+\.(\w+): ", r"\1 ", sentence)
            problems.setdefault(_field_of(plainly, cls), []).append(printable(plainly))
        kinds = all(re.match(r"\w+\.\w+: must be (?!one of)", sentence) for sentence in error.problems)
        raise wrong(problems, 400 if kinds else 422) from error


def _find(name: Any, place: str) -> type[Strategy]:
    if not isinstance(name, str):
        raise wrong({place: [f"{place} must be named by a string."]}, 400)
    if name not in STRATEGIES.names():
        near = suggest(name, STRATEGIES.names())
        meant = f" Did you mean {near!r}?" if near else ""
        known = ", ".join(STRATEGIES.names())
        raise wrong({place: [f"There is no strategy {printable(name, 80)!r}.{meant} Known: {known}."]})
    found: type[Strategy] = STRATEGIES.find(name)
    return found


def _check_names(cls: type[Strategy], fields: Mapping[str, Any], place: str) -> None:
    """Strategies inside this one are known by name, too."""
    import typing

    hints = typing.get_type_hints(cls)
    for key, value in fields.items():
        if named_kind(hints.get(key)) is not None:
            inner = value.get("name") if isinstance(value, Mapping) else value
            found = _find(inner, f"{place}.{key}")
            if isinstance(value, Mapping):
                _check_names(found, {k: v for k, v in value.items() if k != "name"}, f"{place}.{key}")


def unusable(values: Mapping[str, Any]) -> dict[str, str]:
    """Values that no field can have: numbers that are not finite or too large, broken text, endless nesting."""
    found = {}
    for key, value in values.items():
        what = _unusable(value, 0) or ("is not readable as a name." if _broken(key) else None)
        if what is not None:
            found[key] = what
    return found


def _unusable(value: Any, depth: int) -> str | None:
    if depth > DEEPEST:
        return f"must not be nested more than {DEEPEST} deep."
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number."
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MOST:
        return f"must not be beyond {MOST}."
    if isinstance(value, str):
        if len(value) > 10_000:
            return "must not have more than 10000 characters."
        return "must be readable text (half of a surrogate pair was found)." if _broken(value) else None
    if isinstance(value, (list, tuple)):
        items: list[Any] = list(value)
    elif isinstance(value, Mapping):
        items = [*value.keys(), *value.values()]
    else:
        return None
    if len(items) > 1000:
        return "must not have more than 1000 entries."
    return next((what for item in items if (what := _unusable(item, depth + 1)) is not None), None)


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
    import typing

    names: tuple[str, ...] = typing.get_args(typing.get_type_hints(STRATEGIES.find("soft"))["mixture"])
    return names


def _field_of(sentence: str, strategy: Strategy | type[Strategy], other: str = "strategy") -> str:
    """The field that a sentence is about, as bodies call it."""
    cls = strategy if isinstance(strategy, type) else type(strategy)
    unknown = re.match(r"Unknown field '([^']*)'", sentence)
    if unknown:
        return f"strategy.{printable(unknown[1], 80)}"
    word = re.match(r"\w+", sentence)
    return f"strategy.{word[0]}" if word and word[0] in field_names(cls) else other


def _one_of(body: Ask, name: str, original: str, problems: dict[str, list[str]]) -> str | None:
    first, second = getattr(body, name), getattr(body, original)
    if first is not None and second is not None:
        problems[original] = [f"{original} is another name for {name}: give one of them."]
    value: str | None = first if first is not None else second
    return value


def _unreadable(name: str, text: str) -> dict[str, list[str]]:
    return (
        {name: [f"{name} must be readable text (half of a surrogate pair was found)."]}
        if _broken(text)
        else {}
    )


def _broken(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
