"""Strategies for a form: JSON schema of their fields, with the ranges that their own checks enforce."""

from __future__ import annotations

import dataclasses
import re
import threading
import types
import typing
from typing import TYPE_CHECKING, Any, Literal, Union
from weakref import WeakKeyDictionary

from unspoken import config as configs
from unspoken.config import field_docs, named_kind
from unspoken.decoding._sequence import SequenceStrategy
from unspoken.discovery import STRATEGIES
from unspoken.errors import ConfigError

if TYPE_CHECKING:
    from unspoken.decoding import Strategy
    from unspoken.lm.model import CausalLM

_TINY = 1e-9
_JSON = {int: "integer", float: "number", str: "string", bool: "boolean"}


_described: WeakKeyDictionary[CausalLM, list[dict[str, Any]]] = WeakKeyDictionary()
_describing = threading.Lock()


def describe_all(lm: CausalLM) -> list[dict[str, Any]]:
    """All strategies that can be asked for by name, each as `describe` gives it.

    Ranges are found by trying values, which takes a while: it is done once for a model.
    """
    with _describing:
        if lm not in _described:
            _described[lm] = [describe(name, lm) for name in STRATEGIES.names()]
        return _described[lm]


def describe(name: str, lm: CausalLM) -> dict[str, Any]:
    """One strategy: name, title, summary, formula, the schema of its fields, presets.

    Args:
        name: The strategy's name.
        lm: The model; ranges that depend on it (such as at most as many candidates as tokens) are its.
    """
    cls = STRATEGIES.find(name)
    summary = STRATEGIES.summary(name)
    return {
        "name": name,
        "title": re.sub(r"(?<=[a-z])(?=[A-Z])", " ", cls.__name__),
        "summary": summary,
        "formula": getattr(cls, "formula", "") or summary,
        "schema": schema(cls, lm),
        "presets": {key: dict(values) for key, values in getattr(cls, "presets", {}).items()},
        "aliases": {alias: field for alias, field in cls.aliases.items() if field in field_names(cls)},
        "sequence": issubclass(cls, SequenceStrategy),
    }


def field_names(cls: type[Any]) -> list[str]:
    """The fields that can be given."""
    return [f.name for f in dataclasses.fields(cls) if f.init]


def schema(cls: type[Any], lm: CausalLM) -> dict[str, Any]:
    """The JSON schema of a strategy's fields, in the order of their declaration."""
    hints, docs = typing.get_type_hints(cls), field_docs(cls)
    properties = {}
    for f in dataclasses.fields(cls):
        if f.init:
            entry = {
                **_kind(hints[f.name]),
                "default": _default(f),
                **_bounds(cls, f.name, hints[f.name], lm),
            }
            properties[f.name] = {**entry, "description": docs.get(f.name, "")}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _kind(hint: Any) -> dict[str, Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        (inner,) = [a for a in args if a is not type(None)][:1]
        found = _kind(inner)
        found["type"] = [found["type"], "null"]
        if "enum" in found:
            found["enum"] = [*found["enum"], None]
        return found
    if origin is Literal:
        return {"type": "string", "enum": list(args)}
    if origin is tuple:
        return {"type": "array", "items": _kind(args[0])}
    if named_kind(hint) is not None:
        return {"type": ["string", "object"], "strategies": STRATEGIES.names()}
    return {"type": _JSON.get(hint, "object")}


def _default(f: dataclasses.Field[Any]) -> Any:
    if f.default is not dataclasses.MISSING:
        return plain(f.default)
    return None if f.default_factory is dataclasses.MISSING else plain(f.default_factory())


def plain(value: Any) -> Any:
    """A field's value as JSON; a strategy with its name."""
    if isinstance(value, configs.Configured):
        return {"name": value.name, **configs.to_dict(value)}
    return list(value) if isinstance(value, tuple) else value


def _bounds(cls: type[Any], name: str, hint: Any, lm: CausalLM) -> dict[str, Any]:
    """The range of a number, found by trying: so the form allows what the strategy allows, and nothing else."""
    kinds = {a for a in (typing.get_args(hint) or (hint,)) if a in (int, float)}
    if len(kinds) != 1:
        return {}
    whole = kinds == {int}
    found: dict[str, Any] = {}
    if _refused(cls, name, -1):
        if not _refused(cls, name, 0):
            found["minimum"] = 0
        elif whole or _refused(cls, name, _TINY):
            least = next((n for n in (1, 2, 3) if not _refused(cls, name, n)), None)
            found |= {"minimum": least} if least is not None else {}
        else:
            found["exclusiveMinimum"] = 0
    if not whole and _refused(cls, name, 1.0 + _TINY) and _refused(cls, name, 3.0):
        found["exclusiveMaximum" if _refused(cls, name, 1.0) else "maximum"] = 1
    if whole and _misfit(cls, name, lm.vocab_size + 1, lm) and not _misfit(cls, name, lm.vocab_size, lm):
        found["maximum"] = lm.vocab_size
    return found


def _refused(cls: type[Any], name: str, value: float) -> bool:
    """Whether the class's own checks name this field when it has this value."""
    try:
        cls(**{name: value})
    except ConfigError as error:
        return any(problem.startswith(f"{name} must") for problem in error.problems)
    return False


def _misfit(cls: type[Strategy], name: str, value: int, lm: CausalLM) -> bool:
    try:
        return any(problem.startswith(f"{name} ") for problem in cls(**{name: value}).check(lm))
    except ConfigError:
        return False
