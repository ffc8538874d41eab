r"""A strict grader for LaTeX answers: boxed answers only, and little tolerance for another form.

Published accuracies on MATH come from graders of this kind, so it is the one to quote beside them. A gold
answer and an answer are equal if one of these finds so, in this order:

1. one spelling of LaTeX (`spelling`): layout, `\dfrac`, `\frac12`, `14/3`, short `x=` prefixes, units;
2. one plain text (`plain_text`): fractions, roots and words as text, thousands commas, integers, lower case;
3. tuples and intervals element by element: their brackets and lengths must be the same, two plain fractions
   must be written the same (2/4 is not 1/2), an integer equals only an integer, and anything else is left to
   sympy's `simplify(a - b) == 0`, for expressions with at most two letters and simple exponents.

Lists without brackets, sets, unions and matrices are equal only as texts. Sympy runs in a process of its own
that is killed after five seconds; what it cannot decide is wrong.
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from unspoken.tasks._extract import BOXED, Candidate
from unspoken.tasks._verifier import MAX_CHARS, shared

__all__ = ["Outcome", "boxed", "equal", "plain_text", "spelling"]

_WORKER = Path(__file__).with_name("_strict_worker.py")
_DEEPEST = 40  # braces inside braces that are still read
_MOST = 150  # commands and exponents: each may be the argument of the one before, without braces


class Outcome(NamedTuple):
    """Whether two answers are equal, and what decided it: `text`, `sympy`, `sympy timeout` or `sympy failed`."""

    equal: bool
    how: str


def boxed(text: str) -> Candidate | None:
    r"""The content of the last `\boxed{}`, or None.

    Only the last box counts, even if it is never closed; `\boxed 5` and `\fbox{5}` are none. Of a box inside
    a box it is the inner one.
    """
    start = text.rfind("\\boxed")
    opening = start + len("\\boxed")
    if start < 0 or text[opening : opening + 1] != "{":
        return None
    end = _closing(text, opening)
    content = text[opening + 1 : end].strip() if end is not None else ""
    return Candidate(BOXED, content) if content else None


def equal(gold: str, answer: str) -> Outcome:
    """Whether an answer equals the gold one."""
    left, right = spelling(gold), spelling(answer)
    if left == right and left:
        return Outcome(True, "text")
    if max(len(gold), len(answer)) > MAX_CHARS:
        return Outcome(False, "text")
    left, right = plain_text(gold), plain_text(answer)
    if left == right and left:
        return Outcome(True, "text")
    ours, theirs = _elements(left), _elements(right)
    if ours[0] != theirs[0] or len(ours[1]) != len(theirs[1]):
        return Outcome(False, "text")
    how = "text"
    for a, b in zip(ours[1], theirs[1], strict=True):
        outcome = _same_element(a, b)
        if not outcome.equal:
            return outcome
        how = outcome.how if outcome.how != "text" else how
    return Outcome(True, how)


_SPELLINGS = [
    (re.compile(r"\n|\\!"), ""),
    (re.compile(r"\\[dt]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:left|right)(?![a-zA-Z])"), ""),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|\\degree(?![a-zA-Z])"), ""),
    (re.compile(r"\\[$%]"), ""),
    (re.compile(r"(?<=.)\\text\s*\{\s[^{}]*\}\s*$"), ""),  # a unit, which begins with a space
    (re.compile(r"^\s*[^\s=]{1,2}\s*=(?=[^=]+$)"), ""),
    (re.compile(r"\\sqrt\s*([^\s{\[\\])"), r"\\sqrt{\1}"),
    (re.compile(r"\\frac\s*([^\s{\\])\s*([^\s{\\])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*([^\s{\\])\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"(\\frac\s*\{[^{}]*\})\s*([^\s{\\])"), r"\1{\2}"),
    (re.compile(r"^\s*0?\.5\s*$"), "1/2"),
    # Before spaces go: `7 3/4` is not 73/4.
    (re.compile(r"^\s*(-?\d+)\s*/\s*(-?\d+)\s*$"), r"\\frac{\1}{\2}"),
    (re.compile(r"\s+"), ""),
]


@functools.lru_cache(maxsize=16384)
def spelling(text: str) -> str:
    """A LaTeX answer in one spelling."""
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    return text


_UNITS = (
    "degrees?|deg|millimet(?:er|re)s?|centimet(?:er|re)s?|kilomet(?:er|re)s?|met(?:er|re)s?|mm|cm|km|miles?|"
    "inch(?:es)?|feet|foot|ft|yards?|seconds?|minutes?|hours?|days?|weeks?|months?|years?|grams?|kilograms?|kg|"
    "pounds?|ounces?|lit(?:er|re)s?|gallons?|mph|dollars?|cents?|percent|units?"
)
_PLAINER = [
    (re.compile(r"(?<![a-z])(?:or|and)(?![a-z])"), ","),
    (re.compile(r"(?<=\d)\s*million(?![a-z])"), "*10^6"),
    (re.compile(r"(?<=\d)\s*billion(?![a-z])"), "*10^9"),
    (re.compile(rf"(?<![a-z])(?:(?:square|cubic|sq)\s+)?(?:{_UNITS})(?![a-z])(?:\^[23])?"), ""),
    (re.compile(r"[$%°]"), ""),
    (re.compile(r"^\s*(-?)\s*(\d+)\s+(\d+)/(\d+)\s*$"), r"\1(\2+\3/\4)"),
    (re.compile(r"\s+"), ""),
    (re.compile(r"(?<![\w)^])\(-(\d+)\)/(\d+)"), r"-\1/\2"),
]
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)")


@functools.lru_cache(maxsize=16384)
def plain_text(text: str) -> str:
    """A LaTeX answer as plain text in lower case, without units, spaces and thousands commas."""
    nested = sum(map(text.count, "\\^_"))
    if text.count("{") > _DEEPEST or nested > _MOST or len(text) > MAX_CHARS:
        return text
    text = _converted(text).lower()
    for pattern, replacement in _PLAINER:
        text = pattern.sub(replacement, text)
    if text[:1] not in ("(", "[", "{"):  # where a comma separates elements
        text = _THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)
    whole = _whole(text)
    return text if whole is None else str(whole)


def _whole(text: str) -> int | None:
    """The integer that a text states, such as `5.0`."""
    value = Fraction(text) if _NUMBER.fullmatch(text) else None
    return value.numerator if value is not None and value.denominator == 1 else None


_SIGNS = {
    "pi": "π", "infty": "∞", "cdot": "*", "times": "*", "div": "/", "le": "<=", "leq": "<=", "ge": ">=", "geq": ">=",
    "ne": "≠", "neq": "≠", "pm": "±", "cup": "∪", "cap": "∩", "in": "∈", "circ": "°", "degree": "°", "lbrace": "{",
    "rbrace": "}", "left": "", "right": "", "displaystyle": "", "quad": " ", "qquad": " ",
}  # fmt: skip
_WORDS = ("text", "textbf", "textit", "textrm", "mathrm", "mathbf", "mathit", "mbox", "operatorname")
_COMMAND = re.compile(r"\\([a-zA-Z]+|.)", re.DOTALL)
_SIMPLE = re.compile(r"\d+|[^\W\d_]")
_LAST_DIGITS = re.compile(r"(?<![\d.^_])\d+$")


def _converted(text: str) -> str:
    """LaTeX as plain text."""
    found, at = "", 0
    while at < len(text):
        is_fraction = re.match(r"\\[dt]?frac(?![a-zA-Z])", text[at:])
        piece, at = _element(text, at)
        digits = _LAST_DIGITS.search(found) if is_fraction else None
        if digits and re.fullmatch(r"\d+/\d+", piece):  # a mixed number
            piece = f"({digits.group()}+{piece})"
            found = found[: digits.start()]
        elif is_fraction and found[-1:].isdigit() and piece[:1].isdigit():
            found += "*"
        found += piece
    return found


def _element(text: str, at: int) -> tuple[str, int]:
    """One thing of a formula as plain text, and where the next begins."""
    char = text[at]
    if char == "{":
        end = _closing(text, at)
        return (char, at + 1) if end is None else (_converted(text[at + 1 : end]), end + 1)
    if char in "^_":
        argument, at = _argument(text, at + 1)
        return (argument, at) if argument == "°" else (char + _atom(argument), at)
    match = _COMMAND.match(text, at)
    if match is None:
        return (" " if char == "~" or char.isspace() else char), at + 1
    return _command(match.group(1), text, match.end())


def _command(name: str, text: str, at: int) -> tuple[str, int]:
    if name in ("frac", "dfrac", "tfrac"):
        top, at = _argument(text, at)
        bottom, at = _argument(text, at)
        return f"{_atom(top)}/{_atom(bottom)}", at
    if name == "sqrt":
        index = re.compile(r"\s*\[([^\]]*)\]").match(text, at)
        radicand, at = _argument(text, index.end() if index else at)
        return (f"({radicand})^(1/{_atom(index.group(1))})" if index else f"√({radicand})"), at
    if name in _WORDS:
        return _argument(text, at)
    if name in "{}$%&":
        return name, at
    if not name.isalpha():
        return ("" if name == "!" else " "), at  # thin spaces and their like
    return _SIGNS.get(name, f"\\{name} "), at


def _argument(text: str, at: int) -> tuple[str, int]:
    while at < len(text) and text[at].isspace():
        at += 1
    return _element(text, at) if at < len(text) else ("", at)


def _atom(text: str) -> str:
    return text if _SIMPLE.fullmatch(text) else f"({text.strip()})"


def _closing(text: str, opening: int) -> int | None:
    """Where the brace that opens here closes."""
    depth, at = 0, opening
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == "{":
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if depth == 0:
                return at
        at += 1
    return None


def _elements(text: str) -> tuple[str, list[str]]:
    """The brackets of a tuple or interval and its elements; one element without brackets otherwise."""
    whole = ("", [text])
    if text[:1] not in ("(", "[") or text[-1:] not in (")", "]"):
        return whole
    items, depth = [""], 0
    for char in text[1:-1]:
        depth += (char in "([{") - (char in ")]}")
        if depth < 0:
            return whole
        if char == "," and depth == 0:
            items.append("")
        else:
            items[-1] += char
    return (text[0] + text[-1], items) if len(items) > 1 else whole


_FRACTION = re.compile(r"-?\d+/\d+")
_EXPRESSION = re.compile(r"[0-9a-zπ√+\-*/^().]+")
_HEAVY = re.compile(r"\^[({]|\^\d\d|\^\w?\^")


def _same_element(a: str, b: str) -> Outcome:
    if a == b:
        return Outcome(bool(a), "text")
    if _FRACTION.fullmatch(a) and _FRACTION.fullmatch(b):
        return Outcome(False, "text")
    ours, theirs = _whole(a), _whole(b)
    if ours is not None or theirs is not None:
        return Outcome(ours == theirs, "text")
    if not (_symbolic(a) and _symbolic(b)):
        return Outcome(False, "text")
    verdict = _compare(a, b)
    if verdict in ("timeout", "failed"):
        return Outcome(False, f"sympy {verdict}")
    return Outcome(verdict == "equal", "sympy")


def _symbolic(text: str) -> bool:
    """Whether sympy is asked about this expression."""
    if not _EXPRESSION.fullmatch(text) or _HEAVY.search(text):
        return False
    return len({char for char in text if "a" <= char <= "z"}) <= 2


@functools.lru_cache(maxsize=16384)
def _compare(a: str, b: str) -> str:
    return shared(_WORKER).compare(a, b)
