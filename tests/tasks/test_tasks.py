from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspoken.config import from_dict, to_dict
from unspoken.discovery import TASKS
from unspoken.errors import ConfigError
from unspoken.tasks._answers import grade as grade_answer
from unspoken.tasks._base import Task
from unspoken.tasks._stories import SIZES, sums
from unspoken.tasks._validate import validate
from unspoken.tasks.arithmetic import Arithmetic
from unspoken.tasks.gsm8k import GSM8K
from unspoken.tasks.math500 import Math500
from unspoken.tasks.multiplication import Multiplication, line
from unspoken.types import Example, Grade, Message, RawText

QUESTION = Example("q", "What is 6 * 7?", "42")


def test_discovery_finds_the_tasks() -> None:
    assert {"arithmetic", "gsm8k", "math500", "multiplication"} <= set(TASKS.names())
    for name in ("arithmetic", "gsm8k", "math500", "multiplication"):
        task = TASKS.find(name)()
        assert task.name == name and TASKS.summary(name)
        assert from_dict(type(task), to_dict(task)) == task


# gsm8k


def test_gsm8k_prompts() -> None:
    (plain,) = GSM8K().prompt(QUESTION)
    assert plain["role"] == "user" and plain["content"].startswith("What is 6 * 7?\n\n")
    assert r"\boxed{}" in plain["content"]
    system, user = GSM8K(prompt_style="moe").prompt(QUESTION)
    assert (
        system["role"] == "system"
        and r"\boxed{}" in system["content"]
        and "step by step" in system["content"]
    )
    assert user == {"role": "user", "content": "<question>What is 6 * 7?</question>"}


def test_gsm8k_grades() -> None:
    task = GSM8K()
    assert task.grade(QUESTION, r"\boxed{\$42.00}") == Grade("correct", r"\$42.00", "boxed")
    assert task.grade(QUESTION, "6 * 7 is 41") == Grade("wrong", "41", "last_number")
    assert task.grade(QUESTION, "no idea") == Grade("unparsed")
    assert task.grade(QUESTION, "6 * 7", truncated=True) == Grade("truncated")
    assert task.equivalent("42", "42.0 dollars") and not task.equivalent("42", "41")


def test_gsm8k_file(data_dir: Path) -> None:
    task = GSM8K(data=str(data_dir / "gsm8k_train.jsonl"))
    examples = task.examples()
    assert len(examples) == 7473 and examples[0].id == "gsm8k_train-00000"
    assert all(example.answer is not None for example in examples)
    report = validate(task)
    assert report.ok and (report.checked, report.shuffled) == (7473, 7473)


# math500


def test_math500_prompts() -> None:
    ask = "Can you solve the following math problem? What is 6 * 7?"
    reason = " Please reason step by step, and put your final answer within "

    def content(**fields: object) -> str:
        (message,) = from_dict(Math500, fields).prompt(QUESTION)
        assert isinstance(message, dict) and message["role"] == "user"
        return message["content"]

    def raw(**fields: object) -> str:
        text = from_dict(Math500, fields).prompt(QUESTION)
        assert isinstance(text, RawText)
        assert content(**fields, chat=True) == text
        return text

    assert raw(prompt_style="rws") == ask + reason + r"\boxed{{}}."
    assert raw(prompt_style="rws", braces="single") == ask + reason + r"\boxed{}."
    assert raw(prompt_style="rws", cot=False) == ask + r" Put your final answer within \boxed{{}}."
    assert raw(prompt_style="qa") == "Q: What is 6 * 7? A:"
    assert isinstance(Math500(chat=False).prompt(QUESTION), RawText)
    assert content() == "What is 6 * 7?\n\n" + reason.strip() + r" \boxed{}."
    assert content(cot=False) == "What is 6 * 7?\n\nPut your final answer within \\boxed{}."


def test_math500_file(data_dir: Path) -> None:
    task = Math500(data=str(data_dir / "math500_first250.json"))
    examples = task.examples()
    assert len(examples) == 250 and examples[0].id == "test/precalculus/807.json"
    report = validate(task)
    assert report.ok, str(report)
    assert report.checked == 250


# multiplication

SPEC_LINE = (
    "9 1 7 3 * 9 4 3 3||1 7 4 3 3 + 0 6 7 8 4 1 ( 1 3 2 2 8 1 ) + 0 0 7 5 1 1 1 ( 1 3 9 7 9 2 1 ) + "
    "0 0 0 7 5 1 1 1 #### 1 3 9 4 5 4 2 1"
)


def test_the_line_of_the_specification() -> None:
    assert line(3719, 3349, 4, 4) == SPEC_LINE


@pytest.mark.parametrize("digits", [4, 5, 7])
def test_published_lines_are_reproduced_byte_for_byte(data_dir: Path, digits: int) -> None:
    content = (data_dir / f"multiplication/{digits}_by_{digits}_valid.txt").read_text()
    lines = content.splitlines()
    assert len(lines) == 1000
    for published in lines:
        a, b = (int(f.replace(" ", "")[::-1]) for f in published.split("||")[0].split(" * "))
        assert line(a, b, digits, digits) == published
    task = Multiplication(data=str(data_dir / f"multiplication/{digits}_by_{digits}_valid.txt"))
    assert len(task.examples()) == 1000 and validate(task).ok


@given(st.integers(1, 8), st.integers(1, 8), st.data())
def test_lines_of_any_size_hold_the_right_product(da: int, db: int, data: st.DataObject) -> None:
    a = data.draw(st.integers(10 ** (da - 1), 10**da - 1))
    b = data.draw(st.integers(10 ** (db - 1), 10**db - 1))
    question, _, solution = line(a, b, da, db).partition("||")
    cot, _, answer = solution.partition(" #### ")
    assert int(answer.replace(" ", "")[::-1]) == a * b and len(answer.split()) == da + db
    parts = [int(p.replace(" ", "")[::-1]) for p in re.sub(r"\([^)]*\)", "", cot).split("+")]
    assert sum(parts) == a * b and len(parts) == db
    assert len(question.split()) == da + db + 1
    if da == db >= 2:
        assert len(cot.split()) == 3 * da * da + da - 6


def test_factors_must_have_the_stated_digits() -> None:
    with pytest.raises(ValueError, match="exactly 2 and 2 digits"):
        line(1, 22, 2, 2)


def test_multiplication_examples_are_stable_distinct_and_unequal_lengths_work() -> None:
    few, many = (
        Multiplication(digits=2, digits_b=3, n=5).examples(),
        Multiplication(digits=2, digits_b=3, n=50).examples(),
    )
    assert many[:5] == few and few[0].id == "multiplication-2x3-s0-00000"
    assert len({e.question for e in many}) == 50
    assert Multiplication(digits=2, digits_b=3, n=5, data_seed=1).examples() != few
    everything = Multiplication(digits=1, n=81).examples()
    assert len({(e.meta["a"], e.meta["b"]) for e in everything}) == 81
    assert Multiplication().prompt(few[0]) == [{"role": "user", "content": few[0].question}]


@pytest.mark.parametrize(
    ("text", "truncated", "status", "rule"),
    [
        ("8 0 4 0", False, "correct", "digits"),
        ("1 2 + 3 #### 8 0 4 0", False, "correct", "hashes"),
        ("#### 8040", False, "correct", "hashes"),
        ("#### 1\n#### 8  0 4 0\n", True, "correct", "hashes"),
        ("#### 8 0 4", False, "wrong", "hashes"),
        ("#### 8 0 4", True, "truncated", None),  # cut off in the middle of the answer
        ("#### 8 0 4 then", True, "wrong", "hashes"),
        ("#### 8 0 4 0 0", True, "wrong", "hashes"),
        ("8 0 4 0 + 1", False, "wrong", "digits"),
        ("8 0 4 0", True, "truncated", None),
        ("no digits ####", False, "unparsed", None),
    ],
)
def test_multiplication_grades(text: str, truncated: bool, status: str, rule: str | None) -> None:
    example = Example("m", "2 1 * 4 3", "8 0 4 0")
    grade = Multiplication(digits=2).grade(example, text, truncated=truncated)
    assert (grade.status, grade.rule) == (status, rule)


def test_multiplication_votes_ignore_spacing() -> None:
    assert Multiplication().equivalent("8 0 4 0", "8040") and not Multiplication().equivalent("8 0", "0 8")


# arithmetic


@pytest.mark.parametrize("level", [0, *SIZES])
def test_arithmetic_levels(level: int) -> None:
    task = Arithmetic(level=level, n=150)
    examples = task.examples()
    assert examples[7].id == f"arithmetic-L{level}-s0-0007"
    assert Arithmetic(level=level, n=20).examples() == examples[:20]
    assert Arithmetic(level=level, n=20, data_seed=1).examples()[0].question != examples[0].question
    assert len({e.question for e in examples}) == 150
    assert validate(task).ok
    for example in examples:
        _check_solution(example, steps=max(level, 1))


def _check_solution(example: Example, steps: int) -> None:
    """The steps are right, each uses the result before it, every number is told, and the English is clean."""
    assert len(example.meta["steps"]) == steps
    told = [int(n) for n in re.findall(r"\d+", example.question)]
    words = {"twice": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}
    told += [n for word, n in words.items() if re.search(rf"\b{word}\b", example.question)]
    before = None
    for step in example.meta["steps"]:
        a, sign, b, _, result = step.split()
        a, b, result = int(a), int(b), int(result)
        exact = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[sign]
        assert exact == result > 0 and (sign != "/" or a % b == 0)
        assert b in told and (a in told if before is None else a == before)
        assert step in example.meta["solution"]
        before = result
    assert str(before) == example.answer
    question = example.question
    assert question.endswith("?") and question[0].isupper()
    assert not re.search(r"[{}]|  |\.\.|\bhim aunt|\bamong 2\b|\b1 \w+s\b(?! -)", question)
    for sentence in re.split(r"(?<=\.) ", question):
        assert sentence[0].isupper() and sentence[-1] in ".?"


@pytest.mark.parametrize("level", SIZES)
def test_arithmetic_problems_are_varied(level: int) -> None:
    examples = Arithmetic(level=level, n=300).examples()
    skeletons = {re.sub(r"\d+", "N", e.question) for e in examples}
    signs = [step.split()[1] for e in examples for step in e.meta["steps"]]
    assert len(skeletons) > 250
    assert all(signs.count(sign) > len(signs) / 20 for sign in "+-*/")


def test_level_0_is_plain_sums() -> None:
    assert all(re.fullmatch(r"What is \d+ [-+] \d+\?", e.question) for e in Arithmetic(level=0).examples())
    most = len(sums()) - 8
    assert len({e.question for e in Arithmetic(level=0, n=most).examples()}) == most
    with pytest.raises(ConfigError, match=f"only {most} different problems"):
        Arithmetic(level=0, n=most + 1)


@pytest.mark.parametrize("style", ["answer", "boxed", "bare"])
@pytest.mark.parametrize("level", [0, 1, 3])
def test_worked_examples(style: str, level: int) -> None:
    task = from_dict(Arithmetic, {"level": level, "shots": 3, "prompt_style": style})
    example = task.examples()[0]
    messages = task.prompt(example)
    assert [m["role"] for m in messages] == ["user", "assistant"] * 3 + ["user"]
    assert messages[-1]["content"].startswith(example.question)
    asked = {m["content"] for m in messages[:-1]}
    assert not any(e.question in text for e in Arithmetic(level=level, n=500).examples() for text in asked)
    for message in messages[1::2]:
        stated = re.findall(r"= (\d+)", message["content"])[-1]
        assert grade_answer(stated, message["content"], numeric=True).correct
    assert ("boxed" in messages[-1]["content"]) == (style == "boxed")
    if style == "bare":
        assert messages[-1]["content"] == example.question


@pytest.mark.parametrize(
    "fields", [{"level": 6}, {"level": -1}, {"n": 0}, {"shots": 9}, {"prompt_style": "x"}]
)
def test_arithmetic_refuses(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        from_dict(Arithmetic, fields)


# validation


@dataclass(frozen=True)
class Lenient(Task):
    """Grades everything correct: validation must notice."""

    answers: tuple[str, ...] = ("1", "2", "1")

    def examples(self) -> list[Example]:
        return [
            *(Example(str(i), "?", answer) for i, answer in enumerate(self.answers)),
            Example("none", "?", None),
        ]

    def prompt(self, example: Example) -> list[Message]:
        return []

    def grade(self, example: Example, text: str, *, truncated: bool = False) -> Grade:
        return Grade("correct", text, "any")


def test_validation_finds_a_lenient_grader() -> None:
    report = validate(Lenient())
    assert (report.checked, report.shuffled, report.skipped, len(report.failures)) == (3, 3, 1, 3)
    assert not report.ok and "must be wrong, was correct" in str(report)
    assert validate(Lenient(), limit=1).shuffled == 0


def test_validation_finds_a_strict_grader() -> None:
    class Strict(Lenient):
        def grade(self, example: Example, text: str, *, truncated: bool = False) -> Grade:
            return Grade("wrong", text, "any")

    assert [f.expected for f in validate(Strict()).failures] == ["correct"] * 6
