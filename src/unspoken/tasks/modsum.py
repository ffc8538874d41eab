"""Sum of numbers modulo p, with the running sums as chain of thought; parity is p = 2."""

from __future__ import annotations

from dataclasses import dataclass

from unspoken.tasks._answers import grade
from unspoken.tasks._chains import Chain
from unspoken.tasks._generated import Dice, GeneratedTask, Ints, distinct_rows, sentences, small_pool
from unspoken.tasks._numpy import np
from unspoken.types import Example, Grade


@dataclass(frozen=True)
class ModSum(GeneratedTask):
    """`x1 .. xn`, of which the sum modulo p is asked; the chain is s2 .. s(n-1), a sum after each number.

    Each sub-step needs the one before it: a serial task.

    Attributes:
        n: How many numbers.
        p: The modulus; numbers are from 0 to p - 1.
    """

    n: int = 8
    p: int = 10

    def problems(self) -> list[str]:
        """Sizes that are out of range, and more rows than there are."""
        found = []
        if not 2 <= self.n <= 1000:
            found.append(f"n must be from 2 to 1000, not {self.n}.")
        if not 2 <= self.p <= 10_000:
            found.append(f"p must be from 2 to 10000, not {self.p}.")
        return found or self.size_problems()

    @property
    def pool(self) -> int:
        rows: int = self.p**self.n
        return rows

    def rows(self, start: int, stop: int) -> list[Chain]:
        codes = small_pool(self.key, self.pool, stop)
        if codes is None:
            numbers, _ = distinct_rows(self.key, stop, self._draw)
        else:
            numbers = codes[:, None] // self.p ** np.arange(self.n) % self.p
        numbers = numbers[start:]
        sums = numbers.cumsum(axis=1) % self.p
        words = [str(number) for number in range(self.p)]
        questions, chains = sentences(words, numbers), sentences(words, sums[:, 1:-1])
        return [
            Chain(question, cot, words[total])
            for question, cot, total in zip(questions, chains, sums[:, -1].tolist(), strict=True)
        ]

    def _draw(self, dice: Dice, count: int) -> tuple[Ints, Ints]:
        return dice.below(self.p, count, self.n), np.zeros(count, dtype=np.int64)

    def grade(self, example: Example, text: str, *, truncated: bool = False) -> Grade:
        """Compare numbers."""
        if example.answer is None:
            raise ValueError(f"Example {example.id} has no gold answer and cannot be graded.")
        return grade(example.answer, text, numeric=True, truncated=truncated)
