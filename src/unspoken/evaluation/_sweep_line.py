"""One line of a sweep's summary: a method at a depth, its numbers, and its cells in the tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unspoken.evaluation import truncation_tables
from unspoken.evaluation._grid import first_blocks, ranges
from unspoken.evaluation._text import NOTHING, number, p_value, percent, percent_interval
from unspoken.evaluation.records import Run
from unspoken.lm.depth import Kept

COLUMNS = (
    "Method", "Model", "Layer", "Total Questions", "Correct", "Accuracy", "kept_blocks", "n_dropped", "ci_low",
    "ci_high", "finished_frac", "mean_len", "accept_rate", "tokens", "seconds", "grader", "p_vs_baseline",
    "n_paired", "state", "missing", "run",
)  # fmt: skip
HEADERS = (
    "method", "layer", "blocks\ndropped", "correct", "accuracy [95 %]", "finished", "mean\nlength", "accepted",
    "tokens", "seconds", "p against\n{}", "state",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One method at one depth of one model.

    Attributes:
        method: Name of the method.
        model: Name of the model.
        labels: How the depth was asked for.
        kept: The blocks that ran; None where that cannot be known.
        run: The rows.
        grader: Who graded them.
        p: Of McNemar's exact test against the baseline of the same depth; None for the baseline itself, or without one.
        paired: Problems that the two have in common.
        collapsed: Cells that were given up, of how many.
        gaps: What is missing, in words.
        missing: Rows that are missing and were not given up.
    """

    method: str
    model: str
    labels: tuple[str, ...]
    kept: Kept | None
    run: Run
    grader: str
    p: float | None = None
    paired: int = 0
    collapsed: tuple[int, int] = (0, 1)
    gaps: tuple[str, ...] = ()
    missing: int = 0

    @property
    def layer(self) -> int | None:
        """The last block before the first gap: the layer up to which the model is whole; None if that is unknown."""
        if self.kept is not None:
            first = first_blocks(self.kept.blocks)
            return first - 1 if first else None
        numbers = [int(label) for label in self.labels if label.isdigit()]
        return numbers[0] if numbers else None

    @property
    def full(self) -> bool:
        """Whether it is known that no block was dropped."""
        return self.kept is not None and not self.kept.n_dropped

    @property
    def kept_blocks(self) -> str:
        """The blocks that ran, in short."""
        if self.kept is None:
            return "all" if "full" in self.labels else f"0-{self.layer} and the last"
        return ranges(self.kept.blocks)

    @property
    def finished(self) -> float | None:
        """Share of the answers that ended by themselves; None where that was not recorded."""
        reasons = [row.reason for row in self.run.rows if row.reason]
        return sum(reason in ("eos", "stop") for reason in reasons) / len(reasons) if reasons else None

    @property
    def mean_length(self) -> float | None:
        """Mean steps of the answers that were kept; None where it was not recorded."""
        lengths = [sum(row.phases.values()) for row in self.run.rows if row.phases]
        return sum(lengths) / len(lengths) if lengths else None

    @property
    def accept_rate(self) -> float | None:
        """Mean share of accepted moves; None where there were none."""
        rates = [r for row in self.run.rows if (r := truncation_tables.acceptance(row)) is not None]
        return sum(rates) / len(rates) if rates and self.run.config["strategy"]["name"] == "power" else None

    @property
    def tokens(self) -> int | None:
        """All tokens that were chosen, rejected ones included; None where they were not counted."""
        return self.run.summary.usage.tokens or None

    @property
    def state(self) -> str:
        """`complete`, `collapsed` (given up early), `partly collapsed`, or `incomplete`."""
        given_up, cells = self.collapsed
        if given_up:
            return "collapsed" if given_up == cells and not self.missing else "partly collapsed"
        return "incomplete" if self.missing or self.gaps or self.run.state != "complete" else "complete"

    @property
    def where(self) -> str:
        """The depth in words: its labels, and what they come to."""
        labels = ", ".join(self.labels)
        return f"{labels} (full)" if self.full and labels != "full" else labels


def record(line: Line, label: str) -> dict[str, str]:
    """The cells of `COLUMNS` for one label of a line's depth; an empty one is unknown."""
    summary = line.run.summary
    graded = bool(summary.graded)
    values: dict[str, Any] = {
        "Method": line.method,
        "Model": line.model,
        "Layer": label,
        "Total Questions": summary.graded,
        "Correct": summary.correct,
        "Accuracy": summary.accuracy if graded else None,
        "kept_blocks": line.kept_blocks,
        "n_dropped": line.kept.n_dropped if line.kept else (0 if label == "full" else None),
        "ci_low": summary.interval.low if graded else None,
        "ci_high": summary.interval.high if graded else None,
        "finished_frac": line.finished,
        "mean_len": line.mean_length,
        "accept_rate": line.accept_rate,
        "tokens": line.tokens,
        "seconds": line.run.wall_seconds,
        "grader": line.grader,
        "p_vs_baseline": line.p,
        "n_paired": line.paired or None,
        "state": line.state,
        "missing": "; ".join(line.gaps),
        "run": str(line.run.path or ""),
    }
    return {name: _cell(value) for name, value in values.items()}


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


def cells(line: Line) -> list[str]:
    """The cells of `HEADERS`."""
    summary = line.run.summary
    accuracy = (
        f"{percent(summary.accuracy)} {percent_interval(summary.interval)}" if summary.graded else NOTHING
    )
    return [
        line.method,
        line.where,
        "?"
        if line.kept is None and "full" not in line.labels
        else str(line.kept.n_dropped if line.kept else 0),
        f"{summary.correct}/{summary.graded}",
        accuracy,
        percent(line.finished),
        number(line.mean_length),
        percent(line.accept_rate),
        NOTHING if line.tokens is None else str(line.tokens),
        number(line.run.wall_seconds),
        NOTHING if line.p is None else p_value(line.p),
        line.state,
    ]
