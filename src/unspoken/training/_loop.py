"""The training loop: transformers' Trainer for devices and processes, this project's order, draws and resets.

To the Trainer the run is one endless epoch of steps without data. `Loop.training_step` takes the micro-batches
of a step from the method by their number t, so that everything is a function of t: the order of rows, the
draws, the learning rate, the curriculum. Where a run stands is `Progress`, a few numbers.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from unspoken.errors import RunError
from unspoken.training._base import Batch, Work
from unspoken.training._checkpoints import newest_first
from unspoken.training._options import Options
from unspoken.training._steps import LossModule, Micro, Progress, divisor, draw_seed, scale_gradients, tokens


class Loop(transformers.Trainer):
    """Trains `work` until micro-batch `total`.

    Args:
        model: The Hugging Face model, with adapters if there are any.
        work: The method at work.
        options: Of the run.
        args: What the Trainer is to do with devices and processes.
        hooks: Told about each step.
        progress: Where to start.
        flops: Floating-point operations for each token read; 0 counts none.
    """

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        work: Work,
        options: Options,
        args: TrainingArguments,
        hooks: Hooks,
        progress: Progress,
        flops: float = 0.0,
    ) -> None:
        self.work, self.options, self.progress, self.hooks = work, options, progress, hooks
        self.total = options.micro_batches(work.n_rows)
        self.epoch_length = math.ceil(work.n_rows / options.batch_size)
        self._flops = flops
        self._uses_cache = bool(getattr(model.config, "use_cache", False))
        self._plans: dict[int, list[Tensor]] = {}
        self._recent: list[tuple[Micro, Tensor]] = []
        self._detail: dict[str, Tensor] = {}
        self._detail_of = (0.0, 0)  # items and rows that the details are of
        self.rate = options.lr
        module = LossModule(model, work)
        self.trained_module, self.trained = module, module.trained
        super().__init__(model=module, args=args, callbacks=[hooks], optimizer_cls_and_kwargs=work.optimizer)
        module.sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if self.is_deepspeed_enabled and options.precision == "bf16":
            module.forward = torch.autocast(args.device.type, torch.bfloat16)(module.forward)  # type: ignore[method-assign]
        self.remove_callback(PrinterCallback)
        hooks.loop = self
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes

    # What the Trainer asks for

    def get_train_dataloader(self) -> Any:
        return _Endless()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: Any
    ) -> tuple[list[Any], None]:
        return [{}], None

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        self.lr_scheduler = _Rate(self)  # type: ignore[assignment]
        return self.lr_scheduler

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # counting parameters at every step costs more than a small step itself

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # they know how to take a norm over shares
            return super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        return nn.utils.clip_grad_norm_(self.trained, self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        return grad_norm  # where nothing is clipped, nobody asks for the norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Not used: the Trainer's own summary says nothing that ours does not."""

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One optimizer step's gradients, from the micro-batches of its window."""
        here = self.progress
        if self._resets():
            self._reset_optimizer()
        here.pending = None
        self._set_rate()
        window = self._window()
        spent = here.flops + self._flops * sum(tokens(micro.batch) for micro in window)
        logged = self._over(window[-1].t + 1, spent) or (here.step + 1) % self.options.log_every == 0
        items = sum(micro.items for micro in window)
        self._detail, self._detail_of = {}, (items, sum(len(micro.rows) for micro in window))
        done = 0.0
        # Gradients are reduced with the last backward pass: the last micro-batch that has one.
        final = max((i for i, micro in enumerate(window) if micro.items), default=len(window) - 1)
        for position, micro in enumerate(window):
            if position and self._resets():
                # What is pending is a step of its own: it was divided by the items of the whole window.
                self._flush(model, window[:position], items / done if done else 1.0)
                break
            here.pending = None
            last = position == final
            self._micro_step(model, micro, items, last=last, detailed=logged)
            done += micro.items
        here.step += 1
        return self._zero

    # Parts of a step

    def _resets(self) -> bool:
        """Whether the optimizer is reset before the next micro-batch; asks the method once."""
        here = self.progress
        if here.pending is None:
            here.pending = self.work.resets_optimizer(here.t, here.previous)
        return here.pending

    def _window(self) -> list[Micro]:
        """The micro-batches of the next optimizer step: as many as accumulate, up to the end of the epoch."""
        t = self.progress.t
        epoch_end = (t // self.epoch_length + 1) * self.epoch_length
        return [self._micro(i) for i in range(t, min(t + self.options.accumulate, epoch_end, self.total))]

    def _micro(self, t: int) -> Micro:
        epoch, position = divmod(t, self.epoch_length)
        if epoch not in self._plans:
            self._plans = {epoch: self.work.plan(epoch, self.options.batch_size, self.options.seed)}
        rows = self._plans[epoch][position]
        generator = torch.Generator().manual_seed(draw_seed(self.options.seed, t))
        batch = self.work.batch(t, rows, generator)
        return Micro(t, rows, batch, float(self.work.items(batch)))

    def _flush(self, model: nn.Module, pending: list[Micro], factor: float) -> None:
        """Let the micro-batches that are pending be a whole step, their gradients multiplied by `factor`."""
        self.accelerator.gradient_state._set_sync_gradients(True)  # else the step would be left out
        if not self.is_deepspeed_enabled:
            scale_gradients(model, factor)
            return
        with_items = [micro for micro in pending if micro.items]
        if not with_items:
            return
        from deepspeed.utils import (  # type: ignore[import-not-found, unused-ignore]
            safe_get_full_grad,
            safe_set_full_grad,
        )

        # DeepSpeed shows its gradients after the last backward pass of a step alone: this one adds nothing.
        engine: Any = model
        engine.set_gradient_accumulation_boundary(True)
        engine.backward(engine(self._share(with_items[0].batch)[0], False)[0] * 0.0, **self._backward)
        for parameter in self.trained:
            safe_set_full_grad(parameter, safe_get_full_grad(parameter) * factor)
        engine.step()

    def _micro_step(
        self, model: nn.Module, micro: Micro, items: float, *, last: bool, detailed: bool
    ) -> None:
        here = self.progress
        metrics: dict[str, Tensor] = {}
        if micro.items:
            share, stands_in = self._share(micro.batch)
            # Dropout draws by t as well: a resumed run needs no state of generators.
            self._seed_dropout(draw_seed(self.options.seed, micro.t) + 1 + self.rank)
            # A reset may end the window at any micro-batch: then every one is reduced.
            later = not last and not self.work.may_reset
            self.accelerator.gradient_state._set_sync_gradients(last)
            with self.accelerator.no_sync(model) if later and self.world > 1 else contextlib.nullcontext():
                total, metrics = model(share, detailed)
                if stands_in:
                    total, metrics = total * 0.0, {name: value * 0 for name, value in metrics.items()}
                # Wrappers take the mean over processes.
                self.accelerator.backward(total * (self.world / items), **self._backward)
            self._recent.append((micro, total.detach()))
            if self.world == 1 and total.device.type == "cpu" and not math.isfinite(total.item()):
                self._refuse_nan()  # at once where it costs nothing, else when the losses are next collected
            if detailed:
                for name, value in metrics.items():
                    self._detail[name] = self._detail.get(name, 0) + value.detach().float()
        elif last:
            self.accelerator.gradient_state._set_sync_gradients(True)
        here.rows += len(micro.rows)
        here.tokens += (read := tokens(micro.batch))
        here.flops += self._flops * read
        if metrics and self.work.sticky:
            here.previous = self._sticky(metrics, micro)
        here.t += 1

    def _seed_dropout(self, seed: int) -> None:
        if self.args.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        else:  # torch.manual_seed takes a millisecond where there is no GPU
            torch.default_generator.manual_seed(seed)

    def _share(self, batch: Batch) -> tuple[Batch, bool]:
        """This process's rows on its device, and whether they only stand in, because it has none."""
        none = self.rank >= len(next(iter(batch.values())))
        if self.world > 1:
            mine = slice(0, 1) if none else slice(self.rank, None, self.world)
            batch = {name: tensor[mine] for name, tensor in batch.items()}
        return {name: tensor.to(self.args.device, non_blocking=True) for name, tensor in batch.items()}, none

    def _sticky(self, metrics: dict[str, Tensor], micro: Micro) -> dict[str, float]:
        values = torch.stack([metrics[name].detach().float().reshape(()) for name in self.work.sticky])
        values = self.accelerator.reduce(values, "sum") if self.world > 1 else values
        counts = (micro.items, len(micro.rows))
        return {
            name: value / divisor(name, *counts)
            for name, value in zip(self.work.sticky, values.tolist(), strict=True)
        }

    def _reset_optimizer(self) -> None:
        inner: Any = self.optimizer
        while hasattr(inner, "optimizer"):  # wrappers of accelerate and DeepSpeed
            inner = inner.optimizer
        inner.state.clear()
        self.progress.reset_at = self.progress.t

    def _set_rate(self) -> None:
        self.rate = self.options.lr * self._rate_factor()
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate

    def _rate_factor(self) -> float:
        """What the learning rate of the next step is multiplied with."""
        options, here = self.options, self.progress
        step, steps = here.t / options.accumulate, self.total / options.accumulate
        warmup = max(float(options.warmup_steps), options.warmup_ratio * steps)
        factor = min(1.0, (step + 1) / (warmup + 1))
        if here.reset_at >= 0:
            since = (here.t - here.reset_at) / options.accumulate
            factor *= min(1.0, (since + 1) / (options.reset_warmup + 1))
        fallen = min(1.0, max(0.0, (step - warmup) / max(1.0, steps - warmup)))
        if options.lr_schedule == "linear":
            factor *= 1 - fallen
        elif options.lr_schedule == "cosine":
            factor *= (1 + math.cos(math.pi * fallen)) / 2
        return factor

    @property
    def over(self) -> bool:
        """Whether the run has no more steps."""
        return self._over(self.progress.t, self.progress.flops)

    def _over(self, t: int, flops: float) -> bool:
        return t >= self.total or (self.options.max_flops is not None and flops >= self.options.max_flops)

    # What a log wants to know

    def collect(self) -> None:
        """Add the losses since the last call to the progress.

        Raises:
            RunError: If one of them is not a finite number.
        """
        if not self._recent:
            return
        self._refuse_nan()
        losses = torch.stack([total.float() for _, total in self._recent])
        losses = self.accelerator.reduce(losses, "sum") if self.world > 1 else losses
        self.progress.loss_sum += float(losses.double().sum())
        self.progress.items += sum(micro.items for micro, _ in self._recent)
        self._recent.clear()

    def _refuse_nan(self) -> None:
        totals = torch.stack([total.float() for _, total in self._recent])
        # Processes stop together: the sum over them is not finite where one of them is not.
        totals = self.accelerator.reduce(totals, "sum") if self.world > 1 else totals
        bad = (~totals.isfinite()).nonzero().flatten().tolist()
        if bad:
            micro = self._recent[bad[0]][0]
            step = self.progress.step + 1 - (self.progress.t - micro.t) // self.options.accumulate
            rows = ", ".join(map(str, micro.rows[:8].tolist())) + (", ..." if len(micro.rows) > 8 else "")
            raise RunError(
                f"The loss is {float(totals[bad[0]])} at micro-batch {micro.t}, about step {step} "
                f"(training rows {rows}).",
                f"{self._kept()}Try a lower lr, or precision fp32.",
            )

    def _kept(self) -> str:
        newest = next(iter(newest_first(Path(str(self.args.output_dir)))), None)
        return f"The checkpoint of step {newest[0]} is kept. " if newest else "Nothing was saved before. "

    def details(self) -> dict[str, float]:
        """The method's metrics of the present step."""
        if not self._detail:
            return {}
        values = torch.stack(
            [torch.as_tensor(v, device=self.args.device).reshape(()) for v in self._detail.values()]
        )
        values = self.accelerator.reduce(values, "sum") if self.world > 1 else values
        return {
            name.removesuffix("/items").removesuffix("/rows"): value / divisor(name, *self._detail_of)
            for name, value in zip(self._detail, values.tolist(), strict=True)
        }

    @property
    def uses_cache(self) -> bool:
        """Whether the model's configuration asked for a cache before training switched it off."""
        return self._uses_cache

    @property
    def _zero(self) -> Tensor:
        return torch.zeros((), device=self.args.device)

    @property
    def _backward(self) -> dict[str, Any]:
        return {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}


class Hooks(TrainerCallback):
    """What happens between steps; `train` says what."""

    loop: Loop

    def __init__(self, run: Any) -> None:
        self.run = run

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.loop.trained_module.train()
        self.run.begin()
        state.global_step = self.loop.progress.step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.global_step = self.loop.progress.step
        state.epoch = self.loop.progress.t / self.loop.epoch_length
        self.run.after_step()
        if self.loop.over:
            control.should_training_stop = True


class _Endless:
    """Stands for the data: every step is there, nothing is in it."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            yield {}


class _Rate:
    """The Trainer's view of the learning rate, which `Loop` sets itself."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def step(self) -> None:
        """Nothing: the rate is a function of t."""

    def get_last_lr(self) -> list[float]:
        """The present rate."""
        return [self._loop.rate]

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""
