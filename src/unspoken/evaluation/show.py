"""What `show` tells of a run: lines of text and filtered rows, with no terminal in sight."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from unspoken.errors import ConfigError
from unspoken.evaluation import _collapse
from unspoken.evaluation._text import percent, percent_interval, table
from unspoken.evaluation.grading import grader_lines
from unspoken.evaluation.records import STATUSES, ResultRow, Run
from unspoken.evaluation.stats import Spread


def iter_items(
    run: Run | str | Path, *, wrong_only: bool = False, reason: str | None = None, status: str | None = None
) -> Iterator[ResultRow]:
    """The rows that pass all filters.

    Args:
        run: A run, or where one lies.
        wrong_only: Only rows that are not correct.
        reason: Only rows that ended for this reason, such as `length`.
        status: Only rows with this status, such as `wrong`.

    Raises:
        ConfigError: If there is no run, no such status, or no row ended for this reason.
    """
    from unspoken.evaluation.runner import load_run

    run = run if isinstance(run, Run) else load_run(run)
    if status is not None and status not in STATUSES:
        raise ConfigError(f"status must be one of {', '.join(STATUSES)}, not {status!r}.")
    reasons = sorted({row.reason for row in run.rows})
    if reason is not None and reason not in reasons:
        raise ConfigError(
            f"No row of {run.name!r} ended for the reason {reason!r}. There are: {', '.join(reasons)}."
        )
    for row in run.rows:
        if wrong_only and row.correct:
            continue
        if (reason is None or row.reason == reason) and (status is None or row.status == status):
            yield row


def summary_lines(run: Run) -> list[str]:
    """A run in words: what it is, how accurate, and what it cost."""
    model = run.config.get("model", {})
    task = run.config.get("task", {})
    depth = model.get("depth", {}).get("name")
    named = (task.get("name"), model.get("source"), depth, model.get("dtype"))
    where = " · ".join(str(v) for v in named if v)
    lines = [f"{run.name}: {run.label}" if run.name != run.label else run.name]
    if where:
        lines[0] += f" on {where}"
    lines += _accuracy_lines(run)
    graders = grader_lines(run)
    if graders:
        lines += ["", *graders]
    if run.rows:
        lines += ["", *budget_lines(run)]
    return lines


def _accuracy_lines(run: Run) -> list[str]:
    summary = run.summary
    lines = []
    if summary.n and not summary.graded:
        lines.append(f"accuracy   not graded: the task only generates ({summary.n} answers)")
    elif summary.n:
        interval = summary.interval
        lines.append(
            f"accuracy   {percent(summary.accuracy)} {percent_interval(interval)}"
            f"  ({summary.correct}/{summary.n} correct, {interval.method} 95 % interval)"
        )
        lines.append(
            f"not read   {percent(summary.share('unparsed'))} unparsed, "
            f"{percent(summary.share('truncated'))} truncated"
        )
    else:
        lines.append("accuracy   no answers yet")
    if summary.samples > 1:
        ks = [k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k < summary.samples] + [summary.samples]
        lines.append("pass@k     " + "  ".join(f"{k}: {percent(run.pass_at(k))}" for k in ks))
        lines.append("maj@k      " + "  ".join(f"{k}: {percent(run.maj_at(k))}" for k in ks))
        if all(len({row.text for row in group}) == 1 for group in run.by_example().values()):
            lines.append("samples    all samples of each example are equal: one would tell as much")
    if run.skipped:
        lines.append(f"skipped    {len(run.skipped)} examples without a readable gold answer")
    if run.errors:
        lines.append(f"failed     {len(run.errors)} rows; the first: {run.errors[0]['reason']}")
    given_up = _collapse.marks(run.path) if run.path is not None and run.path.is_dir() else []
    if given_up:
        which = f"shard {', '.join(given_up)}" if given_up[0] else "the run"
        lines.append(
            f"collapsed  {which} was given up after {summary.n} rows: no answer could be read, and every text was cut "
            "off or ran in a loop"
        )
    if run.state != "complete":
        words = "running, or killed" if run.state == "running" else run.state
        lines.append(
            f"state      {words}: {summary.n} of {run.planned} rows; the same command again completes it"
        )
    return lines


def budget_lines(run: Run) -> list[str]:
    """The token-budget block: spreads, means of each phase, stop reasons, rates."""
    budget = run.budget
    spreads = {
        "tokens": budget.tokens,
        "latent steps": budget.latent_steps,
        "forward passes": budget.forward_passes,
    }
    rows = [[name, *_spread_cells(s)] for name, s in spreads.items() if s.max or name == "tokens"]
    lines = table(["per answer", "mean", "median", "std", "min", "max"], rows)
    if len(budget.phases) > 1:
        lines.append(
            "mean steps  " + ", ".join(f"{phase} {number:.1f}" for phase, number in budget.phases.items())
        )
    requested = run.config.get("strategy", {}).get("T_e")
    if requested and budget.phases.get("think"):
        lines.append(f"thinking    {budget.phases['think']:.1f} of {requested} rounds on average")
    if budget.latent_coverage:
        lines.append(f"latent      {percent(budget.latent_coverage)} of the steps chosen by the model")
    reasons = ", ".join(f"{reason} {count}" for reason, count in budget.reasons.items() if reason)
    if reasons:
        lines.append(f"ended by    {reasons}")
    for name, counts in budget.notes.items():
        lines.append(f"{name}  " + ", ".join(f"{value} {count}" for value, count in counts.items()))
    if budget.measures:
        lines.append(
            "means       " + ", ".join(f"{name} {value:.3f}" for name, value in budget.measures.items())
        )
    if run.wall_seconds and run.seconds_per_answer:
        rate = (run.summary.usage.tokens + run.summary.usage.latent_steps) / run.wall_seconds
        lines.append(
            f"time        {run.wall_seconds:.1f} s, {run.seconds_per_answer:.2f} s an answer, "
            f"{rate:.1f} steps/s"
        )
    return lines


def _spread_cells(values: Spread) -> list[str]:
    return [f"{v:.1f}" for v in (values.mean, values.median, values.std)] + [
        f"{v:.0f}" for v in (values.min, values.max)
    ]
