"""Accuracy and speed of trained models: the tables of implicit chain of thought (arXiv 2405.14838).

Speed is examples a second of generation alone: prompts are tokenised before, answers are scored after, a warm-up
comes first, the device is waited for, and of several rounds the median counts.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any, TextIO

from unspoken.errors import ConfigError, UnspokenError
from unspoken.evaluation._text import markdown_table, number, percent, percent_interval, ratio, table
from unspoken.evaluation.stats import Interval, wilson
from unspoken.tasks._chains import MARKER, Chain, answer_in, normal
from unspoken.types import Generation

if TYPE_CHECKING:
    from unspoken.decoding._base import Strategy
    from unspoken.lm.model import CausalLM

SPARE_TOKENS = 8
"""A row may be so much longer than the longest target."""
_CHUNK_BATCHES = 16  # batches generated between two looks at the answers


def _is_right(row: Chain, generation: Generation) -> bool:
    return answer_in(generation.text) == normal(row.answer)


def token_budget(lm: CausalLM, rows: Sequence[Chain]) -> int:
    """Tokens that suffice for the longest of these rows, thought included, with some to spare."""
    longest = max(len(lm.tokens.encode(f" {row.cot} {MARKER} {row.answer} ")) for row in rows)
    return longest + 2 + SPARE_TOKENS  # two separators


class _Runner:
    """One model on some rows; the time of generation alone."""

    def __init__(
        self, lm: CausalLM, rows: Sequence[Chain], strategy: Strategy | None, max_new_tokens: int | None
    ) -> None:
        if not rows:
            raise ConfigError("There are no rows to evaluate.")
        chosen = strategy or lm.strategy
        if chosen is None:
            raise ConfigError(
                f"{lm.source} remembers no strategy.", "Name one, such as un.ChainOfThought(temperature=0)."
            )
        self.lm, self.rows, self.strategy = lm, rows, chosen
        self.max_new_tokens = max_new_tokens or token_budget(lm, rows)
        self.prompts = [lm.tokens.encode_prompt(row.question) for row in rows]

    def __call__(self, start: int, stop: int, batch_size: int) -> tuple[list[Generation], float]:
        """Generate for some rows: the answers in order, and the seconds."""
        self._wait()
        begin = time.perf_counter()
        out = self.lm.generate(
            self.prompts[start:stop],
            self.strategy,
            max_new_tokens=self.max_new_tokens,
            batch_size=batch_size,
            trace="none",
        )
        self._wait()
        seconds = time.perf_counter() - begin
        assert isinstance(out, list)
        return out, seconds

    def _wait(self) -> None:
        if self.lm.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.lm.device)


# One file, as the original command prints it


@dataclass(frozen=True)
class Evaluated:
    """A model on a file of rows.

    Attributes:
        n: Rows.
        correct: Rows whose answer is right.
        seconds: Of generation.
        tokens: Tokens written, thought and end tokens included.
        batch_size: Rows generated together.
    """

    n: int
    correct: int
    seconds: float
    tokens: int
    batch_size: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.n

    @property
    def throughput(self) -> float:
        """Examples a second."""
        return self.n / self.seconds

    def __str__(self) -> str:
        return f"Test Accuracy: {self.accuracy}. Throughput: {self.throughput}"


def evaluate_file(
    lm: CausalLM,
    rows: Sequence[Chain],
    *,
    batch_size: int = 1,
    max_new_tokens: int | None = None,
    strategy: Strategy | None = None,
    out: TextIO | None = None,
) -> Evaluated:
    """Decode rows greedily and print each with its target, and at last the accuracy and the throughput.

    Args:
        lm: The model; it decodes with the strategy that its checkpoint remembers unless another is given.
        rows: The rows.
        batch_size: Rows generated together.
        max_new_tokens: Most tokens of a row (default: the longest target and some more).
        strategy: Another way to decode.
        out: Where the lines go (default: standard output).

    Raises:
        ConfigError: If there are no rows, or no strategy is known.
    """
    out = out or sys.stdout
    run = _Runner(lm, rows, strategy, max_new_tokens)
    run(0, 1, 1)  # warm-up
    correct, tokens, seconds = 0, 0, 0.0
    for start in range(0, len(rows), chunk := batch_size * _CHUNK_BATCHES):
        generations, taken = run(start, start + chunk, batch_size)
        seconds += taken
        for row, generation in zip(rows[start : start + chunk], generations, strict=True):
            right = _is_right(row, generation)
            correct += right
            tokens += generation.usage.tokens
            out.write(f"Input: {row.question}\nTarget: {MARKER} {row.answer}\n")
            out.write(f"Predicted: {generation.text.strip()}\n{'Right' if right else 'Wrong'}\n\n")
        out.flush()
    result = Evaluated(len(rows), correct, seconds, tokens, batch_size)
    out.write(f"{result}\n")
    out.flush()
    return result


# Several models side by side


@dataclass(frozen=True)
class Speed:
    """One model in the table.

    Attributes:
        label: What it is called.
        n: Rows.
        correct: Rows whose answer is right.
        tokens: Tokens written for each example, end tokens included.
        fillers: Fillers read for each example.
        per_second: Examples a second, by batch size.
        relative: The same over those of the baseline; empty without one.
    """

    label: str
    n: int
    correct: int
    tokens: float
    fillers: float
    per_second: Mapping[int, float]
    relative: Mapping[int, float]

    @property
    def accuracy(self) -> float:
        return self.correct / self.n

    @property
    def interval(self) -> Interval:
        """Wilson's, at 95 %."""
        return wilson(self.correct, self.n)


@dataclass(frozen=True)
class SpeedTable:
    """Models side by side.

    Attributes:
        models: In the order given.
        baseline: Label of the model whose speed is 1, usually the one without chain of thought.
        setting: What the numbers depend on, JSON-ready.
    """

    models: tuple[Speed, ...]
    baseline: str | None
    setting: Mapping[str, Any]

    def __str__(self) -> str:
        return "\n".join(table(*self._cells()))

    def markdown(self) -> str:
        """The table in Markdown."""
        headers, rows = self._cells()
        return "\n".join(markdown_table([" ".join(header.split("\n")) for header in headers], rows))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        models = [
            {**asdict(m), "accuracy": m.accuracy, "interval": [m.interval.low, m.interval.high]}
            for m in self.models
        ]
        return {"baseline": self.baseline, "setting": dict(self.setting), "models": models}

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        sizes = list(self.models[0].per_second)
        headers = ["model", "accuracy", "[95 %]", "tokens\na row", "fillers\na row"]
        headers += [f"rows/s\nbatch {size}" for size in sizes]
        if self.baseline is not None:
            headers += [f"speed\nbatch {size}" for size in sizes]
        rows = []
        for m in self.models:
            row = [m.label, percent(m.accuracy), percent_interval(m.interval), number(m.tokens)]
            row += [number(m.fillers), *(number(m.per_second[size]) for size in sizes)]
            if self.baseline is not None:
                row += [ratio(m.relative[size]) for size in sizes]
            rows.append(row)
        return headers, rows


def throughput(
    models: Mapping[str, CausalLM | str | os.PathLike[str]],
    rows: Sequence[Chain],
    *,
    batch_sizes: Sequence[int] = (1, 32),
    baseline: str | None = None,
    max_new_tokens: int | None = None,
    single_rows: int = 100,
    repeats: int = 3,
) -> SpeedTable:
    """Accuracy, length and speed of several trained models on the same rows.

    The models take turns in every round, so that a change of the machine's speed meets all of them.

    Args:
        models: Models, or their folders, by the name to show; each decodes with the strategy that it remembers.
        rows: The rows. Accuracy is of all of them.
        batch_sizes: Rows generated together, in one measurement each.
        baseline: The model whose speed is 1.
        max_new_tokens: Most tokens of a row (default: the longest target and some more).
        single_rows: Most rows of a measurement with a batch of 1.
        repeats: Rounds; the median counts.

    Raises:
        ConfigError: If an option is wrong, or a model remembers no strategy.
    """
    problems = []
    if not models:
        problems.append("There are no models to measure.")
    if baseline is not None and baseline not in models:
        problems.append(f"The baseline {baseline!r} is not among the models: {', '.join(models)}.")
    if not batch_sizes or min(batch_sizes) < 1:
        problems.append(f"Batch sizes must be at least 1, not {list(batch_sizes)}.")
    if repeats < 1 or single_rows < 1:
        problems.append("repeats and single_rows must be at least 1.")
    if problems:
        raise ConfigError(problems)
    runners = {label: _Runner(_loaded(model), rows, None, max_new_tokens) for label, model in models.items()}
    largest = max(batch_sizes)
    answers = {label: run(0, len(rows), largest)[0] for label, run in runners.items()}  # the warm-up, too
    rates: dict[tuple[str, int], list[float]] = {}
    for turn in range(repeats):
        for size in batch_sizes:
            n = min(len(rows), single_rows) if size == 1 else len(rows)
            for label, run in runners.items():
                if turn == 0:
                    run(0, min(size, n), size)
                rates.setdefault((label, size), []).append(n / run(0, n, size)[1])
    speeds = {label: {size: median(rates[label, size]) for size in batch_sizes} for label in runners}
    measured = []
    for label, generations in answers.items():
        per_second, n = speeds[label], len(rows)
        relative = (
            {}
            if baseline is None
            else {size: per_second[size] / speeds[baseline][size] for size in batch_sizes}
        )
        correct = sum(_is_right(row, g) for row, g in zip(rows, generations, strict=True))
        tokens = sum(g.usage.tokens for g in generations) / n
        fillers = sum(g.notes.get("fillers", 0) for g in generations) / n
        measured.append(Speed(label, n, correct, tokens, fillers, per_second, relative))
    lm = next(iter(runners.values())).lm
    setting = {
        "rows": len(rows),
        "single_rows": min(len(rows), single_rows),
        "repeats": repeats,
        "device": str(lm.device),
        "dtype": str(lm.dtype).removeprefix("torch."),
        "models": {label: run.lm.info() for label, run in runners.items()},
    }
    return SpeedTable(tuple(measured), baseline, setting)


# The number of fillers


@dataclass(frozen=True)
class SweepPoint:
    """Accuracy with so many fillers; `problem` says why there is none."""

    fillers: int
    n: int = 0
    correct: int = 0
    tokens: float = 0.0
    problem: str | None = None

    @property
    def interval(self) -> Interval:
        """Wilson's, at 95 %."""
        return wilson(self.correct, self.n)


@dataclass(frozen=True)
class FillerSweep:
    """Accuracy against the number of fillers.

    Attributes:
        trained: Fillers that the model was trained with.
        points: By increasing number.
    """

    trained: int
    points: tuple[SweepPoint, ...]

    def __str__(self) -> str:
        rows = []
        for p in self.points:
            name = f"{p.fillers}{' (trained)' if p.fillers == self.trained else ''}"
            if p.problem is None:
                share = p.correct / p.n
                rows.append([name, percent(share), percent_interval(p.interval), number(p.tokens)])
            else:
                rows.append([name, p.problem.split("\n")[0], "", ""])
        return "\n".join(table(["fillers", "accuracy", "[95 %]", "tokens a row"], rows))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        points = [
            {**asdict(p), "interval": [p.interval.low, p.interval.high]} if p.problem is None else asdict(p)
            for p in self.points
        ]
        return {"trained": self.trained, "points": points}


def filler_sweep(
    lm: CausalLM | str | os.PathLike[str],
    rows: Sequence[Chain],
    *,
    counts: Sequence[int] | None = None,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    strategy: Strategy | None = None,
) -> FillerSweep:
    """Accuracy of a filler model with other numbers of fillers than it was trained with, without further training.

    Args:
        lm: The model or its folder.
        rows: The rows.
        counts: Numbers of fillers (default: 0, n/4, n/2, n and 2n of the trained n).
        batch_size: Rows generated together.
        max_new_tokens: Most tokens of a row (default: the longest target and some more).
        strategy: The `Filler` to vary (default: the one that the checkpoint remembers).

    Raises:
        ConfigError: If the model is not decoded with fillers.
    """
    from unspoken.decoding.filler import Filler

    lm = _loaded(lm)
    base = strategy or lm.strategy
    if not isinstance(base, Filler):
        raise ConfigError(
            f"{lm.source} is not decoded with fillers.",
            "Give strategy=un.Filler(n_fillers=16), or leave it out.",
        )
    if base.n_fillers == 0 and counts is None:
        raise ConfigError(
            f"{lm.source} was trained with no fillers, so that there are no numbers to go by.",
            "Give them: counts=(0, 4, 8, 16), or --sweep-fillers 0 4 8 16",
        )
    if counts is None:
        counts = (0, base.n_fillers // 4, base.n_fillers // 2, base.n_fillers, 2 * base.n_fillers)
    points = []
    for m in sorted(set(counts)):
        try:
            run = _Runner(lm, rows, replace(base, n_fillers=m), max_new_tokens)
            generations, _ = run(0, len(rows), batch_size)
        except UnspokenError as error:  # more fillers than the model has tokens or positions for
            points.append(SweepPoint(m, problem=str(error)))
            continue
        correct = sum(_is_right(row, g) for row, g in zip(rows, generations, strict=True))
        tokens = sum(g.usage.tokens for g in generations) / len(rows)
        points.append(SweepPoint(m, len(rows), correct, tokens))
    return FillerSweep(base.n_fillers, tuple(points))


def _loaded(model: CausalLM | str | os.PathLike[str]) -> CausalLM:
    if isinstance(model, (str, os.PathLike)):
        from unspoken.lm.model import load

        return load(model)
    return model
