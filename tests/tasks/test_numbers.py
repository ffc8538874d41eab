from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspoken.tasks._answers import Verdict, equal
from unspoken.tasks._numbers import read_number

NUMBERS = [
    ("5", "5"),
    ("+5", "5"),
    ("-5", "-5"),
    ("\u22125", "-5"),
    ("1,234", "1234"),
    (r"\$18.00", "18"),
    ("$18$", "18"),
    ("-$5", "-5"),
    ("$-5", "-5"),
    ("18 dollars", "18"),
    ("18kg", "18"),
    ("5 m", "5"),
    ("$5/hour", "5"),
    ("2.5 million", "2500000"),
    ("3 times as many", "3"),
    ("**18**.", "18"),
    (".0000672", "21/312500"),
    ("1e3", "1000"),
    (r"1.5 \times 10^{3}", "1500"),
    (r"1.5 \cdot 10^{-3}", "3/2000"),
    ("14/3", "14/3"),
    (r"\frac{14}{3}", "14/3"),
    (r"-\frac{35}{9}", "-35/9"),
    (r"\frac{-1}{3}", "-1/3"),
    (r"\frac43", "4/3"),
    (r"\frac 59", "5/9"),
    (r"\frac{270}7\text{ degrees}", "270/7"),
    (r"\dfrac{17}{50}", "17/50"),
    (r"\tfrac{1,000}{3}", "1000/3"),
    (r"2\frac{1}{3}", "7/3"),
    ("2 1/3", "7/3"),
    ("-2 1/2", "-5/2"),
    ("2 and 1/2", "5/2"),
    (r"10,\!080", "10080"),
    (r"11,\! 111,\! 111,\! 100", "11111111100"),
    (r"\$32,\!348", "32348"),
    (r"1\,000", "1000"),
    ("1{,}000", "1000"),
    (r"90^\circ", "90"),
    (r"90^{\circ}", "90"),
    ("90\u00b0", "90"),
    (r"6\text{ cm}^2", "6"),
    ("x=5", "5"),
    ("x_1 = 5", "5"),
    ("48+24=72 clips", "72"),
    ("(5)", "5"),
    (r"\(5\)", "5"),
]


@pytest.mark.parametrize(("text", "value"), NUMBERS)
def test_numbers_are_read_exactly(text: str, value: str) -> None:
    number = read_number(text)
    assert number is not None and number.value == Fraction(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "five",
        "5 pi",
        "2k",
        "2 ab",
        "5x",
        "12 and 15",
        "3, 5, 7",
        "1,2",
        "1/0",
        r"\frac{1}{0}",
        "5x - 7y + 11z + 4 = 0",
        "52_8",
        "6 - 5i",
        r"3\sqrt{13}",
        "5 squared",
        "2 dozen",
        "18 dollars and 50 cents",
        "9" * 500,
        "1e999999",
        "--5",
    ],
)
def test_what_is_not_one_number_is_not_read_as_one(text: str) -> None:
    assert read_number(text) is None


def _commas(value: Fraction) -> str:
    return f"{value.numerator:,}" if value.denominator == 1 else f"{value.numerator:,}/{value.denominator:,}"


def _latex(command: str) -> Callable[[Fraction], str]:
    def write(value: Fraction) -> str:
        sign = "-" if value < 0 else ""
        return f"{sign}\\{command}{{{abs(value.numerator)}}}{{{value.denominator}}}"

    return write


def _mixed(value: Fraction) -> str:
    whole, rest = divmod(abs(value.numerator), value.denominator)
    return ("-" if value < 0 else "") + f"{whole}\\frac{{{rest}}}{{{value.denominator}}}"


FORMS: list[Callable[[Fraction], str]] = [
    str,
    _commas,
    _latex("frac"),
    _latex("dfrac"),
    _latex("tfrac"),
    _mixed,
    lambda v: f"${v}$",
    lambda v: f"\\({v}\\)",
    lambda v: f"x = {v}",
    lambda v: f"{v} apples",
    lambda v: f"{v}\\text{{ apples}}",
    lambda v: f"\\left( {v} \\right)",
    lambda v: f"{v}.",
    lambda v: f"{v}^\\circ",
]
rationals = st.fractions(min_value=-(10**6), max_value=10**6, max_denominator=10**4)


@given(rationals, st.sampled_from(FORMS), st.sampled_from(FORMS))
def test_a_rational_equals_itself_in_every_form(value: Fraction, a: Callable, b: Callable) -> None:
    assert equal(a(value), b(value)) in (Verdict(True, "exact"), Verdict(True, "text"))


@given(rationals, rationals, st.sampled_from(FORMS), st.sampled_from(FORMS))
def test_different_rationals_differ_in_every_form(x: Fraction, y: Fraction, a: Callable, b: Callable) -> None:
    assert equal(a(x), b(y)).equal == (x == y)


@given(st.decimals(min_value=-1000, max_value=1000, places=6), st.integers(-(10**9), 10**9))
def test_decimals_and_scientific_notation(value: object, other: int) -> None:
    assert equal(f"{value}", f"{value:e}").equal
    assert equal(f"{other}", f"{other:.12e}").equal


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("1/3", "0.333333", True),
        ("1/3", "0.3333", False),
        ("5", "5.0000001", True),
        ("1/3", "333333/1000000", False),  # fractions are exact
        ("10000000", "10000001", False),
        (".0000672", ".0000673", False),  # small numbers stay apart
        (".0000672", "6.72e-5", True),
        ("0", "0.0000001", True),
        (r"50\%", "50", True),
        (r"50\%", "0.5", True),
        ("50", "0.5", False),
        (r"50\%", r"5\%", False),
    ],
)
def test_tolerance_and_percent(gold: str, answer: str, same: bool) -> None:
    assert equal(gold, answer) == (same, "exact")
    assert equal(answer, gold).equal == same
