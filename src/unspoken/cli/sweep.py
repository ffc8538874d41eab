"""`unspoken sweep TASK`: several methods at several depths of one model, and `unspoken sweep --summarize DIR`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unspoken.cli._arguments import (
    HELP_FLAGS,
    Line,
    Part,
    first_stage,
    name_lists,
    named_part,
    option,
    require_names,
    second_stage,
)
from unspoken.cli._options import ModelOptions, load_model
from unspoken.cli._sweep_lines import Shown
from unspoken.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from unspoken.evaluation._grid import Asked, Cell, Grid
    from unspoken.evaluation.sweep import Extent
    from unspoken.evaluation.sweep_summary import SweepSummary
    from unspoken.tasks._base import Task

DESCRIPTION = (
    "Evaluate several methods at several depths of one model. Every method at a depth is an ordinary evaluation in a "
    "folder of its own: the same command completes what is missing, `show` and `compare` read each, and the cells of "
    "the grid can be shared out to jobs (--list, --shard i/n, --cell I). Depths that keep the same blocks are run once."
    " Afterwards: unspoken sweep --summarize DIR (with --help: its options)."
)
METHODS = (
    "Methods: power, power-original (the published loop), baseline, base, hf-default, greedy, any strategy by its name "
    "(best_of_n, vote, ...), and those that the -c file defines: `methods: {mine: {strategy: cot, top_p: 0.9}}`."
)
# As the original scripts call them.
ALIASES = {"save_str": "output", "block_num": "num_blocks", "num_examples": "limit"}


@dataclass(frozen=True, kw_only=True)
class SweepOptions(ModelOptions):
    """Options of `sweep`."""

    layers: tuple[int, ...] = ()
    """Depths as the original scripts count them: blocks 0 to this one and the last; beyond the last block, all."""
    depths: tuple[str, ...] = ()
    """Further depths: 24 (the first 24 blocks), 24+last, drop:3,5 or window:10:4."""
    depth: str | None = None
    """One more of these."""
    layer_idx: int | None = None
    """One more of the layers."""
    keep_last: bool | None = None
    """Whether the last block runs as well after those of layers (default: yes)."""
    methods: tuple[str, ...] = ("power", "baseline", "greedy")
    """Which methods (default: all that the -c file defines, or power, baseline and greedy)."""
    temperature: float = 0.5
    """Of baseline and of the proposals of power, which samples from the law to the power 1/temperature."""
    mcmc_steps: int = 10
    """Moves of power after each block."""
    num_blocks: int | None = None
    """Blocks of power (default: 16, or as many as max_new_tokens if that is less)."""
    candidates: int = 8
    """Answers that vote, best_of_n and the like choose from."""
    output: str | None = option(None, flag="-o")
    """Folder of the sweep (default: results/sweep-TASK); models and tries of other methods may share it."""
    shards: int = 1
    """Data shards: each takes every n-th problem, and is a cell of its own."""
    shard: str | None = None
    """i/n runs every n-th cell of the grid from the i-th (from 0): one job of an array of n."""
    cell: int | None = None
    """Run this cell only; --list gives the numbers."""
    batch_idx: int | None = None
    """Run this data shard of every configuration only."""
    list: bool = False
    """Run nothing: list the cells and their numbers."""
    collapse_after: int = 20
    """Give a cell up when none of its first so many problems has an answer that can be read, and every text was cut
    off or runs in a loop."""
    no_collapse_stop: bool = False
    """Give nothing up, and complete what was given up before."""
    samples: int = 1
    """Answers to each problem."""
    limit: int | None = None
    """Most problems (default: all)."""
    start: int = 0
    """Position of the first problem, from 0."""
    seed: int = 0
    """Base seed; each row's own is derived from it."""
    batch_size: int = 8
    """Rows that are generated together; it changes speed and memory, not answers."""
    max_new_tokens: int = 1024
    """Most steps for each answer."""
    trace: Literal["none", "summary", "full"] = "summary"
    """What is kept of each step; full keeps the candidates, too."""
    force: bool = False
    """Move folders with another configuration aside, instead of refusing them."""
    quiet: bool = False
    """No running line."""

    def __post_init__(self) -> None:
        from unspoken.evaluation._grid import part_of
        from unspoken.evaluation.sweep import Settings

        problems = []
        for check in (super().__post_init__, self.asked, self.extent):
            try:
                check()
            except ConfigError as error:
                problems += error.problems
        try:
            Settings(temperature=self.temperature)
        except ConfigError as error:
            problems += error.problems
        if self.shard is not None:
            try:
                part_of(self.shard)
            except ValueError:
                problems.append(f"shard must be i/n with 0 <= i < n, such as 0/4, not {self.shard!r}.")
        if self.num_blocks is not None and self.num_blocks > self.max_new_tokens:
            problems.append(
                f"num_blocks ({self.num_blocks}) must not exceed max_new_tokens ({self.max_new_tokens}), for a block "
                f"has at least one token. Leave it out, or give --num-blocks {self.max_new_tokens} or less."
            )
        if self.shards < 1:
            problems.append(f"shards must be at least 1, not {self.shards}.")
        if self.batch_idx is not None and not 0 <= self.batch_idx < max(1, self.shards):
            problems.append(
                f"batch_idx must be from 0 to {max(1, self.shards) - 1}, not {self.batch_idx}: see shards."
            )
        chosen = [name for name in ("shard", "cell", "batch_idx") if getattr(self, name) is not None]
        if len(chosen) > 1:
            problems.append(f"{' and '.join(chosen)} each choose cells; give one of them.")
        if problems:
            raise ConfigError(problems)

    def truncation(self) -> None:
        """The model itself is loaded whole."""

    def asked(self) -> tuple[Asked, ...]:
        """The depths of the grid.

        Raises:
            ConfigError: With all that is wrong with them.
        """
        from unspoken.evaluation.sweep import ask

        layers = (*self.layers, *([] if self.layer_idx is None else [self.layer_idx]))
        depths = (*self.depths, *([] if self.depth is None else [self.depth]))
        if not layers and not depths:
            raise ConfigError(
                "No depth is named: give --layers 24 25 100 (100: the full model), or --depths 24+last."
            )
        asked: list[Asked] = []
        problems = []
        if below := [layer for layer in layers if layer < 0]:
            flag = "layers" if set(below) & set(self.layers) else "layer-idx"
            problems.append(
                f"--{flag} must be 0 or more, not {', '.join(map(str, below))}: a layer is the last of the first "
                "blocks that run, and one beyond the last block means the full model. Write: --layers 24 25 100"
            )
        try:
            asked = ask([layer for layer in layers if layer >= 0], depths, self.keep_last)
        except ConfigError as error:
            problems += error.problems
        if problems:
            raise ConfigError(problems)
        return tuple(asked)

    def extent(self) -> Extent:
        """Which rows every cell makes, and how.

        Raises:
            ConfigError: With all that is wrong.
        """
        from unspoken.evaluation.sweep import Extent

        names = ("samples", "limit", "start", "seed", "batch_size", "max_new_tokens", "trace", "force")
        after = None if self.no_collapse_stop else self.collapse_after
        return Extent(collapse_after=after, **{name: getattr(self, name) for name in names})

    def cells(self, grid: Grid) -> tuple[int, ...] | None:
        """The numbers of the cells that are to be run; None for all."""
        from unspoken.evaluation._grid import part_of

        every = range(len(grid.cells))
        if self.cell is not None:
            return (self.cell,)
        if self.shard is not None:
            i, n = part_of(self.shard)
            return tuple(every[i::n])
        return None if self.batch_idx is None else tuple(every[self.batch_idx :: grid.shards])


@dataclass(frozen=True, kw_only=True)
class SummarizeOptions:
    """Options of `sweep --summarize`."""

    summarize: str
    """Folder of a sweep, of several, or of the original truncation scripts."""
    output: str | None = option(None, flag="-o")
    """Folder for summary_table.csv and plots (default: the same folder)."""
    baseline: str = "baseline"
    """The method that the others are tested against at the same depth."""
    blocks: int | None = None
    """How many blocks the full model has, for files that do not say (the original scripts')."""
    grader: str | None = None
    """Whose grades count, after unspoken grade (default: the recorded ones)."""
    lens: str | None = None
    """CSV file of unspoken lens: its KL curve is drawn over the accuracies."""
    export: str | None = None
    """Also write the runs under this folder as the original truncation scripts do."""

    def __post_init__(self) -> None:
        if self.blocks is not None and self.blocks < 1:
            raise ConfigError(f"blocks must be at least 1, not {self.blocks}.")


def sweep_command(words: list[str]) -> int:
    """Run `unspoken sweep`."""
    if any(word == "--summarize" or word.startswith("--summarize=") for word in words):
        if any(word in HELP_FLAGS for word in words):
            words = ["--help"]
        description = "Read what a sweep left: summary_table.csv, plots, and the table here."
        (options,) = second_stage(first_stage("sweep", words), [Part(SummarizeOptions)], description)
        return _summarize(options)
    line = first_stage("sweep", words, ["task"])
    parts = [Part(SweepOptions, aliases=ALIASES)]
    if line.wants_help and "task" not in line.names:
        line.prog, line.words = line.prog + " TASK", ["--help"]
        second_stage(line, parts, f"{DESCRIPTION}\n\n{METHODS}\n\n{name_lists(['task'])}")
    require_names(line, ["task"], "TASK -m MODEL --layers 24 25 100 -o DIR")
    return _sweep(*parse(line))


def parse(line: Line) -> tuple[SweepOptions, Task, dict[str, Any]]:
    """The options, the task and the methods of a line that names its task.

    Raises:
        ConfigError: With all that is wrong.
    """
    from unspoken.evaluation.sweep import Settings, make_methods

    defined = line.file.get("methods")
    if isinstance(defined, Mapping):
        line.file["methods"] = [str(name) for name in defined]
    line.prog = f"{line.prog} {line.names['task']}"
    parts = [Part(SweepOptions, aliases=ALIASES), named_part("task", line.names["task"])]
    options, task = second_stage(line, parts, f"{DESCRIPTION}\n\n{METHODS}")
    settings = Settings(
        temperature=options.temperature,
        mcmc_steps=options.mcmc_steps,
        num_blocks=options.num_blocks or min(Settings.num_blocks, options.max_new_tokens),
        candidates=options.candidates,
    )
    methods = make_methods(options.methods, settings, defined if isinstance(defined, Mapping) else None)
    return options, task, methods


def _sweep(options: SweepOptions, task: Task, methods: dict[str, Any]) -> int:
    from unspoken.evaluation._grid import Grid
    from unspoken.evaluation.sweep import choose, sweep

    root = Path(options.output or f"results/sweep-{task.name}").expanduser()
    source, blocks = _blocks(options)
    grid = Grid.make(source, blocks, methods, options.asked(), options.shards)
    numbers = options.cells(grid)
    chosen = choose(grid, numbers)
    if options.list:
        return _list(chosen, root)
    task.examples()  # a file that is missing or cannot be read is told before the model is loaded
    lm = load_model(options)
    shown = Shown(options.quiet, len(chosen))
    try:
        with shown:
            results = sweep(
                lm,
                task,
                methods,
                options.asked(),
                root,
                extent=options.extent(),
                shards=options.shards,
                cells=numbers,
                on_cell=shown.cell,
                on_done=shown.done,
                on_row=shown.row,
            )
    except KeyboardInterrupt:
        sys.stderr.write(
            f"Stopped. Finished answers are kept in {root}; the same command goes on from there.\n"
        )
        return 130
    fine = all(r.error is None and r.run is not None and not r.run.errors for r in results)
    if numbers is None:
        from unspoken.evaluation.sweep_summary import summarize

        sys.stdout.write("\n")
        _write(summarize(root), root, lens=None)
    else:
        sys.stdout.write(f"When all cells are done: unspoken sweep --summarize {root}\n")
    return 0 if fine else 1


def _blocks(options: SweepOptions) -> tuple[str, int]:
    """The model's name and how many blocks it has; its weights are not read."""
    from unspoken.lm import sources

    found = sources.resolve(options.model)
    config: Any = sources.read_config(found, trust_remote_code=options.trust_remote_code)
    return found.name, int(config.get_text_config(decoder=True).num_hidden_layers)


def _list(cells: list[Cell], root: Path) -> int:
    from unspoken.evaluation._text import table

    rows = [
        [
            str(cell.index),
            cell.configuration.method,
            ", ".join(cell.configuration.labels),
            cell.configuration.kept.name,
            cell.shard or "all",
            str(root / cell.configuration.folder),
        ]
        for cell in cells
    ]
    lines = table(["cell", "method", "layer", "depth", "problems", "folder"], rows)
    sys.stdout.write("\n".join([*lines, f"{len(rows)} cells"]) + "\n")
    return 0


def _summarize(options: SummarizeOptions) -> int:
    from unspoken.evaluation.sweep_summary import summarize

    source = Path(options.summarize).expanduser()
    found = summarize(source, baseline=options.baseline, blocks=options.blocks, grader=options.grader)
    if options.export is not None:
        _export(found, source, Path(options.export).expanduser(), options.blocks)
    _write(found, Path(options.output).expanduser() if options.output else source, lens=options.lens)
    return 0


def _write(found: SweepSummary, folder: Path, *, lens: str | None) -> None:
    """The table here and as a file, and the figures."""
    from unspoken.evaluation.sweep_figures import write_figures

    sys.stdout.write(f"{found}\n\n{found.write_csv(folder / 'summary_table.csv')}\n")
    try:
        for path in write_figures(found, folder / "plots", lens=lens):
            sys.stdout.write(f"{path}\n")
    except MissingExtraError as error:
        sys.stdout.write(f"No figures: matplotlib is not installed. {error.hint}\n")


def _export(found: SweepSummary, source: Path, target: Path, blocks: int | None) -> None:
    from unspoken.evaluation.truncation_tables import export_run

    if target.resolve() == source.resolve() or source.resolve() in target.resolve().parents:
        raise ConfigError(
            f"An export into {str(source)!r} itself would count every answer twice.", "Choose another folder."
        )
    taken: set[Path] = set()
    for line in found.lines:
        own = line.kept.of if line.kept else blocks
        done = export_run(line.run, target, layers=line.labels, blocks=own, taken=taken)
        for path in done.files:
            sys.stdout.write(f"{path}\n")
        for words in done.left_out:
            sys.stdout.write(f"Left out: {words}\n")
