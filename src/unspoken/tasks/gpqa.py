r"""Graduate-level multiple choice (GPQA, Rein et al. 2023): four options, shuffled for each question by itself.

A file has one question a row, as CSV, JSONL or a JSON list, with the columns of the published files
(`Question`, `Correct Answer`, `Incorrect Answer 1` to `3`, and optionally `Record ID`), or with `question`,
`correct_answer`, `incorrect_answers` (a list of three) and optionally `id`.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unspoken.errors import ConfigError
from unspoken.tasks._base import Task
from unspoken.tasks._data import read_rows, text_field
from unspoken.tasks._extract import ANSWER_IS, BOXED, boxes
from unspoken.types import Example, Grade, Message, RawText

LETTERS = "ABCD"
LAST_LETTER = "last_letter"
_ASK = (
    "Answer the following multiple choice question. The last line of your response should be of the following "
    "format: '\\boxed{$LETTER}' (without quotes) where LETTER is one of ABCD (ex. '\\boxed{A}'). Think step by step "
    "before answering."
)
_IN_BOX = re.compile(r"\W*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{\s*)?\(?([A-D](?![A-Za-z0-9])|[a-d]\W*$)")
_STATED = re.compile(
    r"(?i:\banswer\b\s*(?:\b(?:is|would be|should be|must be)\b|[:=]))[\s*:=_$(]*([A-D])(?![A-Za-z0-9'])"
)
# On the text as it was written: in lower case, and before a word in lower case, `a` is an article.
_ALONE = re.compile(r"(?<![A-Za-z0-9'\\])(?:[B-D]|A(?!\s+[a-z]))(?![A-Za-z0-9'])")


@dataclass(frozen=True)
class GPQA(Task):
    """GPQA from a file.

    Attributes:
        data: A CSV, JSONL or JSON file with a question, its right answer and three wrong ones a row.
        shuffle_seed: Decides, with the question's id, the order of its options: it depends on nothing else.
        chat: Whether the prompt is a user's turn in the model's chat template, or plain text as in the
            power-sampling original (arXiv 2510.14901).
    """

    data: str | None = None
    shuffle_seed: int = 0
    chat: bool = False

    def examples(self) -> list[Example]:
        """All questions of the file; the answer is a letter."""
        if self.data is None:
            raise ConfigError(
                "The task 'gpqa' needs a file of questions.",
                "Add --data FILE: CSV with Question, Correct Answer and Incorrect Answer 1 to 3 (or JSON).",
            )
        return read_rows(self.data, self._example)

    def prompt(self, example: Example) -> list[Message] | RawText:
        """The instruction, the question and its options."""
        options = "\n".join(
            f"{letter}) {option}" for letter, option in zip(LETTERS, example.meta["options"], strict=True)
        )
        content = f"{_ASK}\n\n{example.question}\n\n{options}"
        return [{"role": "user", "content": content}] if self.chat else RawText(content)

    def grade(self, example: Example, text: str, *, truncated: bool = False) -> Grade:
        """Compare letters."""
        if example.answer is None:
            raise ValueError(f"Example {example.id} has no gold answer and cannot be graded.")
        found = read_letter(text)
        if found is None or (truncated and found[0] == LAST_LETTER):
            return Grade("truncated" if truncated else "unparsed")
        rule, letter = found
        return Grade("correct" if letter == example.answer else "wrong", letter, rule)

    def _example(self, row: dict[str, Any], index: int) -> Example:
        assert self.data is not None
        question = text_field(row, "Question", "question")
        right = text_field(row, "Correct Answer", "correct_answer")
        listed = row.get("incorrect_answers")
        if listed is None:
            wrong = [text_field(row, f"Incorrect Answer {i}") for i in (1, 2, 3)]
        elif isinstance(listed, list) and len(listed) == 3:
            wrong = [text_field({"incorrect_answers": option}, "incorrect_answers") for option in listed]
        else:
            raise ValueError("'incorrect_answers' must be a list of three")
        named = row.get("Record ID") or row.get("id")
        name = str(named) if named else f"{Path(self.data).stem}-{index:05d}"
        order = list(range(4))
        random.Random(f"{self.shuffle_seed}:{name}").shuffle(order)
        options = [[right, *wrong][i] for i in order]
        return Example(name, question, LETTERS[order.index(0)], {"options": options, "right": right})


def read_letter(text: str) -> tuple[str, str] | None:
    r"""The option that a text chooses, and the rule that found it.

    The last `\boxed{}` that holds a letter, then the last "answer is X", then the last A, B, C or D that
    stands alone. Outside a box only capitals count.
    """
    for content in reversed(boxes(text)):
        match = _IN_BOX.match(content)
        if match:
            return BOXED, match.group(1)[0].upper()
    for rule, pattern in ((ANSWER_IS, _STATED), (LAST_LETTER, _ALONE)):
        found = pattern.findall(text)
        if found:
            return rule, found[-1]
    return None
