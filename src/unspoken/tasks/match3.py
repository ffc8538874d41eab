"""Match-3: do three of the tuples sum to zero? With parallel or serial chains, or dots (arXiv 2404.15758)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING, Literal

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

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_ACCIDENTS = 3.0  # expected accidental triples beyond which rows without one are too rare


@dataclass(frozen=True)
class Match3(GeneratedTask):
    """n tuples of d digits modulo m; `True` if three of them sum to zero in every digit, else `False`.

    A true row holds two random tuples, the one that completes them, and random ones. A false row is made
    likewise, then one to three digits of the three are changed, and it is drawn again until no triple is
    left. Half of the answers are `True`.

    Attributes:
        n: Tuples in a row.
        d: Digits of a tuple.
        m: The modulus of the digits.
        cot: `dense` looks at every pair: it names one of the two, and then the first later tuple that completes
            them, or else one digit of their sum; n(n-1)+2 words, whose sub-steps are independent. `serial` tells the
            triples whose first digits match, and how far each goes, until one matches wholly.
        mix: Share of rows with that chain; the others have n*n dots in its place.
        bare: Share of rows with nothing in its place.
    """

    n: int = 10
    d: int = 3
    m: int = 10
    cot: Literal["dense", "serial"] = "dense"
    mix: float = 1.0
    bare: float = 0.0

    def problems(self) -> list[str]:
        """Sizes that are out of range, and settings in which rows without a triple are too rare."""
        found = tuple_problems((self.n, 3, 32), (self.d, 1, 8), self.m)
        accidents = 0.0 if found else comb(self.n, 3) / self.m**self.d
        if accidents > _MOST_ACCIDENTS:
            found.append(
                f"With n = {self.n}, d = {self.d} and m = {self.m} a random row has {accidents:.1f} triples: rows "
                "without any are too rare. Give a larger m or d, or a smaller n."
            )
        return found + share_problems(self.mix, self.bare) + self.size_problems()

    @property
    def pool(self) -> int:
        rows: int = self.m ** (self.n * self.d)
        return rows

    def rows(self, start: int, stop: int) -> list[Chain]:
        tuples, labels = distinct_rows(self.key, stop, self._draw, balanced=True)
        chains = self._dense(tuples) if self.cot == "dense" else self._serial(tuples)
        texts = middles(self.key, chains, " ".join(["."] * self.n**2), self.mix, self.bare)
        questions = sentences(tuple_words(self.m, self.d), tuple_codes(tuples[start:], self.m))
        return [
            Chain(question, text, str(bool(label)))
            for question, text, label in zip(questions, texts[start:], labels[start:].tolist(), strict=True)
        ]

    def _draw(self, dice: Dice, count: int) -> tuple[Ints, Ints]:
        rows, labels = dice.below(self.m, count, self.n, self.d), dice.below(2, count)
        rows[:, 2] = -(rows[:, 0] + rows[:, 1]) % self.m
        # One changed digit three times in four, two with 3/16, else three: a geometric law, cut at three.
        number = dice.below(16, count)
        changes = 1 + (number >= 12) + (number >= 15)
        rank = dice.order(count, 3 * self.d).reshape(count, 3, self.d)
        other = 1 + dice.below(self.m - 1, count, 3, self.d)
        changed = (rank < changes[:, None, None]) & (labels == 0)[:, None, None]
        rows[:, :3] = (rows[:, :3] + other * changed) % self.m
        rows = np.take_along_axis(rows, dice.order(count, self.n)[:, :, None], axis=1)
        return rows, np.where((labels == 0) & self._has_triple(rows), -1, labels)

    def _has_triple(self, rows: Ints) -> NDArray[np.bool_]:
        found = np.zeros(len(rows), dtype=bool)
        for i, j, k in combinations(range(self.n), 3):
            found |= ((rows[:, i] + rows[:, j] + rows[:, k]) % self.m == 0).all(axis=1)
        return found

    def _dense(self, rows: Ints) -> list[str]:
        first, second = np.triu_indices(self.n, 1)
        dice = Dice(f"{self.key}/dense")
        # All draws of a row lie together, so that they do not depend on how many rows there are.
        draws = dice.raw(len(rows), 2, len(first))
        named = np.where(draws[:, 0] & np.uint64(1) == 0, first, second)
        sums = (rows[:, first] + rows[:, second]) % self.m
        digit = (draws[:, 1] % np.uint64(self.d)).astype(np.int64)
        shown = self.n + np.take_along_axis(sums, digit[:, :, None], axis=2)[:, :, 0]
        for k in reversed(range(self.n)):
            completes = ((sums + rows[:, k, None]) % self.m == 0).all(axis=2) & (k > second)
            shown = np.where(completes, k, shown)
        words = [*(f"{i}-" for i in range(self.n)), *map(str, range(self.m)), "="]
        ids = np.full((len(rows), 2 * len(first) + 2), len(words) - 1)
        ids[:, 0:-2:2], ids[:, 1:-2:2] = named, shown
        return sentences(words, ids)

    def _serial(self, rows: Ints) -> list[str]:
        triples = np.array(list(combinations(range(self.n), 3)))
        matches = rows[:, :, 0][:, triples].sum(axis=2) % self.m == 0
        return [
            self._told(row, triples[found].tolist())
            for row, found in zip(rows.tolist(), matches, strict=True)
        ]

    def _told(self, row: list[list[int]], triples: list[list[int]]) -> str:
        words: list[str] = []
        for triple in triples:
            words += [f"{i}-" for i in triple] + [str(row[i][0]) for i in triple]
            total = 0
            for digit in range(1, self.d):
                total = sum(row[i][digit] for i in triple) % self.m
                words.append(str(total))
                if total:
                    break
            if not total:
                break
        return " ".join(words)

    def grade(self, example: Example, text: str, *, truncated: bool = False) -> Grade:
        """Compare the words."""
        if example.answer is None:
            raise ValueError(f"Example {example.id} has no gold answer and cannot be graded.")
        return grade_word(example.answer, text, truncated=truncated)
