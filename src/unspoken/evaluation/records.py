"""What an evaluation gives: one `ResultRow` for each example and sample, their `Summary`, and the `Run`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from unspoken import config
from unspoken.discovery import TASKS
from unspoken.errors import UnspokenError
from unspoken.evaluation import stats
from unspoken.tasks._base import Task
from unspoken.types import Example, Generation, Grade, Status, Usage

SCHEMA_VERSION = 1
STATUSES: tuple[Status, ...] = ("correct", "wrong", "unparsed", "truncated", "ungraded")


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One graded answer.

    Everything but `usage.seconds` and `measures` is a line of `rows.jsonl` and depends only on the
    configuration and the row's seed; those two are kept apart, in `measures.jsonl`.

    Attributes:
        id: `example#sample`.
        example: Id of the example.
        index: Position of the example in the task.
        sample: Which of the example's samples, from 0.
        seed: Of the row's own generator.
        question: The problem.
        gold: The right answer.
        status: `correct`, `wrong`, `unparsed`, `truncated`, or `ungraded` where the task cannot tell.
        answer: The answer that was read, if any.
        rule: Which rule read it.
        reason: Why the generation ended, as in `Done`.
        text: The answer phase, which alone was graded.
        thinking: The text of the thinking phase.
        usage: Work done.
        phases: Number of steps in each phase.
        notes: What the strategy noted.
        measures: Means over the row's steps: `entropy` (nats), `norm_ratio` (latent steps).
        grades: What other graders say of the same text, by name.
    """

    id: str
    example: str
    index: int
    sample: int
    seed: int
    question: str
    gold: str
    status: Status
    answer: str | None
    rule: str | None
    reason: str
    text: str
    thinking: str
    usage: Usage
    phases: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    measures: Mapping[str, float] = field(default_factory=dict)
    grades: Mapping[str, Grade] = field(default_factory=dict)

    @property
    def correct(self) -> bool:
        """Whether the answer is right."""
        return self.status == "correct"

    @classmethod
    def build(
        cls,
        row: str,
        example: Example,
        index: int,
        sample: int,
        seed: int,
        generation: Generation,
        grade: Grade,
    ) -> ResultRow:
        """The row of a finished and graded generation."""
        phases: dict[str, int] = {}
        entropies, ratios = [], []
        for step in generation.steps:
            phases[step.phase] = phases.get(step.phase, 0) + 1
            if step.entropy is not None:
                entropies.append(step.entropy)
            if step.norm_ratio is not None and step.kind in ("soft", "latent"):
                ratios.append(step.norm_ratio)
        means = {"entropy": entropies, "norm_ratio": ratios}
        return cls(
            id=row,
            example=example.id,
            index=index,
            sample=sample,
            seed=seed,
            question=example.question,
            gold=example.answer or "",
            status=grade.status,
            answer=grade.answer,
            rule=grade.rule,
            reason=generation.reason,
            text=generation.answer_text,
            thinking=generation.thinking_text,
            usage=generation.usage,
            phases=phases,
            notes=dict(generation.notes),
            measures={name: sum(v) / len(v) for name, v in means.items() if v},
            grades=dict(grade.others),
        )

    def to_dict(self) -> dict[str, Any]:
        """The line of `rows.jsonl`."""
        values = asdict(self)
        del values["measures"], values["usage"]["seconds"], values["grades"]
        if self.grades:
            values["grades"] = {name: grade_to_dict(grade) for name, grade in self.grades.items()}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], measures: Mapping[str, Any] | None = None) -> ResultRow:
        """The inverse of `to_dict`, with the line of `measures.jsonl` where there is one."""
        extra = dict(measures or {})
        usage = Usage(**values["usage"], seconds=extra.pop("seconds", 0.0))
        for name in ("id", "session", "clock"):
            extra.pop(name, None)
        grades = {name: Grade(**grade) for name, grade in values.get("grades", {}).items()}
        return cls(**{**values, "usage": usage, "measures": extra, "grades": grades})


def grade_to_dict(grade: Grade) -> dict[str, Any]:
    """One grader's opinion as a JSON-ready dict."""
    return {"status": grade.status, "answer": grade.answer, "rule": grade.rule}


@dataclass(slots=True)
class Summary:
    """Counts of a run, also while it works.

    Attributes:
        planned: Rows asked for.
        skipped: Examples without a readable gold answer; they are no part of any rate.
        errors: Rows that failed; they are no part of any rate and are tried again on resume.
        statuses: Rows of each status.
        usage: Sum over rows.
        outcomes: For each example, whether each of its graded samples is correct.
    """

    planned: int = 0
    skipped: int = 0
    errors: int = 0
    statuses: dict[Status, int] = field(default_factory=lambda: dict.fromkeys(STATUSES, 0))
    usage: Usage = field(default_factory=Usage)
    outcomes: dict[str, list[bool]] = field(default_factory=dict)

    def add(self, row: ResultRow) -> None:
        """Count one more row."""
        self.statuses[row.status] += 1
        self.usage = self.usage + row.usage
        if row.status != "ungraded":
            self.outcomes.setdefault(row.example, []).append(row.correct)

    @property
    def n(self) -> int:
        """Finished rows."""
        return sum(self.statuses.values())

    @property
    def graded(self) -> int:
        """Rows with a grade: all of them, or none where the task has nothing to grade by."""
        return self.n - self.statuses["ungraded"]

    @property
    def correct(self) -> int:
        """Rows with the right answer."""
        return self.statuses["correct"]

    @property
    def samples(self) -> int:
        """The most samples an example has."""
        return max(map(len, self.outcomes.values()), default=0)

    @property
    def accuracy(self) -> float:
        """Share of the graded rows that are correct, `unparsed` and `truncated` ones included in the rest.

        NaN without any.
        """
        return self.correct / self.graded if self.graded else float("nan")

    @property
    def interval(self) -> stats.Interval:
        """The 95 % interval of `accuracy`: Wilson, or bootstrap over examples with several samples."""
        return stats.accuracy_interval(list(self.outcomes.values()))

    def share(self, status: Status) -> float:
        """Share of the rows with this status; 0 without rows."""
        return self.statuses[status] / self.n if self.n else 0.0

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict, as in `run.json`."""
        usage = asdict(self.usage)
        del usage["seconds"]
        interval = self.interval
        return {
            "planned": self.planned,
            "n": self.n,
            "examples": len(self.outcomes),
            "accuracy": self.accuracy if self.graded else None,
            "interval": [interval.low, interval.high],
            "interval_method": interval.method,
            **{str(status): count for status, count in self.statuses.items()},
            "errors": self.errors,
            "skipped": self.skipped,
            **usage,
        }

    def __str__(self) -> str:
        if not self.n:
            return "no answers yet"
        if not self.graded:
            failed = f", {self.errors} failed" if self.errors else ""
            return f"{self.n} answers, not graded{failed}"
        low, high = 100 * self.interval.low, 100 * self.interval.high
        parts = [
            f"accuracy {100 * self.accuracy:.1f} % [{low:.1f}, {high:.1f}]",
            f"{self.correct}/{self.n} correct",
        ]
        parts += [f"{self.statuses[s]} {s}" for s in ("unparsed", "truncated") if self.statuses[s]]
        parts += [
            f"{count} {word}" for word, count in (("failed", self.errors), ("skipped", self.skipped)) if count
        ]
        return ", ".join(parts)


@dataclass
class Run:
    """An evaluation that was carried out, in memory or in a folder.

    Attributes:
        config: The resolved configuration: task, strategy, model, budget, seed, extent.
        rows: In the order of the task's examples, then of samples.
        path: The folder or file it was read from or written to.
        state: `complete`, `incomplete` (rows failed or are missing), `interrupted`, `failed`, or `running`
            (also when the process was killed).
        environment: Versions and machine.
        skipped: Ids of the examples without a readable gold answer.
        errors: `id` and `reason` of each row that failed.
        planned: Rows asked for.
        wall_seconds: Time worked, summed over sessions and shards; None where it is not known.
        started: When, in UTC.
        finished: When, in UTC.
        kept: The generations, where the run is in memory with `trace="full"`.
    """

    config: dict[str, Any]
    rows: list[ResultRow]
    path: Path | None = None
    state: str = "complete"
    environment: dict[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    errors: list[dict[str, str]] = field(default_factory=list)
    planned: int = 0
    wall_seconds: float | None = None
    started: str = ""
    finished: str = ""
    kept: list[Generation] = field(default_factory=list)
    equivalent: Callable[[str, str], bool] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The folder's name, or else the strategy's."""
        if self.path is None:
            return self.label
        return self.path.stem if self.path.suffix == ".json" else self.path.resolve().name

    @property
    def label(self) -> str:
        """The strategy in a few words, such as `soft non_uniform`."""
        strategy = self.config.get("strategy", {})
        words = [strategy.get("name", "run"), strategy.get("mixture")]
        words.append("greedy" if strategy.get("temperature") == 0 else None)
        return " ".join(word for word in words if word)

    @property
    def summary(self) -> Summary:
        """Counts and accuracy."""
        summary = Summary(self.planned, len(self.skipped), len(self.errors))
        for row in self.rows:
            summary.add(row)
        return summary

    @property
    def accuracy(self) -> float:
        """Share of the graded rows that are correct."""
        return self.summary.accuracy

    @property
    def budget(self) -> stats.TokenBudget:
        """What the answers cost."""
        return stats.token_budget(self.rows)

    @property
    def seconds_per_answer(self) -> float | None:
        """Wall time over rows, at the batch size that was used; None where it is not known."""
        return self.wall_seconds / len(self.rows) if self.wall_seconds and self.rows else None

    def by_example(self) -> dict[str, list[ResultRow]]:
        """The rows of each example, in order."""
        groups: dict[str, list[ResultRow]] = {}
        for row in self.rows:
            groups.setdefault(row.example, []).append(row)
        return groups

    def pass_at(self, k: int) -> float:
        """Mean pass@k over the examples that have at least k samples; NaN if none has."""
        groups = [g for g in self.by_example().values() if len(g) >= k]
        return _mean([stats.pass_at_k(len(g), sum(r.correct for r in g), k) for g in groups])

    def maj_at(self, k: int) -> float:
        """Mean maj@k over the examples that have at least k samples; NaN if none has."""
        scores = []
        for group in self.by_example().values():
            if len(group) >= k:
                votes = self.votes(group)
                right = {v for v, row in zip(votes, group, strict=True) if v is not None and row.correct}
                scores.append(stats.majority_at_k(votes, right, k))
        return _mean(scores)

    def votes(self, group: list[ResultRow]) -> list[int | None]:
        """Which answer each row of an example gives, equal ones with equal numbers.

        Two correct answers are the same answer whatever they look like, and a correct and an incorrect one
        never are; between two incorrect ones the task decides.
        """
        same = self._equivalence()
        wrong = stats.clusters([None if r.correct else r.answer for r in group], same)
        return [
            0 if row.correct else (None if w is None else w + 1) for row, w in zip(group, wrong, strict=True)
        ]

    def traces(self) -> Iterator[Generation]:
        """The full generations, for rows evaluated with `trace="full"`."""
        if self.kept or self.path is None or not self.path.is_dir():
            yield from self.kept
            return
        known = {row.id for row in self.rows}
        for path in sorted(self.path.glob("trace*.jsonl")):
            with path.open("rb") as lines:
                for line in lines:
                    if line.endswith(b"\n"):  # a torn last line belongs to a row that is not there either
                        generation = Generation.from_dict(json.loads(line))
                        if generation.row in known:
                            yield generation

    def only(self, examples: Iterable[str]) -> Run:
        """The same run restricted to some examples; its time shrinks in proportion to its rows."""
        wanted = set(examples)
        rows = [row for row in self.rows if row.example in wanted]
        share = len(rows) / len(self.rows) if self.rows else 0.0
        wall = None if self.wall_seconds is None else self.wall_seconds * share
        return replace(self, rows=rows, wall_seconds=wall, planned=len(rows))

    def _equivalence(self) -> Callable[[str, str], bool]:
        if self.equivalent is None:
            self.equivalent = _task_equivalence(self)
        return self.equivalent

    def __str__(self) -> str:
        from unspoken.evaluation.show import summary_lines

        return "\n".join(summary_lines(self))


def recorded_task(run: Run, **changed: Any) -> Task:
    """The task that a run's configuration names, with some of its fields changed.

    Raises:
        ConfigError: If it names none, or one that is not installed.
    """
    recorded = run.config.get("task", {})
    cls = TASKS.find(recorded.get("name", ""))
    names = config.to_dict(cls()).keys()
    task: Task = config.from_dict(cls, {k: v for k, v in recorded.items() if k in names} | changed)
    return task


def _task_equivalence(run: Run) -> Callable[[str, str], bool]:
    """The equivalence of the recorded task, or equality of texts where the task is not installed."""
    try:
        return recorded_task(run).equivalent
    except (UnspokenError, TypeError):
        return lambda a, b: a == b


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
