"""Which strategy an OpenAI request means: by its model's name, by its `unspoken` part, by its sampling fields."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from unspoken.discovery import STRATEGIES
from unspoken.web._errors import ApiError, printable, wrong
from unspoken.web._strategies import default_strategy, read_fitted, resolved

if TYPE_CHECKING:
    from unspoken.decoding import Strategy
    from unspoken.lm.model import CausalLM
    from unspoken.web._openai_bodies import Common

SAMPLING = ("temperature", "top_p")


def strategy_of(body: Common, name: str, lm: CausalLM, limit: int) -> tuple[Strategy, list[str]]:
    """The strategy of a request, and a sentence for each of its fields that was fitted to the limit.

    `NAME` alone is the model's own strategy, or chain of thought; `NAME:soft` names one, and
    `unspoken: {"strategy": {...}}` also sets its fields. `temperature` and `top_p` set the strategy's fields of these
    names where it has them, else those of the strategy inside it.

    Args:
        body: The request.
        name: What the served model is called.
        lm: The model.
        limit: Steps of the request.

    Raises:
        ApiError: If the model or the strategy is unknown, or the strategy has no such field.
    """
    suffix = _suffix(body.model, name)
    given = body.unspoken.strategy if body.unspoken else None
    fields = {"name": given} if isinstance(given, str) else dict(given) if given is not None else None
    if fields is not None and suffix is not None and fields.setdefault("name", suffix) != suffix:
        raise wrong({"unspoken": [f"The model's name asks for {suffix}, the strategy is another one."]})
    if fields is None and suffix is None and body.temperature is None and body.top_p is None:
        return read_fitted(None, lm, limit)
    if fields is None:
        fields = resolved(default_strategy(lm)) if suffix is None else {"name": suffix}
    read_fitted(fields, lm, limit)  # what is wrong with it is said before anything is added
    stated = set(given) if isinstance(given, dict) else set()
    for key in SAMPLING:
        value = getattr(body, key)
        if value is not None and key not in stated:
            _set(fields, key, value, stated)
    return read_fitted(fields, lm, limit, given if isinstance(given, dict) else {})


def _suffix(model: str, name: str) -> str | None:
    """The strategy in a model's name."""
    if model == name:
        return None
    stem, colon, strategy = model.rpartition(":")
    if colon and stem == name and strategy in STRATEGIES.names():
        return strategy
    raise unknown_model(model, name)


def unknown_model(model: str, name: str) -> ApiError:
    """The refusal of a model that is not served, beside what is; `name` is what the served one is called."""
    return ApiError(
        404,
        f"There is no model {printable(model, 80)!r} here.",
        f"Served: {name}, and {name}:STRATEGY for {', '.join(STRATEGIES.names())}.",
        {"model": ["model is not served here."]},
        code="model_not_found",
    )


def _set(fields: dict[str, Any], key: str, value: float, stated: set[str]) -> None:
    """Set a sampling field where the strategy has it."""
    cls = STRATEGIES.find(fields["name"])
    names = {f.name for f in dataclasses.fields(cls)}
    own = cls.aliases.get(key, key)
    if own in names:
        if own not in stated:
            fields[own] = value
        return
    if "inner" in names:
        inner = fields.get("inner", resolved(cls().inner))
        fields["inner"] = inner = {"name": inner} if isinstance(inner, str) else dict(inner)
        _set(inner, key, value, set())
    elif value != 1.0:
        raise wrong({key: [f"{key} is no field of the strategy {fields['name']}: leave it out, or send 1."]})
