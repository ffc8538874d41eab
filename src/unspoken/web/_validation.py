"""What the framework finds wrong with a request, in this project's words and with what was given."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError

from unspoken.discovery import STRATEGIES
from unspoken.web._bodies import Ask, Body
from unspoken.web._errors import ApiError, meant, printable, wrong
from unspoken.web._openai_bodies import Common, Own
from unspoken.web._schema import field_names
from unspoken.web._strategies import LISTED, read_strategy, resolved

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM

SHOWN = 60
"""Characters of a value that are given back."""
MOST_EXPLAINED = 8
"""Unknown fields of one request that are explained: looking for what was meant takes time."""

_TEXTS = {
    "missing": "is required",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of fewer digits",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_unicode": "must be readable text",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "kinds_type": "must be {kinds}",
    "literal_error": "must be {expected}",
    # Every least length of the bodies is 1, and their only pattern is that of names.
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "too_long": "must have at most {max_length} entries",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must be 1 to 64 letters, digits or any of . _ : -",
}
_BARE = ("missing", "too_short", "string_too_short", "string_unicode")
"""Kinds of errors after which the value says nothing more."""
_RANGES = ("greater_than_equal", "greater_than", "less_than_equal", "less_than")
_WRONG_KIND = re.compile(r"(_type|_parsing|_unicode)$|^missing_body$")
_KIND_OF_FIELD = re.compile(r"(str|int|float|bool|constrained-\w+|(list|dict|function-[\w-]+)\[.*\])$")
"""How a place names the kinds of values that a field with several of them was tried as."""


def of_validation(
    error: RequestValidationError, model: type[Body] | None, lm: CausalLM, secret: str | None
) -> ApiError:
    """What FastAPI found wrong: 400 for what has the wrong type, 422 for values that are not allowed.

    Args:
        error: Its findings.
        model: The body of the route; None if it reads none.
        lm: The model that examples of strategies are tried on.
        secret: What must not be given back: the server's key.
    """
    fields: dict[str, list[str]] = {}
    status, hint, unknown = 422, None, 0
    for item in _best_readings(error.errors()):
        kind, place = str(item["type"]), [str(part) for part in item["loc"]]
        if kind == "json_invalid":
            return not_json(model)
        if _WRONG_KIND.search(kind):
            status = 400
        inner = [part for part in place[2:] if not _KIND_OF_FIELD.match(part)]
        name = printable(".".join([*place[1:2], *inner]) or place[0], 200)
        if kind == "extra_forbidden":
            unknown += 1
            hint = hint or (LISTED if model and issubclass(model, (Ask, Common)) else None)
            said = _unknown(place[1:], error.body, model, lm, unknown) if model else "is not known here"
        else:
            hint = example(model) if kind == "missing" or len(place) == 1 else hint
            said = _said(item, secret)
        known = fields.setdefault(name, [])
        # What the bodies say in their own words is a sentence already.
        space = " " if kind in _TEXTS or kind == "extra_forbidden" else ": "
        sentence = f"{name if len(place) > 1 else 'The body'}{space}{said}."
        if sentence not in known:
            known.append(sentence)
    return wrong(fields, status, hint)


def not_json(model: type[Body] | None) -> ApiError:
    """The refusal of a body that no reader understands."""
    return ApiError(400, "The body is not JSON.", example(model))


def example(model: type[Body] | None) -> str | None:
    """What to send where this body is read."""
    return f"Send a JSON object, such as {json.dumps(model.example)}." if model else None


def _text(item: Mapping[str, Any]) -> str:
    """What must be, without what is."""
    text = _TEXTS.get(str(item["type"]))
    if text is None:
        message = str(item["msg"])
        return message[:1].lower() + message[1:]
    bounds = {k: f"{v:g}" if isinstance(v, float) else v for k, v in (item.get("ctx") or {}).items()}
    return re.sub(r"\b(True|False)\b", lambda m: m[0].lower(), text.format(**bounds))


def _said(item: Mapping[str, Any], secret: str | None) -> str:
    kind, given, text = str(item["type"]), item.get("input"), _text(item)
    if kind in _BARE or kind not in _TEXTS:
        return text
    if kind.endswith("too_long") and isinstance(given, (str, list, dict)):
        return f"{text}, not {len(given)}"
    if kind == "int_type" and isinstance(given, float) and given.is_integer():
        text += " without a point or an exponent"
    if isinstance(given, str):
        given = given.replace(secret, "(the API key)") if secret else given
        # What stands in an address is text even where it was read as a number.
        return f"{text}, not {printable(given, SHOWN) if kind in _RANGES else repr(printable(given, SHOWN))}"
    return f"{text}, not {_shown(given)}"


def _shown(value: Any) -> str:
    """A value that is no text, as it was written if it is short."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    return printable(json.dumps(value, default=str), SHOWN)


# Names that are not known


def _unknown(place: Sequence[str], body: Any, model: type[Body], lm: CausalLM, count: int) -> str:
    """What is said of an unknown name: what is known there, and where it belongs if it does.

    Args:
        place: The names that lead to it, itself last.
        body: What was sent.
        model: What the whole body may hold.
        lm: The model.
        count: How many were unknown up to here, this one included.
    """
    for part in place[:-1]:
        field = model.model_fields.get(part)
        inside = next(_models(field.annotation), None) if field else None
        model = inside or model
    if count > MOST_EXPLAINED:
        return "is not known here"
    name, known = place[-1], list(model.model_fields)
    belongs = _belongs(name, body, model, lm)
    return f"is not known here{belongs or '.' + meant(name, known)} Known here: {', '.join(known)}"


def _models(annotation: Any) -> Iterator[type[Body]]:
    """The bodies in a type."""
    if isinstance(annotation, type) and issubclass(annotation, Body):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models(part)


def _belongs(name: str, body: Any, model: type[Body], lm: CausalLM) -> str | None:
    """Where a name goes that is a strategy's field, or one of the project's own part of a body."""
    outer = issubclass(model, Common)
    if outer and name in Own.model_fields:
        return f': it goes inside unspoken, as in "unspoken": {{"{name}": ...}}.'
    if not (outer or "strategy" in model.model_fields):
        return None
    owners = [known for known in STRATEGIES.names() if _has(known, name)]
    if not owners:
        return None
    chosen = _chosen(body)
    # Else the one with the most to set.
    owner = (
        chosen
        if chosen in owners
        else max(owners, key=lambda known: len(field_names(STRATEGIES.find(known))))
    )
    value = (body["unspoken"] if model is Own else body).get(name)
    text = json.dumps({"strategy": {"name": owner, name: _usable(owner, name, value, lm)}})[1:-1]
    text = f'"unspoken": {{{text}}}' if outer or model is Own else text
    several = "the strategies " if len(owners) > 1 else "the strategy "
    return f": it is a field of {several}{', '.join(owners)}, and goes beside the name, as in {text}."


def _has(strategy: str, name: str) -> bool:
    cls = STRATEGIES.find(strategy)
    return cls.aliases.get(name, name) in field_names(cls)


def _chosen(body: Any) -> str | None:
    """The name of the strategy that a body asks for, as far as it can be read."""
    own = body.get("unspoken")
    given = (own if isinstance(own, dict) else body).get("strategy")
    name = given.get("name") if isinstance(given, dict) else given
    return name if isinstance(name, str) else str(body.get("model")).rpartition(":")[2]


def _usable(strategy: str, name: str, value: Any, lm: CausalLM) -> Any:
    """The value that was sent if the strategy takes it, else the strategy's own."""
    if isinstance(value, (int, float)):
        try:
            read_strategy({"name": strategy, name: value}, lm)
            return value
        except ApiError:
            pass
    cls = STRATEGIES.find(strategy)
    return resolved(cls())[cls.aliases.get(name, name)]


# Fields of several kinds


def _best_readings(items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of a field that may be of several kinds, what is wrong with it as the kind that it is, or is most nearly.

    Every kind was tried: a list that is too long is also no string, and none of its items is a number.
    """
    tried: dict[tuple[Any, ...], dict[str, list[Mapping[str, Any]]]] = {}
    for item in items:
        place = tuple(item["loc"])
        at = next(
            (i for i, part in enumerate(place) if i > 1 and _KIND_OF_FIELD.match(str(part))), len(place)
        )
        reading = str(place[at]) if at < len(place) else ""
        tried.setdefault(place[:at], {}).setdefault(reading, []).append(item)
    found: list[Mapping[str, Any]] = []
    for readings in tried.values():
        # A reading whose only fault is that the value as a whole is of another kind says nothing.
        fitting = [some for some in readings.values() if not (len(some) == 1 and _of_another_kind(some[0]))]
        if fitting:
            closest: list[Mapping[str, Any]] = min(fitting, key=_distance)
            found += closest
        else:
            first = next(iter(readings.values()))[0]
            kinds = ", or ".join(
                dict.fromkeys(_text(some[0]).removeprefix("must be ") for some in readings.values())
            )
            found.append(
                first if len(readings) == 1 else {**first, "type": "kinds_type", "ctx": {"kinds": kinds}}
            )
    return found


def _distance(items: list[Mapping[str, Any]]) -> tuple[int, int]:
    """How far a value is from a kind: by the number of its faults, and by how deep inside they are."""
    return len(items), -max(len(item["loc"]) for item in items)


def _of_another_kind(item: Mapping[str, Any]) -> bool:
    last = str(item["loc"][-1])
    return str(item["type"]).endswith("_type") and len(item["loc"]) > 2 and bool(_KIND_OF_FIELD.match(last))
