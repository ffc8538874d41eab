"""Which grader decides, and which answers it reads: the options `grader` and `extract` of tasks.

`default` is exact numbers, normal forms and then math-verify (`_answers`); `strict` is comparable with
published accuracies on MATH (`_strict`). Graders differ by points of accuracy on the same texts, so that a
task can give both.
"""

from __future__ import annotations

import importlib.util
from typing import Literal

from unspoken.tasks import _answers, _strict
from unspoken.tasks._extract import BOXED, LAST_NUMBER, Candidate, last_number
from unspoken.types import Grade

Grader = Literal["default", "strict", "both"]
Extract = Literal["auto", "boxed", "boxed_or_last_number"]
_RULES = {"auto": None, "boxed": (BOXED,), "boxed_or_last_number": (BOXED, LAST_NUMBER)}
_INSTALL = "Run: pip install 'unspoken[eval]'"


def problems(grader: Grader) -> list[str]:
    """What is not installed that a grader needs."""
    found = []
    if grader != "default" and importlib.util.find_spec("sympy") is None:
        found.append(f"grader={grader!r} needs the package 'sympy', which is not installed. {_INSTALL}")
    if grader == "both" and importlib.util.find_spec("math_verify") is None:
        found.append(f"grader='both' needs the package 'math_verify', which is not installed. {_INSTALL}")
    return found


def grade(
    grader: Grader,
    extract: Extract,
    gold: str,
    text: str,
    *,
    numeric: bool = False,
    truncated: bool = False,
) -> Grade:
    """Grade the text of an answer phase.

    Args:
        grader: `both` is graded as `default`, with the strict grade beside it.
        extract: Which answers are read; `auto` leaves it to the grader (`strict`: boxed only).
        gold: The gold answer.
        text: The answer phase only.
        numeric: Whether the default grader narrows an answer down to a number.
        truncated: Whether the budget ended the text.
    """
    if grader == "strict":
        return _strict_grade(extract, gold, text, truncated)
    default = _answers.grade(gold, text, numeric=numeric, truncated=truncated, rules=_RULES[extract])
    if grader == "default":
        return default
    strict = _strict_grade(extract, gold, text, truncated)
    return Grade(default.status, default.answer, default.rule, {"strict": strict})


def equivalent(grader: Grader, a: str, b: str) -> bool:
    """Whether two answers are the same for the grader that decides."""
    return _strict.equal(a, b).equal if grader == "strict" else _answers.equal(a, b).equal


def forms(grader: Grader, extract: Extract) -> tuple[str, ...]:
    """How a gold answer may be written so that it is read."""
    reads_phrases = grader == "default" and extract == "auto"
    return ("\\boxed{{{}}}", "The answer is {}") if reads_phrases else ("\\boxed{{{}}}",)


def _strict_grade(extract: Extract, gold: str, text: str, truncated: bool) -> Grade:
    found = _strict.boxed(text)
    if found is None and extract == "boxed_or_last_number" and not truncated:
        number = last_number(text)
        found = Candidate(LAST_NUMBER, number) if number is not None else None
    if found is None:
        return Grade("truncated" if truncated else "unparsed")
    outcome = _strict.equal(gold, found.text)
    rule = found.rule if outcome.how == "text" else f"{found.rule}, {outcome.how}"
    return Grade("correct" if outcome.equal else "wrong", found.text, rule)
