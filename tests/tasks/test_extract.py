from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unspoken.tasks._answers import extract, grade
from unspoken.tasks._extract import boxes, last_number

LATEX = [
    (r"so \boxed{\frac{3}{4}} it is", "boxed", r"\frac{3}{4}"),
    (r"\boxed{1} or rather \boxed{2}", "boxed", "2"),
    (r"\fbox{7}", "boxed", "7"),
    (r"\boxed 5.", "boxed", "5"),
    (r"\boxed \frac{1}{2}", "boxed", r"\frac{1}{2}"),
    (r"\boxed{{5}}", "boxed", "5"),
    (r"\boxed{\boxed{3}}", "boxed", "3"),
    (r"\\boxed{8}", "boxed", "8"),
    (r"\boxed{9} and put it in \boxed{}", "boxed", "9"),
    (r"\boxed{4} and \boxed{unclosed", "boxed", "4"),
    (r"\boxed{\{1,2\}}", "boxed", r"\{1,2\}"),
    ("<answer>12</answer> #### 13", "answer_tag", "12"),
    ("twelve is 12</answer>", "answer_tag", "twelve is 12"),
    ("#### 3\nno: #### 4\nbye", "hashes", "4"),
    (r"The answer is $\frac{1}{2}$.", "answer_is", r"\frac{1}{2}"),
    ("**Answer:** 18", "answer_is", "18"),
    ("The answer to the question is: x = 5. Done", "answer_is", "x = 5"),
    (r"The answer is 11,\! 111", "answer_is", r"11,\! 111"),
    ("ANSWER: 3.5", "answer_is", "3.5"),
    ("first 3, then 4.", "last_number", "4"),
]


@pytest.mark.parametrize(("text", "rule", "answer"), LATEX)
def test_the_first_rule_that_applies_wins(text: str, rule: str, answer: str) -> None:
    assert extract(text) == (rule, answer)


NUMERIC = [
    (r"\boxed{72 \text{ clips}}", "boxed", r"72 \text{ clips}"),
    (r"\boxed{\text{Natalia sold 72 clips}}", "boxed", "72"),
    (r"\boxed{?} #### 12", "hashes", "12"),
    (r"\boxed{\sqrt{16}}", "boxed", r"\sqrt{16}"),
    ("The answer is 72 because 48 + 24 is that. I hope the answer is right.", "answer_is", "72"),
    ("The answer is 48 + 24 = 72 clips.", "answer_is", "48 + 24 = 72 clips"),
    ("<answer>She has 5 of 7 = 12 left over.</answer>", "answer_tag", "12"),
    ("#### $1,234.50", "hashes", "$1,234.50"),
]


@pytest.mark.parametrize(("text", "rule", "answer"), NUMERIC)
def test_numeric_tasks_narrow_a_phrase_down_to_its_number(text: str, rule: str, answer: str) -> None:
    assert extract(text, numeric=True) == (rule, answer)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("it costs $1,234.50.", "$1,234.50"),
        ("10-5", "5"),
        ("x = -5", "-5"),
        ("from 3 to \u22124.", "\u22124"),
        ("it is 7, in the 2nd place", "7"),
        ("the 21st", None),
        ("x2 and x^3", None),
        ("about 3/4", "3/4"),
        (r"so \frac{1}{2}", r"\frac{1}{2}"),
        ("(3,4)", "4"),
        (".5", ".5"),
        ("none", None),
        ("", None),
        ("one 1" + " word" * 50 + " 2nd", "1"),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == number


def test_nothing_to_read_is_unparsed_or_truncated() -> None:
    assert grade("5", "I do not know.").status == "unparsed"
    assert grade("5", "").status == "unparsed"
    assert grade("5", "Let us think", truncated=True).status == "truncated"


def test_a_cut_off_chain_counts_only_with_a_stated_answer() -> None:
    assert grade("5", "2 + 3 = 5 and then", truncated=True, numeric=True).status == "truncated"
    assert grade("5", "2 + 3 = 5 and then", numeric=True).status == "correct"
    stated = grade("5", r"so \boxed{5}. But wait 7", truncated=True, numeric=True)
    assert (stated.status, stated.rule) == ("correct", "boxed")
    assert grade("5", "The answer is 6. Now", truncated=True, numeric=True).status == "wrong"


plain_text = st.text(alphabet="ab1+^_ \n", max_size=8)
balanced = st.recursive(
    plain_text, lambda inner: st.lists(inner, max_size=3).map(lambda x: "{" + "".join(x) + "}")
)


@given(before=st.text(alphabet="ab1 {}\\$", max_size=10), content=balanced, after=plain_text)
def test_a_balanced_box_is_read_whole(before: str, content: str, after: str) -> None:
    content = "x" + content  # spare outer braces are taken off, so begin with something else
    text = before.rstrip("\\") + r"\boxed{" + content + "}" + after
    assert boxes(text)[-1] == content.strip()


@settings(max_examples=300)
@given(st.text(alphabet="ab 01,./-$#\\{}<>=^*\n", max_size=60) | st.text(max_size=60))
def test_any_text_gets_a_grade(noise: str) -> None:
    for text in (noise, r"\boxed{" + noise, "The answer is " + noise, "#### " + noise):
        assert grade("5", text, numeric=True).status in ("correct", "wrong", "unparsed")
        extract(text)


@pytest.mark.parametrize(
    "piece",
    [
        "\\boxed{",
        "{",
        "}",
        "answer is ",
        "####\n",
        "#### ",
        "answer: 1st ",
        "\\text{",
        "1,",
        "-",
        "$",
        "</answer>",
        "1st ",
        "\\boxed{}",
    ],
)
def test_hostile_texts_are_read_in_linear_time(piece: str) -> None:
    start = time.perf_counter()
    grade("5", piece * 20_000, numeric=True)
    grade("5", "\\boxed{" * 3000 + "5" + "}" * 3000, numeric=True)
    assert time.perf_counter() - start < 5
