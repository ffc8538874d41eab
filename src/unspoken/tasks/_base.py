"""What a task is: examples, a prompt for each, and a grade for each answer. No torch, no model."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from unspoken.config import Configured
from unspoken.types import Example, Grade, Message


@dataclass(frozen=True)
class Task(Configured):
    """One benchmark. A frozen dataclass: its fields are arguments, flags and recorded configuration.

    A subclass lives alone in `tasks/NAME.py`; the file name is the task's name. `version` goes up
    whenever an example, a prompt or a grade changes.
    """

    version: ClassVar[int] = 1

    @abstractmethod
    def examples(self) -> list[Example]:
        """All examples, in a fixed order, each with a stable id."""

    @abstractmethod
    def prompt(self, example: Example) -> list[Message]:
        """The chat messages that ask the question."""

    @abstractmethod
    def grade(self, example: Example, text: str, *, truncated: bool = False) -> Grade:
        """Grade the text of the answer phase.

        Args:
            example: The problem; its gold answer is not None.
            text: Only the answer phase, never the thoughts.
            truncated: Whether the budget ended the generation: an answer that cannot be read is then
                `truncated` instead of `unparsed`.
        """

    def equivalent(self, a: str, b: str) -> bool:
        """Whether two extracted answers are the same answer (for majority votes)."""
        return a == b
