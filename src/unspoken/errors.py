"""Errors that say what was given, what is allowed, and what to type next.

Everything a user can cause derives from `UnspokenError`. Commands print `str(error)` and exit with
`error.exit_code`: 2 for a mistake in what was typed, 1 for a run that failed.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Sequence
from types import ModuleType


class UnspokenError(Exception):
    """A problem with a message for the user and, where there is one, the next thing to type.

    Args:
        message: What was given and what is allowed.
        hint: What to do next, usually a command line.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class ConfigError(UnspokenError):
    """One or more mistakes in a configuration; all of them are listed at once."""

    exit_code = 2

    def __init__(self, problems: Sequence[str] | str, hint: str | None = None) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        if len(self.problems) == 1:
            message = self.problems[0]
        else:
            message = f"{len(self.problems)} problems:\n" + "\n".join(f"  - {p}" for p in self.problems)
        super().__init__(message, hint)


class UnknownNameError(ConfigError):
    """A strategy, task, model, field or command that does not exist."""


class MissingExtraError(UnspokenError):
    """An optional package is needed and not installed."""


class ModelError(UnspokenError):
    """A model that cannot be loaded, or whose parts cannot be found and proven."""


class DataError(UnspokenError):
    """A data file or data set that cannot be used."""


class RunError(UnspokenError):
    """A run that could not be completed; what was finished is kept."""


def suggest(name: str, known: Iterable[str]) -> str | None:
    """The known name nearest to `name`, or None when nothing is near."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown_name(kind: str, name: str, known: Iterable[str], hint: str | None = None) -> UnknownNameError:
    """The error for a name that is not among the known ones, with the nearest suggestion."""
    known = sorted(known)
    near = suggest(name, known)
    meant = f" Did you mean {near!r}?" if near else ""
    return UnknownNameError(f"Unknown {kind} {name!r}.{meant} Known: {', '.join(known) or 'none'}.", hint)


def require(module: str, extra: str, needed_for: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: The dotted module name.
        extra: The extra of this package that installs it.
        needed_for: What the user asked for, for the message.

    Raises:
        MissingExtraError: If it is not installed; the hint is the install line.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{needed_for} needs the package {module.partition('.')[0]!r}, which is not installed ({error}).",
            f"Run: pip install 'unspoken[{extra}]'",
        ) from error
