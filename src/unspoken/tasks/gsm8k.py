"""Grade-school word problems (GSM8K, Cobbe et al. 2021); answers are numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unspoken.tasks import _graders
from unspoken.tasks._base import Task
from unspoken.tasks._data import load_hub, read_rows, text_field
from unspoken.tasks._graders import Extract, Grader
from unspoken.tasks._numbers import read_number
from unspoken.types import Example, Grade, Message

_REPO = "openai/gsm8k"
_FORMAT = "JSONL with question and answer, where the answer ends in #### NUMBER"
_PLAIN = "Think step by step, then give the final number in \\boxed{}."
_ASSISTANT = (
    "You are a helpful mathematics assistant. Think step by step about the problem, and put your final "
    "answer in \\boxed{}."
)


@dataclass(frozen=True)
class GSM8K(Task):
    """GSM8K, from the hub or from a file.

    Attributes:
        data: A JSONL file with `question` and `answer`; without it the hub is asked.
        split: Which split of the hub's data set; a file is always read whole.
        prompt_style: `plain`, one user message with the question and an instruction; `moe`, the prompt of
            the soft-thinking original: a system message that makes the model a maths assistant, and the
            problem inside `<question>` tags. A `<think>` opener is added by the strategy, not here.
        grader: `default`, exact numbers; `strict`, the boxed answer as text, comparable with published accuracies;
            `both` grades as `default` and keeps the strict grade beside it.
        extract: Which answers are read: `boxed` ones only, `boxed_or_last_number`, or `auto`: whatever the grader
            reads (`strict`: boxed only; `default`: boxed, tagged or stated ones, or the last number).
    """

    data: str | None = None
    split: Literal["test", "train"] = "test"
    prompt_style: Literal["plain", "moe"] = "plain"
    grader: Grader = "default"
    extract: Extract = "auto"

    def problems(self) -> list[str]:
        """Packages that the grader needs."""
        return _graders.problems(self.grader)

    def examples(self) -> list[Example]:
        """All problems; `answer` is None where the number after `####` cannot be read."""
        if self.data is None:
            return load_hub(_REPO, "main", self.split, self._example, _FORMAT)
        return read_rows(self.data, self._example)

    def prompt(self, example: Example) -> list[Message]:
        """The question in the chosen style."""
        if self.prompt_style == "moe":
            question = f"<question>{example.question}</question>"
            return [{"role": "system", "content": _ASSISTANT}, {"role": "user", "content": question}]
        return [{"role": "user", "content": f"{example.question}\n\n{_PLAIN}"}]

    def grade(self, example: Example, text: str, *, truncated: bool = False) -> Grade:
        """Compare numbers."""
        if example.answer is None:
            raise ValueError(f"Example {example.id} has no gold answer and cannot be graded.")
        return _graders.grade(
            self.grader, self.extract, example.answer, text, numeric=True, truncated=truncated
        )

    @property
    def answer_forms(self) -> tuple[str, ...]:
        """The forms that the grader and the extraction read."""
        return _graders.forms(self.grader, self.extract)

    def equivalent(self, a: str, b: str) -> bool:
        """Whether two answers are the same number."""
        return _graders.equivalent(self.grader, a, b)

    def _example(self, row: dict[str, Any], index: int) -> Example:
        question, solution = text_field(row, "question"), text_field(row, "answer")
        worked, marker, stated = solution.rpartition("####")
        answer = stated.strip().replace(",", "")
        source = f"gsm8k-{self.split}" if self.data is None else Path(self.data).stem
        return Example(
            id=f"{source}-{index:05d}",
            question=question,
            answer=answer if read_number(answer) is not None else None,
            meta={"solution": worked.strip()} if marker else {},
        )
