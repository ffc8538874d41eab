"""What a task is: examples, a prompt for each, and a grade for each answer. No torch, no model."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

from unspoken.config import Configured
from unspoken.types import Example, Grade, Message, RawText


@dataclass(frozen=True)
class Task(Configured):
    """One benchmark. A frozen dataclass: its fields are arguments, flags and recorded configuration.

    A subclass lives alone in `tasks/NAME.py`; the file name is the task's name. `version` goes up
    whenever an example, a prompt or a grade changes. `gradable` is False where a task only asks: its
    examples have no gold answers, and all its grades are `ungraded`.
    """

    version: ClassVar[int] = 1
    gradable: ClassVar[bool] = True

    @abstractmethod
    def examples(self) -> list[Example]:
        """All examples, in a fixed order, each with a stable id."""

    @abstractmethod
    def prompt(self, example: Example) -> list[Message] | RawText:
        """The chat messages that ask the question, or text that no chat template touches."""

    @abstractmethod
    def grade(self, example: Example, text: str, *, truncated: bool = False) -> Grade:
        """Grade the text of the answer phase.

        Args:
            example: The problem; its gold answer is not None.
            text: Only the answer phase, never the thoughts.
            truncated: Whether the budget ended the generation: an answer that cannot be read is then
                `truncated` instead of `unparsed`.
        """

    def read(self, example: Example, text: str, *, truncated: bool = False) -> str | None:
        """The answer that a text gives, as `grade` reads it, without knowing the gold answer (for votes).

        Args:
            example: The problem.
            text: Only the answer phase.
            truncated: Whether the budget ended the generation.
        """
        return self.grade(replace(example, answer=""), text, truncated=truncated).answer

    @property
    def answer_forms(self) -> tuple[str, ...]:
        """Ways to write an answer (`{}`) that the grader must read, for `validate`."""
        return ("\\boxed{{{}}}", "The answer is {}")

    def equivalent(self, a: str, b: str) -> bool:
        """Whether two extracted answers are the same answer (for majority votes)."""
        return a == b
