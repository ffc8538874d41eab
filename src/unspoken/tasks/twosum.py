"""2SUM-transform: how many tuples have their inverse in the row, all hidden by an offset (arXiv 2404.15758)."""

from __future__ import annotations

from dataclasses import dataclass

from unspoken.tasks._chains import Chain, grade_word
from unspoken.tasks._generated import (
    Dice,
    GeneratedTask,
    Ints,
    distinct_rows,
    middles,
    sentences,
    share_problems,
    tuple_codes,
    tuple_problems,
    tuple_words,
)
from unspoken.tasks._numpy import np
from unspoken.types import Example, Grade

_OFFSETS = 10


@dataclass(frozen=True)
class TwoSum(GeneratedTask):
    """n tuples of d digits modulo m, each with an offset added; the answer `Lk` counts those that have an inverse.

    The offsets of a row are one of ten fixed sequences, which the number after `T`, behind the tuples, tells.
    A tuple has its inverse in the row if some tuple, itself included, adds up to zero with it: tuples that are
    their own inverses (of digits 0 and m/2) count, even alone.

    The chain is each hidden tuple and then the true one (half of those that have an inverse are shown
    inverted), and at last the sum of the first two.

    Attributes:
        n: Tuples in a row.
        d: Digits of a tuple.
        m: The modulus of the digits.
        true_rate: Probability that a tuple is made the inverse of an earlier one.
        mix: Share of rows with that chain; the others have each hidden tuple and then `A` in its place.
        bare: Share of rows with nothing in its place.
    """

    n: int = 10
    d: int = 4
    m: int = 10
    true_rate: float = 0.1
    mix: float = 1.0
    bare: float = 0.0

    def problems(self) -> list[str]:
        """Sizes and shares that are out of range."""
        found = tuple_problems((self.n, 2, 64), (self.d, 1, 16), self.m)
        if not 0 <= self.true_rate <= 1:
            found.append(f"true_rate must be from 0 to 1, not {self.true_rate}.")
        return found + share_problems(self.mix, self.bare) + self.size_problems()

    @property
    def pool(self) -> int:
        tuples: int = self.m ** (self.n * self.d)
        return tuples * _OFFSETS

    def rows(self, start: int, stop: int) -> list[Chain]:
        flat, _ = distinct_rows(self.key, stop, self._draw)
        tuples, chosen = flat[:, :-1].reshape(-1, self.n, self.d), flat[:, -1]
        # Of the seed and the sizes only: the same for all splits, and for all shares of forms.
        offsets = Dice(f"{self.name}/{self.n}/{self.d}/{self.m}/s{self.data_seed}/offsets").below(
            self.m, _OFFSETS, self.n, self.d
        )
        hidden = tuple_codes((tuples + offsets[chosen]) % self.m, self.m)
        codes, inverses = tuple_codes(tuples, self.m), tuple_codes(-tuples % self.m, self.m)
        matched = (codes[:, :, None] == inverses[:, None, :]).any(axis=2)
        turned = Dice(f"{self.key}/turned").chance(0.5, *codes.shape) & matched
        shown = np.stack([hidden, np.where(turned, inverses, codes)], axis=2).reshape(len(flat), -1)
        total = tuple_codes((tuples[:, 0] + tuples[:, 1]) % self.m, self.m)
        words = [*tuple_words(self.m, self.d), "A"]
        filler = np.stack([hidden, np.full_like(hidden, len(words) - 1)], axis=2).reshape(len(flat), -1)
        texts = middles(
            self.key,
            sentences(words, np.column_stack([shown, total])),
            sentences(words, filler),
            self.mix,
            self.bare,
        )
        return [
            Chain(f"{question} T {t}", text, f"L{count}")
            for question, t, text, count in zip(
                sentences(words, hidden), chosen.tolist(), texts, matched.sum(axis=1).tolist(), strict=True
            )
        ][start:]

    def _draw(self, dice: Dice, count: int) -> tuple[Ints, Ints]:
        rows = dice.below(self.m, count, self.n, self.d)
        everyone = np.arange(count)
        for i in range(1, self.n):
            planted = dice.chance(self.true_rate, count)
            earlier = -rows[everyone, dice.below(i, count)] % self.m
            rows[:, i] = np.where(planted[:, None], earlier, rows[:, i])
        rows = np.take_along_axis(rows, dice.order(count, self.n)[:, :, None], axis=1)
        chosen = dice.below(_OFFSETS, count, 1)
        return np.concatenate([rows.reshape(count, -1), chosen], axis=1), np.zeros(count, dtype=np.int64)

    def grade(self, example: Example, text: str, *, truncated: bool = False) -> Grade:
        """Compare the labels."""
        if example.answer is None:
            raise ValueError(f"Example {example.id} has no gold answer and cannot be graded.")
        return grade_word(example.answer, text, truncated=truncated)
