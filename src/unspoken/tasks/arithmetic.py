"""Word problems from our own seeded generator, from plain sums to five-step stories; nothing to download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unspoken.tasks._answers import equal, grade
from unspoken.tasks._base import Task
from unspoken.tasks._stories import SIZES, Problem, seeded, story, sums
from unspoken.types import Example, Grade, Message

MAX_SHOTS = 8
_INSTRUCTIONS = {
    "answer": "Solve the problem step by step. End with: The answer is N.",
    "boxed": "Think step by step, then give the final number in \\boxed{}.",
    "bare": "",
}


@dataclass(frozen=True)
class Arithmetic(Task):
    """Arithmetic questions whose answers are positive integers.

    The first problems of a larger `n` are those of a smaller one, and the worked examples are never
    among the problems.

    Attributes:
        level: 0, plain sums and differences of numbers up to 20 ("What is 12 + 7?"); 1 to 5, word problems
            with as many steps, and larger numbers as the level grows.
        n: How many problems.
        data_seed: Seed of the generator.
        shots: Worked examples shown before the question, as earlier turns of the chat; at most 8.
        prompt_style: `answer` asks for "The answer is N", `boxed` for a box, `bare` only asks the question.
    """

    level: int = 1
    n: int = 200
    data_seed: int = 0
    shots: int = 0
    prompt_style: Literal["answer", "boxed", "bare"] = "answer"

    def problems(self) -> list[str]:
        """Levels, counts and styles that do not exist."""
        found = []
        levels = [0, *SIZES]
        if self.level not in levels:
            found.append(f"level must be from {levels[0]} to {levels[-1]}, not {self.level}.")
        if not 0 <= self.shots <= MAX_SHOTS:
            found.append(f"shots must be from 0 to {MAX_SHOTS}, not {self.shots}.")
        if self.prompt_style not in _INSTRUCTIONS:
            found.append(
                f"prompt_style must be one of {', '.join(_INSTRUCTIONS)}, not {self.prompt_style!r}."
            )
        most = len(sums()) - MAX_SHOTS if self.level == 0 else None
        if self.n < 1:
            found.append(f"n must be at least 1, not {self.n}.")
        elif most is not None and self.n > most:
            found.append(f"Level 0 has only {most} different problems; n is {self.n}.")
        return found

    def examples(self) -> list[Example]:
        """The first `n` problems of the level and seed."""
        shown = {problem.question for problem in self._shots()}
        dice = seeded("arithmetic", self.level, self.data_seed)
        if self.level == 0:
            pool = [problem for problem in sums() if problem.question not in shown]
            dice.shuffle(pool)
            chosen = pool[: self.n]
        else:
            chosen, seen = [], set(shown)
            while len(chosen) < self.n:
                problem = story(dice, self.level)
                if problem.question not in seen:
                    seen.add(problem.question)
                    chosen.append(problem)
        name = f"arithmetic-L{self.level}-s{self.data_seed}"
        return [
            Example(
                id=f"{name}-{index:04d}",
                question=problem.question,
                answer=str(problem.answer),
                meta={"solution": problem.solution, "steps": list(problem.steps), "level": self.level},
            )
            for index, problem in enumerate(chosen)
        ]

    def prompt(self, example: Example) -> list[Message]:
        """Worked examples as earlier turns, then the question."""
        messages: list[Message] = []
        for problem in self._shots()[: self.shots]:
            messages.append({"role": "user", "content": self._ask(problem.question)})
            messages.append({"role": "assistant", "content": self._worked(problem)})
        return [*messages, {"role": "user", "content": self._ask(example.question)}]

    def grade(self, example: Example, text: str, *, truncated: bool = False) -> Grade:
        """Compare numbers."""
        if example.answer is None:
            raise ValueError(f"Example {example.id} has no gold answer and cannot be graded.")
        return grade(example.answer, text, numeric=True, truncated=truncated)

    def equivalent(self, a: str, b: str) -> bool:
        """Whether two answers are the same number."""
        return equal(a, b).equal

    def _shots(self) -> list[Problem]:
        """The worked examples: the same for every seed, and kept out of the problems."""
        dice = seeded("arithmetic shots", self.level)
        if self.level == 0:
            pool = sums()
            dice.shuffle(pool)
            return pool[:MAX_SHOTS]
        shots: dict[str, Problem] = {}
        while len(shots) < MAX_SHOTS:
            problem = story(dice, self.level)
            shots.setdefault(problem.question, problem)
        return list(shots.values())

    def _ask(self, question: str) -> str:
        instruction = _INSTRUCTIONS[self.prompt_style]
        return f"{question}\n{instruction}" if instruction else question

    def _worked(self, problem: Problem) -> str:
        ending = (
            f"\\boxed{{{problem.answer}}}"
            if self.prompt_style == "boxed"
            else f"The answer is {problem.answer}."
        )
        return f"{problem.solution} {ending}"
