"""The flags as typed, made ready for the parser."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Sequence
from typing import Any

from unspoken.cli._parts import Part
from unspoken.config import describe

NUMBERS = (int, float)


def with_values(words: Sequence[str], parts: Sequence[Part]) -> list[str]:
    """Let flags that are true, false or unset be given like other flags: `--flag` and `--no-flag`."""
    found: dict[str, str] = {}
    for name, (_, hint) in _fields(parts).items():
        if set(typing.get_args(hint)) == {bool, type(None)}:
            found |= {name: "True", "no-" + name: "False"}
    completed: list[str] = []
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        name = word[2:].replace("_", "-") if word.startswith("--") else ""
        if name in found and following not in ("True", "False", "None"):
            completed += ["--" + name.removeprefix("no-"), found[name]]
        else:
            completed.append(word)
    return completed


def without_wrong_numbers(words: Sequence[str], parts: Sequence[Part]) -> tuple[list[str], list[str]]:
    """Take flags of numbers off the words whose value is none, and say so in words.

    The parser would stop at the first one, and names its own types. A flag that must be given stays, for it.

    Returns:
        The other words, and what is wrong.
    """
    numbers = {}
    for name, (default, hint) in _fields(parts).items():
        some = [a for a in typing.get_args(hint) if a is not type(None)] or [hint]
        if len(some) == 1 and some[0] in NUMBERS and default is not dataclasses.MISSING:
            numbers[name] = some[0], type(None) in typing.get_args(hint)
    rest, problems = [], []
    pending = list(words)
    while pending:
        flag, equals, value = pending[0].partition("=")
        name = flag[2:].replace("_", "-") if flag.startswith("--") else ""
        taken = 1 if equals else 2
        if not equals:
            value = pending[1] if len(pending) > 1 else "--"
        if name in numbers and (equals or not value.startswith("--")) and not _reads(value, *numbers[name]):
            problems.append(f"{flag} must be {describe(numbers[name][0])}, not {value!r}.")
        else:
            taken = 1
            rest.append(pending[0])
        del pending[:taken]
    return rest, problems


def _fields(parts: Sequence[Part]) -> dict[str, tuple[Any, Any]]:
    """Each flag, without its dashes, with the default and the type of its field."""
    found = {}
    for part in parts:
        hints = typing.get_type_hints(part.cls)
        defaults = {
            f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory
            for f in dataclasses.fields(part.cls)
        }
        for flag, name in [*((flag, name) for name, flag in part.flags.items()), *part.aliases.items()]:
            found[flag.replace("_", "-")] = defaults.get(name, dataclasses.MISSING), hints.get(name)
    return found


def _reads(value: str, kind: type, optional: bool) -> bool:
    try:
        kind(value)
    except ValueError:
        return optional and value == "None"
    return True
