"""`unspoken eval TASK [STRATEGY]`: solve and grade, resumably."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unspoken import config
from unspoken.cli._arguments import (
    Line,
    Part,
    first_stage,
    name_lists,
    named_part,
    option,
    require_names,
    second_stage,
)
from unspoken.cli._options import ModelOptions, load_model, remembered_strategy
from unspoken.cli._progress import RunningLine

if TYPE_CHECKING:
    from unspoken.evaluation.records import ResultRow, Run, Summary
    from unspoken.lm.model import CausalLM
    from unspoken.tasks._base import Task

DESCRIPTION = (
    "Solve the problems of a task with one way of thinking (default: the one that a trained model remembers), and "
    "grade the answers. Every row is on the disk as soon as "
    "it is done: the same command again completes a folder that was left unfinished."
)
KINDS = ("task", "strategy")
ALIASES = {"num_examples": "limit"}  # as the original scripts call it


@dataclass(frozen=True, kw_only=True)
class EvalOptions(ModelOptions):
    """Options of `eval`."""

    output: str | None = option(None, flag="-o")
    """Folder for the results (default: results/TASK-STRATEGY-xxxxxx, named after the configuration)."""
    samples: int = 1
    """Answers to each problem."""
    limit: int | None = None
    """Most problems (default: all)."""
    start: int = 0
    """Position of the first problem, from 0."""
    shard: str | None = None
    """i/n takes every n-th problem from the i-th (from 0); shards may share a folder."""
    seed: int = 0
    """Base seed; each row's own is derived from it."""
    batch_size: int = 8
    """Rows that are generated together; it changes speed and memory, not answers."""
    max_new_tokens: int = 512
    """Most steps for each answer, thinking included; a strategy's own budget (T_total) overrides it."""
    trace: Literal["none", "summary", "full"] = "summary"
    """What is kept of each step; full keeps the candidates, too."""
    force: bool = False
    """Move a folder with another configuration aside, instead of refusing it."""
    validate: bool = False
    """Generate nothing: check that every gold answer grades correct and every shuffled one wrong."""
    quiet: bool = False
    """No running line."""


def eval_command(words: list[str]) -> int:
    """Run `unspoken eval`."""
    line = first_stage("eval", words, KINDS)
    validating = "--validate" in line.words or line.file.get("validate") is True
    wanted = KINDS[:1] if validating else KINDS
    if line.wants_help and any(kind not in line.names for kind in wanted):
        return _general_help(line)
    require_names(line, KINDS[:1], "TASK STRATEGY -m MODEL -o DIR")
    parts = [
        Part(EvalOptions, aliases=ALIASES),
        *(named_part(kind, line.names[kind]) for kind in KINDS if kind in line.names),
    ]
    line.prog = " ".join([line.prog, *(line.names[kind] for kind in KINDS if kind in line.names)])
    options, task, *strategy = second_stage(line, parts, DESCRIPTION)
    if options.validate:
        return _validate(task)
    usage = f"{line.prog} STRATEGY -m MODEL"
    return _evaluate(options, task, strategy[0] if strategy else remembered_strategy(options.model, usage))


def _general_help(line: Line) -> int:
    line.prog += " TASK [STRATEGY]"
    line.words = ["--help"]
    second_stage(line, [Part(EvalOptions, aliases=ALIASES)], f"{DESCRIPTION}\n\n{name_lists(KINDS)}")
    return 0


def _validate(task: Task) -> int:
    from unspoken.tasks._validate import validate

    report = validate(task)
    sys.stdout.write(f"{report}\n")
    return 0 if report.ok else 1


def _evaluate(options: EvalOptions, task: Task, strategy: Any) -> int:
    task.examples()  # a file that is missing or cannot be read is told before the model is loaded
    lm = load_model(options)
    folder = Path(options.output) if options.output else _default_folder(options, lm, task, strategy)
    settings = {
        name: getattr(options, name)
        for name in (
            "samples",
            "limit",
            "start",
            "shard",
            "seed",
            "batch_size",
            "max_new_tokens",
            "trace",
            "force",
        )
    }
    run = run_into(
        folder, lm, task, strategy, settings, title=f"{task.name} {strategy.name}", quiet=options.quiet
    )
    if run is None:
        return 130
    sys.stdout.write(f"{run}\n\nResults: {folder}\n  Read the answers: unspoken show {folder} --wrong\n")
    # Other shards of the folder may still be to come: this one is fine if none of its rows failed.
    fine = run.state == "complete" or (options.shard is not None and not run.errors)
    return 0 if fine else 1


def run_into(
    folder: Path,
    lm: Any,
    task: Task,
    strategy: Any,
    settings: dict[str, Any],
    *,
    title: str,
    quiet: bool = False,
) -> Run | None:
    """Evaluate into a folder with a running line; None after Ctrl-C, when the message has been written."""
    import unspoken

    kept = 0

    def on_row(row: ResultRow, summary: Summary) -> None:
        nonlocal kept
        kept = summary.n
        line.row(row, summary)

    try:
        with RunningLine(title, quiet=quiet) as line:
            return unspoken.evaluate(lm, task, strategy, output=folder, on_row=on_row, **settings)
    except KeyboardInterrupt:
        sys.stderr.write(
            f"Stopped. {kept} finished answers are kept in {folder}; the same command goes on from there.\n"
        )
        return None


def _default_folder(options: EvalOptions, lm: CausalLM, task: Task, strategy: Any) -> Path:
    decides: list[Any] = [options.model, options.dtype, options.seed, options.max_new_tokens]
    if lm.depth is not None and lm.depth.n_dropped:
        decides.append(lm.depth.blocks)
    tag = config.fingerprint([config.to_dict(task), config.to_dict(strategy), *decides])[:6]
    return Path("results") / f"{task.name}-{strategy.name}-{tag}"
