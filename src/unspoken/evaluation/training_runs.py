"""What training runs left, for curves: accuracy against removed tokens, over seeds."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from unspoken.config import fingerprint
from unspoken.errors import DataError
from unspoken.evaluation._lines import read
from unspoken.evaluation.stats import wilson

EXACT = {
    "exact_match": "decoded, or what decoding would give",
    "teacher_forced_exact": "from one forward over the right answer: a lower bound of what decoding gives",
}
"""Measures of accuracy, the better one first, with what they are."""


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a curve.

    Attributes:
        x: Tokens removed, or fillers read, or what else the curve runs along.
        accuracy: Share of right answers; over several seeds their mean.
        low: Lower end: of Wilson's interval for one seed, one standard deviation below for several.
        high: Upper end.
        seeds: How many runs are in it.
        n: Rows of one run.
        measure: What the accuracy is: a name of `EXACT`.
    """

    x: float
    accuracy: float
    low: float
    high: float
    seeds: int
    n: int
    measure: str = "exact_match"

    def __str__(self) -> str:
        if self.seeds > 1:
            sd = 100 * (self.high - self.low) / 2
            return f"{100 * self.accuracy:5.1f} % ± {sd:.1f} (mean and sd of {self.seeds} seeds)"
        return f"{100 * self.accuracy:5.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class TrainedRun:
    """One training run: its configuration without seed, and its accuracy at each number of removed tokens.

    Attributes:
        folder: Where it is.
        group: The same for runs that differ only in their seed.
        points: By mean number of removed tokens: accuracy and rows of the last evaluation there, and the measure.
    """

    folder: Path
    group: str
    points: dict[float, tuple[float, int, str]]


def load_training_run(folder: str | Path) -> TrainedRun:
    """Read `training.json` and `metrics.jsonl` of a run's folder.

    Raises:
        DataError: If it holds no run, or no evaluation yet.
    """
    folder = Path(folder)
    try:
        described = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{str(folder)!r} holds no training run (training.json cannot be read).",
            "Give folders that unspoken train -o DIR made.",
        ) from error
    configuration = described["configuration"]
    options = {key: value for key, value in configuration["options"].items() if key != "seed"}
    points: dict[float, tuple[float, int, str]] = {}
    for row in read(folder / "metrics.jsonl"):
        measure = next((name for name in EXACT if row.get(name) is not None), None)
        if row.get("event") == "eval" and row.get("split") == "valid" and measure is not None:
            found = (float(row[measure]), int(row.get("rows", 0)), measure)
            points[float(row.get("removed", 0.0))] = found
    if not points:
        raise DataError(
            f"{folder} has no evaluation on validation rows yet.",
            "Train with validation rows, or wait for one.",
        )
    return TrainedRun(folder, fingerprint({**configuration, "options": options}), points)


def removal_curves(runs: Sequence[TrainedRun]) -> dict[str, list[Point]]:
    """A curve for each group of runs that differ only in their seed, by name."""
    groups: dict[str, list[TrainedRun]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    curves: dict[str, list[Point]] = {}
    for members in groups.values():
        # A mean over seeds is of one measure: where theirs differ at an x, it has a point for each.
        found: dict[tuple[float, str], list[tuple[float, int]]] = {}
        for run in members:
            for x, (accuracy, rows, measure) in run.points.items():
                found.setdefault((x, measure), []).append((accuracy, rows))
        name = _name([run.folder for run in members], curves)
        curves[name] = [aggregate(x, found[x, measure], measure) for x, measure in sorted(found)]
    return curves


def speed_tables(files: Sequence[str | Path]) -> tuple[dict[str, list[Point]], dict[str, list[Point]]]:
    """Accuracy against the number of fillers, and against examples a second, from files of `unspoken throughput`.

    Raises:
        DataError: If a file is none of these.
    """
    fillers: dict[str, list[Point]] = {}
    speed: dict[str, list[Point]] = {}
    for file in files:
        try:
            found = json.loads(Path(file).read_text(encoding="utf-8"))
            for model in found["table"]["models"]:
                for size, rate in model["per_second"].items():
                    point = aggregate(rate, [(model["accuracy"], model["n"])])
                    speed.setdefault(f"{model['label']}, batch {size}", []).append(point)
            for name, sweep in found["sweeps"].items():
                fillers.setdefault(name, []).extend(
                    aggregate(p["fillers"], [(p["correct"] / p["n"], p["n"])])
                    for p in sweep["points"]
                    if p["problem"] is None
                )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{str(file)!r} is no file of speeds ({type(error).__name__}: {error}).",
                "Write one: unspoken throughput DIR... -o FILE.json",
            ) from error
    return fillers, speed


def aggregate(x: float, values: Sequence[tuple[float, int]], measure: str = "exact_match") -> Point:
    """One point from the accuracy and the number of rows of each seed."""
    accuracies = [accuracy for accuracy, _ in values]
    centre, n = mean(accuracies), min(rows for _, rows in values)
    if len(values) > 1:
        sd = stdev(accuracies)
        return Point(x, centre, centre - sd, centre + sd, len(values), n, measure)
    interval = wilson(round(centre * n), n)
    return Point(x, centre, interval.low, interval.high, 1, n, measure)


def _name(folders: Sequence[Path], taken: dict[str, Any]) -> str:
    """What the names of the folders have in common, without the seed's place."""
    names = [folder.resolve().name for folder in folders]
    common = names[0]
    if len(names) > 1:
        common = re.sub(r"[-_.](s|seed)?[-_.]?\d*$", "", os.path.commonprefix(names)) or names[0]
    return common if common not in taken else str(folders[0])
