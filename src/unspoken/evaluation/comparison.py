"""Compare runs on the same examples: accuracies, paired differences, and what each cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from unspoken.errors import ConfigError
from unspoken.evaluation import stats
from unspoken.evaluation._comparable import setting_warnings
from unspoken.evaluation._text import (
    markdown,
    markdown_table,
    number,
    p_value,
    percent,
    percent_interval,
    points,
    ratio,
    table,
)
from unspoken.evaluation.grading import DISAGREEMENTS, GRADERS, disagreement_rows, grader_rows
from unspoken.evaluation.records import ResultRow, Run
from unspoken.evaluation.runner import load_runs

UNEQUAL = 1.5
"""Work that differs by more than this factor is said to be unequal."""
TABLE = (
    "run", "examples", "accuracy [95 %]", "unparsed", "truncated", "tokens", "latent\nsteps", "forward\npasses",
    "seconds",
)  # fmt: skip
PAIRED = (
    "against {}", "difference [95 %]", "McNemar\np", "tokens", "forward\npasses", "seconds", "verdict",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """One run of a comparison; costs are means an answer.

    Attributes:
        name: Of the run, unique in the comparison.
        n: Number of examples.
        samples: Samples an example.
        accuracy: Share of the answers that are correct.
        interval: Of the accuracy.
        unparsed: Share of answers that could not be read.
        truncated: Share of answers that the budget cut before they could be read.
        tokens: Tokens chosen from the model's law.
        latent_steps: Soft and latent steps.
        forward_passes: Forwards.
        seconds: Wall time at the run's batch size, where it is known.
        difference: Paired, against the first run; None for the first.
        forward_ratio: Forward passes over those of the first.
        token_ratio: Decoded tokens and latent steps over those of the first.
        seconds_ratio: Seconds over those of the first, where both are known.
    """

    name: str
    n: int
    samples: int
    accuracy: float
    interval: stats.Interval
    unparsed: float
    truncated: float
    tokens: float
    latent_steps: float
    forward_passes: float
    seconds: float | None
    difference: stats.Difference | None = None
    forward_ratio: float | None = None
    token_ratio: float | None = None
    seconds_ratio: float | None = None

    @property
    def verdict(self) -> str:
        """The paired difference in words: claimed only where interval and exact test agree."""
        if self.difference is None:
            return "baseline"
        if self.difference.disputed:
            return "undecided"
        if not self.difference.found:
            return "no difference found"
        return "more accurate" if self.difference.mean > 0 else "less accurate"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs side by side; the first is the baseline. `str()` gives tables of text.

    Attributes:
        entries: One for each run.
        warnings: Why the runs may not be comparable.
        runs: The runs, restricted to their common examples, under the names of the entries.
    """

    entries: tuple[Entry, ...]
    warnings: tuple[str, ...]
    runs: tuple[Run, ...]

    @property
    def sentences(self) -> list[str]:
        """Each paired difference as a sentence."""
        base = self.entries[0].name
        return [_sentence(entry, base) for entry in self.entries[1:]]

    def rows(self) -> list[list[str]]:
        """The cells of the first table (headers: `TABLE`)."""
        return [
            [
                e.name, str(e.n) if e.samples == 1 else f"{e.n} × {e.samples}",
                f"{percent(e.accuracy)} {percent_interval(e.interval)}", percent(e.unparsed), percent(e.truncated),
                number(e.tokens), number(e.latent_steps), number(e.forward_passes), number(e.seconds, 2),
            ]
            for e in self.entries
        ]  # fmt: skip

    def graders(self) -> list[list[str]]:
        """The cells of the table of graders (headers: `grading.GRADERS`), where several have graded."""
        return [
            row
            for run, entry in zip(self.runs, self.entries, strict=True)
            for row in grader_rows(run, entry.name)
        ]

    def disagreements(self) -> list[list[str]]:
        """The first disagreements of each run's graders (headers: `run`, `grading.DISAGREEMENTS`)."""
        return [
            [entry.name, *row]
            for run, entry in zip(self.runs, self.entries, strict=True)
            for row in disagreement_rows(run)
        ]

    @property
    def paired_headers(self) -> tuple[str, ...]:
        """The headers of the table of differences."""
        return (PAIRED[0].format(self.entries[0].name), *PAIRED[1:])

    def paired_rows(self) -> list[list[str]]:
        """The cells of the table of differences (headers: `paired_headers`), in percentage points."""
        return [
            [
                e.name, f"{points(d.mean)} {percent_interval(d.interval, signed=True)}", p_value(d.p),
                ratio(e.token_ratio), ratio(e.forward_ratio), ratio(e.seconds_ratio), e.verdict,
            ]
            for e in self.entries
            if (d := e.difference) is not None
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        entries = [{**asdict(entry), "verdict": entry.verdict} for entry in self.entries]
        return {"entries": entries, "warnings": list(self.warnings)}

    def markdown(self) -> str:
        """The tables, sentences and warnings as Markdown."""
        lines = [*markdown_table(TABLE, self.rows()), ""]
        if len(self.entries) > 1:
            lines += [
                *markdown_table(PAIRED, self.paired_rows()),
                "",
                *(f"- {s}" for s in self.sentences),
                "",
            ]
        if self.graders():
            lines += [*markdown_table(GRADERS, self.graders()), ""]
        if self.disagreements():
            lines += [*markdown_table(("run", *DISAGREEMENTS), self.disagreements()), ""]
        lines += [f"> **Note.** {markdown(warning)}\n" for warning in self.warnings]
        return "\n".join(lines)

    def __str__(self) -> str:
        lines = table(TABLE, self.rows())
        if len(self.entries) > 1:
            lines += ["", *table(self.paired_headers, self.paired_rows())]
        if self.graders():
            lines += ["", *table(GRADERS, self.graders())]
        if self.disagreements():
            lines += ["", *table(("run", *DISAGREEMENTS), self.disagreements())]
        lines += ["", *(f"Note: {warning}" for warning in self.warnings)] if self.warnings else []
        return "\n".join(lines)


def compare(*runs: Run | str | Path) -> Comparison:
    """Compare runs on the examples they have in common; the first is the baseline.

    Args:
        runs: Runs, run folders, or files and folders in the originals' layout (which may hold several runs).

    Raises:
        ConfigError: If there are fewer than one run, or no common examples.
    """
    found: list[Run] = []
    for run in runs:
        found += [run] if isinstance(run, Run) else load_runs(run)
    if not found:
        raise ConfigError("Nothing to compare.", "Run: unspoken compare FOLDER FOLDER")
    empty = [run.name for run in found if not run.rows]
    if empty:
        raise ConfigError(f"No rows to compare in: {', '.join(empty)}.")
    ungraded = [run.name for run in found if not run.summary.graded]
    if ungraded:
        raise ConfigError(
            f"These runs are not graded, so that there is no accuracy to compare: {', '.join(ungraded)}.",
            "Read them with: unspoken show FOLDER --text",
        )
    names = _names(found)
    found, warnings = _align(found, names)
    warnings += setting_warnings(found, names)
    first = _entry(found[0], names[0])
    entries = [first] + [
        _against(found[0], first, run, name) for run, name in zip(found[1:], names[1:], strict=True)
    ]
    for run, entry in zip(found[1:], entries[1:], strict=True):
        warnings += _token_warning(found[0], first, run, entry)
    if len(entries) > 2:
        warnings.append(
            f"{len(entries) - 1} differences are tested; intervals and p values are not adjusted for that."
        )
    if first.n < 30:
        warnings.append(
            f"Only {first.n} examples: the intervals are wide, and small differences cannot be seen."
        )
    return Comparison(tuple(entries), tuple(warnings), tuple(found))


def _entry(run: Run, name: str) -> Entry:
    summary, budget = run.summary, run.budget
    return Entry(
        name=name,
        n=len(summary.outcomes),
        samples=summary.samples,
        accuracy=summary.accuracy,
        interval=summary.interval,
        unparsed=summary.share("unparsed"),
        truncated=summary.share("truncated"),
        tokens=budget.tokens.mean,
        latent_steps=budget.latent_steps.mean,
        forward_passes=budget.forward_passes.mean,
        seconds=run.seconds_per_answer,
    )


def _against(base: Run, first: Entry, run: Run, name: str) -> Entry:
    entry = _entry(run, name)
    theirs, mine = base.by_example(), run.by_example()
    pairs = [(theirs[example], mine[example]) for example in theirs]
    votes = [(majority_is_correct(base, a), majority_is_correct(run, b)) for a, b in pairs]
    difference = stats.paired_difference(
        [_share(a) for a, _ in pairs],
        [_share(b) for _, b in pairs],
        discordant=(sum(a and not b for a, b in votes), sum(b and not a for a, b in votes)),
        voted=max(first.samples, entry.samples) > 1,
    )
    known = first.seconds and entry.seconds
    return replace(
        entry,
        difference=difference,
        forward_ratio=entry.forward_passes / first.forward_passes if first.forward_passes else None,
        token_ratio=_decoded(entry) / _decoded(first) if _decoded(first) else None,
        seconds_ratio=entry.seconds / first.seconds if known and entry.seconds and first.seconds else None,
    )


def _decoded(entry: Entry) -> float:
    """Tokens and latent steps of one answer, those that were not kept included."""
    return entry.tokens + entry.latent_steps


def _token_warning(base: Run, first: Entry, run: Run, entry: Entry) -> list[str]:
    """That two runs did not have equal work, and how many candidates would make it equal."""
    ratio_ = entry.token_ratio
    if ratio_ is None or 1 / UNEQUAL <= ratio_ <= UNEQUAL:
        return []
    warning = f"{entry.name} decoded {ratio_:.2g} times the tokens of {first.name}: "
    warning += "they are not compared at equal tokens."
    for one, other, factor in ((run, first.name, 1 / ratio_), (base, entry.name, ratio_)):
        strategy = one.config.get("strategy", {})
        for field in ("n", "particles", "width"):
            if (
                isinstance(count := strategy.get(field), int)
                and ratio_ > 0
                and (same := max(1, round(count * factor))) != count
            ):
                name = entry.name if one is run else first.name
                warning += (
                    f" {name} with {field} = {same} instead of {count} would take about those of {other}."
                )
    return [warning]


def _share(group: list[ResultRow]) -> float:
    return sum(row.correct for row in group) / len(group)


def majority_is_correct(run: Run, group: list[ResultRow]) -> bool:
    """Whether the most frequent answer of an example is correct; of a tie the earliest counts."""
    votes = [vote for vote in run.votes(group) if vote is not None]
    if not votes:
        return False
    winner = max(votes, key=lambda vote: (votes.count(vote), -votes.index(vote)))
    return winner == 0  # `Run.votes` numbers the correct answer 0


def _sentence(entry: Entry, base: str) -> str:
    difference = entry.difference
    assert difference is not None
    low, high = 100 * difference.interval.low, 100 * difference.interval.high
    p = f"p < {p_value(difference.p)[1:]}" if difference.p < 0.001 else f"p = {p_value(difference.p)}"
    numbers = f"{100 * difference.mean:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}, {p}"
    if difference.disputed:
        return (
            f"{entry.name}: undecided against {base}, the interval excludes 0 and the exact test does not reject "
            f"({numbers}, {difference.n} examples)."
        )
    if not difference.found:
        return f"{entry.name}: no difference from {base} found ({numbers}, {difference.n} examples)."
    return f"{entry.name} is {entry.verdict} than {base} ({numbers}, {difference.n} examples)."


def _names(runs: Sequence[Run]) -> list[str]:
    """A name for each run, told apart by numbers where they are equal."""
    names: list[str] = []
    for run in runs:
        name, number_ = run.name, 2
        while name in names:
            name, number_ = f"{run.name} ({number_})", number_ + 1
        names.append(name)
    return names


def _align(runs: list[Run], names: list[str]) -> tuple[list[Run], list[str]]:
    """The runs restricted to their common examples, and what was left out."""
    warnings = []
    common = set.intersection(*({row.example for row in run.rows} for run in runs))
    if not common:
        # The originals number their problems; the question itself then says which is which.
        runs = [
            replace(run, rows=[replace(row, example=" ".join(row.question.split())) for row in run.rows])
            for run in runs
        ]
        common = set.intersection(*({row.example for row in run.rows} for run in runs))
        if not common:
            raise ConfigError(
                f"These runs have no example in common: {', '.join(names)}.",
                "Compare runs of the same problems: the same task, data, --start and --limit (see: unspoken show DIR).",
            )
        warnings.append(
            "The runs name their examples differently; they are paired by the text of the question."
        )
    counts = [len(run.by_example()) for run in runs]
    if any(count > len(common) for count in counts):
        sizes = ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))
        warnings.append(
            f"The runs have different examples ({sizes}); only the {len(common)} common ones are compared."
        )
        runs = [run.only(common) for run in runs]
    return runs, warnings
