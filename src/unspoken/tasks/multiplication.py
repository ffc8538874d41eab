"""Multiplication of two long numbers, digits reversed and spaced (implicit CoT, Deng et al. 2024)."""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from unspoken.tasks._base import Task
from unspoken.tasks._data import read_lines
from unspoken.types import Example, Grade, Message


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
    total, words = 0, []
    for i, digit in enumerate(reversed(str(b))):
        part = a * int(digit) * 10**i
        total += part
        words.append(("+ " if i else "") + _reversed(part, da + 1 + i))
        if 0 < i < db - 1:
            words.append(f"( {_reversed(total, da + 1 + i)} )")
    return f"{_reversed(a, da)} * {_reversed(b, db)}||{' '.join(words)} #### {_reversed(a * b, da + db)}"


def _reversed(number: int, width: int) -> str:
    return " ".join(reversed(str(number).zfill(width)))


class _Problem(NamedTuple):
    a: int
    b: int
    question: str
    cot: str
    answer: str


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
class Multiplication(Task):
    """Products of two numbers, generated or from a file.

    Attributes:
        digits: Digits of the first factor.
        digits_b: Digits of the second factor; the same as `digits` unless given.
        n: How many problems; the first of more are the same problems.
        data_seed: Seed of the generator.
        data: A file of lines `question||cot #### answer` to read instead; it is read whole, and the fields
            above are then not used.
    """

    digits: int = 4
    digits_b: int | None = None
    n: int = 200
    data_seed: int = 0
    data: str | None = None

    def problems(self) -> list[str]:
        """Sizes that are out of range, and more problems than there are."""
        found = []
        for name, value in (("digits", self.digits), ("digits_b", self.digits_b)):
            if value is not None and not 1 <= value <= 100:
                found.append(f"{name} must be from 1 to 100, not {value}.")
        if self.n < 1:
            found.append(f"n must be at least 1, not {self.n}.")
        elif not found and self.n > (pairs := self._choices(self.digits) * self._choices(self._digits_b)):
            found.append(
                f"There are only {pairs} pairs of {self.digits} and {self._digits_b} digits; n is {self.n}."
            )
        return found

    @property
    def _digits_b(self) -> int:
        return self.digits if self.digits_b is None else self.digits_b

    @staticmethod
    def _choices(digits: int) -> int:
        return int(9 * 10 ** (digits - 1))

    def examples(self) -> list[Example]:
        """The generated problems, or those of the file."""
        if self.data is not None:
            stem = Path(self.data).stem
            return read_lines(self.data, lambda text, index: _example(f"{stem}-{index:05d}", _parse(text)))
        da, db = self.digits, self._digits_b
        # From a hash, so that neighbouring seeds and sizes share nothing.
        key = hashlib.sha256(f"multiplication/{da}/{db}/{self.data_seed}".encode()).digest()
        dice = random.Random(int.from_bytes(key, "big"))
        pairs: dict[tuple[int, int], None] = {}
        while len(pairs) < self.n:
            factors = [dice.randrange(10 ** (d - 1), 10**d) for d in (da, db)]
            pairs[factors[0], factors[1]] = None
        name = f"multiplication-{da}x{db}-s{self.data_seed}"
        return [_example(f"{name}-{i:05d}", _parse(line(a, b, da, db))) for i, (a, b) in enumerate(pairs)]

    def prompt(self, example: Example) -> list[Message]:
        """The question as it is."""
        return [{"role": "user", "content": example.question}]

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


def _example(name: str, problem: _Problem) -> Example:
    meta = {"a": problem.a, "b": problem.b, "cot": problem.cot}
    return Example(id=name, question=problem.question, answer=problem.answer, meta=meta)
