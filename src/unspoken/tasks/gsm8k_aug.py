"""GSM8K-Aug: word problems whose chain of thought is equations only (implicit CoT, Deng et al. 2023)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from unspoken.tasks._answers import equal, grade
from unspoken.tasks._chains import (
    Chain,
    ChainTask,
    MissingSplitError,
    Split,
    load_chains,
    read_chains,
    split_file,
)
from unspoken.tasks._data import located
from unspoken.tasks._numbers import read_number
from unspoken.types import Example, Grade

_REPO = "whynlp/gsm8k-aug"
_HUB_SPLITS = {"train": "train", "valid": "validation", "test": "test"}
_EQUATION = re.compile(r"<<[^<>]*>>")


def equations(solution: str) -> str:
    """The calculations of a GSM8K solution, `<<48/2=24>> <<48+24=72>>`; empty if it has none."""
    return " ".join(_EQUATION.findall(solution))


@dataclass(frozen=True)
class GSM8KAug(ChainTask):
    """GSM8K-Aug, from the hub or from files; the chain is `<<4-2=2>> <<2/.5=4>>`, and may be empty.

    Files of GSM8K itself are converted: of a worked solution only the equations are kept.

    Attributes:
        data: A file of lines `question||<<..>> <<..>> #### n`, or GSM8K's JSONL (`question` and `answer`), read as
            the split that is asked for; or a folder of train, valid and test files, of which some may be missing.
            Without it the hub is asked.
    """

    data: str | None = None

    def chains(self, split: Split) -> list[Chain]:
        """The rows of a split; of a single file only `split` has any.

        Raises:
            DataError: If a folder has no file for `split` itself; other splits that it lacks have no rows.
        """
        if self.data is None:
            found = load_chains(_REPO, None, _HUB_SPLITS[split])
        elif located(self.data).is_dir():
            try:
                found = read_chains(split_file(located(self.data), None, split))
            except MissingSplitError as error:
                if split != self.split:
                    return []
                error.hint = f"{error.hint}\n  Or name a split that is there, as in: --split train"
                raise
        elif split == self.split:
            found = read_chains(self.data)
        else:
            return []
        found.report.warn()
        return [Chain(row.question, equations(row.cot), row.answer) for row in found.rows]

    def example_ids(self, split: Split) -> str:
        if self.data is None:
            return super().example_ids(split)
        path = located(self.data)
        return f"{path.name}-{split}" if path.is_dir() else path.stem

    def examples(self) -> list[Example]:
        """The rows of `split`; `answer` is None where it is no number."""
        return [
            example
            if read_number(example.answer or "") is not None
            else Example(example.id, example.question, None, example.meta)
            for example in super().examples()
        ]

    def grade(self, example: Example, text: str, *, truncated: bool = False) -> Grade:
        """Compare numbers."""
        if example.answer is None:
            raise ValueError(f"Example {example.id} has no gold answer and cannot be graded.")
        return grade(example.answer, text, numeric=True, truncated=truncated)

    def equivalent(self, a: str, b: str) -> bool:
        """Whether two answers are the same number."""
        return equal(a, b).equal
