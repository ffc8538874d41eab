"""Sweeps: several methods at several depths of one model, each an ordinary run folder that resumes and shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unspoken import config as configs
from unspoken.discovery import STRATEGIES, TASKS
from unspoken.errors import ConfigError, RunError, UnknownNameError, unknown_name
from unspoken.evaluation import _collapse
from unspoken.evaluation._grid import Asked, Cell, Grid, part_of, write_manifest
from unspoken.evaluation.records import ResultRow, Run, Summary
from unspoken.evaluation.runner import evaluate
from unspoken.lm.depth import Depth, Kept
from unspoken.tasks._base import Task
from unspoken.types import Example, Trace

if TYPE_CHECKING:
    from unspoken.decoding import Strategy
    from unspoken.lm.model import CausalLM

OnRow = Callable[[Cell, ResultRow, Summary], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the built-in methods share.

    Attributes:
        temperature: Of `baseline`, and of the proposals of `power`, whose exponent is its reciprocal.
        mcmc_steps: Moves of `power` after each block.
        num_blocks: Blocks of `power`.
        candidates: Answers that `vote`, `best_of_n` and their like choose from.
    """

    temperature: float = 0.5
    mcmc_steps: int = 10
    num_blocks: int = 16
    candidates: int = 8

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(
                f"temperature must be above 0, not {self.temperature}: its reciprocal is an exponent (the method "
                "greedy needs none)."
            )


def builtin_methods(settings: Settings) -> dict[str, dict[str, Any]]:
    """The methods that need no definition: a strategy's name and its fields for each.

    `power` (exact), `power-original` (the published loop with its defects, and the top_k 50 that it takes over from
    transformers), `baseline` (one sample at the same temperature), `base` (temperature 1, no filter), `hf-default`
    (temperature 1 with top_k 50, what transformers samples by default) and `greedy`. Other strategies go by their own
    names, with this temperature (or an exponent of its reciprocal) and this number of candidates where they have any.
    """
    power = {
        "strategy": "power",
        "temperature": settings.temperature,
        "mcmc_steps": settings.mcmc_steps,
        "num_blocks": settings.num_blocks,
    }
    return {
        "power": power,
        "power-original": {**power, "mode": "reference", "top_k": 50},
        "baseline": {"strategy": "cot", "temperature": settings.temperature},
        "base": {"strategy": "cot", "temperature": 1.0},
        "hf-default": {"strategy": "cot", "temperature": 1.0, "top_k": 50},
        "greedy": {"strategy": "cot", "temperature": 0.0},
    }


def make_methods(
    names: Sequence[str],
    settings: Settings | None = None,
    defined: Mapping[str, Mapping[str, Any] | None] | None = None,
) -> dict[str, Strategy]:
    """Strategies by the names of methods.

    A name is looked up among the definitions, then among the built-in methods, then among the strategies. A definition
    without `strategy` changes the fields of the built-in method, or of the strategy, of its own name.

    Args:
        names: Of the methods.
        settings: Of the built-in ones.
        defined: Fields of further methods by name, with `strategy` among them.

    Raises:
        ConfigError: With all that is wrong with any of them.
    """
    settings = settings or Settings()
    builtin, problems = builtin_methods(settings), []
    methods: dict[str, Strategy] = {}
    for name in dict.fromkeys(names):
        own = (defined or {}).get(name) or {}
        if not isinstance(own, Mapping):
            problems.append(f"The method {name!r} must be a mapping of fields, not {own!r}.")
            continue
        fields = dict(own) if "strategy" in own else {**_default_fields(name, builtin, settings), **own}
        try:
            cls = STRATEGIES.find(str(fields.pop("strategy")))
            methods[name] = configs.from_dict(cls, fields, aliases=cls.aliases)
        except UnknownNameError as error:
            known = {*(defined or {}), *builtin, *STRATEGIES.names()} - {name}
            problems += error.problems if "strategy" in own else unknown_name("method", name, known).problems
        except ConfigError as error:
            problems += [f"The method {name!r}: {p}" for p in error.problems]
    if problems:
        raise ConfigError(
            problems, "Define it in the -c file, such as: methods: {mine: {strategy: cot, top_p: 0.9}}"
        )
    return methods


def _default_fields(
    name: str, builtin: Mapping[str, Mapping[str, Any]], settings: Settings
) -> dict[str, Any]:
    """The fields of a built-in method, or what a strategy has in common with them."""
    if name in builtin:
        return dict(builtin[name])
    tau = settings.temperature
    inner = {"name": "cot", "temperature": tau}
    shared: dict[str, Any] = {"n": settings.candidates, "temperature": tau, "inner": inner}
    try:
        own = STRATEGIES.find(name).__dataclass_fields__
    except UnknownNameError:
        own = {}
    if "temperature" not in own:
        shared["alpha"] = 1.0 / tau
    return {"strategy": name, **{key: value for key, value in shared.items() if key in own}}


def ask(
    layers: Sequence[int] = (), depths: Sequence[str | Depth] = (), keep_last: bool | None = None
) -> list[Asked]:
    """Depths from what was typed.

    Args:
        layers: The last of the first blocks that are kept; a number beyond the last block means the full model.
        depths: Depths in words, such as `24+last`.
        keep_last: Whether the last block runs as well after those of `layers` (default: yes).

    Raises:
        ConfigError: With all that is wrong.
    """
    asked, problems = [], []
    for spec in [*layers, *depths]:
        try:
            if isinstance(spec, int):
                asked.append(Asked(str(spec), Depth(layer_idx=spec, keep_last=keep_last)))
            else:
                depth = Depth.read(spec)
                words = str(spec) if isinstance(spec, str) else f"{depth}"
                # A bare number is a layer elsewhere in the tables; here it counts blocks.
                asked.append(Asked(f"first {words.strip()}" if words.strip().isdigit() else words, depth))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return asked


@dataclass(frozen=True, kw_only=True)
class Extent:
    """What every cell of a sweep runs on, and how; the fields are those of `evaluate`.

    Attributes:
        samples: Answers to each example.
        limit: Most examples, counted from `start`; None for all.
        start: Position of the first example.
        seed: Base seed.
        batch_size: Rows that are generated together.
        max_new_tokens: Most steps of an answer.
        trace: What is kept of each step.
        force: Move a folder of another configuration aside.
        collapse_after: A cell is given up if none of its first so many examples holds any hope: no answer can be
            read, and the text was cut by the budget or ends in a loop. None never gives up.
    """

    samples: int = 1
    limit: int | None = None
    start: int = 0
    seed: int = 0
    batch_size: int = 8
    max_new_tokens: int = 1024
    trace: Trace = "summary"
    force: bool = False
    collapse_after: int | None = _collapse.AFTER

    def __post_init__(self) -> None:
        least = {
            "samples": 1,
            "limit": 1,
            "start": 0,
            "batch_size": 1,
            "max_new_tokens": 1,
            "collapse_after": 1,
        }
        problems = [
            f"{name} must be at least {lowest}, not {getattr(self, name)}."
            for name, lowest in least.items()
            if getattr(self, name) is not None and getattr(self, name) < lowest
        ]
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class CellResult:
    """What became of one cell.

    Attributes:
        cell: Which.
        run: Its folder's run, other shards included; None where it failed.
        collapsed: Whether it was given up.
        error: Why it failed, or None.
    """

    cell: Cell
    run: Run | None
    collapsed: bool = False
    error: str | None = None


def sweep(
    lm: CausalLM,
    task: str | Task,
    methods: Mapping[str, Strategy] | Sequence[str],
    depths: Sequence[Asked],
    output: str | Path,
    *,
    extent: Extent | None = None,
    shards: int = 1,
    cells: Sequence[int] | None = None,
    on_cell: Callable[[Cell], None] | None = None,
    on_done: Callable[[CellResult], None] | None = None,
    on_row: OnRow | None = None,
) -> list[CellResult]:
    """Evaluate several methods at several depths of one model.

    Every method at a depth is an ordinary run folder `OUTPUT/MODEL/METHOD-DEPTH`: the same call completes what is
    missing, and cells may be run by any number of processes. Depths that keep the same blocks are run once.

    Args:
        lm: The full model; truncated views of it share its weights.
        task: A task or its name.
        methods: Strategies by name, or names of methods (see `make_methods`).
        depths: See `ask`.
        output: Folder of the sweep.
        extent: Which rows, and how they are made.
        shards: Data shards of each configuration.
        cells: Numbers of the cells to run; None for all.
        on_cell: Called before a cell.
        on_done: Called after a cell.
        on_row: Called with every finished row and the counts of its cell so far.

    Returns:
        What became of each cell that was asked for. A cell whose rows all failed does not end the others.

    Raises:
        ConfigError: If an argument is impossible, or a folder holds another configuration.
    """
    extent = extent or Extent()
    task = TASKS.find(task)() if isinstance(task, str) else task
    methods = methods if isinstance(methods, Mapping) else make_methods(methods)
    if lm.depth is not None and lm.depth.n_dropped:
        raise ConfigError(f"A sweep starts from the full model, not from a view of it ({lm.depth.name}).")
    grid = Grid.make(lm.source, len(lm.anatomy.blocks), methods, depths, shards)
    chosen = choose(grid, cells)
    problems = [f"{name}: {p}" for name, strategy in methods.items() for p in _unfit(strategy, lm, extent)]
    if problems:
        raise ConfigError(problems)
    if not task.gradable:
        raise ConfigError(f"The task {task.name!r} only generates: a sweep compares accuracies.")
    root = Path(output).expanduser()
    examples = task.examples()[extent.start :][: extent.limit]
    if not examples:
        raise ConfigError(f"start is {extent.start}, but there are only {len(task.examples())} examples.")
    if any(root.glob("run*.json")):
        raise ConfigError(
            f"{str(root)!r} holds a run of its own, and a sweep makes one folder for each of its runs.",
            "Give the sweep a folder of its own: -o results/sweep-NAME",
        )
    write_manifest(root, grid, task.name, examples, extent.samples)
    results: list[CellResult] = []
    view, depth = lm, None
    for cell in chosen:
        if on_cell is not None:
            on_cell(cell)
        if cell.configuration.kept != depth:
            view, depth = _view(lm, cell.configuration.kept), cell.configuration.kept
        try:
            result = _run_cell(view, task, cell, root, extent, examples, on_row)
        except RunError as error:
            result = CellResult(cell, None, error=str(error))
        results.append(result)
        if on_done is not None:
            on_done(result)
    return results


def choose(grid: Grid, cells: Sequence[int] | None) -> list[Cell]:
    """The cells of these numbers, or all.

    Raises:
        ConfigError: If there is no such cell.
    """
    every = grid.cells
    if cells is None:
        return every
    wrong = [str(i) for i in cells if not 0 <= i < len(every)]
    if wrong:
        raise ConfigError(
            f"There is no cell {', '.join(wrong)}; the grid has cells 0 to {len(every) - 1}.",
            "Add --list to see them.",
        )
    return [every[i] for i in dict.fromkeys(cells)]


def _view(lm: CausalLM, kept: Kept) -> CausalLM:
    if not kept.n_dropped:
        return lm
    return lm.truncated(drop=[i for i in range(kept.of) if i not in kept.blocks])


def _unfit(strategy: Strategy, lm: CausalLM, extent: Extent) -> list[str]:
    """Why a strategy cannot be run here."""
    from unspoken.decoding import Request

    problems = strategy.check(lm)
    try:
        strategy.budget(Request("", strategy, max_new_tokens=extent.max_new_tokens))
    except ConfigError as error:
        problems = [*problems, *error.problems]
    return problems


def _run_cell(
    lm: CausalLM,
    task: Task,
    cell: Cell,
    root: Path,
    extent: Extent,
    examples: Sequence[Example],
    on_row: OnRow | None,
) -> CellResult:
    """Run a cell: its first rows, and the others unless those hold no hope."""
    folder = root / cell.configuration.folder

    def run(limit: int | None) -> Run:
        return evaluate(
            lm,
            task,
            cell.configuration.strategy,
            samples=extent.samples,
            limit=limit,
            start=extent.start,
            shard=cell.shard,
            seed=extent.seed,
            batch_size=extent.batch_size,
            max_new_tokens=extent.max_new_tokens,
            trace=extent.trace,
            output=folder,
            force=extent.force,
            on_row=None if on_row is None else lambda row, summary: on_row(cell, row, summary),
        )

    i, n = part_of(cell.shard) if cell.shard else (0, 1)
    after = extent.collapse_after or len(examples)
    first, rest = (
        [f"{e.id}#{s}" for e in part if e.answer is not None for s in range(extent.samples)]
        for part in (examples[i::n][:after], examples[i::n][after:])
    )
    if rest:
        found = run(i + (after - 1) * n + 1)  # so many examples hold the first ones of this shard
        rows = {row.id: row for row in found.rows}
        known = [rows[name] for name in first if name in rows]
        # Failed rows are tried again with the others, and a cell that is whole already has nothing to give up.
        if len(known) == len(first) and _collapse.collapsed(known) and not rows.keys() >= set(rest):
            made = len(known) + len(rows.keys() & set(rest))
            _collapse.mark(folder, cell.shard, made)
            return CellResult(cell, found, collapsed=True)
    whole = run(extent.limit)
    _collapse.mark_file(folder, cell.shard).unlink(missing_ok=True)
    return CellResult(cell, whole)
