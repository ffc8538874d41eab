from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspoken.config import from_dict
from unspoken.errors import ConfigError
from unspoken.tasks import _answers, _graders, _strict, _verifier
from unspoken.tasks._strict import boxed, equal, plain_text, spelling
from unspoken.tasks._verifier import Verifier
from unspoken.tasks.gsm8k import GSM8K
from unspoken.tasks.math500 import Math500
from unspoken.types import Example, Grade

TOWER = "9^{9^{9^9}}"
needs_math_verify = pytest.mark.skipif(not _verifier._installed(), reason="math-verify is not installed")

# gold, answer, strict, default; those of the second kind need sympy.
GOLDEN = [
    (r"\frac{14}{3}", "14/3", True, True),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})", True, True),
    (r"(3,\frac{\pi}{2})", r"\left(3,  \dfrac{\pi}{2}\right)", True, True),
    ("1,234", "1234", True, True),
    ("x=5", "5", True, True),
    (r"\frac{2}{4}", r"\frac12", False, True),
    ("{1,2}", "{2,1}", False, True),
    (r"\{1,2\}", r"\{2,1\}", False, True),
    ("[0,1)", "[0,1]", False, False),
    ("[0,1)", "[0,1)", True, True),
    (r"50\%", "50", True, True),
    ("4", r"\frac{8}{2}", False, True),
    ("1,-2", "-2,1", False, True),
    (r"90^\circ", "90", True, True),
    (r"\text{Evelyn}", "evelyn", True, True),
    (r"10\text{ or }12", "10, 12", True, True),
    (r"12\text{ cm}^2", "12", True, True),
    (r"\$1,234.00", "1234", True, True),
    (r"7\frac34", "7 3/4", True, True),
    (r"\frac{-1}{2}", r"-\frac12", True, True),
    ("5", "", False, False),
]
SYMBOLIC = [
    (r"\frac{1}{\sqrt2}", r"\frac{\sqrt{2}}{2}", True),
    (r"\frac{\sqrt3}{2}", r"\sqrt{3}/2", True),
    ("2(x+1)", "2x+2", True),
    ("x^2-1", "(x-1)(x+1)", True),
    ("3-2i", "-2i+3", True),
    ("0.25", r"\frac14", True),
    (r"(1,\frac{1}{2})", "(1,0.5)", True),
    (r"(1,\frac{1}{2})", "(1,0.6)", False),
    (r"-7\frac34", "-7.75", True),
    (r"2\frac{3}{x}", "6/x", True),
    ("p-q", "q-p", False),
    ("73/4", "7 3/4", False),
    (r"\frac{\pi}{2}", r"0.5\pi", True),
]
TEXT_ONLY = [
    ("x^{10}-1", "-1+x^{10}"),  # exponents of two digits
    ("x^{a}^{b}", "x^{b}^{a}"),
    ("xyz", "zyx"),  # three letters
    (r"(1,2)\cup(3,4)", r"(3,4)\cup(1,2)"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}"),
    ("a<b", "b>a"),
    ("9", TOWER),
    (TOWER, "9"),
    ("(1,2)", "(1,2,3)"),
    ("(1,2)", "[1,2]"),
    ("(1,2)", "1"),
]


@pytest.fixture
def no_sympy(monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(a: str, b: str) -> str:
        raise AssertionError(f"sympy was asked about {a!r} and {b!r}")

    monkeypatch.setattr("unspoken.tasks._strict._compare", compare)


@pytest.mark.parametrize(("gold", "answer", "strict", "default"), GOLDEN)
@pytest.mark.usefixtures("no_sympy")
def test_both_graders_on_known_pairs(gold: str, answer: str, strict: bool, default: bool) -> None:
    assert equal(gold, answer).equal == strict
    if default or _verifier._installed():
        assert _answers.equal(gold, answer).equal == default


@pytest.mark.parametrize(("gold", "answer", "same"), SYMBOLIC)
def test_expressions_go_to_sympy(gold: str, answer: str, same: bool) -> None:
    outcome = equal(gold, answer)
    assert outcome.equal == same and outcome.how == "sympy"


@pytest.mark.parametrize(("gold", "answer"), TEXT_ONLY)
@pytest.mark.usefixtures("no_sympy")
def test_the_rest_is_equal_only_as_text(gold: str, answer: str) -> None:
    assert not equal(gold, answer).equal
    assert equal(gold, gold).equal and equal(answer, answer).equal


@given(st.integers(-99, 99), st.integers(1, 99))
def test_fractions_are_equal_only_as_written(top: int, bottom: int) -> None:
    whole = Fraction(top, bottom).denominator == 1
    assert equal(rf"\frac{{{top}}}{{{bottom}}}", f"{top}/{bottom}").equal
    assert not equal(rf"\frac{{{top}}}{{{bottom}}}", f"{2 * top}/{2 * bottom}").equal
    assert not whole or not equal(str(top // bottom), rf"\frac{{{top}}}{{{bottom}}}").equal


@given(st.text(alphabet="\\{}()[]^_,.$% 019xafrctqdeboxn\n", max_size=60))
def test_no_text_breaks_the_normal_forms(text: str) -> None:
    boxed(text)
    assert isinstance(spelling(text), str) and isinstance(plain_text(text), str)


def test_deep_and_long_answers_are_texts() -> None:
    deep = "{" * 900
    assert not equal("5", deep).equal and not equal("5", "1+" * 5000).equal
    assert equal("1+" * 5000, "1 + " * 5000).equal


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed 5", None),
        (r"\fbox{5}", None),
        (r"\boxed{1} \boxed{2", None),
        (r"\boxed{}", None),
        ("5", None),
        ("", None),
    ],
)
def test_boxes(text: str, content: str | None) -> None:
    found = boxed(text)
    assert (found.text if found else None) == content


@pytest.mark.parametrize("piece", ["^", "_", "^\\frac", "\\sqrt", "\\text", "{"])
def test_endless_nesting_is_wrong_and_no_crash(piece: str) -> None:
    """What a model says that repeats itself."""
    assert not equal("5", (piece * 1000)[:1000]).equal


@pytest.fixture
def worker() -> Iterator[Verifier]:
    one = Verifier(deadline=1.0, command=[sys.executable, str(_strict._WORKER)])
    yield one
    one.close()


def test_a_hanging_simplification_is_killed_and_the_next_one_works(worker: Verifier) -> None:
    assert worker.compare("2(x+1)", "2x+2") == "equal"
    pid = worker.pid
    assert pid is not None
    start = time.monotonic()
    assert worker.compare("9", "9^9^9^9") in ("timeout", "failed")
    assert time.monotonic() - start < 10
    assert worker.compare("2x", "x") == "different"
    if worker.pid != pid:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("text", ["__import__('os')", "1/0", "(1", "1)", "", "1+*2", "x^", "f(x).g", "√"])
def test_what_is_no_expression_fails(worker: Verifier, text: str) -> None:
    assert worker.compare("1", text) == "failed"


def test_an_undecided_comparison_is_wrong_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_strict, "_compare", lambda a, b: "timeout")
    assert equal("x+1", "1+x") == (False, "sympy timeout")
    grade = Math500(grader="strict").grade(Example("e", "?", "x+1"), r"\boxed{1+x}")
    assert grade == Grade("wrong", "1+x", "boxed, sympy timeout")


# the option of tasks

HALF = Example("half", "?", r"\frac{1}{2}")


@needs_math_verify
def test_both_graders_beside_each_other() -> None:
    grade = Math500(grader="both").grade(HALF, r"\boxed{\frac{2}{4}}")
    assert (grade.status, grade.others["strict"].status) == ("correct", "wrong")
    assert Math500(grader="strict").grade(HALF, r"\boxed{\frac{2}{4}}").others == {}
    assert Math500().grade(HALF, r"\boxed{\frac{2}{4}}").others == {}
    assert not Math500(grader="strict").equivalent("2/4", "1/2") and Math500().equivalent("2/4", "1/2")


@pytest.mark.parametrize(
    ("grader", "extract", "status"),
    [
        ("default", "auto", "correct"),
        ("default", "boxed", "unparsed"),
        ("default", "boxed_or_last_number", "correct"),
        ("strict", "auto", "unparsed"),
        ("strict", "boxed", "unparsed"),
        ("strict", "boxed_or_last_number", "correct"),
    ],
)
def test_what_is_read(grader: str, extract: str, status: str) -> None:
    text = "The answer is 1/2"
    for cls in (Math500, GSM8K):
        task = from_dict(cls, {"grader": grader, "extract": extract})
        assert task.grade(HALF, text).status == status
        cut = task.grade(HALF, "it is 1/2", truncated=True)
        assert cut.status == "truncated"  # a number that happens to stand last
        assert task.grade(HALF, r"\boxed{1/2}", truncated=True).correct


def test_what_is_missing_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for grader, count in (("strict", 1), ("both", 2)):
        with pytest.raises(ConfigError, match=r"pip install 'unspoken\[eval\]'") as caught:
            from_dict(Math500, {"grader": grader})
        assert len(caught.value.problems) == count
    assert _graders.problems("default") == []


@needs_math_verify
def test_gold_answers_of_a_file(data_dir: Path) -> None:
    task = Math500(data=str(data_dir / "math500_first250.json"), grader="both")
    for example in task.examples():
        grade = task.grade(example, rf"\boxed{{{example.answer}}}")
        assert grade.correct and grade.others["strict"].correct
