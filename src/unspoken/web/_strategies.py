"""Strategies in requests: read from mappings, described, fitted to the limit of tokens."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unspoken.config import from_dict, named_kind, to_dict
from unspoken.decoding import Strategy
from unspoken.decoding._sequence import SequenceStrategy
from unspoken.decoding._tokens import TOP_SHOWN
from unspoken.discovery import STRATEGIES
from unspoken.errors import ConfigError, suggest
from unspoken.web._cut import KEPT
from unspoken.web._errors import ApiError, printable, wrong
from unspoken.web._schema import field_names, plain

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM

MOST = 10**6
"""Largest whole number that a field of a strategy may be given here."""
DEEPEST = 8
LISTED = "GET /api/strategies lists every strategy with its fields."
MOST_CANDIDATES = 2**20
"""Candidates that the steps of one request may report: about 200 bytes each for as long as they are held."""


def resolved(strategy: Strategy) -> dict[str, Any]:
    """A strategy's name and all its fields, as JSON."""
    return {"name": strategy.name, **{k: plain(v) for k, v in to_dict(strategy).items()}}


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
            plainly = without_flags(re.sub(r"^\w+\.(\w+): ", r"\1 ", sentence))
            problems.setdefault(field_of(plainly, cls), []).append(printable(plainly))
        kinds = all(re.match(r"\w+\.\w+: must be (?!one of)", sentence) for sentence in error.problems)
        raise wrong(problems, 400 if kinds else 422, LISTED) from error


def read_fitted(
    given: Mapping[str, Any] | None, lm: CausalLM, limit: int, stated: Mapping[str, Any] | None = None
) -> tuple[Strategy, list[str]]:
    """As `read_strategy`, with thinking that fits the limit where nobody said how long it is to be.

    Args:
        given: Name and fields; None for the model's own strategy.
        lm: The model.
        limit: Steps of the whole request.
        stated: The fields that the client named itself; all of `given` if not told.

    Returns:
        The strategy, and a sentence for each field that was fitted.

    Raises:
        ApiError: As `read_strategy`.
    """
    stated = stated if stated is not None else given or {}
    told: list[str] = []
    total = (given or {}).get("T_total")
    if (
        given is not None
        and "T_e" not in given
        and isinstance(total, int)
        and given.get("name") in STRATEGIES.names()
    ):
        # The strategy itself would refuse its own default beside a smaller whole.
        fields = dataclasses.fields(STRATEGIES.find(given["name"]))
        usual: Any = next((f.default for f in fields if f.name == "T_e"), 0)
        if 0 < total < usual:
            told.append(_fitted_sentence(usual, total))
            given = {**given, "T_e": total // 2}
    strategy, more = _fit(read_strategy(given, lm), stated, limit)
    return strategy, told + more


def _fit(strategy: Any, stated: Mapping[str, Any], limit: int) -> tuple[Any, list[str]]:
    told: list[str] = []
    if "T_e" in field_names(type(strategy)) and "T_e" not in stated:
        total = strategy.T_total or limit
        if strategy.T_e > total:
            told.append(_fitted_sentence(strategy.T_e, total))
            strategy = dataclasses.replace(strategy, T_e=total // 2)
    inner = getattr(strategy, "inner", None)
    if isinstance(inner, Strategy):
        within = stated.get("inner")
        inner, more = _fit(inner, within if isinstance(within, Mapping) else {}, limit)
        if more:
            strategy, told = dataclasses.replace(strategy, inner=inner), told + more
    return strategy, told


def _fitted_sentence(usual: int, total: int) -> str:
    return f"T_e is {total // 2} instead of {usual}: half of the {total} tokens are left for the answer."


def candidate_problems(strategy: Strategy, steps: int) -> dict[str, list[str]]:
    """What is wrong, by field, if every step reports its candidates.

    Args:
        strategy: Of the request.
        steps: Most steps of a row.
    """
    inner, place = strategy, "strategy"
    while isinstance(nested := getattr(inner, "inner", None), Strategy):
        inner, place = nested, f"{place}.inner"
    answer = strategy.width * steps * TOP_SHOWN
    if {"k", "T_e"} <= set(field_names(type(inner))):
        name = "nucleus_cap" if getattr(inner, "base_mixture", "") == "nucleus" else "k"
        k, thinking = getattr(inner, name), inner.T_e  # type: ignore[attr-defined]
        # Those that decide about whole sequences hold all steps of their branches until the end.
        handed_on = k if isinstance(strategy, SequenceStrategy) else min(k, KEPT)
        if strategy.width * handed_on * thinking > MOST_CANDIDATES:
            rows = f" in {strategy.width} rows" if strategy.width > 1 else ""
            told = f" (of which {handed_on} are told)" if handed_on < k else ""
            sentence = (
                f"{{}}: {name} = {k}{told} times T_e = {thinking}{rows} are more than the {MOST_CANDIDATES} "
                "candidates that a request may trace; lower one of them, or ask for trace summary."
            )
            return {f"{place}.{field}": [sentence.format(field)] for field in (name, "T_e")}
    if answer > MOST_CANDIDATES:
        sentence = (
            f"max_new_tokens = {steps} in {strategy.width} rows are more than the {MOST_CANDIDATES // TOP_SHOWN} "
            "steps that a request may trace in full: lower it, or ask for trace summary."
        )
        return {"max_new_tokens": [sentence]}
    return {}


def strategy_refusal(body: Any, lm: CausalLM) -> ApiError | None:
    """What is wrong with the strategy in a body that is refused already, so that all is said at once.

    Args:
        body: Of any route.
        lm: The model.
    """
    own = body.get("unspoken") if isinstance(body, dict) else None
    given = (own if isinstance(own, dict) else body).get("strategy") if isinstance(body, dict) else None
    if not isinstance(given, dict) or "name" not in given:
        return None
    try:
        read_strategy(given, lm)
    except ApiError as error:
        prefix = "unspoken." if isinstance(own, dict) else ""
        fields = {prefix + name: sentences for name, sentences in error.fields.items()}
        return wrong(fields, error.status, error.hint)
    return None


def without_flags(sentence: str) -> str:
    """A sentence of the library in terms of fields: its hints are written for the command line."""
    sentence = re.sub(r"--[a-z][\w-]* \((\w+=[^)\s]*)\)", r"\1", sentence)  # a flag, and the field behind it
    return re.sub(r"--([A-Za-z][\w-]*)[= ]('[^']*'|[^\s),]+)", r"\1=\2", sentence)


def _find(name: Any, place: str) -> type[Strategy]:
    if not isinstance(name, str):
        raise wrong({place: [f"{place} must be named by a string."]}, 400)
    if name not in STRATEGIES.names():
        near = suggest(name, STRATEGIES.names())
        meant = f" Did you mean {near!r}?" if near else ""
        known = ", ".join(STRATEGIES.names())
        raise wrong(
            {place: [f"There is no strategy {printable(name, 80)!r}.{meant} Known: {known}."]}, hint=LISTED
        )
    found: type[Strategy] = STRATEGIES.find(name)
    return found


def _check_names(cls: type[Strategy], fields: Mapping[str, Any], place: str) -> None:
    """Strategies inside this one are known by name, too."""
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
        what = _unusable(value, 0) or ("is not readable as a name." if broken(key) else None)
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
        return "must be readable text (half of a surrogate pair was found)." if broken(value) else None
    if isinstance(value, (list, tuple)):
        items: list[Any] = list(value)
    elif isinstance(value, Mapping):
        items = [*value.keys(), *value.values()]
    else:
        return None
    if len(items) > 1000:
        return "must not have more than 1000 entries."
    return next((what for item in items if (what := _unusable(item, depth + 1)) is not None), None)


def field_of(sentence: str, strategy: Strategy | type[Strategy], other: str = "strategy") -> str:
    """The field that a sentence is about, as bodies call it."""
    cls = strategy if isinstance(strategy, type) else type(strategy)
    unknown = re.match(r"Unknown field '([^']*)'", sentence)
    if unknown:
        return f"strategy.{printable(unknown[1], 80)}"
    word = re.match(r"\w+", sentence)
    return f"strategy.{word[0]}" if word and word[0] in field_names(cls) else other


def broken(text: str) -> bool:
    """Whether it holds half of a surrogate pair, which no encoding can write."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
