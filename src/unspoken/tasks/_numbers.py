"""Read a number the way people and models write one, exactly."""

from __future__ import annotations

import functools
import re
from fractions import Fraction
from typing import NamedTuple

TOLERANCE = Fraction(1, 10**6)
_MAX_CHARS = 200  # longer texts are not numbers
_MAX_EXPONENT = 1000  # beyond it a literal is not expanded


class Number(NamedTuple):
    """A number and how it was written.

    Attributes:
        value: Its exact value.
        exact: Whether it was written as an integer or a fraction; a decimal may be rounded.
        percent: Whether it carried a percent sign; `value` is the number in front of it.
    """

    value: Fraction
    exact: bool
    percent: bool = False


_INTEGER = re.compile(r"[-+]?\d{1,30}")
_CURRENCY = r"(?:\$|\u20ac|\u00a3|\u00a5|\u20b9|USD|EUR|GBP|Rs\.?)"
_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+(?:\.\d*)?|\.\d+)"
_PART = rf"(?:\{{\s*(?:[-+]?\s*{_DECIMAL})\s*\}}|\d)"
_FORM = re.compile(
    rf"(?P<sign>[-+]?)\s*{_CURRENCY}?\s*(?P<inner_sign>[-+]?)\s*(?:"
    rf"(?:(?P<whole>\d+)\s*(?:\+|and)?\s*)?\\frac\s*(?P<top>{_PART})\s*(?P<bottom>{_PART})"
    rf"|(?:(?P<whole2>\d+)\s+(?:and\s+)?)?(?P<top2>{_DECIMAL})\s*/\s*(?P<bottom2>{_DECIMAL})"
    rf"|(?P<decimal>{_DECIMAL})"
    r"(?:[eE](?P<exp>[-+]?\d{1,6})|\s*\*\s*10\s*\^\s*(?P<power>\{\s*[-+]?\d{1,6}\s*\}|[-+]?\d))?"
    rf")(?:\s*(?P<percent>%|per\s?cent\b))?(?:\s*{_CURRENCY})?(?P<tail>\s*/?\s*[A-Za-z(][A-Za-z ,.'/()-]*)?"
)
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_SPACES = re.compile(r"\\[;: ]|~|\\q?quad(?![a-zA-Z])")
_UNIT_POWER = re.compile(r"(?<=[A-Za-z])\s*(?:\^\s*(?:\{\s*[23]\s*\}|[23])|[\u00b2\u00b3])")
_VARIABLE = re.compile(r"\s*[A-Za-z](?:_\w|_\{\w+\})?\s*")
_ARITHMETIC = re.compile(r"[\s\d.,+\-*/()=$%]*\d[\s\d.,+\-*/()=$%]*")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Short words after a number that are units; other words of one or two letters may be variables.
_SHORT_UNITS = _words(
    "m g h s l mm cm dm km mg kg ml cl ft in yd mi lb oz hr am pm of a an so as at by on is it if he we"
)
_ATTACHED_UNITS = _words(
    "mm cm dm km mg kg ml ft in yd mi lb lbs oz hr hrs min mins sec secs am pm mph kph pm kwh degrees"
)
# Words after a number that make it another number, or say that it is not the whole answer.
_NOT_UNITS = _words(
    "pi sqrt plus minus over squared cubed factorial sin cos tan cot sec csc log exp infinity infty mod base "
    "and or to half halves third thirds quarter quarters fourth fourths fifth fifths tenth tenths "
    "hundredths thousandths dozen"
)
_SCALES = {
    "hundred": 100,
    "thousand": 1000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}


def plain(text: str) -> str:
    """A formula without delimiters, layout commands and emphasis; the same value, easier to read."""
    text = text.strip()
    for _ in range(4):
        before = text
        text = text.rstrip(" \t\n.,;:!?").strip("*`").strip()
        for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
            if (
                len(text) > len(opening) + len(closing)
                and text.startswith(opening)
                and text.endswith(closing)
            ):
                inner = text[len(opening) : -len(closing)]
                if opening not in inner:
                    text = inner.strip()
        if text == before:
            break
    text = text.replace("\u2212", "-").replace("\u00d7", "*").replace("\u00b7", "*").replace("\u00a0", " ")
    if "\\" in text or "{" in text or "~" in text:
        text = re.sub(r"\\displaystyle(?![a-zA-Z])|\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?", "", text)
        text = re.sub(r"\\!\s*", "", text).replace("{,}", ",").replace("\\$", "$").replace("\\%", "%")
        text = re.sub(r"(?<=\d)\\,(?=\d{3}(?!\d))", "", text).replace("\\,", " ")
        text = _SPACES.sub(" ", text)
        text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
        text = re.sub(r"\\(?:times|cdot)(?![a-zA-Z])", "*", text)
    if "\u00b0" in text or "circ" in text or "degree" in text:
        text = re.sub(
            r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|\\degrees?(?![a-zA-Z])|\u00b0", " degrees ", text
        )
    return text


@functools.lru_cache(maxsize=16384)
def read_number(text: str) -> Number | None:
    r"""The number a text states, or None if it is not one number (with or without unit).

    Reads integers, decimals, scientific notation, `a/b`, `\frac`, `\dfrac`, `\tfrac`, mixed numbers,
    thousands commas, currencies, percent, units and words after the number, and a leading `x =` or
    sum such as `48 + 24 =`.
    """
    if len(text) > _MAX_CHARS:
        return None
    if _INTEGER.fullmatch(text):
        return Number(Fraction(int(text)), exact=True)
    text = plain(text)
    if "=" in text:
        left, _, text = text.rpartition("=")
        if not (_VARIABLE.fullmatch(left) or _ARITHMETIC.fullmatch(left)):
            return None
        text = text.strip()
    text = _UNIT_POWER.sub("", _TEXT.sub(r" \1 ", text)).strip().rstrip(" .")
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1].strip()
    form = _FORM.fullmatch(text)
    if form is None or (form["sign"] and form["inner_sign"]):
        return None
    scale = _tail_scale(form["tail"]) if form["tail"] else 1
    value = _value(form)
    if value is None or scale is None:
        return None
    if "-" in (form["sign"], form["inner_sign"]):
        value = -value
    exact = form["decimal"] is None or (form["decimal"].replace(",", "").isdigit() and form["exp"] is None)
    return Number(value * scale, exact=exact, percent=form["percent"] is not None)


def _value(form: re.Match[str]) -> Fraction | None:
    """The absolute value of a matched number, or None (zero denominator, huge exponent)."""
    if form["decimal"] is not None:
        exponent = int((form["exp"] or form["power"] or "0").strip("{} "))
        if abs(exponent) > _MAX_EXPONENT:
            return None
        return _decimal(form["decimal"]) * Fraction(10) ** exponent
    top = _decimal(form["top"] or form["top2"])
    bottom = _decimal(form["bottom"] or form["bottom2"])
    whole = form["whole"] or form["whole2"]
    if bottom == 0 or (whole is not None and not 0 <= top < bottom):
        return None
    return Fraction(int(whole or 0)) + top / bottom


def _decimal(text: str) -> Fraction:
    return Fraction(text.strip("{} ").replace(",", "").replace(" ", "").rstrip("."))


def _tail_scale(tail: str) -> int | None:
    """What the words after a number multiply it by; None when they are not units."""
    words = re.findall(r"[a-z]+", tail.lower())
    if not words or _NOT_UNITS.intersection(words):
        return None
    if any(len(word) <= 2 and word not in _SHORT_UNITS for word in words):
        return None
    if tail[0].isalpha() and words[0] not in _ATTACHED_UNITS:
        return None
    if tail.lstrip().startswith("/") and len(words[0]) < 3:
        return None  # `3/m` may be a quotient
    return _SCALES.get(words[0], 1)


def same_number(a: Number, b: Number) -> bool:
    """Whether two numbers are the same answer.

    Integers and fractions must be equal; where a decimal takes part, a difference up to 1e-6 is allowed
    (for numbers below 1/1000: up to a thousandth of the number, so that small ones stay distinct). When
    only one side has a percent sign, it may mean the number or a hundredth of it.
    """
    if a.percent != b.percent:
        with_sign, other = (a, b) if a.percent else (b, a)
        return _close(with_sign, other) or _close(with_sign._replace(value=with_sign.value / 100), other)
    return _close(a, b)


def _close(a: Number, b: Number) -> bool:
    if a.value == b.value:
        return True
    if a.exact and b.exact:
        return False
    larger = max(abs(a.value), abs(b.value))
    relative = larger / 1000 if a.value and b.value else TOLERANCE
    return abs(a.value - b.value) <= min(TOLERANCE, relative)
