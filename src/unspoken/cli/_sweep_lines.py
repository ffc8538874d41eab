"""What `unspoken sweep` shows of its cells while they run."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from unspoken.cli._progress import RunningLine

if TYPE_CHECKING:
    from unspoken.evaluation._grid import Cell
    from unspoken.evaluation.records import ResultRow, Summary
    from unspoken.evaluation.sweep import CellResult


class Shown:
    """What is seen of a sweep while it runs: a running line for each cell, and one line when it is done."""

    def __init__(self, quiet: bool, total: int) -> None:
        self._quiet, self._total, self._count = quiet, total, 0
        self._stack = ExitStack()
        self._line: RunningLine | None = None

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def cell(self, cell: Cell) -> None:
        """A cell begins."""
        self._count += 1
        title = f"{self._count}/{self._total} {_title(cell)}"
        self._line = self._stack.enter_context(RunningLine(title, quiet=self._quiet))

    def row(self, cell: Cell, row: ResultRow, summary: Summary) -> None:
        """A row of it is finished."""
        if self._line is not None:
            self._line.row(row, summary)

    def done(self, result: CellResult) -> None:
        """It has ended."""
        self._stack.close()
        if result.run is None:
            told = f"failed: {result.error}"
        else:
            # Of a shared folder this is what all shards have done so far.
            told = f"{result.run.summary}{', given up: collapsed' if result.collapsed else ''}"
        sys.stdout.write(f"cell {result.cell.index}  {_title(result.cell)}: {told}\n")
        sys.stdout.flush()


def _title(cell: Cell) -> str:
    configuration = cell.configuration
    shard = f", shard {cell.shard}" if cell.shard else ""
    full = "" if configuration.kept.n_dropped else " (full model)"
    return f"{configuration.method} at layer {', '.join(configuration.labels)}{full}{shard}"
