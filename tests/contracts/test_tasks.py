"""The contract of every discovered task."""

from __future__ import annotations

import importlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from unspoken.config import field_docs, from_dict, to_dict
from unspoken.discovery import STRATEGIES, TASKS
from unspoken.errors import ConfigError
from unspoken.tasks._base import Task
from unspoken.tasks._validate import validate
from unspoken.types import RawText

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "arithmetic": [{"level": level, "n": 40, "shots": level} for level in range(6)],
    "multiplication": [{"digits": digits, "n": 40} for digits in (1, 2, 5)],
    "modsum": [{"n": 6, "p": 2, "n_test": 20}, {"n": 12, "p": 10, "n_test": 40}],
    "sum3lite": [{"n_test": 40}],
    "match3": [{"cot": cot, "mix": 0.5, "bare": 0.25, "n_test": 40} for cot in ("dense", "serial")],
    "twosum": [{"true_rate": 0.3, "mix": 0.5, "n_test": 40}],
    "gsm8k_aug": [{"data": "gsm8k_icot/valid.txt"}],
    "gsm8k": [{"data": "gsm8k_train.jsonl"}],
    "math500": [
        {"data": "math500_first250.json"},
        {"data": "math500_first250.json", "grader": "both", "prompt_style": "rws"},
        {"data": "math500_first250.json", "grader": "strict", "prompt_style": "qa", "chat": True},
    ],
    "gpqa": [{"chat": True}, {"shuffle_seed": 1}],
    "humaneval": [{}, {"prompt_style": "phi"}],
}
QUESTIONS = [
    {
        "question": f"How many are {i} and {i}?",
        "correct_answer": str(2 * i),
        "incorrect_answers": [str(2 * i + j) for j in (1, 2, 3)],
    }
    for i in range(40)
]
FUNCTIONS = [{"prompt": f'def add(x):\n    """Add {i}."""\n', "task_id": f"F/{i}"} for i in range(5)]
MADE: dict[str, list[dict[str, Any]]] = {  # files that are made for the tests
    "gpqa": QUESTIONS,
    "alpaca_eval": [{"instruction": f"Name {i} trees."} for i in range(5)],
    "humaneval": FUNCTIONS,
}
CASES = [(name, settings) for name in TASKS.names() for settings in SETTINGS.get(name, [{}])]


@pytest.fixture(params=CASES, ids=str)
def task(request: pytest.FixtureRequest, tmp_path: Path) -> Task:
    name, settings = request.param
    if name in MADE:
        file = tmp_path / "made.json"
        file.write_text(json.dumps(MADE[name]), encoding="utf-8")
        return TASKS.find(name)(data=str(file), **settings)  # type: ignore[no-any-return]
    if "data" in settings:
        folder: Path = request.getfixturevalue("data_dir")
        settings = {**settings, "data": str(folder / settings["data"])}
    made: Task = TASKS.find(name)(**settings)
    assert made.name == name
    return made


def test_examples_are_named_stably_and_once(task: Task) -> None:
    examples = task.examples()
    assert len({example.id for example in examples}) == len(examples) > 0
    assert from_dict(type(task), to_dict(task)).examples() == examples
    assert all(example.question.strip() for example in examples)


def test_prompts_are_messages_or_raw_text_that_ask_the_question(task: Task) -> None:
    for example in task.examples()[:50]:
        messages = task.prompt(example)
        if isinstance(messages, RawText):
            assert example.question in messages and task.prompt(example) == messages
            continue
        assert not isinstance(messages, str)  # a plain string would be asked as a question once more
        assert messages and messages[-1]["role"] == "user"
        assert all(set(m) == {"role", "content"} and m["content"].strip() for m in messages)
        assert [m["role"] for m in messages] == sorted(
            (m["role"] for m in messages), key=lambda r: r != "system"
        )
        assert example.question.strip() in messages[-1]["content"]
        assert task.prompt(example) == messages


def test_gold_answers_are_correct_and_shuffled_ones_wrong(task: Task) -> None:
    if not task.gradable:
        with pytest.raises(ConfigError, match="no gold answers"):
            validate(task)
        assert all(task.grade(e, "any text").status == "ungraded" for e in task.examples())
        return
    report = validate(task, limit=120)
    assert report.ok, str(report)
    assert report.shuffled > 0


def test_what_cannot_be_read_is_not_wrong(task: Task) -> None:
    if not task.gradable:
        pytest.skip("nothing is graded")
    example = next(example for example in task.examples() if example.answer is not None)
    assert task.grade(example, "").status == "unparsed"
    assert task.grade(example, "", truncated=True).status == "truncated"


def test_a_task_is_its_configuration(task: Task) -> None:
    assert from_dict(type(task), to_dict(task)) == task
    documented = field_docs(type(task))
    assert [f.name for f in fields(task) if not documented.get(f.name)] == []
    assert TASKS.summary(task.name) and type(task).version >= 1


def flags(cls: type[Any]) -> set[str]:
    return {f.name for f in fields(cls) if f.init} | set(getattr(cls, "aliases", {}))


def test_fields_do_not_clash() -> None:
    """All become flags of one command: a task's, a strategy's, and the options of evaluation."""
    tasks = {name: flags(TASKS.find(name)) for name in TASKS.names()}
    strategies = {name: flags(STRATEGIES.find(name)) for name in STRATEGIES.names()}
    options = flags(importlib.import_module("unspoken.cli.evaluate").EvalOptions)
    assert "samples" in options and "model" in options
    for task, mine in tasks.items():
        assert not mine & options, f"{task} and the options of eval"
        for strategy, theirs in strategies.items():
            # A number of candidates and one of problems are both n: the command then asks for --task-n or --strategy-n.
            assert mine & theirs <= {"n"}, f"{task} and {strategy}"
    for strategy, theirs in strategies.items():
        assert not theirs & options, f"{strategy} and the options of eval"
