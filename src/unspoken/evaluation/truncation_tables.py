"""The result files of the original truncation scripts, read and written.

`MODEL/truncated_ps_results_layer{l}_steps{N}_temp{tau}_batch{b}.csv` holds one batch of problems under power sampling,
`MODEL/baseline_results_layer{l}_temp{tau}_batch{b}.csv` under plain sampling; MODEL is the model's name with
underscores for slashes. Columns: question, correct_answer, mcmc_completion, mcmc_answer, acceptance_ratio. Every cell
is text: nothing is taken for a number or for missing, and only an empty answer is none.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from unspoken.discovery import TASKS
from unspoken.errors import ConfigError, DataError
from unspoken.evaluation._grid import depth_slug, first_blocks, slug
from unspoken.evaluation.records import ResultRow, Run
from unspoken.lm.depth import Depth, Kept
from unspoken.types import Example, Grade, Usage

COLUMNS = ("question", "correct_answer", "mcmc_completion", "mcmc_answer", "acceptance_ratio")
BATCH = 20
"""Problems of a file, as the originals cut them."""
FULL_LAYER = 100
"""The layer that the originals name where they mean the full model."""
_POWER = re.compile(r"truncated_ps_results_layer(?P<layer>\d+)_steps(?P<steps>\d+)_temp(?P<temp>[\d.]+?)")
_BASELINE = re.compile(r"baseline_results_layer(?P<layer>\d+)_temp(?P<temp>[\d.]+?)")
_BATCH = re.compile(r"(?P<series>.+)_batch(?P<batch>\d+)\.csv")
_FIELD = 1 << 30  # characters; csv's own limit is below a long completion


@dataclass(frozen=True)
class Series:
    """The files of one configuration: one model, method and layer.

    Attributes:
        folder: Where they lie.
        name: What their names begin with.
        method: `power` or `baseline`.
        layer: As in the names.
        temperature: As in the names.
        steps: Moves after each block; None for the baseline.
        batches: Numbers of the files there are.
    """

    folder: Path
    name: str
    method: str
    layer: int
    temperature: float
    steps: int | None
    batches: tuple[int, ...]

    @property
    def model(self) -> str:
        """The model's name, with underscores for slashes."""
        return self.folder.resolve().name


@dataclass
class Exported:
    """What an export wrote, and what has no place in the originals' layout."""

    files: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def find_series(path: Path) -> list[Series]:
    """The configurations at a path: a folder, one of its files, or a series' name without `_batch{b}.csv`."""
    found: dict[tuple[Path, str], set[int]] = {}
    files: Iterable[Path]
    if path.is_dir():
        files = path.rglob("*_batch*.csv")
    elif path.suffix == ".csv":
        files = [path] if path.is_file() else []
    else:
        files = (f for f in path.parent.glob("*_batch*.csv") if f.name.startswith(f"{path.name}_batch"))
    for file in files:
        match = _BATCH.fullmatch(file.name)
        if match and (_POWER.fullmatch(match["series"]) or _BASELINE.fullmatch(match["series"])):
            found.setdefault((file.parent, match["series"]), set()).add(int(match["batch"]))
    series = [_series(folder, name, sorted(batches)) for (folder, name), batches in found.items()]
    return sorted(series, key=lambda s: (str(s.folder), s.method, s.layer, s.name))


def read_tree(path: Path) -> list[Run]:
    """The runs at a path, as in `find_series`; none if there are no such files.

    Raises:
        DataError: If a file is not of this format.
    """
    return [read_series(series) for series in find_series(path)]


def read_series(series: Series) -> Run:
    """The rows of all batches, each problem once.

    A problem is known by its question, since the files have no ids. The recorded answers are graded as published
    accuracies are (`strict`). Answers `{}` are none: they are read off the prompt, which is part of the completions.
    The files say nothing of tokens, stop reasons or seconds: these are 0, empty and unknown.

    Raises:
        DataError: If a file is not of this format.
    """
    rows: dict[str, ResultRow] = {}
    repeated = 0
    for batch in series.batches:
        file = series.folder / f"{series.name}_batch{batch}.csv"
        for cells in _read(file):
            row = _row(cells, len(rows))
            repeated += row.id in rows
            rows.setdefault(row.id, row)
    strategy: dict[str, Any] = {"name": "cot", "temperature": series.temperature}
    if series.steps is not None:
        alpha = 1.0 / series.temperature if series.temperature else None
        strategy |= {"name": "power", "mode": "reference", "mcmc_steps": series.steps, "alpha": alpha}
    return Run(
        config={
            "strategy": strategy,
            "model": {"source": series.model, "layer_idx": series.layer},
            "task": {"name": "math500", "grader": "strict"},
            "samples": 1,
            "files": {"batches": list(series.batches), "repeated_rows": repeated},
        },
        rows=list(rows.values()),
        path=series.folder / series.name,
        planned=len(rows),
    )


def export_run(
    run: Run,
    root: str | Path,
    *,
    layers: Sequence[str] = (),
    blocks: int | None = None,
    batch: int = BATCH,
    taken: set[Path] | None = None,
) -> Exported:
    """Write a run as the originals' files, batch by batch.

    A file holds the problems from `batch * b` on in the order of the task, whatever shards made them; one with
    problems missing is named in what was left out, as is all that the layout has no place for: other strategies, other
    depths than the first blocks with the last one, and second samples.

    Args:
        run: Of `power` or `cot`.
        root: Folder of the models' folders.
        layers: Labels of its depth; those that are numbers name files (default: what the recorded blocks say).
        blocks: How many blocks the full model has, where the run does not say.
        batch: Problems of a file.
        taken: Files that other runs wrote, which this one must not replace: the names tell neither top_k nor any other
            setting. What is written is added.

    Raises:
        ConfigError: If a file cannot be written.
    """
    done, taken = Exported(), set() if taken is None else taken
    strategy = run.config.get("strategy", {})
    kept = kept_of(run, blocks)
    names = _layer_names(layers, kept)
    if strategy.get("name") not in ("power", "cot"):
        done.left_out.append(
            f"{run.name}: the layout has no place for the strategy {strategy.get('name')!r}."
        )
    elif not names:
        done.left_out.append(f"{run.name}: the layout has no place for its depth.")
    elif run.rows:
        folder = Path(root).expanduser() / slug(str(run.config.get("model", {}).get("source", "model")))
        for name in names:
            _write_batches(run, folder, _series_name(strategy, name), batch, done, taken)
    if run.summary.samples > 1 and done.files:
        done.left_out.append(f"{run.name}: only the first of {run.summary.samples} samples has a place.")
    return done


def acceptance(row: ResultRow) -> float | None:
    """Share of the moves of a row that were accepted; None where it made none."""
    power = row.notes.get("power")
    found = power["acceptance"] if power and power["moves"] else row.notes.get("acceptance_ratio")
    return None if found is None else float(found)


def kept_of(run: Run, blocks: int | None) -> Kept | None:
    """The blocks that a run kept; None where that cannot be known."""
    model = run.config.get("model", {})
    if "layer_idx" in model:  # of the originals, which always keep the last block
        return Depth(layer_idx=model["layer_idx"], keep_last=True).resolve(blocks) if blocks else None
    depth = model.get("depth")
    if depth:
        numbers = tuple(depth["kept_blocks"])
        return Kept(numbers, len(numbers) + depth["n_dropped"])
    return Kept(tuple(range(blocks)), blocks) if blocks else None


def _series(folder: Path, name: str, batches: Sequence[int]) -> Series:
    match = _POWER.fullmatch(name) or _BASELINE.fullmatch(name)
    assert match is not None
    values = match.groupdict()
    steps = values.get("steps")
    method = "baseline" if steps is None else "power"
    number = None if steps is None else int(steps)
    return Series(folder, name, method, int(values["layer"]), float(values["temp"]), number, tuple(batches))


def _series_name(strategy: dict[str, Any], layer: str) -> str:
    temperature = strategy.get("temperature")
    if strategy["name"] == "cot":
        return f"baseline_results_layer{layer}_temp{temperature}"
    tau = temperature or 1.0 / strategy["alpha"]
    return f"truncated_ps_results_layer{layer}_steps{strategy['mcmc_steps']}_temp{tau}"


def _layer_names(labels: Sequence[str], kept: Kept | None) -> list[str]:
    numbers = [label for label in labels if label.isdigit()]
    if numbers or kept is None:
        return numbers
    kind, first = depth_slug(kept), first_blocks(kept.blocks)
    if kind == "full":
        return [str(max(FULL_LAYER, kept.of))]
    return [str(first - 1)] if kind.endswith("+last") and first else []


def _write_batches(run: Run, folder: Path, series: str, size: int, done: Exported, taken: set[Path]) -> None:
    batches: dict[int, list[ResultRow]] = {}
    for row in run.rows:
        if row.sample == 0:
            batches.setdefault(row.index // size, []).append(row)
    last = max(batches)
    for number in range(last + 1):
        rows = batches.get(number, [])
        file = folder / f"{series}_batch{number}.csv"
        if file in taken:
            done.left_out.append(f"{run.name}: another run has the same file name, {file.name}.")
            continue
        # The last batch may be short; of the others something is missing.
        if len(rows) < size and number < last:
            done.left_out.append(f"{run.name}: {size - len(rows)} problems of {file.name} are missing.")
        if rows:
            _write(file, rows)
            taken.add(file)
            done.files.append(file)


def _write(path: Path, rows: Sequence[ResultRow]) -> None:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        accepted = acceptance(row)
        text = row.thinking + row.text
        writer.writerow(
            [row.question, row.gold, text, row.answer or "", "" if accepted is None else accepted]
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        temporary.write_text(out.getvalue(), encoding="utf-8", newline="")
        os.replace(temporary, path)
    except OSError as error:
        raise ConfigError(f"Cannot write {str(path)!r}: {error.strerror}.") from error


def _read(path: Path) -> list[dict[str, str]]:
    """The rows of one file; columns beside the known ones are let be."""
    before = csv.field_size_limit(_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [name for name in COLUMNS[:4] if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{path} has no column {', '.join(missing)}.", f"Columns: {', '.join(COLUMNS)}"
                )
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}.") from error
    finally:
        csv.field_size_limit(before)
    for number, cells in enumerate(rows, 1):
        if any(cells.get(name) is None for name in COLUMNS[:4]):
            raise DataError(f"Row {number} of {path} is cut off.")
    return rows


def _row(cells: dict[str, str], index: int) -> ResultRow:
    question, gold, answer = cells["question"], cells["correct_answer"], cells["mcmc_answer"]
    name = "q-" + hashlib.sha256(" ".join(question.split()).encode()).hexdigest()[:10]
    grade = _grade(name, question, gold, answer)
    notes: dict[str, Any] = {}
    with contextlib.suppress(ValueError):  # the baselines' files may hold anything there
        notes["acceptance_ratio"] = float(cells.get("acceptance_ratio", ""))
    return ResultRow(
        id=f"{name}#0",
        example=name,
        index=index,
        sample=0,
        seed=0,
        question=question,
        gold=gold,
        status=grade.status,
        answer=grade.answer,
        rule=grade.rule,
        reason="",
        text=cells["mcmc_completion"],
        thinking="",
        usage=Usage(),
        notes=notes,
    )


@cache
def _grader() -> Any:
    return TASKS.find("math500")(grader="strict")


def _grade(name: str, question: str, gold: str, answer: str) -> Grade:
    """The grade of an answer that was read already."""
    if not answer or answer.strip() in ("{}", "{{}}"):
        return Grade("unparsed")
    found: Grade = _grader().grade(Example(name, question, gold), f"\\boxed{{{answer}}}")
    # What unbalanced braces hide is an answer nevertheless.
    return Grade("wrong" if found.status == "unparsed" else found.status, answer, found.rule)
