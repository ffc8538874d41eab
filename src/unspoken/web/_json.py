"""Bodies that every reader understands alike: no name twice, no numbers that JSON does not have."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from unspoken.web._errors import ApiError, printable

MOST_DIGITS = 100
"""Of a whole number: more than any field allows, and few enough to be read at once."""


def check(body: bytes) -> None:
    """Refuse what JSON readers do not agree about; what is no JSON at all is left to whoever reads it next.

    Args:
        body: A request's body.

    Raises:
        ApiError: 400 for names that come twice, NaN, infinities, numbers of endless digits, endless nesting.
    """
    try:
        json.loads(
            body, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_float, parse_int=_int
        )
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply.") from None
    except ValueError:
        return


def _once(pairs: list[tuple[str, Any]]) -> None:
    """The hook's values are not used: only the names count."""
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            shown = printable(name, 80)
            sentence = f"{shown} is given twice."
            raise ApiError(400, sentence, "Give each name once.", {shown: [sentence]})
        seen.add(name)


def _no_number(name: str) -> NoReturn:
    raise ApiError(400, f"{name} is no number in JSON.", "Numbers must be finite.")


def _float(digits: str) -> None:
    if not math.isfinite(float(digits)):
        raise ApiError(400, f"The number {printable(digits, 40)} is too large.", "Numbers must be finite.")


def _int(digits: str) -> None:
    if len(digits) > MOST_DIGITS:
        raise ApiError(400, f"A whole number of {len(digits)} digits is too large.")
