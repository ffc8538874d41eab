"""Running lines of long work: on a terminal only, so that logs stay clean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from unspoken.evaluation.records import ResultRow, Summary


@contextmanager
def counting(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for work that is told as `(done, total)`; on stderr, and gone at the end."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        line = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(line, completed=done, total=total)


class RunningLine:
    """Accuracy so far, rows done, and the time that is left; on stderr, and gone when it closes."""

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.fields[title]}"),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._line = self._progress.add_task("starting", title=title, total=None)

    def __enter__(self) -> RunningLine:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def row(self, row: ResultRow, summary: Summary) -> None:
        """Take one more finished row (`on_row` of `evaluate`)."""
        told = [f"{100 * summary.accuracy:.1f} % correct" if summary.graded else "not graded"]
        told += [f"{summary.statuses[s]} {s}" for s in ("unparsed", "truncated") if summary.statuses[s]]
        told += [f"{summary.errors} failed"] if summary.errors else []
        done = summary.n + summary.errors
        self._progress.update(self._line, total=summary.planned, completed=done, description=", ".join(told))
