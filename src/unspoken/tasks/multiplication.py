"""Multiplication of two long numbers, digits reversed and spaced (implicit CoT, Deng et al. 2024)."""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from unspoken.tasks._chains import Chain, ChainTask, Split, split_file
from unspoken.tasks._data import located, read_lines
from unspoken.tasks._generated import size_problems, split_bounds
from unspoken.types import Example, Grade


def line(a: int, b: int, da: int, db: int) -> str:
    """One line of a data file: `question||cot #### answer`.

    All numbers are written with the least significant digit first and a space between digits. The
    chain of thought lists the partial products, each followed by the running sum in parentheses except
    for the first and the last.

    Args:
        a: First factor, of exactly `da` digits.
        b: Second factor, of exactly `db` digits.
        da: Digits of `a`.
        db: Digits of `b`.

    Raises:
        ValueError: If a factor has another number of digits.
    """
    if len(str(a)) != da or len(str(b)) != db or min(a, b) < 1:
        raise ValueError(f"{a} and {b} must have exactly {da} and {db} digits.")
    return _problem(a, b, da, db).chain.line


def _problem(a: int, b: int, da: int, db: int) -> _Problem:
    total, words = 0, []
    for i, digit in enumerate(reversed(str(b))):
        part = a * int(digit) * 10**i
        total += part
        words.append(("+ " if i else "") + _reversed(part, da + 1 + i))
        if 0 < i < db - 1:
            words.append(f"( {_reversed(total, da + 1 + i)} )")
    question = f"{_reversed(a, da)} * {_reversed(b, db)}"
    return _Problem(a, b, question, " ".join(words), _reversed(a * b, da + db))


def _reversed(number: int, width: int) -> str:
    return " ".join(str(number).zfill(width)[::-1])


class _Problem(NamedTuple):
    a: int
    b: int
    question: str
    cot: str
    answer: str

    @property
    def chain(self) -> Chain:
        return Chain(self.question, self.cot, self.answer)


_QUESTION = re.compile(r"(\d(?: \d)*) \* (\d(?: \d)*)")


def _parse(text: str) -> _Problem:
    """Read one line of a data file; ValueError says what is wrong with it."""
    parts = text.split("||")
    if len(parts) != 2:
        raise ValueError(f"one '||' is needed between question and solution, not {len(parts) - 1}")
    question, solution = (part.strip() for part in parts)
    factors = _QUESTION.fullmatch(question)
    if factors is None:
        raise ValueError("the question must be two numbers of spaced digits with ' * ' between")
    a, b = (int(factor.replace(" ", "")[::-1]) for factor in factors.groups())
    cot, marker, answer = solution.partition("####")
    if not marker:
        cot, answer = "", solution  # without a marker the whole right side is the answer
    answer = answer.replace(",", "").strip()
    if not re.fullmatch(r"\d(?: \d)*", answer):
        raise ValueError("the answer must be spaced digits")
    if int(answer.replace(" ", "")[::-1]) != a * b:
        raise ValueError(f"the answer is not {a} times {b} with its digits reversed")
    return _Problem(a, b, question, cot.strip(), answer)


@dataclass(frozen=True)
class Multiplication(ChainTask):
    """Products of two numbers, generated or from files.

    The splits are cut from one sequence of different pairs: first test, then valid, then train.

    Attributes:
        digits: Digits of the first factor.
        digits_b: Digits of the second factor; the same as `digits` unless given.
        n: How many problems the test split has; the first of more are the same problems.
        data_seed: Seed of the generator.
        data: A file of lines `question||cot #### answer` to read instead, as the split that is asked for; or a folder
            of train.txt, valid.txt and test.txt. Files are read whole, and the sizes and digits are then not used.
        n_train: Training problems; the default is 100,000, or what is left of a smaller pool.
        n_valid: Validation problems; the default is 500, or a tenth of what is left of a smaller pool.
    """

    aliases: ClassVar[dict[str, str]] = {"n_test": "n"}

    digits: int = 4
    digits_b: int | None = None
    n: int = 200
    data_seed: int = 0
    data: str | None = None
    n_train: int | None = None
    n_valid: int | None = None

    def problems(self) -> list[str]:
        """Sizes that are out of range, and more problems than there are."""
        found = []
        for name, value in (("digits", self.digits), ("digits_b", self.digits_b)):
            if value is not None and not 1 <= value <= 100:
                found.append(f"{name} must be from 1 to 100, not {value}.")
        pool = None if found else self._pool
        return found + size_problems(self.n, self.n_valid, self.n_train, pool, "n")

    @property
    def _digits_b(self) -> int:
        return self.digits if self.digits_b is None else self.digits_b

    @property
    def _pool(self) -> int:
        """How many pairs of factors there are."""
        return 81 * int(10 ** (self.digits + self._digits_b - 2))

    def examples(self) -> list[Example]:
        """The problems of `split`, generated or from the file."""
        start = self.example_ids(self.split)
        return [
            Example(
                id=f"{start}-{index:05d}",
                question=problem.question,
                answer=problem.answer,
                meta={"a": problem.a, "b": problem.b, "cot": problem.cot},
            )
            for index, problem in self._numbered(self.split)
        ]

    def chains(self, split: Split) -> list[Chain]:
        """The rows of a split; of a single file only `split` has any."""
        return [problem.chain for _, problem in self._numbered(split)]

    def example_ids(self, split: Split) -> str:
        if self.data is not None:
            path = located(self.data)
            return f"{path.name}-{split}" if path.is_dir() else path.stem
        name = f"multiplication-{self.digits}x{self._digits_b}-s{self.data_seed}"
        return name if split == "test" else f"{name}-{split}"

    def _numbered(self, split: Split) -> list[tuple[int, _Problem]]:
        if self.data is not None:
            path = located(self.data)
            if path.is_dir():
                path = split_file(path, None, split)
            elif split != self.split:
                return []
            return read_lines(path, lambda text, index: (index, _parse(text)))
        da, db = self.digits, self._digits_b
        start, stop = split_bounds(self.n, self.n_valid, self.n_train, self._pool)[split]
        return list(enumerate(_problem(a, b, da, db) for a, b in self._pairs(stop)[start:]))

    def _pairs(self, count: int) -> list[tuple[int, int]]:
        """The first `count` pairs of an endless sequence of different ones."""
        da, db = self.digits, self._digits_b
        # From a hash, so that neighbouring seeds and sizes share nothing.
        key = hashlib.sha256(f"multiplication/{da}/{db}/{self.data_seed}".encode()).digest()
        draw = random.Random(int.from_bytes(key, "big")).randrange
        low_a, low_b = 10 ** (da - 1), 10 ** (db - 1)
        pairs: dict[tuple[int, int], None] = {}
        while len(pairs) < count:
            a = draw(low_a, 10 * low_a)
            pairs[a, draw(low_b, 10 * low_b)] = None
        return list(pairs)

    def grade(self, example: Example, text: str, *, truncated: bool = False) -> Grade:
        """Compare the digits after the last `####`, or else the last run of digits, ignoring spaces."""
        if example.answer is None:
            raise ValueError(f"Example {example.id} has no gold answer and cannot be graded.")
        gold = example.answer.replace(" ", "")
        before, marker, after = text.rpartition("####")
        rule = "hashes"
        found = _DIGITS.search(after) if marker else None
        if found is None:
            rule = "digits"
            found = next(reversed(list(_DIGITS.finditer(text))), None)
        digits = re.sub(r"\D", "", found.group()) if found else ""
        # A cut-off text may end before the answer starts, or in the middle of it.
        short = found is not None and len(digits) < len(gold) and found.end() == len(after.rstrip())
        if not digits or (truncated and (rule == "digits" or short)):
            return Grade("truncated" if truncated else "unparsed")
        answer = " ".join(digits)
        return Grade("correct" if digits == gold else "wrong", answer, rule)

    def equivalent(self, a: str, b: str) -> bool:
        """Whether two answers have the same digits."""
        return re.sub(r"\D", "", a) == re.sub(r"\D", "", b)


_DIGITS = re.compile(r"\d(?:[ ,]*\d)*")
