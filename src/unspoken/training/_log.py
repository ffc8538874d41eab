"""What a run tells while it works: `metrics.jsonl`, lines on stdout, and a running line on a terminal."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from unspoken.errors import RunError


class Log:
    """The log of one run. Only the first process has one that writes.

    Args:
        path: `metrics.jsonl`; appended to. None writes none.
        total: Optimizer steps, for the progress shown.
        quiet: Print nothing.
    """

    def __init__(self, path: Path | None, total: int, *, quiet: bool) -> None:
        self._path = path
        try:
            self._file = path.open("a", encoding="utf-8") if path else None
        except OSError as error:
            raise self._unwritable(error) from error
        self._total, self._quiet = total, quiet or path is None
        self._terminal = not self._quiet and sys.stdout.isatty()
        self._shown = 0.0
        self._started: tuple[float, int] | None = None
        self._loss = ""

    def row(self, row: dict[str, Any]) -> None:
        """Write one row, and print it."""
        if self._file is not None:
            plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
            try:
                self._file.write(json.dumps(plain) + "\n")
                self._file.flush()
            except OSError as error:
                raise self._unwritable(error) from error
        if "loss" in row and row["event"] == "train":
            self._loss = f"  loss {row['loss']:.4f}"
        self.line(_words(row))

    def line(self, text: str) -> None:
        """Print one line."""
        if not self._quiet:
            sys.stdout.write(("\r\x1b[K" if self._terminal else "") + text + "\n")
            sys.stdout.flush()

    def running(self, step: int) -> None:
        """Update the running line of a terminal, at most four times a second."""
        now = time.perf_counter()
        if not self._terminal or now - self._shown < 0.25:
            return
        self._shown = now
        self._started = self._started or (now, step)
        since, first = self._started
        left = ""
        if step > first:
            seconds = int((now - since) / (step - first) * max(0, self._total - step))
            left = f"  {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"
        sys.stdout.write(f"\r\x1b[Kstep {step}/{self._total}{self._loss}{left}")
        sys.stdout.flush()

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(
            f"Cannot write {self._path}: {error.strerror}.",
            "Checkpoints are as they were. Make room and run the same command again.",
        )

    def close(self) -> None:
        """No more rows."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # the row that did not fit was told about
                self._file.close()
        if self._terminal:
            sys.stdout.write("\r\x1b[K")
            sys.stdout.flush()


def cut(path: Path, step: int) -> None:
    """Drop the rows of `metrics.jsonl` that come after a step, and a last line that was cut off.

    The final evaluations go, too, though they are of the last step: a run that goes on has yet to finish, and makes
    them then.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["step"] <= step and not row.get("final"):
            kept.append(line + "\n")
    aside = path.with_name(path.name + ".writing")
    try:
        aside.write_text("".join(kept), encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        raise RunError(f"Cannot write {path}: {error.strerror}.") from error


def _words(row: dict[str, Any]) -> str:
    """A row as one line of a log."""
    hidden = ("event", "split", "step", "t", "epoch", "seconds")
    name = row["split"] if row["event"] == "eval" else row["event"]
    told = [f"{name:5} step {row['step']}  epoch {row['epoch']:.2f}"]
    for key, value in row.items():
        if key not in hidden and isinstance(value, (int, float)) and not isinstance(value, bool):
            told.append(f"{key} {value:.4g}" if abs(value) < 1000 else f"{key} {value:.0f}")
    return "  ".join(told)
