"""Several graders on the same answers: what each of them finds, where they disagree, and grading a folder again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unspoken import config as configs
from unspoken.discovery import TASKS
from unspoken.errors import ConfigError, RunError
from unspoken.evaluation import _lines
from unspoken.evaluation._folder import claim, grades_file, is_run_folder, read_folder, read_grades
from unspoken.evaluation._text import percent, percent_interval, table
from unspoken.evaluation.records import ResultRow, Run, grade_to_dict, recorded_task
from unspoken.tasks._base import Task
from unspoken.types import Example, Grade

if TYPE_CHECKING:
    from unspoken.tasks._graders import Extract, Grader

GRADERS = (
    "run",
    "grader",
    "accuracy [95 %]",
    "unparsed",
    "truncated",
    "right only\nhere",
    "wrong only\nhere",
)
DISAGREEMENTS = ("answer", "gold", "read", "recorded", "other grader")
SHOWN = 10
"""Disagreements that are listed where not all are asked for."""
_LONGEST = 48  # characters of an answer in a list


def opinions(run: Run) -> dict[str, Run]:
    """The run as each of its graders sees it, the recorded one first; rows without an opinion are left out."""
    names = list(dict.fromkeys(name for row in run.rows for name in row.grades))
    recorded = run.config.get("task", {}).get("grader", "default")
    recorded = "default" if recorded == "both" else recorded
    found = {f"{recorded} (recorded)" if recorded in names else recorded: run}
    for name in names:
        rows = [
            replace(row, status=g.status, answer=g.answer, rule=g.rule)
            for row in run.rows
            if (g := row.grades.get(name)) is not None
        ]
        found[name] = replace(run, rows=rows)
    return found


def disagreements(run: Run) -> list[tuple[ResultRow, str, Grade]]:
    """The rows that another grader finds right where the recorded one does not, or the other way round."""
    return [
        (row, name, grade)
        for row in run.rows
        for name, grade in row.grades.items()
        if grade.correct != row.correct
    ]


def grader_rows(run: Run, name: str | None = None) -> list[list[str]]:
    """The cells of a table of graders (headers: `GRADERS`); none where only one has graded."""
    seen = opinions(run)
    if len(seen) < 2:
        return []
    cells = []
    for grader, view in seen.items():
        summary = view.summary
        only = [(g.correct, row) for row, other, g in disagreements(run) if other == grader]
        counts = [str(sum(right for right, _ in only)), str(sum(not right for right, _ in only))]
        cells.append(
            [
                name or run.name,
                grader,
                f"{percent(summary.accuracy)} {percent_interval(summary.interval)}",
                percent(summary.share("unparsed")),
                percent(summary.share("truncated")),
                *(counts if view is not run else ["", ""]),
            ]
        )
    return cells


def disagreement_rows(run: Run, limit: int | None = SHOWN) -> list[list[str]]:
    """The cells of a list of disagreements (headers: `DISAGREEMENTS`)."""
    return [
        [
            row.id,
            _short(row.gold),
            _short(grade.answer if row.answer is None else row.answer),
            row.status,
            f"{name}: {grade.status}",
        ]
        for row, name, grade in disagreements(run)[:limit]
    ]


def grader_lines(run: Run, limit: int | None = SHOWN) -> list[str]:
    """Both as text; nothing where only one grader has graded."""
    cells = grader_rows(run)
    if not cells:
        return []
    lines = table(GRADERS[1:], [row[1:] for row in cells])
    count = len(disagreements(run))
    if not count:
        return [*lines, "The graders agree on every answer."]
    lines += ["", *table(DISAGREEMENTS, disagreement_rows(run, limit))]
    if limit is not None and count > limit:
        lines.append(f"{count - limit} more disagreements; `unspoken grade DIR --limit {count}` lists all.")
    return lines


def _short(text: str | None) -> str:
    flat = "–" if text is None else " ".join(text.split())
    return flat if len(flat) <= _LONGEST else flat[: _LONGEST - 1] + "…"


def regrade(
    path: str | Path,
    grader: Grader = "both",
    extract: Extract = "auto",
    *,
    on_row: Callable[[int, int], None] | None = None,
) -> Run:
    """Grade the answers of a run folder again, without generating anything.

    The rows stay as they are; each grader's opinions go to `grades.NAME.jsonl` beside them, a line as soon as
    it is known. The same call again goes on where the last one stopped, and grades only rows that are new, or
    were graded by another version of the task.

    Args:
        path: The folder.
        grader: `default`, `strict` or `both`.
        extract: Which answers are read.
        on_row: Called with the number of opinions that are known and wanted.

    Returns:
        The run, with `grades` in its rows.

    Raises:
        ConfigError: If it is no run folder, is graded by another process, or its task has no such grader.
        RunError: If rows could not be graded; the others are kept.
    """
    path = Path(path).expanduser()
    if not is_run_folder(path):
        raise ConfigError(
            f"{str(path)!r} is no run folder.", "Name a folder that `unspoken eval ... -o FOLDER` wrote."
        )
    run = read_folder(path)
    names = ("default", "strict") if grader == "both" else (grader,)
    tasks = {name: _task(run, name, extract) for name in names}
    failed: list[str] = []
    with closing(claim(path, ".grading")):
        done = 0
        for name, task in tasks.items():
            label = name if extract == "auto" else f"{name} {extract}"
            for error in _grade_rows(path, run.rows, label, task):
                failed += [error] if error else []
                done += 1
                if on_row is not None:
                    on_row(done, len(tasks) * len(run.rows))
    if failed:
        raise RunError(
            f"{len(failed)} answers could not be graded; the others are kept. The first: {failed[0]}"
        )
    return read_folder(path)


def _grade_rows(path: Path, rows: list[ResultRow], label: str, task: Task) -> Any:
    """Grade what is not graded yet; yields for each row None, or why it could not be graded."""
    file = grades_file(path, label)
    _lines.repair(file)
    settings = [task.name, task.version, configs.to_dict(task)]
    marks = {row.id: configs.fingerprint([settings, row.gold, row.text, row.reason]) for row in rows}
    known = read_grades(path, label, marks)
    with file.open("ab") as lines:
        for row in rows:
            error = None
            if row.id not in known:
                truncated = row.reason in ("length", "context")
                try:
                    grade = task.grade(
                        Example(row.example, row.question, row.gold), row.text, truncated=truncated
                    )
                except Exception as caught:  # an answer that breaks the grader must not end the others
                    error = f"{row.id}: {type(caught).__name__}: {caught}"
                else:
                    _lines.append(
                        lines, _lines.encode({"id": row.id, "of": marks[row.id], **grade_to_dict(grade)})
                    )
            yield error
    _lines.sort(file, {row.id: (row.index, row.sample) for row in rows})


def _task(run: Run, grader: str, extract: str) -> Task:
    """The recorded task with another grader."""
    recorded = run.config.get("task", {})
    cls = TASKS.find(recorded.get("name", ""))
    if not cls.gradable:
        raise ConfigError(f"The task {recorded['name']!r} only generates: its answers have no grade.")
    if "grader" in configs.to_dict(cls()):
        return recorded_task(run, grader=grader, extract=extract)
    if grader != "default" or extract != "auto":
        raise ConfigError(
            f"The task {recorded['name']!r} has one grader, and reads answers in one way.",
            f"Run: unspoken grade {run.path} --grader default",
        )
    return recorded_task(run)
