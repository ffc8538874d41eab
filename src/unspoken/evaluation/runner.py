"""Evaluate a strategy on a task: every row is graded and on the disk as soon as it is finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unspoken import config as configs
from unspoken.discovery import STRATEGIES, TASKS
from unspoken.errors import ConfigError, DataError, RunError
from unspoken.evaluation import originals, truncation_tables
from unspoken.evaluation._environment import environment, portable
from unspoken.evaluation._folder import Folder, Store, is_run_folder, read_folder
from unspoken.evaluation.records import ResultRow, Run, Summary
from unspoken.tasks._base import Task
from unspoken.types import Done, Event, Example, Generation, RowId, Trace

if TYPE_CHECKING:
    from unspoken.decoding import Request, Strategy
    from unspoken.lm.model import CausalLM

__all__ = ["evaluate", "load_run", "load_runs", "row_seed"]


@dataclass(frozen=True, slots=True)
class _Item:
    """One row to generate."""

    id: str
    example: Example
    index: int
    sample: int
    seed: int


def evaluate(
    lm: CausalLM,
    task: str | Task,
    strategy: str | Strategy,
    *,
    samples: int = 1,
    limit: int | None = None,
    start: int = 0,
    shard: str | None = None,
    seed: int = 0,
    batch_size: int = 8,
    max_new_tokens: int = 512,
    trace: Trace = "summary",
    output: str | Path | None = None,
    force: bool = False,
    on_event: Callable[[Event], None] | None = None,
    on_row: Callable[[ResultRow, Summary], None] | None = None,
) -> Run:
    """Generate and grade the answers of a strategy to a task.

    Rows depend on the configuration and their own seed only: not on their order, the batch, or on how often
    the run was stopped and taken up again, up to floating-point near-ties (a row may share its batch with
    others after a resume, and kernels round differently by shape). The same call again completes the folder.

    Args:
        lm: The model.
        task: A task or its name.
        strategy: A strategy or its name.
        samples: Answers to each example.
        limit: Most examples, counted from `start`; None for all.
        start: Position of the first example.
        shard: `i/n` takes every n-th of these examples, from the i-th (0 <= i < n); shards may
            share a folder.
        seed: Base seed; each row's own is derived from it, the example's id and the sample.
        batch_size: Rows that are generated together.
        max_new_tokens: Most steps a row may take, unless the strategy sets its own budget.
        trace: `full` keeps every step with its candidates.
        output: Folder for the results; None keeps them in memory only.
        force: Move a folder that holds another configuration aside, instead of refusing it.
        on_event: Called with every event.
        on_row: Called with every finished row and the counts so far.

    Returns:
        All rows of the folder, those of earlier calls included.

    Raises:
        ConfigError: If an argument is impossible, or the folder cannot be used. Nothing was generated then.
        RunError: If every row failed, or a result could not be written; finished rows are kept.
    """
    from unspoken.decoding import Answers, Request

    task = TASKS.find(task)() if isinstance(task, str) else task
    strategy = STRATEGIES.find(strategy)() if isinstance(strategy, str) else strategy
    problems = _impossible(samples, limit, start, shard, batch_size, max_new_tokens, trace)
    problems += strategy.check(lm)
    if not problems:
        try:
            strategy.budget(Request("", strategy, max_new_tokens=max_new_tokens))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    examples = task.examples()
    items, skipped = _plan(examples, samples, limit, start, shard, seed, task.gradable)
    extent = {"samples": samples, "limit": limit, "start": start, "shard": shard}
    settings = {"batch_size": batch_size, "trace": trace, "device": str(lm.device)}
    depth = lm.info().get("depth")
    if depth and not depth["n_dropped"]:
        settings["depth"] = depth["name"]
    identity = _identity(lm, task, examples, strategy, max_new_tokens, seed)
    config = {**identity, **extent, **settings}
    machine = environment(lm.device)
    if output is None:
        store = Store(config, machine)
    else:
        store = Folder(Path(output).expanduser(), config, machine, shard=shard, force=force)

    def request(item: _Item) -> Request:
        def read(text: str, truncated: bool) -> str | None:
            return task.read(item.example, text, truncated=truncated)

        return Request(
            task.prompt(item.example),
            strategy,
            item.id,
            max_new_tokens=max_new_tokens,
            seed=item.seed,
            trace=trace,
            answers=Answers(read, task.equivalent),
        )

    session = _Session(lm, task, store, items, skipped, trace == "full", on_event, on_row)
    try:
        session.run(request, batch_size)
        return store.run()
    finally:
        store.close()


@dataclass
class _Session:
    """One go at the rows that are missing."""

    lm: CausalLM
    task: Task
    store: Store
    items: list[_Item]
    skipped: tuple[str, ...]
    full: bool
    on_event: Callable[[Event], None] | None
    on_row: Callable[[ResultRow, Summary], None] | None

    def run(self, request: Callable[[_Item], Request], batch_size: int) -> None:
        missing = [item for item in self.items if item.id not in self.store.rows]
        self.store.begin(len(self.items), self.skipped)
        self.summary = Summary(len(self.items), len(self.skipped))
        for row in self.store.rows.values():
            self.summary.add(row)
        try:
            if missing:
                self._generate(missing, request, batch_size)
        except KeyboardInterrupt:
            self.store.end("interrupted")
            raise
        except BaseException:
            self.store.end("failed")
            raise
        done = all(item.id in self.store.rows for item in self.items)
        self.store.end("complete" if done else "incomplete")
        if not self.store.rows and self.store.errors:
            reason = self.store.errors[0]["reason"]
            raise RunError(f"All {len(self.store.errors)} rows failed. The first: {reason}")

    def _generate(self, missing: list[_Item], request: Callable[[_Item], Request], batch_size: int) -> None:
        from unspoken import decoding

        by_id: dict[RowId, _Item] = {item.id: item for item in missing}
        live: dict[RowId, Generation] = {}

        def requests() -> Iterator[Request]:
            for item in missing:
                try:
                    made = request(item)
                except Exception as error:  # one example without a prompt must not end the others
                    self._failed(item.id, f"error: no prompt: {type(error).__name__}: {error}")
                else:
                    yield made

        for event in decoding.run(self.lm, requests(), batch_size=min(batch_size, len(missing))):
            if self.on_event is not None:
                self.on_event(event)
            live.setdefault(event.row, Generation(event.row)).apply(event)
            if isinstance(event, Done):
                self._finish(by_id[event.row], live.pop(event.row))

    def _finish(self, item: _Item, generation: Generation) -> None:
        if generation.reason == "cancelled":
            return
        if generation.reason.startswith("error"):
            self._failed(item.id, generation.reason)
            return
        try:
            grade = self.task.grade(item.example, generation.answer_text, truncated=generation.truncated)
            row = ResultRow.build(
                item.id, item.example, item.index, item.sample, item.seed, generation, grade
            )
        except Exception as error:  # an answer that breaks the grader must not end the run
            self._failed(item.id, f"error: not graded: {type(error).__name__}: {error}")
            return
        self.store.add(row, generation if self.full else None)
        self.summary.add(row)
        if self.on_row is not None:
            self.on_row(row, self.summary)

    def _failed(self, row: str, reason: str) -> None:
        self.store.error(row, reason)
        self.summary.errors += 1


def load_run(path: str | Path) -> Run:
    """Read a run: a run folder, or a file or folder of the originals' `generation_comparison` or truncation trees.

    Raises:
        ConfigError: If there is no run, or more than one.
        DataError: If a file is damaged; names the line.
    """
    runs = load_runs(path)
    if len(runs) > 1:
        listed = "\n".join(f"    {run.path}" for run in runs[:10])
        raise ConfigError(f"{path} holds {len(runs)} runs; name one of them:\n{listed}")
    return runs[0]


def load_runs(path: str | Path) -> list[Run]:
    """Read all runs at a path: one for a run folder, one for each file (or batches of one name) of an originals' tree.

    Raises:
        ConfigError: If there is none.
        DataError: If a file is damaged; names the line.
    """
    path = Path(path).expanduser()
    if not is_run_folder(path) and (tables := truncation_tables.read_tree(path)):
        return tables
    if not path.exists():
        raise ConfigError(f"No run at {str(path)!r}.", "Run: unspoken eval TASK STRATEGY -m MODEL -o FOLDER")
    if is_run_folder(path):
        return [read_folder(path)]
    runs = originals.read_tree(path)
    if not runs:
        raise ConfigError(
            f"{str(path)!r} holds no run: there is neither a run.json nor a generation_comparison tree."
        )
    return runs


def row_seed(seed: int, example: str, sample: int) -> int:
    """The seed of one row, within 0..2^63-1: sha256 of base seed, example id and sample."""
    text = json.dumps([seed, example, sample], ensure_ascii=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _impossible(
    samples: int,
    limit: int | None,
    start: int,
    shard: str | None,
    batch_size: int,
    max_new_tokens: int,
    trace: str,
) -> list[str]:
    """All that is wrong with the arguments, each as one sentence."""
    least = {"samples": samples, "batch_size": batch_size, "max_new_tokens": max_new_tokens}
    problems = [f"{name} must be at least 1, not {value}." for name, value in least.items() if value < 1]
    if limit is not None and limit < 1:
        problems.append(f"limit must be at least 1, not {limit}.")
    if start < 0:
        problems.append(f"start must be at least 0, not {start}.")
    if trace not in ("none", "summary", "full"):
        problems.append(f"trace must be none, summary or full, not {trace!r}.")
    if shard is not None:
        try:
            _shard(shard)
        except ValueError:
            problems.append(f"shard must be i/n with 0 <= i < n, such as 0/4, not {shard!r}.")
    return problems


def _shard(text: str) -> tuple[int, int]:
    first, _, second = text.partition("/")
    i, n = int(first), int(second)
    if not 0 <= i < n:
        raise ValueError
    return i, n


def _plan(
    examples: list[Example],
    samples: int,
    limit: int | None,
    start: int,
    shard: str | None,
    seed: int,
    gradable: bool,
) -> tuple[list[_Item], tuple[str, ...]]:
    """The rows asked for, in order, and the ids of the examples whose gold answer is missing."""
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise DataError(f"Two examples have the id {example.id!r}; ids must be unique.")
        seen.add(example.id)
    if start >= len(examples):
        raise ConfigError(f"start is {start}, but there are only {len(examples)} examples.")
    chosen = list(enumerate(examples))[start : None if limit is None else start + limit]
    if shard is not None:
        i, n = _shard(shard)
        chosen = chosen[i::n]
    skipped = tuple(e.id for _, e in chosen if gradable and e.answer is None)
    items = [
        _Item(f"{e.id}#{sample}", e, index, sample, row_seed(seed, e.id, sample))
        for index, e in chosen
        if e.answer is not None or not gradable
        for sample in range(samples)
    ]
    if not items and not shard:
        raise ConfigError(f"None of the {len(chosen)} chosen examples has a readable gold answer.")
    return items, skipped


def _identity(
    lm: CausalLM, task: Task, examples: list[Example], strategy: Strategy, max_new_tokens: int, seed: int
) -> dict[str, Any]:
    """The parts of the configuration that decide what a row is, with every default filled in.

    The data are named by their content, so that neither a moved file nor a changed one goes unnoticed.
    """
    content = [[e.id, e.question, e.answer] for e in examples]
    model = {key: value for key, value in lm.info().items() if key != "device"}
    if not model.get("depth", {}).get("n_dropped"):
        model.pop("depth", None)  # a view that drops nothing is the full model, whatever it was asked for as
    identity: dict[str, Any] = portable(
        {
            "task": {
                "name": task.name,
                "version": task.version,
                "examples_hash": configs.fingerprint(content),
                **configs.to_dict(task),
            },
            "strategy": {"name": strategy.name, **configs.to_dict(strategy)},
            "model": model,
            "max_new_tokens": max_new_tokens,
            "seed": seed,
        }
    )
    # As JSON gives them back, so that a folder's configuration can be compared with this one.
    plain: dict[str, Any] = json.loads(json.dumps(identity, default=str))
    return plain
