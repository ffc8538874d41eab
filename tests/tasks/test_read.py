"""Reading answers for votes: as the grader reads them, and without the gold answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unspoken.discovery import TASKS
from unspoken.errors import UnspokenError
from unspoken.tasks._base import Task


@pytest.mark.parametrize("name", TASKS.names())
def test_read_is_what_grade_reads(name: str) -> None:
    try:
        task: Task = TASKS.find(name)()
        examples = [example for example in task.examples() if example.answer is not None][:3]
    except UnspokenError as error:
        pytest.skip(f"needs data: {error}")
    for example in examples:
        for form in task.answer_forms:
            text = form.format(example.answer)
            graded = task.grade(example, text)
            assert graded.correct and task.read(example, text) == graded.answer
            # Whatever the gold answer is, the same is read.
            assert task.read(replace(example, answer="something else"), text) == graded.answer
        assert task.read(example, "") is None
