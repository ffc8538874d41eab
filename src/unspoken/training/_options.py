"""What all training methods share: how long, how fast, how precisely, what is kept and where it is reported."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from unspoken.config import Configured
from unspoken.training._needs import Need, idle

TINY = ("tiny", "tiny-llama")
SIZES = ("layers", "width", "heads")
"""Of the models of `TINY`."""
TRACKERS = ("none", "wandb", "trackio", "tensorboard")

FREE = (
    "device",
    "log_every",
    "report_to",
    "save_every",
    "save_stages",
    "save_total_limit",
)
"""Options that a resumed run may change: they decide nothing that is learnt or measured."""

NEEDS = (
    Need("epochs", lambda m: m.steps is None, "no steps beside it; steps is {m.steps}"),
    Need("lora_alpha lora_dropout lora_target", lambda m: m.lora_r > 0, "adapters (lora_r)"),
)


@dataclass(frozen=True)
class Options(Configured):
    """The options of a training run that do not belong to its method."""

    aliases: ClassVar[dict[str, str]] = {
        "learning_rate": "lr",
        "train_steps": "steps",
        "gradient_accumulation_steps": "accumulate",
        "eval_interval": "eval_every",
        "save_interval": "save_every",
    }

    epochs: float = 1.0
    """Passes over the training rows."""
    steps: int | None = None
    """Optimizer steps of the run, instead of `epochs`: it ends after `steps` times `accumulate` micro-batches."""
    max_flops: float | None = None
    """End the run after the step that reaches so many floating-point operations, if that is sooner: 6 for each token
    read and each weight outside the embeddings and the head. For baselines whose rows are shorter or longer."""
    lr: float = 5e-5
    """Learning rate of AdamW."""
    batch_size: int = 32
    """Rows of one micro-batch, over all processes together."""
    accumulate: int = 1
    """Micro-batches of one optimizer step."""
    weight_decay: float = 0.01
    """Of AdamW; not on biases and norms."""
    beta1: float = 0.9
    """Of AdamW: decay of the mean of gradients."""
    beta2: float = 0.999
    """Of AdamW: decay of the mean of squared gradients."""
    eps: float = 1e-8
    """Of AdamW: keeps the divisor from 0."""
    max_grad_norm: float = 1.0
    """Longer gradients are scaled down to this norm; 0 leaves them."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on after the warm-up: stays, or falls to 0 along a line or a cosine."""
    warmup_steps: int = 0
    """Optimizer steps in which the learning rate rises from 0."""
    warmup_ratio: float = 0.0
    """The same as a share of the run; the longer of the two counts."""
    reset_warmup: int = 0
    """The same after each reset of the optimizer."""
    seed: int = 1234
    """Of the order of rows, of all draws and of new weights."""
    precision: Literal["fp32", "bf16", "pure_bf16"] = "fp32"
    """bf16 keeps fp32 weights and computes in bfloat16; pure_bf16 also keeps the weights and AdamW in it."""
    device: Literal["auto", "cpu"] = "auto"
    """auto is the GPU if there is one."""
    max_size: int = -1
    """Most training rows, from the first; -1 takes all."""
    eval_every: int | None = None
    """Evaluate each so many optimizer steps; each epoch if not given, 0 only at the end."""
    eval_max: int | None = None
    """Most rows of an evaluation; all if not given."""
    eval_generate: bool = False
    """Also decode in evaluations, not only in the one at the end."""
    save_every: int | None = None
    """Save each so many optimizer steps; each epoch if not given, 0 only at the end."""
    save_total_limit: int = 2
    """Newest checkpoints that are kept."""
    save_stages: bool = False
    """Also keep the best model of each stage of the curriculum; their scores are recorded in any case."""
    log_every: int = 100
    """Log each so many optimizer steps."""
    report_to: tuple[str, ...] = ()
    """Trackers that get the metrics too: wandb, trackio, tensorboard."""
    layers: int = 2
    """Of the models `tiny` and `tiny-llama`."""
    width: int = 128
    """Of the models `tiny` and `tiny-llama`."""
    heads: int = 4
    """Of the models `tiny` and `tiny-llama`."""
    reinitialize_weights: bool = False
    """Keep only the architecture of the model and start from random weights."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: slower, much less memory."""
    lora_r: int = 0
    """Train adapters of this rank (LoRA, arXiv 2106.09685) instead of all weights; 0 trains all."""
    lora_alpha: float = 32.0
    """Adapters are scaled by this over their rank."""
    lora_dropout: float = 0.0
    """Of the adapters' inputs."""
    lora_target: tuple[str, ...] = ()
    """Names of the linear layers that get adapters; all in the blocks if not given."""

    def __post_init__(self) -> None:
        for name in ("report_to", "lora_target"):  # one text with commas or spaces, or several
            given = getattr(self, name)
            texts = [given] if isinstance(given, str) else given
            if isinstance(texts, (list, tuple)) and all(isinstance(text, str) for text in texts):
                words = " ".join(texts).replace(",", " ").split()
                object.__setattr__(self, name, tuple(words))
        super().__post_init__()
        object.__setattr__(self, "report_to", tuple(t for t in self.report_to if t != "none"))

    def micro_batches(self, n_rows: int) -> int:
        """How many micro-batches a run on so many rows has."""
        if self.steps is not None:
            return self.steps * self.accumulate
        return math.ceil(self.epochs * math.ceil(n_rows / self.batch_size))

    def optimizer_steps(self, n_rows: int) -> int:
        """How many optimizer steps a run on so many rows has; resets of the optimizer may add some.

        Micro-batches do not accumulate over the end of an epoch.
        """
        epoch = max(1, math.ceil(n_rows / self.batch_size))
        whole, rest = divmod(self.micro_batches(n_rows), epoch)
        return whole * math.ceil(epoch / self.accumulate) + math.ceil(rest / self.accumulate)

    def model_problems(self, model: Any) -> list[str]:
        """The options that a model other than those of `TINY` would not heed, as one sentence, if any."""
        usual = {f.name: f.default for f in fields(self)}
        given = [name for name in SIZES if getattr(self, name) != usual[name]]
        if not given or (isinstance(model, str) and model in TINY):
            return []
        return [
            f"{', '.join(given)} would do nothing: only the models {' and '.join(TINY)} are made to measure. A given "
            "model is as wide and deep as it is."
        ]

    def problems(self) -> list[str]:
        """All that is wrong with the fields, each as one sentence."""
        found = []
        for name in ("batch_size", "accumulate", "save_total_limit", "log_every", "layers", "width", "heads"):
            if getattr(self, name) < 1:
                found.append(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("steps", "eval_max"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                found.append(
                    f"{name} must be at least 1, not {getattr(self, name)}; leave it out for no limit."
                )
        for name in ("lr", "epochs", "eps"):
            if not 0 < getattr(self, name) < float("inf"):
                found.append(f"{name} must be a number above 0, not {getattr(self, name)}.")
        if self.max_flops is not None and not self.max_flops > 0:
            found.append(f"max_flops must be above 0, not {self.max_flops}; leave it out for no limit.")
        at_least_0 = "weight_decay max_grad_norm warmup_steps reset_warmup lora_r seed"
        for name in (*at_least_0.split(), "eval_every", "save_every"):
            if (getattr(self, name) or 0) < 0:
                found.append(f"{name} must not be negative ({getattr(self, name)}).")
        if self.seed >= 2**32:
            found.append(f"seed must be below 2**32 ({2**32}), not {self.seed}.")
        for name in ("beta1", "beta2", "warmup_ratio", "lora_dropout"):
            if not 0 <= getattr(self, name) < 1:
                found.append(f"{name} must be at least 0 and below 1, not {getattr(self, name)}.")
        if self.max_size != -1 and self.max_size < 1:
            found.append(f"max_size must be -1 (all rows) or at least 1, not {self.max_size}.")
        if self.width % self.heads:
            found.append(f"width must be a multiple of heads: {self.width} is none of {self.heads}.")
        unknown = [name for name in self.report_to if name not in TRACKERS]
        if unknown:
            found.append(f"report_to knows {', '.join(TRACKERS)}; not {', '.join(unknown)}.")
        if self.lora_r and (self.reinitialize_weights or self.precision == "pure_bf16"):
            found.append(
                "lora_r trains adapters on given fp32 weights: leave out reinitialize_weights and pure_bf16."
            )
        return found + idle(self, NEEDS, {f.name: f.default for f in fields(self)})
