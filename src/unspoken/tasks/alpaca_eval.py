"""Open instructions (AlpacaEval 2, Dubois et al. 2024): answers are generated, and judged elsewhere.

A file has one object a row, as JSON list, JSONL or CSV, with `instruction` and optionally `dataset` and `id`. A
model that judges is no part of this package, so that every answer is `ungraded`. For the judge, each line of the
results' `rows.jsonl` has the instruction as `question` and the answer as `text`:
`jq -s 'map({instruction: .question, output: .text, generator: "NAME"})' rows.jsonl > outputs.json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from unspoken.errors import ConfigError
from unspoken.tasks._base import Task
from unspoken.tasks._data import read_rows, text_field
from unspoken.types import Example, Grade, Message, RawText


@dataclass(frozen=True)
class AlpacaEval(Task):
    """AlpacaEval from a file; generation only.

    Attributes:
        data: A JSON list, JSONL or CSV with `instruction`.
        chat: Whether the instruction is a user's turn in the model's chat template, or plain text as in the
            power-sampling original (arXiv 2510.14901).
    """

    gradable: ClassVar[bool] = False

    data: str | None = None
    chat: bool = False

    def examples(self) -> list[Example]:
        """All instructions of the file."""
        if self.data is None:
            raise ConfigError(
                "The task 'alpaca_eval' needs a file of instructions.",
                "Add --data FILE: a JSON list, JSONL or CSV with instruction.",
            )
        return read_rows(self.data, self._example)

    def prompt(self, example: Example) -> list[Message] | RawText:
        """The instruction."""
        if self.chat:
            return [{"role": "user", "content": example.question}]
        return RawText(example.question)

    def grade(self, example: Example, text: str, *, truncated: bool = False) -> Grade:
        """There is nothing to grade by."""
        return Grade("ungraded")

    def _example(self, row: dict[str, Any], index: int) -> Example:
        assert self.data is not None
        named = row.get("id")
        return Example(
            id=f"{Path(self.data).stem}-{index:05d}" if named in (None, "") else str(named),
            question=text_field(row, "instruction"),
            answer=None,
            meta={"dataset": row["dataset"]} if "dataset" in row else {},
        )
