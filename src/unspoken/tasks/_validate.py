"""Check a task's grader on its own gold answers, before a run is spent on them."""

from __future__ import annotations

from dataclasses import dataclass

from unspoken.errors import ConfigError
from unspoken.tasks._base import Task
from unspoken.types import Example, Grade


@dataclass(frozen=True)
class Failure:
    """One answer that was graded otherwise than it must be.

    Attributes:
        id: The example.
        text: The text that was graded.
        expected: `correct` for the example's own gold answer, `wrong` for another example's.
        grade: What the grader said.
    """

    id: str
    text: str
    expected: str
    grade: Grade

    def __str__(self) -> str:
        said = f"{self.grade.status} (read {self.grade.answer!r} by {self.grade.rule})"
        return f"{self.id}: {self.text!r} must be {self.expected}, was {said}"


@dataclass(frozen=True)
class Validation:
    """What a validation found.

    Attributes:
        task: Name of the task.
        checked: Examples whose gold answer was graded.
        shuffled: Examples that were graded on the gold answer of another one.
        skipped: Examples without a gold answer.
        failures: All answers that were graded otherwise than they must be.
    """

    task: str
    checked: int
    shuffled: int
    skipped: int
    failures: tuple[Failure, ...]

    @property
    def ok(self) -> bool:
        return not self.failures and self.checked > 0

    def __str__(self) -> str:
        head = (
            f"{self.task}: {self.checked} gold answers and {self.shuffled} shuffled ones graded, "
            f"{self.skipped} without gold, {len(self.failures)} failures"
        )
        return "\n".join([head, *(f"  {failure}" for failure in self.failures)])


def validate(task: Task, limit: int | None = None) -> Validation:
    """Grade every gold answer (must be correct) and every shuffled one (must be wrong).

    Args:
        task: The task.
        limit: Check only the first so many examples.

    Raises:
        ConfigError: If the task has nothing to grade by.
    """
    if not task.gradable:
        raise ConfigError(f"The task {task.name!r} has no gold answers: there is no grader to validate.")
    examples = task.examples()[:limit]
    known = [example for example in examples if example.answer is not None]
    failures: list[Failure] = []
    shuffled = 0
    for index, example in enumerate(known):
        for form in task.answer_forms:
            failures += _check(task, example, form.format(example.answer), "correct")
        other = _different(task, known, index)
        if other is not None:
            shuffled += 1
            failures += _check(task, example, task.answer_forms[0].format(other), "wrong")
    return Validation(task.name, len(known), shuffled, len(examples) - len(known), tuple(failures))


def _check(task: Task, example: Example, text: str, expected: str) -> list[Failure]:
    grade = task.grade(example, text)
    grades = [grade, *grade.others.values()]
    return [Failure(example.id, text, expected, g) for g in grades if g.status != expected]


def _different(task: Task, known: list[Example], index: int) -> str | None:
    """The gold answer of the first example, half-way round, that has another one."""
    own = known[index].answer
    assert own is not None
    for step in range(len(known)):
        other = known[(index + len(known) // 2 + step) % len(known)].answer
        assert other is not None
        if other != own and not task.equivalent(own, other):
            return other
    return None
