"""`unspoken train METHOD`: train a model, or evaluate a trained one on a file as the original scripts do."""

from __future__ import annotations

import dataclasses
import io
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
from unspoken.cli.data import chain_task_part, named_task
from unspoken.errors import ConfigError, DataError

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM
    from unspoken.tasks._chains import Chain, ChainFile
    from unspoken.training._base import Data

DESCRIPTION = (
    "Train a model. The rows come from one of three places: --task NAME with its fields, --train_path and --val_path, "
    "or --data_path with --data_name. The same command goes on with a run that was stopped. With --from_pretrained and "
    "only --test_path the checkpoint is evaluated on that file instead. Works under accelerate launch -m unspoken, too."
)
ALIASES = {"save_model": "output", "valid_path": "val_path", "val_split": "valid_split"}
READ_BY_EVALUATION = (
    "from_pretrained",
    "test_path",
    "max_new_tokens",
    "batch_size",
    "precision",
    "bf16",
    "device",
    "quiet",
)
"""Options that act where a checkpoint is only evaluated."""
INSTEAD = {
    "steps": ("epochs",),
    "epochs": ("steps",),
    "from_pretrained": ("model",),
    "model": ("from_pretrained",),
}
"""Options of the -c file that give way to one on the command line, which says the same in another way."""
DATA_FORMS = {
    "--task": ("task",),
    "--train_path, --val_path": ("train_path", "val_path"),
    "--data_path, --data_name": ("data_path", "data_name"),
}


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Where a training run begins, what it reads and what it leaves."""

    model: str | None = option(None, flag="-m")
    """Hub id, local folder, or tiny or tiny-llama, which are made from scratch (default: gpt2)."""
    output: str | None = option(None, flag="-o")
    """Folder for the checkpoint, its history and its metrics; made if missing."""
    from_pretrained: str | None = None
    """A checkpoint to begin with, instead of the model; with only test_path: to evaluate."""
    task: str | None = None
    """A task with chains of thought; its fields become flags."""
    train_path: str | None = None
    """File of rows to train on: lines `question||cot #### answer`, or JSONL."""
    val_path: str | None = None
    """File of rows to evaluate on while training."""
    test_path: str | None = None
    """File of rows for the end."""
    data_path: str | None = None
    """Folder of split files, or a data set of the hub."""
    data_name: str | None = None
    """Sub-folder, or configuration of the data set."""
    train_split: str = "train"
    """Name of the split to train on, with data_path."""
    valid_split: str = "valid"
    """Name of the split to evaluate on while training, with data_path."""
    test_split: str = "test"
    """Name of the split for the end, with data_path."""
    bf16: bool = False
    """The same as --precision bf16."""
    resume: Literal["auto", "never"] = "auto"
    """auto goes on where the output folder stands; never moves what is there aside."""
    max_new_tokens: int | None = None
    """Most tokens of an answer, with from_pretrained and test_path (default: what the checkpoint needs)."""
    quiet: bool = False
    """Print nothing but errors."""

    def __post_init__(self) -> None:
        problems = []
        given = self.sources
        if len(given) > 1:
            problems.append(f"The rows come from one place only, not from {' and '.join(given)} together.")
        if self.model is not None and self.from_pretrained is not None:
            problems.append("model and from_pretrained both say what to begin with; give one of them.")
        if self.train_path is None and self.val_path is not None:
            problems.append("val_path goes with train_path.")
        if self.data_path is None and self.data_name is not None:
            problems.append("data_name goes with data_path.")
        if self.test_path is not None and (self.task is not None or self.data_path is not None):
            problems.append("test_path goes with train_path, or with from_pretrained alone.")
        if self.output is None and not self.evaluates:
            problems.append("No folder for the result: give -o DIR (or --save_model DIR).")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            problems.append(f"max_new_tokens must be at least 1, not {self.max_new_tokens}.")
        if problems:
            raise ConfigError(problems)

    @property
    def beginning(self) -> str:
        """What is trained or evaluated: a checkpoint or a model."""
        return self.from_pretrained or self.model or "gpt2"

    @property
    def sources(self) -> list[str]:
        """The places of `DATA_FORMS` that rows are to come from."""
        return [
            form for form, names in DATA_FORMS.items() if any(getattr(self, n) is not None for n in names)
        ]

    @property
    def evaluates(self) -> bool:
        """Whether a checkpoint is only evaluated on a file."""
        rows = [name for names in DATA_FORMS.values() for name in names]
        alone = all(getattr(self, name) is None for name in rows)
        return self.from_pretrained is not None and self.test_path is not None and alone


@dataclass(frozen=True)
class Job:
    """A parsed command line: what `unspoken train` and `unspoken doctor train` work on.

    Attributes:
        where: Model, rows and folder.
        options: `Options` of the run.
        method: The training method.
        task: The task that the rows come from, if it is one.
    """

    where: TrainOptions
    options: Any
    method: Any
    task: Any = None


def train_command(words: list[str]) -> int:
    """Run `unspoken train`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # the log is followed while it is redirected to a file
    job = parse(first_stage("train", words, ["method"]))
    return _evaluate(job) if job.where.evaluates else _train(job)


def parse(line: Line, *, only_looks: bool = False) -> Job:
    """The second stage of a line that names a method.

    Args:
        line: The line.
        only_looks: Whether nothing will be written, so that no output is needed.

    Raises:
        ConfigError: With everything that is wrong.
        SystemExit: After printing help.
    """
    from unspoken.training._options import SIZES, Options

    shared = Part(Options, "training", Options.aliases)
    parts = [Part(TrainOptions, aliases=ALIASES), shared]
    if line.wants_help and not line.names:
        line.prog += " METHOD"
        second_stage(line, parts, f"{DESCRIPTION}\n\n{name_lists(['method'])}")
    require_names(line, ["method"], "METHOD -m MODEL -o DIR --task TASK")
    line.prog += f" {line.names['method']}"
    named = named_part("method", line.names["method"])
    shared.defaults = named.cls.option_defaults
    parts.append(named)
    task_name = named_task(line)
    if task_name is not None:
        parts.append(chain_task_part(task_name))
    if only_looks:
        line.file.setdefault("output", "")
    typed = _typed(line.words, parts)
    _give_way(line.file, typed, shared.aliases)
    where, options, method, *task = second_stage(line, parts, DESCRIPTION)
    problems = _row_problems(where, method)
    if where.evaluates:
        # Whether a value is the default or not: nothing is trained, so it would do nothing.
        problems += [
            f"{flag} would do nothing: with --from_pretrained and only --test_path a checkpoint is evaluated, nothing "
            "is trained."
            for name, flag in typed.items()
            if name not in READ_BY_EVALUATION
        ]
    elif found := options.model_problems(where.beginning):
        if typed.keys() & {"model", "from_pretrained"} and not typed.keys() & set(SIZES):
            # They are of the -c file, and so of another model.
            options = dataclasses.replace(options, **{name: getattr(Options, name) for name in SIZES})
        else:
            problems += found
    if where.bf16 and options.precision not in ("fp32", "bf16"):
        problems.append(f"bf16 and precision {options.precision!r} contradict each other; give one of them.")
    if problems:
        raise ConfigError(problems)
    if where.bf16:
        options = dataclasses.replace(options, precision="bf16")
    return Job(where, options, method, task[0] if task else None)


def _typed(words: Sequence[str], parts: Sequence[Part]) -> dict[str, str]:
    """The options on the command line: names of fields, with the flag as it was written."""
    fields = {flag: name for part in parts for name, flag in part.flags.items()}
    fields |= {alias: name for part in parts for alias, name in part.aliases.items()}
    fields |= {"m": "model", "o": "output"}
    found = {}
    for word in words:
        name = word.lstrip("-").partition("=")[0].replace("-", "_")
        name = name if name in fields else name.removeprefix("no_")
        if word.startswith("-") and name in fields:
            found[fields[name]] = word.partition("=")[0]
    return found


def _give_way(file: dict[str, Any], typed: Mapping[str, str], aliases: Mapping[str, str]) -> None:
    """Drop from the values of the -c file what `INSTEAD` says, unless it was typed, too."""
    for name in [name for one in typed for name in INSTEAD.get(one, ()) if name not in typed]:
        for key in (name, *(alias for alias, meant in aliases.items() if meant == name)):
            file.pop(key, None)


def _row_problems(where: TrainOptions, method: Any) -> list[str]:
    if method.brings_rows and where.sources:
        return [
            f"The rows come from one place only, not from {where.sources[0]} and the method's own flags together."
        ]
    if not method.brings_rows and not where.sources and not where.evaluates:
        return [f"No rows to train on: give one of {'; '.join(DATA_FORMS)}."]
    return []


def is_first_process() -> bool:
    """Whether this process writes: the only one, or the first that `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


def _say(text: str) -> None:
    if is_first_process():
        sys.stdout.write(f"{text}\n")


def _train(job: Job) -> int:
    where = job.where
    data = None if job.task is not None or job.method.brings_rows else read_data(where)
    from unspoken.training._trainer import train

    assert where.output is not None
    try:
        run = train(
            job.method,
            model=_beginning(where),
            output=where.output,
            task=job.task,
            data=data,
            options=job.options,
            resume=where.resume,
            quiet=where.quiet,
        )
    except KeyboardInterrupt:
        if is_first_process():
            sys.stderr.write(
                f"Stopped. The same command goes on from the last checkpoint in {where.output}.\n"
            )
        return 130
    if not where.quiet:
        spent = f", {run.flops:.2g} FLOP" if run.flops else ""
        told = (
            "was finished already"
            if run.already_finished
            else f"{run.steps} steps in {run.seconds:.0f} s{spent}"
        )
        numbers = "; ".join(filter(None, (_numbers(run.metrics, split) for split in ("", "test_"))))
        _say(f"{where.output}: {told}. {numbers}".rstrip(". ") + ".")
        if job.method.trains_model:
            _say(
                f"  Its curve: unspoken curve {where.output}\n  Its speed: unspoken throughput {where.output}"
            )
        else:
            _say(f'  Look through it: unspoken lens "TEXT" -m {where.beginning} --lens logit {where.output}')
    return 0


def _numbers(metrics: dict[str, float], split: str) -> str:
    """Loss and accuracy of a split, with the rows that they are of and those that could not be."""
    named = (f"{split}{name}" for name in ("loss", "kl", "logit_kl", "exact_match", "teacher_forced_exact"))
    told = [f"{name} {metrics[name]:.4g}" for name in named if name in metrics]
    if f"{split}exact_match" in metrics and len(told) > 2:
        told.pop()  # only a bound of the other
    if not told or f"{split}rows" not in metrics:
        return ", ".join(told)
    left_out = int(metrics.get(f"{split}left_out", 0))
    extra = f"; {left_out} more were left out, too long or malformed" if left_out else ""
    return f"{', '.join(told)} (of {metrics[f'{split}rows']:.0f} rows{extra})"


def _evaluate(job: Job) -> int:
    where = job.where
    assert where.from_pretrained is not None and where.test_path is not None
    from unspoken.evaluation.throughput import evaluate_file
    from unspoken.tasks._chains import read_chains

    file = read_chains(where.test_path)
    if not where.quiet:
        _say(f"test: {file.report}")
    dtype = "float32" if job.options.precision == "fp32" else "bfloat16"
    lm = _load(where.from_pretrained, dtype=dtype, device=job.options.device)
    if not where.quiet:
        _say(f"{len(file.rows)} rows, {job.options.batch_size} generated together (--batch_size), {dtype}")
    evaluate_file(lm, file.rows, batch_size=job.options.batch_size, max_new_tokens=where.max_new_tokens)
    return 0


def _beginning(where: TrainOptions) -> str | CausalLM:
    """What training begins with."""
    from unspoken.lm.checkpoint import is_reference

    if where.from_pretrained is not None and is_reference(where.from_pretrained):
        return _load(where.from_pretrained, dtype="float32", device="cpu")
    return where.beginning


def _load(source: str, dtype: str, device: str) -> CausalLM:
    """Load a model; a checkpoint of the implicit-CoT reference code is converted first."""
    import unspoken
    from unspoken.lm.checkpoint import import_reference, is_reference

    if not is_reference(source):
        return unspoken.load(source, dtype=dtype, device=device)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        converted = import_reference(source, Path(folder) / "converted")
        lm = unspoken.load(converted, dtype=dtype, device=device)
    lm.source = source
    return lm


def read_data(where: TrainOptions) -> Data:
    """The rows that the options name, with a line on each source in the log."""
    from unspoken.tasks._chains import SPLITS, check_disjoint, digest, load_chains, read_chains
    from unspoken.training._base import Data

    files: dict[str, ChainFile] = {}
    if where.data_path is not None:
        names = (where.train_split, where.valid_split, where.test_split)
        # A single file has no splits: all of it is to train on.
        found_in = SPLITS[:1] if Path(where.data_path).expanduser().is_file() else SPLITS
        for split, name in zip(found_in, names, strict=False):
            try:
                files[split] = load_chains(where.data_path, where.data_name, name)
            except DataError as error:
                if split == "train":
                    raise
                if not where.quiet:
                    _say(f"{split}: none. {error.message}")
    else:
        paths = (where.train_path, where.val_path, where.test_path)
        files = {s: read_chains(path) for s, path in zip(SPLITS, paths, strict=True) if path is not None}
    if not where.quiet:
        for file in files.values():
            _say(str(file.report))
    rows: dict[str, Sequence[Chain]] = {split: file.rows for split, file in files.items()}
    try:
        check_disjoint(rows)
    except DataError as error:
        if is_first_process() and not where.quiet:
            sys.stderr.write(f"warning: {error.message}\n")
    manifest = {
        "source": {split: file.report.source for split, file in files.items()},
        "counts": {split: len(found) for split, found in rows.items()},
        "left_out": {
            split: {why: len(lines) for why, lines in file.report.dropped.items()}
            for split, file in files.items()
            if file.report.dropped
        },
        "sha256": {split: digest(found) for split, found in rows.items()},
    }
    return Data(rows.get("train", ()), rows.get("valid", ()), rows.get("test", ()), manifest)
