"""Competition mathematics (MATH-500: Hendrycks et al. 2021, Lightman et al. 2023); answers are LaTeX."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from unspoken.tasks import _graders
from unspoken.tasks._base import Task
from unspoken.tasks._data import load_hub, read_rows, text_field
from unspoken.tasks._graders import Extract, Grader
from unspoken.types import Example, Grade, Message, RawText

_REPO = "HuggingFaceH4/MATH-500"
_FORMAT = "a JSON list or JSONL with prompt (or problem) and answer"


@dataclass(frozen=True)
class Math500(Task):
    r"""MATH-500, from the hub or from a file.

    Attributes:
        data: A JSON list, JSONL or CSV with `prompt` (or `problem`) and `answer`; without it the hub is asked.
        prompt_style: `boxed`, the problem and then one instruction; `rws`, the wording of the power-sampling
            original (arXiv 2510.14901); `qa`, a bare `Q: ... A:`.
        cot: Whether the instruction asks to reason step by step.
        braces: Of the `rws` style: the original never formats its template, so that the model sees
            `\boxed{{}}`; `double` reproduces that, `single` asks for `\boxed{}`.
        chat: Whether the prompt is a user's turn in the model's chat template, or plain text. Unset: a turn for
            `boxed`, plain text for `rws` and `qa`, as base models read them in the original; instruction-tuned
            models got the same text as a turn.
        grader: `default`, exact numbers, normal forms and math-verify; `strict`, comparable with published
            accuracies; `both` grades as `default` and keeps the strict grade beside it.
        extract: Which answers are read: `boxed` ones only, `boxed_or_last_number`, or `auto`: whatever the grader
            reads (`strict`: boxed only; `default`: boxed, tagged or stated ones, or the last number).
    """

    version: ClassVar[int] = 2

    data: str | None = None
    prompt_style: Literal["boxed", "rws", "qa"] = "boxed"
    cot: bool = True
    braces: Literal["double", "single"] = "double"
    chat: bool | None = None
    grader: Grader = "default"
    extract: Extract = "auto"

    def problems(self) -> list[str]:
        """Packages that the grader needs."""
        return _graders.problems(self.grader)

    def examples(self) -> list[Example]:
        """All problems of the file, or of the hub."""
        seen: set[str] = set()

        def parse(row: dict[str, Any], index: int) -> Example:
            example = self._example(row, index)
            if example.id in seen:
                raise ValueError(f"the id {example.id!r} is already taken")
            seen.add(example.id)
            return example

        if self.data is None:
            return load_hub(_REPO, None, "test", parse, _FORMAT)
        return read_rows(self.data, parse)

    def prompt(self, example: Example) -> list[Message] | RawText:
        """The problem in the chosen style."""
        content = self._content(example.question)
        chat = self.prompt_style == "boxed" if self.chat is None else self.chat
        return [{"role": "user", "content": content}] if chat else RawText(content)

    def _content(self, question: str) -> str:
        if self.prompt_style == "qa":
            return f"Q: {question} A:"
        box = "\\boxed{{}}" if self.prompt_style == "rws" and self.braces == "double" else "\\boxed{}"
        if self.cot:
            suffix = f"Please reason step by step, and put your final answer within {box}."
        else:
            suffix = f"Put your final answer within {box}."
        if self.prompt_style == "rws":
            return f"Can you solve the following math problem? {question} {suffix}"
        return f"{question}\n\n{suffix}"

    def grade(self, example: Example, text: str, *, truncated: bool = False) -> Grade:
        """Compare formulas."""
        if example.answer is None:
            raise ValueError(f"Example {example.id} has no gold answer and cannot be graded.")
        return _graders.grade(self.grader, self.extract, example.answer, text, truncated=truncated)

    @property
    def answer_forms(self) -> tuple[str, ...]:
        """The forms that the grader and the extraction read."""
        return _graders.forms(self.grader, self.extract)

    def equivalent(self, a: str, b: str) -> bool:
        """Whether two answers are the same formula."""
        return _graders.equivalent(self.grader, a, b)

    def _example(self, row: dict[str, Any], index: int) -> Example:
        question = text_field(row, "prompt", "problem")
        answer = text_field(row, "answer")
        source = "math500" if self.data is None else Path(self.data).stem
        named = row.get("id") or row.get("unique_id")
        kept = ("source", "solution", "subject", "level")
        return Example(
            id=str(named) if named else f"{source}-{index:05d}",
            question=question,
            answer=answer,
            meta={key: row[key] for key in kept if key in row},
        )
