"""Competition mathematics (MATH-500: Hendrycks et al. 2021, Lightman et al. 2023); answers are LaTeX."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unspoken.tasks._answers import equal, grade
from unspoken.tasks._base import Task
from unspoken.tasks._data import load_hub, read_rows, text_field
from unspoken.types import Example, Grade, Message

_REPO = "HuggingFaceH4/MATH-500"
_FORMAT = "a JSON list or JSONL with prompt (or problem) and answer"


@dataclass(frozen=True)
class Math500(Task):
    r"""MATH-500, from the hub or from a file.

    Attributes:
        data: A JSON list or JSONL with `prompt` (or `problem`) and `answer`; without it the hub is asked.
        prompt_style: `boxed`, the problem and then one instruction; `rws`, the wording of the
            power-sampling original.
        cot: Whether the instruction asks to reason step by step.
        braces: Of the `rws` style: the original never formats its template, so that the model sees
            `\boxed{{}}`; `double` reproduces that, `single` asks for `\boxed{}`.
    """

    data: str | None = None
    prompt_style: Literal["boxed", "rws"] = "boxed"
    cot: bool = True
    braces: Literal["double", "single"] = "double"

    def problems(self) -> list[str]:
        """Styles that do not exist."""
        found = []
        if self.prompt_style not in ("boxed", "rws"):
            found.append(f"prompt_style must be boxed or rws, not {self.prompt_style!r}.")
        if self.braces not in ("double", "single"):
            found.append(f"braces must be double or single, not {self.braces!r}.")
        return found

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

    def prompt(self, example: Example) -> list[Message]:
        """The problem in the chosen style."""
        box = "\\boxed{{}}" if self.prompt_style == "rws" and self.braces == "double" else "\\boxed{}"
        if self.cot:
            suffix = f"Please reason step by step, and put your final answer within {box}."
        else:
            suffix = f"Put your final answer within {box}."
        if self.prompt_style == "rws":
            content = f"Can you solve the following math problem? {example.question} {suffix}"
        else:
            content = f"{example.question}\n\n{suffix}"
        return [{"role": "user", "content": content}]

    def grade(self, example: Example, text: str, *, truncated: bool = False) -> Grade:
        """Compare formulas."""
        if example.answer is None:
            raise ValueError(f"Example {example.id} has no gold answer and cannot be graded.")
        return grade(example.answer, text, truncated=truncated)

    def equivalent(self, a: str, b: str) -> bool:
        """Whether two answers are the same formula."""
        return equal(a, b).equal

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
