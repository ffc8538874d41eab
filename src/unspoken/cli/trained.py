"""`unspoken throughput` and `unspoken curve`: what trained models can do, how fast, and how they came to it."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unspoken.cli._arguments import Part, first_stage, option, second_stage
from unspoken.cli.data import chain_task_part, named_task
from unspoken.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from unspoken.evaluation.training_runs import Point

MARKS = {"exact_match": "●", "teacher_forced_exact": "○"}  # as in the figures
Curves = Mapping[str, Sequence["Point"]]


@dataclass(frozen=True, kw_only=True)
class ThroughputOptions:
    """Options of `throughput`."""

    models: tuple[str, ...] = option(positional="DIR")
    """Trained models; each decodes as it was trained to."""
    test_path: str | None = None
    """File of rows: lines `question||cot #### answer`, or JSONL."""
    task: str | None = None
    """A task whose test rows are used instead; its fields become flags."""
    limit: int | None = None
    """Most rows."""
    batch_sizes: tuple[int, ...] = (1, 32)
    """Rows generated together, in one measurement each."""
    baseline: str | None = None
    """The one of the models whose speed is 1, usually the one without a chain of thought."""
    repeats: int = 3
    """Rounds, of which the median counts."""
    max_new_tokens: int | None = None
    """Most tokens of an answer (default: the longest target and some more)."""
    sweep_fillers: tuple[int, ...] | None = None
    """Numbers of fillers to try each model with, too; without numbers 0, n/4, n/2, n and 2n of the n it was trained
    with."""
    output: str | None = option(None, flag="-o")
    """JSON file for the numbers, which unspoken curve draws."""

    def __post_init__(self) -> None:
        problems = []
        if (self.test_path is None) == (self.task is None):
            problems.append("Give the rows with --test_path FILE or with --task TASK.")
        if self.limit is not None and self.limit < 1:
            problems.append(f"limit must be at least 1, not {self.limit}.")
        if any(n < 0 for n in self.sweep_fillers or ()):
            problems.append("Numbers of fillers must not be negative.")
        if problems:
            raise ConfigError(problems)


def throughput_command(words: list[str]) -> int:
    """Run `unspoken throughput`."""
    description = (
        "Accuracy, tokens and speed of trained models on the same rows; they take turns in every round."
    )
    line = first_stage("throughput", words)
    parts = [Part(ThroughputOptions, aliases={"batch_size": "batch_sizes"})]
    name = named_task(line)
    if name is not None:
        parts.append(chain_task_part(name))
    options, *task = second_stage(line, parts, description)
    from unspoken.evaluation.throughput import filler_sweep, throughput
    from unspoken.tasks._chains import read_chains

    rows = task[0].chains("test") if task else read_chains(options.test_path).rows
    rows = rows[: options.limit]
    models = {_label(path, options.models): path for path in options.models}
    baseline = None if options.baseline is None else _label(options.baseline, options.models)
    table = throughput(
        models,
        rows,
        batch_sizes=options.batch_sizes,
        baseline=baseline,
        max_new_tokens=options.max_new_tokens,
        repeats=options.repeats,
    )
    sys.stdout.write(f"{table}\n")
    sweeps = {}
    for label, path in models.items() if options.sweep_fillers is not None else ():
        sweep = filler_sweep(
            path,
            rows,
            counts=options.sweep_fillers or None,
            batch_size=max(options.batch_sizes),
            max_new_tokens=options.max_new_tokens,
        )
        sweeps[label] = sweep.to_dict()
        sys.stdout.write(f"\n{label}\n{sweep}\n")
    if options.output is not None:
        path = Path(options.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        numbers = {"table": table.to_dict(), "sweeps": sweeps}
        path.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
        sys.stdout.write(f"\nWritten: {path}\n  Draw it: unspoken curve {path}\n")
    return 0


def _label(path: str, paths: Sequence[str]) -> str:
    """The folder's own name, or the whole path where two have the same name."""
    name = Path(path).resolve().name
    return name if [Path(other).resolve().name for other in paths].count(name) == 1 else path


@dataclass(frozen=True, kw_only=True)
class CurveOptions:
    """Options of `curve`."""

    runs: tuple[str, ...] = option(positional="DIR")
    """Folders of `unspoken train`, and files that `unspoken throughput -o FILE` wrote. Runs that differ only in their
    seed are one curve, of their mean and standard deviation."""
    output: str = option("results/curves", flag="-o")
    """Folder for the figures (PNG) and their numbers (CSV)."""


def curve_command(words: list[str]) -> int:
    """Run `unspoken curve`."""
    description = "Accuracy against removed tokens, the number of fillers, and speed, as tables and figures."
    (options,) = second_stage(first_stage("curve", words), [Part(CurveOptions)], description)
    from unspoken.evaluation.training_runs import load_training_run, removal_curves, speed_tables

    files = [path for path in options.runs if path.endswith(".json")]
    folders = [path for path in options.runs if not path.endswith(".json")]
    removal = removal_curves([load_training_run(path) for path in folders])
    fillers, speed = speed_tables(files)
    sections = {
        "removed": ("tokens removed from the chain of thought", removal),
        "fillers": ("filler tokens", fillers),
        "speed": ("examples a second", speed),
    }
    for label, curves in sections.values():
        if curves:
            sys.stdout.write(_table(label, curves))
    _write_numbers(sections, Path(options.output))
    _draw(sections, Path(options.output))
    return 0


def _table(label: str, curves: Curves) -> str:
    from unspoken.evaluation.training_runs import EXACT

    lines = [f"accuracy against {label}"]
    for name, points in curves.items():
        lines.append(f"  {name}")
        lines += [f"    {point.x:>10.6g}  {MARKS[point.measure]} {point}" for point in points]
    used = {point.measure for points in curves.values() for point in points}
    lines += [f"  {MARKS[name]} {name}: {meaning}" for name, meaning in EXACT.items() if name in used]
    return "\n".join(lines) + "\n\n"


def _write_numbers(sections: Mapping[str, tuple[str, Curves]], folder: Path) -> None:
    """A CSV file for each figure, one row a point."""
    columns = ("x", "accuracy", "low", "high", "seeds", "n", "measure")
    for stem, (_label, curves) in sections.items():
        if curves:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{stem}.csv"
            aside = path.with_name(f".{path.name}.writing")
            with aside.open("w", encoding="utf-8", newline="") as file:
                table = csv.writer(file, lineterminator="\n")
                table.writerow(["curve", *columns])
                for name, points in curves.items():
                    table.writerows([name, *(getattr(point, c) for c in columns)] for point in points)
            aside.replace(path)
            sys.stdout.write(f"{path}\n")


def _draw(sections: Mapping[str, tuple[str, Curves]], folder: Path) -> None:
    from unspoken.analysis import plots

    try:
        for stem, (label, curves) in sections.items():
            if not curves:
                continue
            if stem == "speed":
                flat = [(name, point) for name, points in curves.items() for point in points]
                columns = zip(*((n, p.x, p.accuracy, p.low, p.high) for n, p in flat), strict=True)
                figure = plots.cost_accuracy(*map(list, columns), label=label)
            else:
                numbers = [
                    [[getattr(point, name) for point in points] for points in curves.values()]
                    for name in ("x", "accuracy", "low", "high")
                ]
                bounds = [[point.measure != "exact_match" for point in points] for points in curves.values()]
                figure = plots.curves(
                    list(curves), *numbers, label=label, hollow=bounds, hollow_label="hollow: teacher-forced"
                )
            path = folder / f"{stem}.png"
            path.write_bytes(plots.render(figure, "png"))
            sys.stdout.write(f"{path}\n")
    except MissingExtraError as error:
        sys.stdout.write(f"No figures: matplotlib is not installed. {error.hint}\n")
