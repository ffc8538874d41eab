"""Sums and differences of several numbers, digit by digit in words; the chain of thought is the running total."""

from __future__ import annotations

import re
from dataclasses import dataclass

from unspoken.tasks._answers import grade
from unspoken.tasks._chains import Chain
from unspoken.tasks._generated import Dice, GeneratedTask, Ints, distinct_rows
from unspoken.tasks._numpy import np
from unspoken.types import Example, Grade


@dataclass(frozen=True)
class Sums(GeneratedTask):
    """`4 7 + 1 2 - 5`, of which the value is asked; the chain is the running total after each number but the last.

    Digits are words of their own, most significant first, without leading zeros; no total is below 0. Each
    sub-step needs the one before it, and needs carries: a serial task.

    Attributes:
        n: How many numbers.
        digits: Most digits of each number.
    """

    n: int = 5
    digits: int = 1

    def problems(self) -> list[str]:
        """Sizes that are out of range."""
        found = []
        if not 2 <= self.n <= 100:
            found.append(f"n must be from 2 to 100, not {self.n}.")
        if not 1 <= self.digits <= 9:
            found.append(f"digits must be from 1 to 9, not {self.digits}.")
        return found or self.size_problems()

    def rows(self, start: int, stop: int) -> list[Chain]:
        terms, _ = distinct_rows(self.key, stop, self._draw)
        terms = terms[start:]
        chains = []
        for row, totals in zip(terms.tolist(), terms.cumsum(axis=1).tolist(), strict=True):
            signs = "".join(f" {'-' if term < 0 else '+'} {_spaced(abs(term))}" for term in row[1:])
            cot = " , ".join(map(_spaced, totals[1:-1]))
            chains.append(Chain(_spaced(row[0]) + signs, cot, _spaced(totals[-1])))
        return chains

    def _draw(self, dice: Dice, count: int) -> tuple[Ints, Ints]:
        terms = dice.below(10**self.digits, count, self.n)
        terms[:, 1:] *= np.where(dice.chance(0.5, count, self.n - 1), -1, 1)
        below = (terms.cumsum(axis=1) < 0).any(axis=1)
        return terms, np.where(below, -1, 0)

    def grade(self, example: Example, text: str, *, truncated: bool = False) -> Grade:
        """Compare numbers, ignoring the spaces between digits."""
        if example.answer is None:
            raise ValueError(f"Example {example.id} has no gold answer and cannot be graded.")
        joined = re.sub(r"(?<=\d) (?=\d)", "", text)
        return grade(example.answer.replace(" ", ""), joined, numeric=True, truncated=truncated)


def _spaced(number: int) -> str:
    return " ".join(str(number))
