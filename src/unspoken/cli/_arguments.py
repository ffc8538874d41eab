"""From words to dataclasses: one flat set of flags made of a command's options and the classes it names.

Parsing has two stages. The first takes the names that lead a command line (`eval gsm8k soft`) and the `-c`
file; only the classes named are then imported, and the second stage parses the flags of all of them at
once. Values of the file are defaults, flags override them. What is wrong with any of them is reported in
one error.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from unspoken.cli._parts import REGISTRIES, Part, complete, flags_of, named_part
from unspoken.cli._words import with_values, without_wrong_numbers
from unspoken.config import coerce, field_docs, from_dict, load_yaml
from unspoken.errors import ConfigError, suggest

__all__ = [
    "Line",
    "Part",
    "first_stage",
    "name_lists",
    "named_part",
    "option",
    "require_names",
    "second_stage",
    "take_file",
    "take_value",
]
HELP_FLAGS = ("-h", "--help")
LONGEST_METAVAR = 60


@dataclass
class Line:
    """A command line after the first stage.

    Attributes:
        prog: What the usage line starts with, such as `unspoken eval`.
        names: Names given, by kind (`task`, `strategy`, `method`).
        words: The rest, for the second stage.
        file: Values of the `-c` file that are not names.
        wants_help: Whether `-h` or `--help` is among the words.
    """

    prog: str
    names: dict[str, str]
    words: list[str]
    file: dict[str, Any] = field(default_factory=dict)
    wants_help: bool = False


def option(
    default: Any = dataclasses.MISSING, *, flag: str | None = None, positional: str | None = None
) -> Any:
    """A field of a command's options.

    Args:
        default: Its default; without one it is required.
        flag: A short flag, such as `-m`.
        positional: The name shown in the usage line, for an argument that has no flag.
    """
    metadata = {"flag": flag, "positional": positional}
    return (
        field(metadata=metadata)
        if default is dataclasses.MISSING
        else field(default=default, metadata=metadata)
    )


def first_stage(command: str, words: Sequence[str], kinds: Sequence[str] = (), positionals: int = 0) -> Line:
    """Take the `-c` file and the leading names off a command line.

    Args:
        command: The command's name.
        words: What follows it.
        kinds: The kinds of names it starts with, in order.
        positionals: How many words of its own follow them: the last words before a flag are these, unless they
            are known names.

    Raises:
        ConfigError: If the file cannot be used, or is for another command.
    """
    rest, file = take_file(words)
    stated = file.pop("command", command)
    if stated != command:
        raise ConfigError(
            f"The -c file is for the command {stated!r}, not {command!r}.", f"Run: unspoken {stated} -c FILE"
        )
    names = {kind: str(file.pop(kind)) for kind in kinds if kind in file}
    rest, chosen = take_value(rest, "-s", None) if "strategy" in kinds else (rest, None)
    if chosen is not None:
        names["strategy"] = chosen
    leading = _leading(rest)
    for kind in kinds:
        if kind == "strategy" and chosen is not None:
            continue
        # A name that the file gives is replaced only by another name: the word may be a prompt.
        spare = kind not in names and len(leading) > positionals
        if leading and (spare or _is_name(kind, leading[0])):
            names[kind], rest = leading.pop(0), rest[1:]
    return Line(f"unspoken {command}", names, rest, file, any(word in HELP_FLAGS for word in rest))


def require_names(line: Line, kinds: Sequence[str], usage: str) -> None:
    """Refuse a line that lacks one of the names it must start with."""
    problems = [
        f"No {kind} given. Known: {', '.join(REGISTRIES[kind].names())}."
        for kind in kinds
        if kind not in line.names
    ]
    if problems:
        raise ConfigError(problems, f"Names come first: {line.prog} {usage}")


def name_lists(kinds: Sequence[str]) -> str:
    """The known names of these kinds with their summaries, for the help."""
    blocks = []
    for kind in kinds:
        registry = REGISTRIES[kind]
        width = max((len(name) for name in registry.names()), default=0)
        rows = [f"  {name:<{width}}  {registry.summary(name)}" for name in registry.names()]
        blocks.append("\n".join([registry.plural.capitalize() + ":", *rows]))
    return "\n\n".join(blocks)


def take_file(words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Take `-c FILE` or `--config FILE` off the words and read it; keys are written with underscores."""
    rest, path = take_value(words, "-c", "--config")
    if path is None:
        return rest, {}
    try:
        loaded = load_yaml(path)
    except ConfigError as error:
        raise ConfigError(error.problems, f"{_near(Path(path))}-c names a YAML file of options.") from error
    return rest, {key.replace("-", "_"): value for key, value in loaded.items()}


def _near(path: Path) -> str:
    """A question about the file that a path which leads nowhere may have meant; empty if there is none."""
    if path.exists():
        return ""
    there = {p.stem: p.name for p in sorted(path.parent.glob("[!.]*.y*ml"))}
    near = suggest(path.stem, there)
    return f"Did you mean {str(path.with_name(there[near]))!r}? " if near else ""


def take_value(words: Sequence[str], short: str, long: str | None) -> tuple[list[str], str | None]:
    """Take a flag and its value off the words: the words without them, and the value if the flag is there."""
    rest: list[str] = []
    value: str | None = None
    pending = iter(words)
    for word in pending:
        if word == short or (long is not None and word == long):
            value = next(pending, None)
            if value is None:
                raise ConfigError(f"{word} needs a value.", f"Write: {word} VALUE")
        elif long is not None and word.startswith(long + "="):
            value = word[len(long) + 1 :]
        else:
            rest.append(word)
    return rest, value


def _leading(words: Sequence[str]) -> list[str]:
    leading = []
    for word in words:
        if word.startswith("-") and word != "-":
            break
        leading.append(word)
    return leading


def _is_name(kind: str, word: str) -> bool:
    return word.endswith(".py") or word in REGISTRIES[kind].names()


def second_stage(line: Line, parts: Sequence[Part], description: str) -> list[Any]:
    """Parse the flags of all parts at once and build one instance of each.

    Raises:
        ConfigError: With everything that is wrong.
        SystemExit: After printing help, or for an argument that is missing or cannot be read (code 2).
    """
    import tyro

    asked = len(parts)
    parts = complete(parts, line.words, line.file)
    _refuse_unknown_flags(line, parts)
    words, problems = without_wrong_numbers(line.words, parts)
    defaults, wrong = _file_defaults(line.file, parts)
    problems += wrong
    fields: list[Any] = []
    for index, part in enumerate(parts):
        inside = {other.slot: other.choice for other in parts if other.holder is part}
        mirror = _mirror_fields(part, defaults[index], inside)
        if part.title:
            nested = dataclasses.make_dataclass(part.cls.__name__, mirror, kw_only=True)
            summary = (part.cls.__doc__ or "").strip().split("\n")[0]
            fields.append((f"part{index}", Annotated[nested, tyro.conf.arg(name=part.title, help=summary)]))
        else:
            fields += mirror
    flat = dataclasses.make_dataclass("Flags", fields, kw_only=True)
    parsed: Any
    parsed, unknown = tyro.cli(
        flat,
        prog=line.prog,
        description=f"{description}\n\n-c FILE.yaml gives defaults for all options.",
        args=with_values(words, parts),
        config=(tyro.conf.OmitArgPrefixes,),
        return_unknown_args=True,
    )
    if unknown:
        given = " ".join(unknown)
        problems.append(f"Too many arguments: {given!r} is left over (put text with spaces in quotes).")
    built, wrong = _build(parts, [getattr(parsed, f"part{i}", parsed) for i in range(len(parts))])
    problems += wrong
    if problems:
        raise ConfigError(problems, f"Run: {line.prog} --help")
    return built[:asked]


def _build(parts: Sequence[Part], parsed: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """One instance of each part, what is inside others first, and all that is wrong."""
    built: dict[int, Any] = {}
    problems: list[list[str]] = [[] for _ in parts]
    for index in reversed(range(len(parts))):
        part = parts[index]
        values = {name: getattr(parsed[index], flag) for name, flag in part.flags.items()}
        for other, inside in enumerate(parts):
            if inside.holder is part:
                values.pop(inside.slot)
                if other in built:
                    values[inside.slot] = built[other]
        try:
            built[index] = from_dict(part.cls, values)
        except ConfigError as error:
            problems[index] = [_as_flag(part, problem) for problem in error.problems]
    return [built.get(i) for i in range(len(parts))], [p for found in problems for p in found]


def _as_flag(part: Part, problem: str) -> str:
    """A problem with a field, by the name under which it is typed."""
    named, colon, rest = problem.partition(": ")
    name = named.removeprefix(f"{part.cls.__name__}.")
    if not colon or name == named or name not in part.flags:
        return problem
    return f"--{part.flags[name].replace('_', '-')} {rest}."


def _file_defaults(
    values: Mapping[str, Any], parts: Sequence[Part]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Give each value of the file to the part that has the field."""
    defaults = [dict(part.defaults) for part in parts]
    problems: list[str] = []
    for index, part in enumerate(parts):
        if part.file:
            problems += _take(part.file, [part], [defaults[index]], f"{part.slot} in the -c file")
    return defaults, problems + _take(values, parts, defaults, "the -c file")


def _take(
    values: Mapping[str, Any], parts: Sequence[Part], defaults: Sequence[dict[str, Any]], where: str
) -> list[str]:
    """Put each value among the defaults of the first part that has the field; returns what is wrong."""
    problems = []
    hints = [typing.get_type_hints(part.cls) for part in parts]
    known = _known_names(parts)
    for key, value in values.items():
        for part, taken, types in zip(parts, defaults, hints, strict=True):
            of = {flag: name for name, flag in part.flags.items()}
            name = part.aliases.get(key) or of.get(key) or (key if part.file is values else None)
            if name not in part.flags:
                continue
            if name not in part.slots:  # what is inside has read it
                try:
                    taken[name] = coerce(value, types[name])
                except ValueError as error:
                    problems.append(f"{key} in {where} {error}")
            break
        else:
            near = suggest(key, known)
            meant = f" Did you mean {near!r}?" if near else f" Known: {', '.join(sorted(known))}."
            if several := flags_of(parts, key):
                meant = f" Write {' or '.join(several)}."
            problems.append(f"Unknown key {key!r} in {where}.{meant}")
    return problems


def _mirror_fields(part: Part, defaults: Mapping[str, Any], inside: Mapping[str, str]) -> list[Any]:
    """The part's fields for a dataclass without its checks, which would see the file's values too early.

    Args:
        part: The part.
        defaults: Defaults that are not the class's own.
        inside: Names of what its slots hold.
    """
    docs = field_docs(part.cls)
    hints = typing.get_type_hints(part.cls)
    mirror: list[Any] = []
    for f in dataclasses.fields(part.cls):
        if f.init:
            default, hint = defaults.get(f.name, _default(f)), hints[f.name]
            if f.name in inside:
                default, hint = inside[f.name], str
            hint = _annotated(part, f, hint, docs.get(f.name, ""), default)
            given = (
                dataclasses.field() if default is dataclasses.MISSING else dataclasses.field(default=default)
            )
            mirror.append((part.flags[f.name], hint, given))
    return mirror


def _annotated(part: Part, f: dataclasses.Field[Any], hint: Any, doc: str, default: Any) -> Any:
    """The type of a field with all that its help shows."""
    import tyro

    metavar = "NAME" if f.name in part.slots else f.metadata.get("positional")
    some = [a for a in typing.get_args(hint) if a is not type(None)]
    optional = type(None) in typing.get_args(hint)
    literal = some[0] if optional and len(some) == 1 else hint
    choices = typing.get_args(literal) if typing.get_origin(literal) is Literal else ()
    if choices and all(isinstance(choice, str) for choice in choices):
        # As text, so that a wrong choice is reported with the others, and with a suggestion.
        hint, metavar = str | None if optional else str, "{" + ",".join(choices) + "}"
        if len(metavar) > LONGEST_METAVAR:
            metavar, doc = "NAME", f"{doc} One of: {', '.join(choices)}."
    elif (
        metavar is None
        and len(some) == 1
        and some[0] in (int, float, str)
        and type(None) in typing.get_args(hint)
    ):
        metavar = some[0].__name__.upper()
    flags = ["--" + alias.replace("_", "-") for alias, name in part.aliases.items() if name == f.name]
    if f.metadata.get("flag"):
        flags.append(f.metadata["flag"])
    unset = default is None or (default is False and not part.title)
    marks: list[Any] = [
        tyro.conf.arg(
            help=doc, metavar=metavar, aliases=flags or None, help_behavior_hint="" if unset else None
        )
    ]
    if f.metadata.get("positional"):
        marks.append(tyro.conf.Positional)
    elif not part.title:
        marks.append(tyro.conf.FlagCreatePairsOff)  # `--quiet`, and no `--no-quiet`
    return Annotated[hint, *marks]


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def _known_names(parts: Sequence[Part]) -> list[str]:
    names = [flag for part in parts for flag in part.flags.values()]
    return names + [alias for part in parts for alias in part.aliases]


def _refuse_unknown_flags(line: Line, parts: Sequence[Part]) -> None:
    """Name unknown flags before anything else: what follows them would be misread."""
    known = {name.replace("_", "-") for name in _known_names(parts)}
    problems = []
    for word in line.words:
        name = word[2:].partition("=")[0].replace("_", "-")
        if not word.startswith("--") or not name or " " in name or name == "help":
            continue
        if name not in known and name.removeprefix("no-") not in known:
            near = suggest(name, known)
            meant = f" Did you mean {'--' + near!r}?" if near else ""
            if several := flags_of(parts, name.replace("-", "_")):
                meant = f" Write {' or '.join('--' + flag.replace('_', '-') for flag in several)}."
            problems.append(f"Unknown option {word.partition('=')[0]!r}.{meant}")
    if problems:
        raise ConfigError(problems, f"Run: {line.prog} --help")
