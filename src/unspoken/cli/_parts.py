"""The classes whose fields become the flags of a command, and the strategies that stand inside other strategies."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unspoken.config import named_kind
from unspoken.discovery import METHODS, STRATEGIES, TASKS, Registry
from unspoken.errors import ConfigError

REGISTRIES: dict[str, Registry] = {"strategy": STRATEGIES, "task": TASKS, "method": METHODS}


@dataclass(eq=False)
class Part:
    """A dataclass whose fields become flags.

    Attributes:
        cls: The dataclass.
        title: What its flags are grouped under in the help; empty for the command's own options.
        aliases: Other names of its fields, or of fields of the parts it is parsed with.
        holder: The part one of whose fields this one fills; None for a part that the command line leads with.
        slot: That field.
        choice: What stands in the slot, by name.
        defaults: Its fields' defaults where they are not those of the class.
        file: What the `-c` file says of it under the name of its slot.
        renamed: The flags of fields whose own name another part has.
    """

    cls: type[Any]
    title: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    holder: Part | None = None
    slot: str = ""
    choice: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    file: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)

    @property
    def flags(self) -> dict[str, str]:
        """Each field with the name of its flag, with underscores."""
        return {f.name: self.renamed.get(f.name, f.name) for f in dataclasses.fields(self.cls) if f.init}

    @property
    def slots(self) -> dict[str, Registry]:
        """The fields that hold a strategy (or a task or method), with its kind."""
        hints = typing.get_type_hints(self.cls)
        kinds = {name: named_kind(hints[name]) for name in self.flags}
        return {name: kind for name, kind in kinds.items() if kind is not None}


def named_part(kind: str, name: str) -> Part:
    """The part for a strategy or a task.

    Raises:
        UnknownNameError: With the nearest known name.
    """
    cls = REGISTRIES[kind].find(name)
    return Part(cls, f"{kind} {name}", cls.aliases)


def complete(parts: Sequence[Part], words: Sequence[str], file: Mapping[str, Any]) -> list[Part]:
    """The parts, each alias where its field is, and one more part for each strategy inside another.

    A part inside another has the names of its fields as flags, too, as far as they are free, and always those with
    the slot's name before them: `--k` and `--inner-k`.

    Args:
        parts: Those that the line names.
        words: The line's flags; one that names what is in a slot decides which class it is.
        file: The values of the `-c` file.

    Raises:
        ConfigError: If two of the parts have a field in common, or a slot names nothing known.
    """
    every = _with_placed_aliases(parts)
    _tell_apart(every)
    for part in every:  # it grows: what is inside may hold something itself
        for slot, registry in part.slots.items():
            taken = {n for other in every for n in (*other.flags, *other.flags.values(), *other.aliases)}
            stated = part.file.get(slot) if part.holder else file.get(slot)
            inside = _inside(part, slot, registry, _stated_by(words, part.flags[slot]), stated, taken)
            elsewhere = {a: name for a, name in inside.cls.aliases.items() if name not in inside.flags}
            _place({a: name for a, name in elsewhere.items() if a not in taken}, every)
            every.append(inside)
    return every


def _inside(
    holder: Part, slot: str, registry: Registry, flag: str | None, stated: Any, taken: Iterable[str]
) -> Part:
    """The part for what a slot holds: named by its flag, else by the file, else the default."""
    fields: dict[str, Any] = {}
    name = stated
    if isinstance(stated, Mapping):
        fields = {str(key).replace("-", "_"): value for key, value in stated.items()}
        name = fields.pop("name", None)
    if stated is not None and not isinstance(name, str):
        raise ConfigError(
            f"{slot} in the -c file must be the name of a {registry.kind}, or a mapping with its name, not {stated!r}.",
            f"Write: {slot}: {{name: {registry.names()[0]}}}",
        )
    default = _default_of(holder, slot)
    defaults: dict[str, Any] = {}
    if flag is not None:
        fields = fields if flag == name else {}  # those of another one say nothing about this
        name = flag
    elif name is None:
        name = default.name
        defaults = {f.name: getattr(default, f.name) for f in dataclasses.fields(default) if f.init}
    cls = registry.find(name)
    prefix = holder.flags[slot]
    own = [f.name for f in dataclasses.fields(cls) if f.init]
    renamed = {f: f"{prefix}_{f}" for f in own if f in taken}
    aliases = {alias: f for alias, f in cls.aliases.items() if alias not in taken and f in own}
    aliases |= {f"{prefix}_{f}": f for f in own if f not in renamed}
    title = f"{prefix.replace('_', ' ')} {registry.kind} {name}"
    return Part(cls, title, aliases, holder, slot, name, defaults, fields, renamed)


def _default_of(holder: Part, slot: str) -> Any:
    given = holder.defaults.get(slot)
    if given is not None:
        return given
    f = next(f for f in dataclasses.fields(holder.cls) if f.name == slot)
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def _stated_by(words: Sequence[str], flag: str) -> str | None:
    """The value of a flag among the words."""
    found = None
    for word, following in itertools.zip_longest(words, words[1:]):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == "--" + flag.replace("_", "-"):
            found = value if equals else following
    return found


def _tell_apart(parts: Sequence[Part]) -> None:
    """Fields of the same name in a task and a strategy have their kind before their flags: --task-n, --strategy-n.

    Neither keeps the short one, which would be taken for the other's.
    """
    owners: dict[str, list[Part]] = {}
    for part in parts:
        for name in part.flags:
            owners.setdefault(name, []).append(part)
    for name, several in owners.items():
        kinds = [part.title.partition(" ")[0] for part in several]
        if len(several) > 1 and (not all(kinds) or len(set(kinds)) < len(kinds)):
            first, second = (part.title or "the command" for part in several[:2])
            raise ConfigError(
                f"The field {name!r} of {second} is also a field of {first}; rename one of them."
            )
        if len(several) > 1:
            for kind, part in zip(kinds, several, strict=True):
                part.renamed = {**part.renamed, name: f"{kind}_{name}"}


def flags_of(parts: Sequence[Part], name: str) -> list[str]:
    """The flags, with underscores, of all fields that are called so."""
    return [part.flags[name] for part in parts if name in part.flags]


def _with_placed_aliases(parts: Sequence[Part]) -> list[Part]:
    """The parts, each alias moved to the part that has its field: a strategy may rename a command's option."""
    placed = [Part(part.cls, part.title, defaults=part.defaults) for part in parts]
    for part in parts:
        _place(part.aliases, placed)
    return placed


def _place(aliases: Mapping[str, str], parts: Sequence[Part]) -> None:
    for alias, name in aliases.items():
        for owner in parts:
            if any(f.name == name for f in dataclasses.fields(owner.cls)):
                owner.aliases = {**owner.aliases, alias: name}
