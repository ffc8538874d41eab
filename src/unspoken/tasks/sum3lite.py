"""Do three of the numbers sum to 0 modulo m? The chain of thought is all pair sums: parallel sub-steps."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb

from unspoken.tasks._chains import Chain, grade_word
from unspoken.tasks._generated import Dice, GeneratedTask, Ints, distinct_rows, sentences
from unspoken.tasks._numpy import np
from unspoken.types import Example, Grade


@dataclass(frozen=True)
class Sum3Lite(GeneratedTask):
    """`x1 .. xn`, each a number from 0 to m - 1 and one word; the answer is `T` if three of them sum to 0 modulo m.

    The chain is x1+x2, x1+x3, .., x(n-1)+xn, each modulo m. No sub-step needs another one, so that filler
    tokens in place of the chain could do the same work. Half of the answers are `T`.

    Attributes:
        n: How many numbers.
        m: The modulus.
    """

    n: int = 6
    m: int = 32

    def problems(self) -> list[str]:
        """Sizes that are out of range, and rows of which nearly all or nearly none are true."""
        found = []
        if not 3 <= self.n <= 64:
            found.append(f"n must be from 3 to 64, not {self.n}.")
        if not 2 <= self.m <= 10_000:
            found.append(f"m must be from 2 to 10000, not {self.m}.")
        if not found:
            triples = comb(self.n, 3)
            if not triples / 6 <= self.m <= 64 * triples:
                low, high = -(-triples // 6), 64 * triples
                found.append(
                    f"m must be from {max(low, 2)} to {high} for n = {self.n} (else nearly all rows have the same "
                    f"answer), not {self.m}."
                )
        return found or self.size_problems()

    @property
    def pool(self) -> int:
        rows: int = self.m**self.n
        return rows

    def rows(self, start: int, stop: int) -> list[Chain]:
        numbers, labels = distinct_rows(self.key, stop, self._draw, balanced=True)
        numbers, labels = numbers[start:], labels[start:]
        first, second = np.triu_indices(self.n, 1)
        words = [str(number) for number in range(self.m)]
        questions = sentences(words, numbers)
        chains = sentences(words, (numbers[:, first] + numbers[:, second]) % self.m)
        return [
            Chain(question, cot, "FT"[label])
            for question, cot, label in zip(questions, chains, labels.tolist(), strict=True)
        ]

    def _draw(self, dice: Dice, count: int) -> tuple[Ints, Ints]:
        numbers = dice.below(self.m, count, self.n)
        first, second, third = np.array(list(combinations(range(self.n), 3))).T
        found = np.zeros(count, dtype=np.int64)
        for i, j, k in zip(first, second, third, strict=True):
            found |= (numbers[:, i] + numbers[:, j] + numbers[:, k]) % self.m == 0
        return numbers, found

    def grade(self, example: Example, text: str, *, truncated: bool = False) -> Grade:
        """Compare the letters."""
        if example.answer is None:
            raise ValueError(f"Example {example.id} has no gold answer and cannot be graded.")
        return grade_word(example.answer, text, truncated=truncated)
