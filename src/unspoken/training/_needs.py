"""Options that act only beside others: declared in tables, so that one that would do nothing is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Need:
    """Options that do nothing unless something holds.

    Attributes:
        names: The options, separated by spaces.
        holds: Whether they act, for a configuration.
        what: What must hold, to stand after "acts only with"; `{m.FIELD}` shows a field of the configuration.
    """

    names: str
    holds: Callable[[Any], bool]
    what: str


def idle(config: Any, needs: Sequence[Need], defaults: Mapping[str, Any]) -> list[str]:
    """The options that were given and would do nothing, each as one sentence.

    Args:
        config: A dataclass, all of whose fields are set.
        needs: What its options need; one without an entry always acts.
        defaults: Value of each option where nobody gives it; such a value is never refused.
    """
    return [
        f"{name} {_shown(getattr(config, name))} would do nothing: it acts only with {need.what.format(m=config)}."
        for need in needs
        for name in need.names.split()
        if getattr(config, name) != defaults[name] and not need.holds(config)
    ]


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
