"""Word problems of our own: short stories about counted things, made from a seed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Problem:
    """A question with its worked solution.

    Attributes:
        question: The text of the problem.
        answer: A positive integer.
        steps: The calculations, such as `12 + 7 = 19`, in order.
        solution: The calculations in sentences.
    """

    question: str
    answer: int
    steps: tuple[str, ...]
    solution: str


@dataclass(frozen=True)
class Size:
    """How hard a level is: how many steps, and how large its numbers are."""

    steps: int
    start: int
    change: int
    factor: int
    cap: int


SIZES = {
    1: Size(steps=1, start=20, change=15, factor=5, cap=100),
    2: Size(steps=2, start=30, change=25, factor=5, cap=200),
    3: Size(steps=3, start=60, change=50, factor=6, cap=500),
    4: Size(steps=4, start=120, change=100, factor=8, cap=2000),
    5: Size(steps=5, start=300, change=250, factor=9, cap=9000),
}

_NAMES_TEXT = {
    "she": "Mia Ana Zoe Lena Priya Aiko Fatima Grace Olga Ines Maya Nora Ruth Leila Yara Hana Clara Amina",
    "he": "Tom Ravi Omar Luca Ben Kenji Pedro Sam Ivan Noah Jonas Malik Diego Paul Amir Felix Hugo Chen",
}
_NAMES = {pronoun: names.split() for pronoun, names in _NAMES_TEXT.items()}
# The thing, and what it is kept in: plural, one container, several containers.
_THINGS = [
    ("apples", "basket", "baskets"),
    ("marbles", "bag", "bags"),
    ("books", "shelf", "shelves"),
    ("stickers", "envelope", "envelopes"),
    ("pencils", "case", "cases"),
    ("coins", "jar", "jars"),
    ("shells", "bucket", "buckets"),
    ("cookies", "tin", "tins"),
    ("stamps", "album", "albums"),
    ("buttons", "box", "boxes"),
    ("beads", "bowl", "bowls"),
    ("eggs", "carton", "cartons"),
    ("oranges", "crate", "crates"),
    ("toy cars", "drawer", "drawers"),
    ("postcards", "folder", "folders"),
    ("roses", "vase", "vases"),
    ("candles", "pack", "packs"),
    ("tickets", "roll", "rolls"),
]
_COUNTS = ["three", "four", "five", "six", "seven", "eight", "nine"]
_TIMES = ["", "", "twice", *(f"{word} times" for word in _COUNTS)]
_LINKS = ["", "Then ", "After that, ", "Later, ", "The next day, ", "Soon, ", "In the evening, "]

_ADD = [
    "{friend} gives {her} {k} more {things}",
    "{she} buys {k} more {things}",
    "{she} finds {k} more {things}",
    "{she} gets {k} {things} from {his} aunt",
    "{she} wins {k} {things} at a fair",
]
_TAKE = [
    "{she} gives {k} {things} to {friend}",
    "{she} loses {k} of the {things}",
    "{she} sells {k} of the {things}",
    "{friend} borrows {k} of the {things}",
    "{she} donates {k} of the {things} to a school",
]
_MULTIPLY = [
    "{she} collects more until {she} has {times} as many {things} as before",
    "{she} gets so many more that the number of {things} becomes {times} as large",
    "{friend} adds enough {things} to make it {times} as many as before",
]
_SHARE = [
    "{she} divides the {things} equally {among} {k} {boxes} and keeps only what is in one {box}",
    "{she} makes {k} equal piles of the {things} and keeps only one pile",
    "{she} shares the {things} equally {among} {k} people, and one of them is {name}",
]
# Last steps that bring their own question: sentence, question, calculation.
_Ending = tuple[str, str, str]
_ENDINGS: dict[str, list[_Ending]] = {
    "add": [
        ("{other} has {k} {things}", "How many {things} do {name} and {other} have together?", "Together"),
    ],
    "times": [
        (
            "{she} sells all the {things} for {k} dollars each",
            "How many dollars does {name} get?",
            "{name} gets",
        ),
    ],
    "share": [
        (
            "{she} shares all the {things} equally {among} {k} friends",
            "How many {things} does each friend get?",
            "Each friend gets",
        ),
        (
            "{she} packs all the {things} equally into {k} {boxes}",
            "How many {things} are in each {box}?",
            "Each {box} holds",
        ),
    ],
    "more": [
        ("{other} has {k} more {things} than {name}", "How many {things} does {other} have?", "{other} has"),
    ],
    "fewer": [
        ("{other} has {k} fewer {things} than {name}", "How many {things} does {other} have?", "{other} has"),
    ],
    "times_as_many": [
        (
            "{other} has {times} as many {things} as {name}",
            "How many {things} does {other} have?",
            "{other} has",
        ),
    ],
    "gap": [
        (
            "{other} has {k} {things}",
            "How many more {things} does {name} have than {other}?",
            "The difference is",
        ),
    ],
}
_STARTS = [
    "{name} has {k} {things}",
    "{name} starts with {k} {things}",
    "{name} brings {k} {things} to a party",
    "On Monday, {name} has {k} {things}",
    "{name} has saved {k} {things}",
]
_GROUPS = [
    "{name} has {g} {boxes} with {k} {things} in each {box}",
    "{name} fills {g} {boxes} and puts {k} {things} into each {box}",
    "There are {g} {boxes} at {name}'s house, and each {box} holds {k} {things}",
]
_SIGNS = {"add": "+", "more": "+", "take": "-", "fewer": "-", "gap": "-", "times": "*", "times_as_many": "*"}
_COMPARE = ("more", "fewer", "times_as_many", "gap")


def seeded(*parts: object) -> random.Random:
    """A generator of its own for these parts; neighbouring seeds share nothing."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return random.Random(int.from_bytes(digest, "big"))


def sums() -> list[Problem]:
    """All plain sums and differences of level 0: numbers from 2 to 20, positive results."""
    found = []
    for a in range(2, 21):
        for b in range(2, 21):
            found.append(_sum(a, "+", b))
            if a > b:
                found.append(_sum(a, "-", b))
    return found


def _sum(a: int, sign: str, b: int) -> Problem:
    answer = a + b if sign == "+" else a - b
    step = f"{a} {sign} {b} = {answer}"
    return Problem(f"What is {a} {sign} {b}?", answer, (step,), f"{step}.")


def story(dice: random.Random, level: int) -> Problem:
    """One word problem of a level from 1 to 5."""
    while True:
        try:
            return _Teller(dice, SIZES[level]).tell()
        except _DeadEndError:
            continue  # no operation fits the numbers reached; the dice have moved on


class _DeadEndError(Exception):
    pass


@dataclass
class _Teller:
    """Tells one story: keeps the words, the count so far, and the sentences."""

    dice: random.Random
    size: Size
    value: int = 0
    link: str = ""
    sentences: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        pronoun = self.dice.choice(sorted(_NAMES))
        name = self.dice.choice(_NAMES[pronoun])
        friend, other = self.dice.sample(
            [n for group in sorted(_NAMES) for n in _NAMES[group] if n != name], 2
        )
        things, box, boxes = self.dice.choice(_THINGS)
        her, his = {"she": ("her", "her"), "he": ("him", "his")}[pronoun]
        self.words = {"name": name, "she": pronoun, "her": her, "his": his, "friend": friend, "other": other}
        self.words |= {"things": things, "box": box, "boxes": boxes}

    def tell(self) -> Problem:
        left, last = self.size.steps, ""
        if self.dice.random() < 0.2:
            self._start_with_groups()
            left, last = left - 1, "times"
        question = "How many {things} does {name} have in all?"
        while left:
            left -= 1
            if not self.sentences:
                last = self.dice.choice(["add", "take", "times", "share", *(["compare"] if not left else [])])
                self._start(last)
            else:
                last = self._pick(last, ending=not left)
            question = self._step(last, ending=not left)
        text = " ".join([*self.sentences, self._fill(question)])
        return Problem(text, self.value, tuple(self.steps), " ".join(self.lines))

    def _start_with_groups(self) -> None:
        groups, each = self.dice.randint(2, 9), self.dice.randint(2, max(3, self.size.start // 4))
        self._say(self._fill(self.dice.choice(_GROUPS), g=groups, k=each))
        self._count(groups, "*", each, "{name} has")

    def _start(self, first: str) -> None:
        """Choose a first number that the first operation can work on."""
        self.value = self.dice.randint(4, self.size.start)
        if first == "share":
            parts = self.dice.randint(2, 6)
            self.value = parts * self.dice.randint(2, max(2, self.size.start // parts))
        self._say(self._fill(self.dice.choice(_STARTS), k=self.value))

    def _pick(self, last: str, *, ending: bool) -> str:
        """An operation that fits the count so far and is not the one before."""
        fits: dict[str, Callable[[], bool]] = {
            "add": lambda: self.value + 2 <= self.size.cap,
            "take": lambda: self.value >= 4,
            "times": lambda: self.value * 2 <= self.size.cap,
            "share": lambda: bool(self._divisors()),
            "compare": lambda: ending and self.value >= 4,
        }
        choices = [name for name, possible in fits.items() if name != last and possible()]
        if not choices:
            raise _DeadEndError
        return self.dice.choice(choices)

    def _divisors(self) -> list[int]:
        return [k for k in range(2, 11) if self.value % k == 0 and self.value // k >= 2]

    def _step(self, operation: str, *, ending: bool) -> str:
        """Tell one operation; returns the question that would end the story here."""
        if operation == "compare":
            return self._end(self.dice.choice(_COMPARE))
        if ending and operation in _ENDINGS and self.dice.random() < 0.5:
            return self._end(operation)
        k = self._operand(operation)
        templates = {"add": _ADD, "take": _TAKE, "times": _MULTIPLY, "share": _SHARE}[operation]
        self.link = self.dice.choice([link for link in _LINKS if link != self.link])
        self._say(self.link + self._fill_step(self.dice.choice(templates), k))
        self._count(self.value, _SIGNS.get(operation, "/"), k, "{name} then has")
        return "How many {things} does {name} have " + ("left?" if operation == "take" else "now?")

    def _end(self, operation: str) -> str:
        k = self._operand(operation)
        sentence, question, subject = self.dice.choice(_ENDINGS[operation])
        self._say(self._fill_step(sentence, k))
        unit = "dollars" if "dollars" in sentence else "{things}"
        subject = "Together they have" if subject == "Together" else subject
        self._count(self.value, _SIGNS.get(operation, "/"), k, subject, unit)
        return question

    def _operand(self, operation: str) -> int:
        if operation in ("add", "more"):
            low, high = 2, min(self.size.change, self.size.cap - self.value)
        elif operation in ("take", "fewer", "gap"):
            low, high = 2, min(self.size.change, self.value - 2)
        elif operation in ("times", "times_as_many"):
            low, high = 2, min(self.size.factor, self.size.cap // self.value)
        else:
            divisors = self._divisors()
            if not divisors:
                raise _DeadEndError
            return self.dice.choice(divisors)
        if high < low:
            raise _DeadEndError
        return self.dice.randint(low, high)

    def _count(self, a: int, sign: str, b: int, subject: str, unit: str = "{things}") -> None:
        self.value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[sign]
        step = f"{a} {sign} {b} = {self.value}"
        self.steps.append(step)
        self.lines.append(self._fill(f"{subject} {step} {unit}."))

    def _say(self, sentence: str) -> None:
        self.sentences.append(sentence[0].upper() + sentence[1:] + ".")

    def _fill(self, template: str, **more: object) -> str:
        return template.format(**self.words, **more)

    def _fill_step(self, template: str, k: int) -> str:
        times = _TIMES[k] if k < len(_TIMES) else ""
        return self._fill(template, k=k, times=times, among="between" if k == 2 else "among")
