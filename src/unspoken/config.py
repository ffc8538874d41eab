"""Dataclasses to and from plain mappings, with every mistake reported at once.

A strategy, a task and a run's options are frozen dataclasses. Their fields are the Python arguments,
the command's flags, the keys of a YAML file and what is recorded beside a result.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import itertools
import json
import math
import re
import textwrap
import types
import typing
from abc import ABCMeta
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, Union

from unspoken.errors import ConfigError, suggest

if TYPE_CHECKING:
    from unspoken.discovery import Registry

T = TypeVar("T")


class ConfigMeta(ABCMeta):
    """Makes a dataclass accept the other names of its fields, and name what it does not know.

    The class lists them in `aliases`. One that points at no field of the class is for commands only.
    """

    if not TYPE_CHECKING:  # a typed signature here would hide that of the dataclass

        def __call__(cls, *args, **kwargs):
            fields = {f.name for f in dataclasses.fields(cls) if f.init}
            aliases = {alias: name for alias, name in cls.aliases.items() if name in fields}
            problems = []
            for alias, name in aliases.items():
                if alias in kwargs and name in kwargs:
                    problems.append(f"{alias!r} and {name!r} are the same field of {cls.__name__}.")
                elif alias in kwargs:
                    kwargs[name] = kwargs.pop(alias)
            for key in kwargs:
                if key not in fields and key not in aliases:
                    problems.append(_unknown_field(cls, key, fields, aliases))
            if problems:
                raise ConfigError(problems)
            return super().__call__(*args, **kwargs)


@dataclasses.dataclass(frozen=True)
class Configured(metaclass=ConfigMeta):
    """A frozen dataclass whose fields are at once its arguments, its flags and its recorded configuration.

    Strategies, tasks, training methods and the options of a run are made of it. The docstring of a field (the
    string under it) is its help text.

    Raises:
        ConfigError: When one is made, with all that is wrong with its fields.
    """

    aliases: ClassVar[dict[str, str]] = {}
    """Other names of fields, as the original code bases call them."""

    def __post_init__(self) -> None:
        # The class's own checks need values of the right types.
        problems = check_fields(self) or self.problems()
        if problems:
            raise ConfigError(problems)

    @property
    def name(self) -> str:
        """The file name of the class's module."""
        return type(self).__module__.rpartition(".")[2]

    def problems(self) -> list[str]:
        """All that is wrong with the fields, each as one sentence."""
        return []


def check_fields(config: Any) -> list[str]:
    """Check the types of a frozen dataclass's fields, widening what may be widened.

    Returns:
        What is wrong, each as one sentence.
    """
    hints, problems = typing.get_type_hints(type(config)), []
    for f in dataclasses.fields(config):
        try:
            object.__setattr__(config, f.name, coerce(getattr(config, f.name), hints[f.name]))
        except ValueError as error:
            problems.append(f"{f.name} {error}.")
    return problems


def _unknown_field(cls: type, key: str, fields: Iterable[str], aliases: Iterable[str]) -> str:
    near = suggest(key, [*fields, *aliases])
    meant = f" Did you mean {near!r}?" if near else ""
    return f"Unknown field {key!r} of {cls.__name__}.{meant} Known: {', '.join(fields)}."


def to_dict(config: Any) -> dict[str, Any]:
    """The fields of a dataclass as JSON-ready values, in declaration order."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}


def from_dict(cls: type[T], values: Mapping[str, Any], *, aliases: Mapping[str, str] | None = None) -> T:
    """Build a dataclass from a mapping.

    Args:
        cls: The dataclass.
        values: Its fields; missing ones take their defaults.
        aliases: Other names that are accepted, mapped to the fields they mean.

    Raises:
        ConfigError: All unknown keys (with suggestions), all wrong types, and whatever the class's own
            validation finds, in one error.
    """
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    aliases = aliases or {}
    problems: list[str] = []
    given: dict[str, Any] = {}
    for key, value in values.items():
        name = aliases.get(key, key).replace("-", "_")
        if name not in fields:
            problems.append(_unknown_field(cls, key, fields, aliases))
            continue
        if name in given:
            problems.append(f"{key!r} and another key both set {name!r} of {cls.__name__}.")
        try:
            given[name] = coerce(value, hints[name])
        except ValueError as error:
            problems.append(f"{cls.__name__}.{name}: {error}")
    required = [
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and name not in given
    ]
    problems += [f"{cls.__name__}.{name} is required." for name in required]
    if not required:
        # The class's own checks run on what could be read, so that all mistakes come at once.
        try:
            built = cls(**given)
        except ConfigError as error:
            problems += error.problems
        else:
            if not problems:
                return built
    raise ConfigError(problems)


def field_docs(cls: type) -> dict[str, str]:
    """What each field of a dataclass means, on one line: the help texts of flags and form controls.

    Read from the `Attributes:` section of the class's docstring and from docstrings under the fields; fields
    of base classes are included, and fields without a text are left out.
    """
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            docs.update(_attribute_section(base))
            docs.update(_docs_under_fields(base))
    return docs


def _attribute_section(cls: type) -> dict[str, str]:
    section = re.search(
        r"^Attributes:\n((?:[ ]+.*\n?|\n)+)", inspect.cleandoc(cls.__doc__ or ""), re.MULTILINE
    )
    if section is None:
        return {}
    entries = re.split(r"^(\w+):", textwrap.dedent(section[1]), flags=re.MULTILINE)[1:]
    return {name: " ".join(text.split()) for name, text in zip(entries[::2], entries[1::2], strict=True)}


def _docs_under_fields(cls: type) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # made at run time: it has no source
        return {}
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.ClassDef)
    return {
        line.target.id: " ".join(below.value.value.split())
        for line, below in itertools.pairwise(definition.body)
        if isinstance(line, ast.AnnAssign)
        and isinstance(line.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }


def coerce(value: Any, hint: Any) -> Any:
    """Check a plain value against a type, widening int to float and lists to tuples.

    Raises:
        ValueError: If the value is not of that type; the message names both.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        options = [option for option in args if option is not type(None)]
        if len(options) == 1:
            return coerce(value, options[0])  # its own message says more
        for option in options:
            try:
                return coerce(value, option)
            except ValueError:
                continue
    elif origin is Literal:
        if value in args and not (isinstance(value, bool) and True not in args and False not in args):
            return value
        near = suggest(value, [str(a) for a in args]) if isinstance(value, str) else None
        meant = f" (did you mean {near!r}?)" if near else ""
        raise ValueError(f"must be one of {', '.join(map(repr, args))}, not {value!r}{meant}")
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            if len(args) == 2 and args[1] is Ellipsis:
                return tuple(coerce(item, args[0]) for item in value)
            if len(args) == len(value):
                return tuple(coerce(item, a) for item, a in zip(value, args, strict=True))
    elif origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if isinstance(value, Mapping):
            return dict(value)
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if value in ("inf", "-inf"):  # as `json_ready` writes them
            return float(value)
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
    elif isinstance(hint, type) and isinstance(value, hint):
        return value
    elif named_kind(hint) is not None and isinstance(value, (str, Mapping)):
        return _named(value, hint)
    raise ValueError(f"must be {describe(hint)}, not {value!r}")


def named_kind(hint: Any) -> Registry | None:
    """The registry whose classes a field holds, if the field's type is such a base class (`Strategy`, say)."""
    from unspoken import discovery

    if not (isinstance(hint, type) and issubclass(hint, Configured)):
        return None
    kinds = (discovery.STRATEGIES, discovery.TASKS, discovery.METHODS)
    found = (r for r in kinds if (f"{r.package}._base", r.base) == (hint.__module__, hint.__name__))
    return next(found, None)


def _named(value: str | Mapping[str, Any], hint: Any) -> Any:
    """A strategy (or a task or method) from its name, or from a mapping of its name and fields."""
    registry = named_kind(hint)
    assert registry is not None
    fields = {} if isinstance(value, str) else dict(value)
    name = value if isinstance(value, str) else fields.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(
            f"must give the {registry.kind}'s name, as in {{name: {registry.names()[0]}}}, not {value!r}"
        )
    try:
        cls = registry.find(name)
        return from_dict(cls, fields, aliases=cls.aliases)
    except ConfigError as error:
        raise ValueError(f"cannot be used: {' '.join(error.problems)}") from error


def describe(hint: Any) -> str:
    """A type in words for messages and help."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join("nothing" if a is type(None) else describe(a) for a in args)
    if origin is tuple:
        return "a list of " + describe(args[0])
    if (registry := named_kind(hint)) is not None:
        return f"a {registry.kind}, its name, or a mapping of its name and fields"
    words = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def json_ready(values: Any) -> Any:
    """Plain values as JSON knows them: it has no infinite numbers, which become the texts `inf` and `-inf`.

    `coerce` reads them back. What is not a number at all becomes null.
    """
    if isinstance(values, float) and not math.isfinite(values):
        return None if math.isnan(values) else str(values)
    if isinstance(values, Mapping):
        return {str(key): json_ready(value) for key, value in values.items()}
    return [json_ready(value) for value in values] if isinstance(values, (list, tuple)) else values


def fingerprint(values: Any) -> str:
    """Sixteen hex digits that change when any of the plain values does."""
    text = json.dumps(_plain(values), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML or JSON file that holds one mapping.

    Raises:
        ConfigError: If it cannot be read, is not YAML, or is not a mapping.
    """
    import yaml

    path = Path(path)
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read {str(path)!r}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} must hold a mapping of options, not a {type(loaded).__name__}.")
    return {str(key): value for key, value in loaded.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Configured):
        return {"name": value.name, **to_dict(value)}  # so that it can be found again
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value
