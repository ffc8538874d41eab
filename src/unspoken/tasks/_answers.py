"""Grade an answer: read it from the text, then decide whether it equals the gold answer.

Equality is decided by the first of these that can: exact numbers, a normal form of the LaTeX text
(with lists, tuples and sets taken element by element), and math-verify in a process of its own. What
a model wrote is never evaluated as code.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection
from typing import NamedTuple

from unspoken.tasks._extract import ANSWER_IS, BOXED, LAST_NUMBER, Candidate, candidates, math_part, number_in
from unspoken.tasks._numbers import plain, read_number, same_number
from unspoken.tasks._verifier import MAX_CHARS, compare, verifier_available
from unspoken.types import Grade

__all__ = ["Verdict", "equal", "extract", "grade", "normal_form", "verifier_available"]


class Verdict(NamedTuple):
    """Whether two answers are equal, and what decided it.

    `how` is `exact` (numbers), `text` (normal forms), `math-verify`, or, when that could not decide and
    the answers therefore count as different: `math-verify timeout`, `math-verify failed`, or
    `without math-verify` (it is not installed).
    """

    equal: bool
    how: str


_HOW = {"equal": "math-verify", "different": "math-verify", "absent": "without math-verify"}
# Things in a box that only a formula reader can judge; words and currencies are not among them.
_FORMULA = re.compile(r"\\(?!text|mathrm|mbox|textbf|mathbf|\$|%|,|!|;|:|\s)|[\^*+]|(?<=\d)\s*[-/]\s*\d")


def extract(text: str, *, numeric: bool = False, rules: Collection[str] | None = None) -> Candidate | None:
    """Read the answer from the text of an answer phase.

    Args:
        text: The answer phase only.
        numeric: Whether the task's answers are numbers: a phrase is then narrowed down to the number it
            states, and candidates without any number are passed over.
        rules: The rules that may find it; None for all.

    Returns:
        The answer and the rule that found it, or None.
    """
    for candidate in candidates(text):
        if rules is not None and candidate.rule not in rules:
            continue
        if not numeric:
            phrase = candidate.text if candidate.rule == BOXED else math_part(candidate.text)
            phrase = phrase.rstrip(" \n.,;:") if candidate.rule == ANSWER_IS else phrase.strip()
            if phrase:
                return Candidate(candidate.rule, phrase)
            continue
        if read_number(candidate.text) is not None:
            return Candidate(candidate.rule, candidate.text.strip())
        if candidate.rule == BOXED and _FORMULA.search(candidate.text) and "=" not in candidate.text:
            return candidate
        number = number_in(candidate.text)
        if number is not None:
            return Candidate(candidate.rule, number)
    return None


def grade(
    gold: str,
    text: str,
    *,
    numeric: bool = False,
    truncated: bool = False,
    rules: Collection[str] | None = None,
) -> Grade:
    """Grade the text of an answer phase against a gold answer.

    A number that merely happens to stand last in a text cut off by the budget is no answer: it counts
    as `truncated`.
    """
    found = extract(text, numeric=numeric, rules=rules)
    if found is None or (truncated and found.rule == LAST_NUMBER):
        return Grade("truncated" if truncated else "unparsed")
    verdict = equal(gold, found.text)
    rule = found.rule if verdict.how in ("exact", "text") else f"{found.rule}, {verdict.how}"
    return Grade("correct" if verdict.equal else "wrong", found.text, rule)


def equal(gold: str, answer: str) -> Verdict:
    """Whether two answers are equal. The gold answer comes first: math-verify is not symmetric."""
    if gold == answer:
        return Verdict(True, "text")
    expected, number = read_number(gold), read_number(answer)
    if expected is not None and number is not None:
        return Verdict(same_number(expected, number), "exact")
    if max(len(gold), len(answer)) > MAX_CHARS:
        return Verdict(False, "text")
    left, right = normal_form(gold), normal_form(answer)
    if left == right and left:
        return Verdict(True, "text")
    elements = _same_elements(left, right)
    if elements is not None:
        return Verdict(elements, "text")
    if not left or not right or _is_words(gold, left) or _is_words(answer, right):
        return Verdict(False, "text")
    outcome = compare(plain(gold), plain(answer))
    return Verdict(outcome == "equal", _HOW.get(outcome, f"math-verify {outcome}"))


_WORDS = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_TRAILING_UNIT = re.compile(
    r"(?:(?<=[\d})])|(?<=[\w\d})])\s+(?=\\)|(?<=\w)(?=\\(?:text|mathrm|mbox)\s*\{\s))"
    r"\s*\\(?:text|mathrm|mbox)\s*\{[^{}]*\}(?:\^\{?[23]\}?)?$"
)
_REWRITES = [
    (re.compile(r"\\frac\s*([^\s{\\])\s*([^\s{\\])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*([^\s{\\])\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"(\\frac\s*\{[^{}]*\})\s*([^\s{\\])"), r"\1{\2}"),
    (re.compile(r"\\sqrt\s*([^\s{\[\\])"), r"\\sqrt{\1}"),
    (re.compile(r"\\frac\s*\{\s*-\s*"), r"-\\frac{"),
    (re.compile(r"(?<![\w}/.])(\d+)\s*/\s*(\d+)(?![\w{/.])"), r"\\frac{\1}{\2}"),
    (re.compile(r"(?<!\d)\.(?=\d)"), "0."),
    (re.compile(r"(\.\d*?)0+(?!\d)"), r"\1"),
    (re.compile(r"(?<=\d)\.(?!\d)"), ""),
    (re.compile(r"([_^])\{(\w)\}"), r"\1\2"),
    (re.compile(r"\\(le|ge|ne)(?![a-zA-Z])"), r"\\\1q"),
    (re.compile(r"\\(?:lbrace(?![a-zA-Z])|\{)"), r"\\{"),
    (re.compile(r"\\(?:rbrace(?![a-zA-Z])|\})"), r"\\}"),
    (re.compile(r"(?i)\s*,?\s*(?<![a-z\\])(?:and|or)(?![a-z])\s*"), ","),
    (re.compile(r"\s+|[$%]|degrees"), ""),
    (re.compile(r"^(?:[a-zA-Z]|[a-zA-Z]_\w)(?:=|\\in(?![a-z]))(?=[^=]+$)"), ""),
]


@functools.lru_cache(maxsize=16384)
def normal_form(text: str) -> str:
    """A LaTeX answer in one spelling: equal strings are equal answers, different ones may be too."""
    text = plain(text)
    shorter = _TRAILING_UNIT.sub("", text)
    text = _WORDS.sub(r" \1 ", shorter or text).strip()
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    if re.fullmatch(r"\([A-Za-z]\)", text):
        text = text[1:-1]
    return text.casefold() if text.isalpha() and len(text) > 1 else text


def _is_words(original: str, normal: str) -> bool:
    """Whether an answer is a word, such as a name inside a text command, which no formula equals."""
    if not re.fullmatch(r"[^\W\d_]{2,}", normal) or normal in ("pi", "infinity", "infty"):
        return False
    return "\\text" in original or "\\mbox" in original or len(normal) > 3


_BRACKETS = {"(": ")", "[": "]", "\\{": "\\}", "{": "}"}


def _same_elements(left: str, right: str) -> bool | None:
    """Compare tuples, sets and bare lists element by element; None when that does not decide.

    Bare lists and sets have no order. Two lists with the same brackets whose elements are all numbers
    are decided either way; anything else only when all elements agree.
    """
    ours, theirs = _split(left), _split(right)
    if ours is None or theirs is None or ours[0] != theirs[0]:
        return None
    kind, a, b = ours[0], ours[1], list(theirs[1])
    agree = len(a) == len(b)
    for index, item in enumerate(a):
        if not agree:
            break
        if kind == "set":
            match = next((other for other in b if _same_item(item, other)), None)
            agree = match is not None
            if match is not None:
                b.remove(match)
        else:
            agree = _same_item(item, b[index])
    if agree:
        return True
    return False if all(read_number(item) is not None for item in [*a, *theirs[1]]) else None


def _same_item(a: str, b: str) -> bool:
    x, y = read_number(a), read_number(b)
    return same_number(x, y) if x is not None and y is not None else a == b


def _split(text: str) -> tuple[str, tuple[str, ...]] | None:
    """The kind of a list (its brackets, or `set`) and its elements; None for a single thing."""
    kind = "set"
    for opening in _BRACKETS:
        if text.startswith(opening):
            closing = next((c for c in _BRACKETS.values() if text.endswith(c)), None)
            braces = opening in ("{", "\\{")
            if closing is None or braces != (closing in ("}", "\\}")):
                return None
            body = text[len(opening) : -len(closing)]
            if not braces:
                kind = opening + closing
            break
    else:
        body = text
    items, depth, current = [], 0, ""
    for char in body:
        depth += (char in "([{") - (char in ")]}")
        if depth < 0:
            return None  # `(1,2),(3,4)`: the outer brackets are not one pair
        if char == "," and depth == 0:
            items.append(current)
            current = ""
        else:
            current += char
    items.append(current)
    return (kind, tuple(items)) if len(items) > 1 and all(items) else None
