"""What a sweep found: one line for each method and depth, with intervals, paired tests, costs and what is missing."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unspoken.errors import ConfigError
from unspoken.evaluation import _collapse, stats, truncation_tables
from unspoken.evaluation._folder import is_run_folder, read_folder
from unspoken.evaluation._grid import Manifest, depth_slug, read_manifests, slug
from unspoken.evaluation._sweep_line import COLUMNS, HEADERS, Line, cells, record
from unspoken.evaluation._text import table
from unspoken.evaluation.comparison import majority_is_correct
from unspoken.evaluation.grading import opinions
from unspoken.evaluation.records import Run
from unspoken.lm.depth import Kept

_ASIDE = re.compile(r"\.old-\d+$")


@dataclass(frozen=True)
class SweepSummary:
    """All lines, and what a reader must know of them."""

    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    baseline: str

    def records(self) -> list[dict[str, str]]:
        """The rows of `summary_table.csv`: one for each label of a depth, equal ones naming the same run."""
        return [record(line, label) for line in self.lines for label in line.labels]

    def write_csv(self, path: str | Path) -> Path:
        """Write `summary_table.csv`; shares and p values are numbers within 0 and 1, an empty cell is unknown.

        Raises:
            ConfigError: If it cannot be written.
        """
        path = Path(path)
        out = io.StringIO()
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.records())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.part")
            temporary.write_text(out.getvalue(), encoding="utf-8")
            os.replace(temporary, path)
        except OSError as error:
            raise ConfigError(f"Cannot write {str(path)!r}: {error.strerror}.") from error
        return path

    def __str__(self) -> str:
        headers = [header.format(self.baseline) for header in HEADERS]
        parts = []
        for model in dict.fromkeys(line.model for line in self.lines):
            rows = [cells(line) for line in self.lines if line.model == model]
            parts += [model, *table(headers, rows), ""]
        return "\n".join([*parts, *self.notes]).rstrip()


def summarize(
    path: str | Path, *, baseline: str = "baseline", blocks: int | None = None, grader: str | None = None
) -> SweepSummary:
    """Read all runs of a sweep, of ordinary evaluations, or of the original truncation scripts, in a folder.

    Args:
        path: The folder, or any folder above.
        baseline: Name of the method that the others are tested against, at the same depth of the same model.
        blocks: How many blocks the full model has, for files that do not say.
        grader: Whose grades count, of those that `unspoken grade` gave as well (default: the recorded ones).

    Raises:
        ConfigError: If there is no run, or an option fits none.
        DataError: If a file is damaged.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise ConfigError(f"No folder {str(path)!r}.", "Run: unspoken sweep TASK -m MODEL -o FOLDER")
    manifests, notes = read_manifests(path), []
    lines, aside = _own_lines(path, manifests)
    if aside:
        notes.append(f"{aside} folders that were moved aside (.old-N) are left out.")
    lines += _foreign_lines(path, blocks)
    if not lines:
        planned = (
            f" {len(manifests)} sweeps are planned there, and nothing of them has been run."
            if manifests
            else ""
        )
        raise ConfigError(
            f"{str(path)!r} holds no run of a sweep: neither run folders nor files of the original truncation "
            f"scripts.{planned}",
            "Run: unspoken sweep TASK -m MODEL -o FOLDER",
        )
    if grader is not None:
        lines = _graded(lines, grader)
    order = {name: i for i, name in enumerate(dict.fromkeys(line.method for line in lines))}
    lines.sort(key=lambda line: (line.model, *_place(line), order[line.method]))
    lines = [_tested(line, _baseline_of(line, lines, baseline)) for line in lines]
    return SweepSummary(tuple(lines), (*notes, *_notes(lines, baseline)), baseline)


def _place(line: Line) -> tuple[float, float, str]:
    """Where a line stands: the fewer blocks are dropped, the further below."""
    if line.kept is None:
        return (0, float(line.layer if line.layer is not None else math.inf), "")
    return (-line.kept.n_dropped, 0, depth_slug(line.kept))


# Our own folders


def _own_lines(root: Path, manifests: Sequence[Manifest]) -> tuple[list[Line], int]:
    """A line for each run folder, those included that are planned and were never begun."""
    planned: dict[Path, list[tuple[Manifest, Mapping[str, Any]]]] = {}
    for manifest in manifests:
        for configuration in manifest.configurations:
            folder = manifest.path.parent / configuration["folder"]
            planned.setdefault(folder, []).append((manifest, configuration))
    found = {p.parent for p in root.rglob("run*.json") if is_run_folder(p.parent)}
    aside = {p for p in found if any(_ASIDE.search(part) for part in p.relative_to(root).parts)}
    lines = []
    for folder in [*planned, *sorted(found - aside - set(planned))]:
        run = read_folder(folder) if folder in found else None
        lines.append(_own_line(folder, run, planned.get(folder, [])))
    return (lines if found - aside else []), len(aside)


def _own_line(folder: Path, run: Run | None, plans: Sequence[tuple[Manifest, Mapping[str, Any]]]) -> Line:
    if not plans:
        assert run is not None
        kept = truncation_tables.kept_of(run, None)
        missing = max(0, run.planned - len(run.rows))
        shards = _collapse.marks(folder)
        model = str(run.config.get("model", {}).get("source", "model"))
        label = depth_slug(kept) if kept else "full"
        return Line(
            run.label,
            model,
            (label,),
            kept,
            run,
            _grader(run),
            collapsed=(len(shards), max(1, len(shards))),
            gaps=(f"{missing} rows are missing",) if missing else (),
            missing=missing,
        )
    manifest, configuration = plans[0]
    labels = tuple(dict.fromkeys(label for _, c in plans for label in c["labels"]))
    kept = Kept(tuple(configuration["kept_blocks"]), manifest.blocks)
    if run is None:
        config = {"strategy": configuration["strategy"], "model": {"source": manifest.model}}
        run = Run(config, [], path=folder, state="incomplete")
    marked = set(_collapse.marks(folder))
    gaps, missing = _gaps(run, [m for m, _ in plans], marked)
    count = max(m.shards for m, _ in plans)
    return Line(
        configuration["method"],
        manifest.model,
        labels,
        kept,
        run,
        _grader(run),
        collapsed=(len(marked), count),
        gaps=tuple(gaps),
        missing=missing,
    )


def _gaps(run: Run, manifests: Sequence[Manifest], marked: set[str]) -> tuple[list[str], int]:
    """What is missing of what was planned; shards that were given up are not."""
    have = {row.id for row in run.rows}
    gaps: list[str] = []
    missing: set[str] = set()
    given_up = {row for m in manifests for row in _rows_of(m, marked)}
    for manifest in manifests:
        for shard in range(manifest.shards):
            rows = manifest.rows_of(shard)
            lacking = set(rows) - have - missing - given_up
            if lacking:
                name = f"shard {shard}/{manifest.shards}" if manifest.shards > 1 else "the run"
                gaps.append(f"{name}: {len(lacking)} of {len(rows)} rows are missing")
                missing |= lacking
    return gaps, len(missing)


def _rows_of(manifest: Manifest, marked: set[str]) -> list[str]:
    """The planned rows of the shards that were given up."""
    rows: list[str] = []
    for shard in range(manifest.shards):
        name = f"{shard}/{manifest.shards}" if manifest.shards > 1 else ""
        rows += manifest.rows_of(shard) if name in marked else []
    return rows


def _grader(run: Run) -> str:
    recorded = str(run.config.get("task", {}).get("grader", "default"))
    return "default" if recorded == "both" else recorded


def _graded(lines: Sequence[Line], grader: str) -> list[Line]:
    """The lines by another grader.

    Raises:
        ConfigError: If it has not graded all of them.
    """
    graded, lacking = [], []
    for line in lines:
        seen = {name.removesuffix(" (recorded)"): run for name, run in opinions(line.run).items()}
        view = seen.get(grader)
        if view is None or len(view.rows) < len(line.run.rows):
            lacking.append(line.run.name)
        else:
            graded.append(replace(line, run=view, grader=grader))
    if lacking:
        raise ConfigError(
            f"The grader {grader!r} has not graded {', '.join(lacking[:8])}"
            + (f" and {len(lacking) - 8} more." if len(lacking) > 8 else "."),
            "Run: unspoken grade FOLDER for each",
        )
    return graded


# The originals' folders


def _foreign_lines(root: Path, blocks: int | None) -> list[Line]:
    every = truncation_tables.find_series(root)
    batches: dict[str, set[int]] = {}
    for series in every:
        batches.setdefault(series.model, set()).update(series.batches)
    lines = []
    for series in every:
        run = truncation_tables.read_series(series)
        wanted = range(max(batches[series.model]) + 1)
        gaps = [
            f"batch {b}: {series.name}_batch{b}.csv is missing" for b in wanted if b not in series.batches
        ]
        repeated = run.config["files"]["repeated_rows"]
        if repeated:
            gaps.append(f"{repeated} rows repeat a problem and are left out")
        kept = truncation_tables.kept_of(run, blocks)
        method = series.method if series.steps is None else f"power, {series.steps} steps"
        if _several(every, series):
            method += f", temperature {series.temperature:g}"
        lines.append(Line(method, series.model, (str(series.layer),), kept, run, "strict", gaps=tuple(gaps)))
    return lines


def _several(every: Iterable[truncation_tables.Series], one: truncation_tables.Series) -> bool:
    """Whether a layer has this method at several temperatures, so that its name must tell them apart."""
    key = (one.folder, one.method, one.layer, one.steps)
    return sum((s.folder, s.method, s.layer, s.steps) == key for s in every) > 1


# Tests and words


def _baseline_of(line: Line, lines: Sequence[Line], baseline: str) -> Line | None:
    """The baseline of the same depth and model; of several the one that was asked for by the same label."""
    if line.method == baseline:
        return None
    same = [
        other
        for other in lines
        if other.method == baseline
        and other.run.rows
        and slug(other.model) == slug(line.model)
        and (other.labels == line.labels if None in (other.kept, line.kept) else other.kept == line.kept)
    ]
    return next((other for other in same if set(other.labels) & set(line.labels)), same[0] if same else None)


def _tested(line: Line, base: Line | None) -> Line:
    """The line with McNemar's test on the problems that it shares with the baseline."""
    if base is None or not line.run.rows:
        return line
    theirs, mine = base.run.by_example(), line.run.by_example()
    shared = theirs.keys() & mine.keys()
    if not shared:  # the originals know problems by their questions only
        theirs, mine = (
            {" ".join(group[0].question.split()): group for group in groups.values()}
            for groups in (theirs, mine)
        )
        shared = theirs.keys() & mine.keys()
    if not shared:
        return line
    votes = [
        (majority_is_correct(base.run, theirs[name]), majority_is_correct(line.run, mine[name]))
        for name in shared
    ]
    p = stats.mcnemar(sum(a and not b for a, b in votes), sum(b and not a for a, b in votes))
    return replace(line, p=p, paired=len(shared))


def _notes(lines: Sequence[Line], baseline: str) -> list[str]:
    """What must be known to read the table."""
    notes = [f"{line.method} at layer {line.where}: {gap}." for line in lines for gap in line.gaps]
    given_up = [
        f"{line.method} at layer {line.where} ({line.collapsed[0]} of {line.collapsed[1]} cells, "
        f"{line.run.summary.n} answers)"
        for line in lines
        if line.collapsed[0]
    ]
    if given_up:
        notes.append(
            "Given up early, since no answer could be read and every text was cut off or ran in a loop: "
            f"{'; '.join(given_up)}. Their accuracies are those of these answers; --no-collapse-stop goes on."
        )
    if any(line.collapsed[0] and (line.full or "full" in line.labels) for line in lines):
        notes.append(
            "The full model was given up as well: its answers probably need a larger --max-new-tokens, and those of "
            "the other depths may, too."
        )
    full = [line for line in lines if line.full and any(label.isdigit() for label in line.labels)]
    for model, labels in dict.fromkeys((line.model, line.labels) for line in full):
        which = f"layers {', '.join(labels)} drop" if len(labels) > 1 else f"layer {labels[0]} drops"
        notes.append(f"{model}: {which} nothing: that is the full model, and no truncation.")
    if any(line.kept is None and "full" not in line.labels for line in lines):
        notes.append(
            "The number of blocks is not known here: with --blocks N, layers that drop nothing are told apart."
        )
    tests = sum(line.p is not None for line in lines)
    if tests > 1:
        notes.append(
            f"p: McNemar's exact test against {baseline} at the same depth, on the problems that both have; {tests} "
            "tests, not adjusted."
        )
    return notes
