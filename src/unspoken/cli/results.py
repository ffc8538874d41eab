"""`unspoken compare`, `show` and `report`: reading what evaluations left."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from unspoken.cli._arguments import Part, first_stage, option, second_stage
from unspoken.cli._live import printable
from unspoken.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from unspoken.evaluation.comparison import Comparison
    from unspoken.evaluation.likelihood import Likelihoods
    from unspoken.evaluation.records import ResultRow, Run

STYLES = {"correct": "green", "wrong": "red", "unparsed": "yellow", "truncated": "yellow", "ungraded": ""}
EXCERPT = 200  # characters of a text that is shown shortened
MARKS = {"correct": "✓", "wrong": "✗", "unparsed": "?", "truncated": "…", "ungraded": "·"}


@dataclass(frozen=True)
class CompareOptions:
    """Options of `compare`."""

    runs: tuple[str, ...] = option(positional="DIR")
    """Two or more folders of `unspoken eval`; the first is the baseline."""
    likelihood: str | None = None
    """Also the sum of log p of each answer under this model, in float32, and paired differences."""


def compare_command(words: list[str]) -> int:
    """Run `unspoken compare`."""
    description = "Accuracies with intervals, paired differences and costs of several runs of one task."
    (options,) = second_stage(first_stage("compare", words), [Part(CompareOptions)], description)
    if len(options.runs) < 2:
        raise ConfigError(
            f"compare needs at least two folders, not {len(options.runs)}.",
            "Write: unspoken compare results/a results/b",
        )
    import unspoken

    comparison = unspoken.compare(*options.runs)
    sys.stdout.write(f"{comparison}\n")
    if options.likelihood is not None:
        sys.stdout.write(f"\n{_likelihoods(comparison, options.likelihood)}\n")
    return 0


def _likelihoods(comparison: Comparison, model: str) -> Likelihoods:
    import unspoken
    from unspoken.cli._progress import counting
    from unspoken.evaluation.likelihood import check, likelihoods

    names = [entry.name for entry in comparison.entries]
    check(comparison.runs, names)
    lm = unspoken.load(model, dtype="float32")
    with counting("log p") as on_answer:
        return likelihoods(lm, comparison.runs, names, on_answer=on_answer)


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of `report`."""

    runs: tuple[str, ...] = option(positional="DIR")
    """Folders of `unspoken eval`."""
    output: str = option("results/report", flag="-o")
    """Folder for report.md and report.html."""


def report_command(words: list[str]) -> int:
    """Run `unspoken report`."""
    description = "Write a Markdown report and one self-contained HTML page with plots."
    (options,) = second_stage(first_stage("report", words), [Part(ReportOptions)], description)
    from unspoken.evaluation.report import write_report
    from unspoken.evaluation.runner import load_runs

    runs = [run for path in options.runs for run in load_runs(path)]
    for path in write_report(runs, options.output):
        sys.stdout.write(f"{path}\n")
    return 0


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Options of `show`."""

    run: str = option(positional="DIR")
    """A folder of `unspoken eval` or `sweep`, or the originals' generation_comparison or truncation files."""
    wrong: bool = False
    """Only answers that are not correct, with the question and the text of each, shortened."""
    status: str | None = None
    """Only correct, wrong, unparsed, truncated or ungraded answers."""
    reason: str | None = None
    """Only answers that ended for this reason, such as eos or length."""
    item: str | None = None
    """Everything about this problem: its id, or id#sample for one answer."""
    text: bool = False
    """The question, the thoughts and the answer of every item shown, in full."""
    limit: int = 20
    """Most items to show."""
    export: str | None = None
    """Also write the run as the originals' generation_comparison tree under this folder."""


def show_command(words: list[str]) -> int:
    """Run `unspoken show`."""
    description = "Read a run: its accuracy and cost, then its items."
    (options,) = second_stage(first_stage("show", words), [Part(ShowOptions)], description)
    if options.limit < 0:
        raise ConfigError(f"limit must be at least 0, not {options.limit}.")
    from unspoken.evaluation.runner import load_runs

    console = Console(highlight=False)
    for run in load_runs(options.run):
        _show_run(run, options, console)
    return 0


def _show_run(run: Run, options: ShowOptions, console: Console) -> None:
    from unspoken.evaluation.originals import export_originals
    from unspoken.evaluation.show import iter_items

    if options.export is not None:
        console.print(f"Written: {export_originals(run, options.export)}", markup=False, soft_wrap=True)
        return
    if options.item is not None:
        rows = [row for row in run.rows if options.item in (row.id, row.example)]
        if not rows:
            raise unknown_name("item", options.item, [row.id for row in run.rows][:200])
        for row in rows:
            _show_text(row, console)
        return
    rows = list(iter_items(run, wrong_only=options.wrong, reason=options.reason, status=options.status))
    console.print(f"{run}\n", markup=False, soft_wrap=True)
    for row in rows[: options.limit]:
        if options.text:
            _show_text(row, console)
        else:
            _show_line(row, console)
            if options.wrong:
                _show_excerpts(row, console)
    if len(rows) > options.limit:
        console.print(f"{len(rows) - options.limit} more; --limit {len(rows)} shows all of them.")


def _show_line(row: ResultRow, console: Console) -> None:
    line = Text(f"{MARKS[row.status]} {row.id}  ", style=STYLES[row.status])
    answer = "nothing" if row.answer is None else printable(row.answer)
    right = f" (right: {row.gold})" if row.status != "ungraded" else ""
    line.append(f"{answer}{right}  {row.status}, {row.reason or '?'}, {_cost(row)}", style="")
    console.print(line, soft_wrap=True)


def _show_excerpts(row: ResultRow, console: Console) -> None:
    for title, text in _texts(row):
        text = printable(" ".join(text.split()))
        if (
            len(text) > EXCERPT
        ):  # a question is known by its beginning, a thought and an answer by where they lead
            text = f"{text[:EXCERPT]} …" if title == "question" else f"… {text[-EXCERPT:]}"
        console.print(
            Text(f"    {title}: {text}", style="dim" if title == "question" else ""), soft_wrap=True
        )


def _texts(row: ResultRow) -> list[tuple[str, str]]:
    named = (("question", row.question), ("thoughts", row.thinking), ("answer", row.text))
    return [(title, text) for title, text in named if text.strip()]


def _cost(row: ResultRow) -> str:
    soft = f", {row.usage.latent_steps} soft steps" if row.usage.latent_steps else ""
    return f"{row.usage.tokens} tokens{soft}"


def _show_text(row: ResultRow, console: Console) -> None:
    _show_line(row, console)
    for title, text in _texts(row):
        console.print(Text(title, style="bold"))
        console.print(Text(printable(text.strip())), soft_wrap=True)
    notes = {**row.notes, **row.measures, "seed": row.seed, "rule": row.rule}
    told = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in notes.items()
        if value is not None
    )
    console.print(Text(told + "\n", style="dim"), soft_wrap=True)
