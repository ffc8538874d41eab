"""`train`: run a method on a model and data, or go on where a run stands."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import TrainingArguments
from transformers.utils import logging as transformers_logging

from unspoken import __version__
from unspoken.errors import ConfigError, require
from unspoken.lm.model import CausalLM
from unspoken.training import _checkpoints as checkpoints
from unspoken.training import _log, _setup
from unspoken.training._base import Data, Method, Work
from unspoken.training._loop import Hooks, Loop
from unspoken.training._options import Options
from unspoken.training._steps import Progress, core_parameters
from unspoken.training._weights import Weights

if TYPE_CHECKING:
    from unspoken.tasks._base import Task


@dataclass(frozen=True)
class TrainRun:
    """What a training run left.

    Attributes:
        output: The folder: a plain Hugging Face checkpoint with logs and earlier checkpoints.
        metrics: The last evaluation; those of the test rows begin with `test_`.
        steps: Optimizer steps of the whole run.
        seconds: Wall time of the whole run, over all of its sessions.
        flops: Floating-point operations of the whole run, as `Options.max_flops` counts them; 0 if not counted.
        already_finished: Whether the folder held the finished run, so that nothing was done now.
    """

    output: Path
    metrics: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    already_finished: bool = False


def train(
    method: str | Method,
    *,
    model: str | Path | CausalLM,
    output: str | Path,
    task: Task | str | None = None,
    data: Data | None = None,
    options: Options | None = None,
    resume: Literal["auto", "never"] = "auto",
    quiet: bool = False,
    **given: Any,
) -> TrainRun:
    """Train a model with a method.

    The same call goes on with a run that was stopped; what it has learnt and logged then is what it would have
    been without the stop, bit for bit on a CPU.

    Args:
        method: A method or its name, such as `internalize`.
        model: `tiny` or `tiny-llama` (made from scratch), a name of the zoo, a folder, a hub id, or a `CausalLM`,
            which is trained in place.
        output: Folder for the result; made if missing.
        task: A task whose rows have chains of thought, or its name; its splits are the data.
        data: The rows themselves, instead of a task.
        options: What the method does not say.
        resume: `auto` goes on where the folder stands; `never` moves what is there aside.
        quiet: Print nothing.
        **given: Fields of `Options`, and of the method where it is given by name.

    Raises:
        ConfigError: If something does not fit, or the folder holds a run of another configuration.
        RunError: If the loss is not a finite number, or the folder cannot be written.
    """
    require("accelerate", "train", "Training")
    if resume not in ("auto", "never"):
        raise ConfigError(f"resume must be auto or never, not {resume!r}.")
    method, options = _setup.configure(method, options, given)
    _setup.require_trackers(options)  # before rows are made, which may take a while
    problems = options.model_problems(model)
    if options.max_flops is not None and not method.trains_model:
        problems.append(f"max_flops counts what a model is trained with; {method.name} trains none.")
    if problems:
        raise ConfigError(problems)
    data = _setup.gather_data(task, data, options, method)  # type: ignore[arg-type]
    output = Path(output).expanduser()
    arguments = _setup.arguments(options, output)
    _setup.check_processes(options, arguments)
    identity = _setup.identity(method, model, data, options, output)
    old = _prepare_folder(output, identity, resume, arguments)
    if old is not None and old["state"] == "finished":
        spent = old.get("flops", 0.0)
        return TrainRun(output, old["metrics"], old["steps"], old["seconds"], spent, already_finished=True)
    run = _Run(method, model, data, options, output, arguments, identity, quiet)
    return run.go(resuming=old is not None)


def _prepare_folder(
    output: Path, identity: dict[str, Any], resume: str, arguments: TrainingArguments
) -> dict[str, Any] | None:
    """What `training.json` says of the run to go on with; every process sees the same."""
    old = checkpoints.read_run(output)
    if old is None and output.exists() and not output.is_dir():
        raise ConfigError(f"{output} is not a folder.")
    if old is not None and resume == "auto":
        checkpoints.refuse_differences(output, old["configuration"], identity)
    _wait(arguments)
    if resume == "never" and old is not None:
        if arguments.process_index == 0:
            checkpoints.move_aside(output)
        old = None
    return old


def _wait(arguments: TrainingArguments) -> None:
    if arguments.world_size > 1:
        torch.distributed.barrier()


class _Run:
    """One session of a run."""

    def __init__(
        self,
        method: Method,
        model: str | Path | CausalLM,
        data: Data,
        options: Options,
        output: Path,
        arguments: TrainingArguments,
        identity: dict[str, Any],
        quiet: bool,
    ) -> None:
        self.data, self.options, self.output, self.identity = data, options, output, identity
        self.first, self.arguments, self.quiet = arguments.process_index == 0, arguments, quiet
        torch.manual_seed(options.seed)  # new rows of embeddings and adapters are drawn
        lm = _setup.build(model, method, data, options)
        old_size = len(lm.tokenizer)
        self.work: Work = method.prepare(lm, data, options)
        self.weights = self.work.weights(lm) or Weights(
            lm, _setup.add_adapters(lm, old_size, options) if options.lora_r else None
        )
        evaluated = self.work.splits
        self.splits = [s for s in ("valid", "test") if getattr(data, s)] if evaluated is None else evaluated
        self.source = lm.source
        self.flops = 6.0 * core_parameters(lm.model) if method.trains_model else 0.0
        if options.gradient_checkpointing:
            lm.model.gradient_checkpointing_enable()
        self.started = self.logged_at = time.perf_counter()
        self.final: dict[str, float] | None = None  # the last evaluations, once they are done
        self.aside = 0.0  # seconds spent on evaluations and saves since the last log

    def go(self, *, resuming: bool) -> TrainRun:
        """Train to the end and leave the result in the folder."""
        progress, optimizer = Progress(), None
        if resuming:
            progress, optimizer = self._restore()
        _wait(self.arguments)
        if self.first:
            checkpoints.write_run(self.output, {"state": "running", **self._described()})
            _log.cut(self.output / "metrics.jsonl", progress.step)
        self.progress, self.optimizer_state = progress, optimizer
        self.before = progress.seconds
        steps = self.options.optimizer_steps(self.work.n_rows)
        self.log = _log.Log(self.output / "metrics.jsonl" if self.first else None, steps, quiet=self.quiet)
        for note in self.work.notes:
            self.log.line(note)
        if progress.step:
            self.log.line(f"Going on after step {progress.step}.")
        verbosity, uses_cache = transformers_logging.get_verbosity(), self.weights.model.config.use_cache
        try:
            self.loop = Loop(
                self.weights.model, self.work, self.options, self.arguments, Hooks(self), progress, self.flops
            )
            if not self.weights.may_shard and (self.loop.is_fsdp_enabled or self.loop.is_deepspeed_enabled):
                raise ConfigError(
                    "Adapters (lora_r) and lenses are trained on one process, or on several with DDP."
                )
            if not self.loop.over:
                self.loop.train()
            if (most := self.options.max_flops) is not None and progress.flops < most:
                self.log.line(
                    f"The run ended at {progress.flops:.3g} of {most:.3g} FLOP: it has no more epochs."
                )
            return self._finish()
        finally:
            transformers_logging.set_verbosity(verbosity)
            self.weights.model.config.use_cache = uses_cache
            self.log.close()

    # Called by the loop

    def begin(self) -> None:
        """Everything is in its place; the first step comes next."""
        if self.optimizer_state is not None:
            self.weights.load_optimizer(self.loop, self.optimizer_state)
            self.optimizer_state = None
        self.started = self.logged_at = time.perf_counter()

    def after_step(self) -> None:
        """Log, evaluate and save where it is time."""
        here, options = self.progress, self.options
        over = self.loop.over
        if here.step % options.log_every == 0 or over:
            self._log_step()
        if "valid" in self.splits and not over and self._due(options.eval_every):
            self._evaluate("valid", generate=options.eval_generate, final=False)
        if self._due(options.save_every) or over:  # a failure in the last evaluation is not to cost the run
            self._save()
        if over:
            self.final = self._final_evaluations()  # here, since trackers close when training ends
        if self.first:
            self.log.running(here.step)

    def _due(self, every: int | None) -> bool:
        if every is None:
            return self.progress.t % self.loop.epoch_length == 0
        return every > 0 and self.progress.step % every == 0

    # Parts

    def _log_step(self) -> None:
        here = self.progress
        self.loop.collect()
        now = time.perf_counter()
        seconds = max(now - self.logged_at - self.aside, 1e-9)
        self.logged_at, self.aside = now, 0.0
        row = {
            # Rows that are all left out have no loss.
            **({"loss": here.loss_sum / here.items} if here.items else {}),
            **self.loop.details(),
            **self.work.curriculum(here.t - 1),
            "lr": self.loop.rate,
            "rows_per_second": here.rows / seconds,
            "tokens_per_second": here.tokens / seconds,
            "items_per_second": here.items / seconds,
            **({"flops": here.flops} if self.flops else {}),
        }
        here.loss_sum, here.items, here.rows, here.tokens = 0.0, 0.0, 0, 0
        self._row("train", row)

    def _evaluate(self, split: str, *, generate: bool, final: bool) -> dict[str, float]:
        with self._pause():
            self.loop.collect()  # no evaluation of a model that is no more
            metrics = {}
            everyone = self.loop.is_fsdp_enabled or self.loop.is_deepspeed_enabled
            if self.first or everyone:
                gathered, view = self.weights.gathered(self.loop), self.weights.view()
                with gathered, view as lm, torch.no_grad(), self._autocast():
                    metrics = self.work.evaluate(
                        lm, split, self.progress.t, limit=self.options.eval_max, generate=generate
                    )
                self.loop.trained_module.train()
            metrics = self._tell_all(metrics)
            mark = {"final": True} if final else {}
            self._row(
                "eval",
                {"split": split, **mark, **self.work.curriculum(max(self.progress.t - 1, 0)), **metrics},
            )
            if split == "valid":
                self._keep_best(metrics)
        return metrics

    def _keep_best(self, metrics: dict[str, float]) -> None:
        for name, score in self.work.scores(metrics, self.progress.t).items():
            if score > self.progress.scores.get(name, float("-inf")):
                self.progress.scores[name] = score
                if "/" not in name or self.options.save_stages:
                    self._write(self.output / name)

    def _save(self) -> None:
        with self._pause():
            self.loop.collect()
            self.progress.work = self.work.state()
            self.progress.seconds = self.before + time.perf_counter() - self.started
            self._write(self.output / "checkpoints" / f"step-{self.progress.step}", state=True)
            if self.first:
                checkpoints.prune(self.output, self.options.save_total_limit)

    def _write(self, folder: Path, *, state: bool = False) -> None:
        """Write the model into a folder, and with `state` what it takes to go on; all processes take part."""
        strategy, provenance = self.work.strategy(self.progress.t), self._provenance()
        writing = checkpoints.replacing(folder) if self.first else contextlib.nullcontext(folder)
        with writing as place:
            place = place if self.first else folder.with_name(f".{folder.name}.writing")
            self.weights.save(self.loop, place, strategy, provenance, write=self.first)
            if state:
                self.weights.save_state(
                    self.loop, place / "trainer", self.progress.to_dict(), write=self.first
                )
            _wait(self.arguments)
        _wait(self.arguments)

    def _final_evaluations(self) -> dict[str, float]:
        metrics = self._evaluate("valid", generate=True, final=True) if "valid" in self.splits else {}
        if "test" in self.splits:
            tested = self._evaluate("test", generate=True, final=True)
            metrics = {**metrics, **{f"test_{key}": value for key, value in tested.items()}}
        return metrics

    def _finish(self) -> TrainRun:
        metrics = self._final_evaluations() if self.final is None else self.final
        seconds = self.before + time.perf_counter() - self.started
        result = self.output / ".result"
        self._write(result)
        if self.first:
            checkpoints.move_into(result, self.output)
            finished = {
                "state": "finished",
                "metrics": metrics,
                "steps": self.progress.step,
                "seconds": seconds,
                "flops": self.progress.flops,
            }
            checkpoints.write_run(self.output, {**finished, **self._described()})
        _wait(self.arguments)
        return TrainRun(self.output, metrics, self.progress.step, seconds, self.progress.flops)

    def _restore(self) -> tuple[Progress, Any]:
        """Weights from the newest checkpoint that can be read, and the rest of its state."""
        tell = (lambda text: warnings.warn(text, stacklevel=4)) if self.first else (lambda text: None)
        found = checkpoints.newest_readable(self.output, self.weights.read, tell)
        if found is None:
            return Progress(), None
        self.weights.load(found)
        progress = Progress(**found.progress)
        self.work.restore(progress.work)
        return progress, found

    def _described(self) -> dict[str, Any]:
        """What `training.json` says of the run, whatever its state."""
        return {"left_out": self.work.left_out, "configuration": self.identity}

    def _provenance(self) -> dict[str, Any]:
        return {
            **self.identity,
            "left_out": self.work.left_out,
            "manifest": self.data.manifest,
            "source": self.source,
            "step": self.progress.step,
            "t": self.progress.t,
            "epoch": self.progress.t / self.loop.epoch_length,
            "curriculum": self.work.curriculum(max(self.progress.t - 1, 0)),
            "scores": dict(self.progress.scores),
            "versions": {
                "unspoken": __version__,
                **{name: version(name) for name in ("torch", "transformers")},
            },
        }

    def _row(self, event: str, values: dict[str, Any]) -> None:
        here = self.progress
        where = {"step": here.step, "t": here.t, "epoch": round(here.t / self.loop.epoch_length, 6)}
        seconds = round(self.before + time.perf_counter() - self.started, 3)
        if self.first:
            self.log.row({"event": event, **where, "seconds": seconds, **values})
            # transformers shows these as eval/NAME and test/NAME, and what has no prefix as train/NAME.
            prefix = {"valid": "eval_", "test": "test_"}.get(values.get("split", ""), "")
            numbers = {prefix + key: v for key, v in values.items() if type(v) in (int, float)}
            self.loop.state.epoch = here.t / self.loop.epoch_length
            self.loop.callback_handler.on_log(self.arguments, self.loop.state, self.loop.control, numbers)

    @contextlib.contextmanager
    def _pause(self) -> Iterator[None]:
        """Time that does not count for the speed of training."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.aside += time.perf_counter() - begun

    def _autocast(self) -> Any:
        if self.options.precision != "bf16":
            return contextlib.nullcontext()
        return torch.autocast(self.arguments.device.type, torch.bfloat16)

    def _tell_all(self, metrics: dict[str, float]) -> dict[str, float]:
        if self.arguments.world_size == 1:
            return metrics
        box = [metrics]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]
