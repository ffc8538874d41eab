"""Tasks that are read from a file: multiple choice, instructions, functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unspoken.errors import ConfigError, DataError
from unspoken.tasks._data import DataWarning
from unspoken.tasks.alpaca_eval import AlpacaEval
from unspoken.tasks.gpqa import GPQA, read_letter
from unspoken.tasks.humaneval import HumanEval, phi_prompt, read_body
from unspoken.types import Example, Grade, RawText


def write(path: Path, text: Any) -> str:
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("task", [GPQA, AlpacaEval, HumanEval])
def test_without_a_file_they_say_what_to_type(task: Any) -> None:
    with pytest.raises(ConfigError, match="--data FILE"):
        task().examples()


# gpqa

HEADER = "Record ID,Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3\n"
ROWS = "".join(f'rec{i},"What, {i}?",007,8,"9\nor so",NA\n' for i in range(60))


def test_gpqa_prompt(tmp_path: Path) -> None:
    task = GPQA(data=write(tmp_path / "q.csv", HEADER + ROWS))
    examples = task.examples()
    assert len(examples) == 60 and examples[3].id == "rec3"
    example = Example("e", "What, 3?", "B", {"options": ["8", "007", "NA", "9"], "right": "007"})
    assert task.prompt(example) == (
        "Answer the following multiple choice question. The last line of your response should be of the "
        r"following format: '\boxed{$LETTER}' (without quotes) where LETTER is one of ABCD (ex. '\boxed{A}'). "
        "Think step by step before answering.\n\nWhat, 3?\n\nA) 8\nB) 007\nC) NA\nD) 9"
    )
    assert isinstance(task.prompt(example), RawText)
    assert GPQA(data=task.data, chat=True).prompt(example) == [
        {"role": "user", "content": str(task.prompt(example))}
    ]


def test_gpqa_options_depend_on_the_question_alone(tmp_path: Path) -> None:
    task = GPQA(data=write(tmp_path / "q.csv", HEADER + ROWS))
    examples = task.examples()
    for example in examples:
        options = example.meta["options"]
        assert sorted(options) == sorted(["007", "8", "9\nor so", "NA"])  # texts, never numbers or nothing
        assert options["ABCD".index(str(example.answer))] == "007"
    assert {e.answer for e in examples} == set("ABCD")
    backwards = HEADER + "".join(reversed(ROWS.replace("9\nor", "9or").splitlines(keepends=True)[30:]))
    others = GPQA(data=write(tmp_path / "r.csv", backwards)).examples()
    answers = {e.id: e.answer for e in examples}
    assert all(answers[e.id] == e.answer for e in others)
    assert [e.answer for e in GPQA(data=task.data, shuffle_seed=1).examples()] != list(answers.values())


def test_gpqa_json_and_broken_rows(tmp_path: Path) -> None:
    good = {"question": "Q?", "correct_answer": 4, "incorrect_answers": [1, 2, 3]}
    rows = [good, {**good, "incorrect_answers": [1]}, {"question": "Q?"}]
    with pytest.warns(DataWarning, match="2 of 3 rows"):
        (example,) = GPQA(data=write(tmp_path / "q.json", rows)).examples()
    assert example.id == "q-00000" and example.meta["right"] == "4"
    with pytest.warns(DataWarning, match="2 cells where the header has 6"):
        assert len(GPQA(data=write(tmp_path / "q.csv", HEADER + ROWS + "a,b\n")).examples()) == 60
    with pytest.warns(DataWarning, match="not valid CSV"):
        assert len(GPQA(data=write(tmp_path / "s.csv", HEADER + ROWS + 'a,"b\n')).examples()) == 60
    with pytest.raises(DataError):
        GPQA(data=write(tmp_path / "e.csv", HEADER)).examples()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\boxed{A}", ("boxed", "A")),
        (r"\boxed{b}", ("boxed", "B")),
        (r"\boxed{\text{(C)}} and a D", ("boxed", "C")),
        (r"\boxed{A) 5 m}", ("boxed", "A")),
        (r"\boxed{a car}, so D", ("last_letter", "D")),
        (r"\boxed{5}, hence D", ("last_letter", "D")),
        ("The answer is (B) because a proton is a particle.", ("answer_is", "B")),
        ("ANSWER: **C**", ("answer_is", "C")),
        ("So B. It is a matter of a law.", ("last_letter", "B")),
        ("A proton is a particle", None),
        ("a", None),
        ("Not C's and no ABCD", None),
        ("", None),
    ],
)
def test_gpqa_letters(text: str, found: tuple[str, str] | None) -> None:
    assert read_letter(text) == found


def test_gpqa_grades() -> None:
    example, task = Example("e", "?", "B"), GPQA()
    assert task.grade(example, r"\boxed{B}", truncated=True) == Grade("correct", "B", "boxed")
    assert task.grade(example, "so C") == Grade("wrong", "C", "last_letter")
    assert task.grade(example, "so C", truncated=True) == Grade("truncated")
    assert task.grade(example, "hm") == Grade("unparsed")


# alpaca_eval


def test_alpaca_eval(tmp_path: Path) -> None:
    task = AlpacaEval(data=write(tmp_path / "a.json", [{"instruction": "Name a tree.", "dataset": "x"}]))
    (example,) = task.examples()
    assert (example.id, example.answer, example.meta) == ("a-00000", None, {"dataset": "x"})
    assert task.prompt(example) == "Name a tree." and isinstance(task.prompt(example), RawText)
    assert AlpacaEval(chat=True).prompt(example) == [{"role": "user", "content": "Name a tree."}]
    assert task.grade(example, "Oak", truncated=True) == Grade("ungraded")


# humaneval

PROMPT = (
    "from typing import List\n\n\ndef helper(a):\n    return 1\n\n\n"
    "def close(numbers: List[float], t: float = (1)) -> bool:\n"
    '    """ Check if in\n    given list.\n    """\n'
)


def test_humaneval_prompts(tmp_path: Path) -> None:
    rows = [{"task_id": "HumanEval/0", "prompt": PROMPT, "entry_point": "close"}]
    data = write(tmp_path / "h.json", rows)
    (example,) = HumanEval(data=data).examples()
    assert (example.id, example.question, example.answer) == ("HumanEval/0", PROMPT, None)
    assert HumanEval().prompt(example) == PROMPT and isinstance(HumanEval().prompt(example), RawText)
    assert HumanEval(prompt_style="phi").prompt(example) == (
        "Write a Python function `close(numbers: List[float], t: float = (1)) -> bool` to solve the "
        "following problem:\nCheck if in\ngiven list.\n\n" + PROMPT
    )
    assert HumanEval(chat=True).prompt(example) == [{"role": "user", "content": PROMPT}]
    with pytest.raises(ValueError, match="no docstring"):  # the first function is another one
        phi_prompt(PROMPT, None)


def test_humaneval_phi_needs_a_docstring(tmp_path: Path) -> None:
    rows = [{"prompt": PROMPT}, {"prompt": "def f(x):\n"}, {"prompt": ""}]
    with pytest.warns(DataWarning, match="no docstring"):
        (example,) = HumanEval(data=write(tmp_path / "h.json", rows), prompt_style="phi").examples()
    assert example.meta == {"entry_point": "close"}


@pytest.mark.parametrize(
    ("text", "rule", "body"),
    [
        (
            "    x = 1\n\n    return x\n\n\ndef other():\n    pass\n",
            "continuation",
            "    x = 1\n\n    return x\n",
        ),
        (
            'Sure:\n```python\ndef close(a):\n    """Doc."""\n    return 5\n\nprint(1)\n```\n',
            "fenced",
            "    return 5\n",
        ),
        (
            "```\ndef g(): pass\n```\nor\n```py\ndef close(a, b=(1, 2)) -> int:\n  return 5",
            "fenced",
            "  return 5\n",
        ),
        ("def g():\n    pass\ndef close(a):\n    return 5\n", "def", "    return 5\n"),
        ("class A:\n    def close(a):\n        return 5\n    x = 1\n", "def", "        return 5\n"),
        ("```python\ndef solve(a):\n    return 5\n```", "fenced_any", "    return 5\n"),
        ("def solve(a): return 5  # done\n", "any_def", "    return 5\n"),
        ("```python\n    return 5\n```", "fenced_any", "    return 5\n"),
        ("no code", None, None),
        ('def close(a):\n    """Doc only."""\n', None, None),
    ],
)
def test_humaneval_bodies(text: str, rule: str | None, body: str | None) -> None:
    assert read_body(text, "close") == (None if rule is None else (rule, body))
    grade = HumanEval().grade(Example("e", PROMPT, None, {"entry_point": "close"}), text)
    assert grade == Grade("ungraded", body, rule)


def test_humaneval_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evil = "    open('made', 'w').close()\n    raise SystemExit\n"
    example = Example("e", PROMPT, None, {"entry_point": "close"})
    grade = HumanEval().grade(example, f"```python\ndef close(a):\n{evil}close(1)\n```")
    assert grade.answer == evil and list(tmp_path.iterdir()) == []
