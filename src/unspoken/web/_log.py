"""What the server tells whoever runs it: one place, on its standard error, in ASCII."""

from __future__ import annotations

import sys
import traceback


def say(line: str) -> None:
    """Write a line; text of a request in it cannot command the terminal."""
    sys.stderr.write(line.encode("ascii", "backslashreplace").decode() + "\n")
    sys.stderr.flush()


def failure(where: str, error: BaseException) -> None:
    """Tell of an error that nobody caused on purpose, with its traceback.

    Args:
        where: What was being done.
        error: The error.
    """
    say(f"{where}: {type(error).__name__}: {error}")
    for line in "".join(traceback.format_exception(error)).rstrip().split("\n"):
        say(f"  {line}")
