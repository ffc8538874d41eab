"""What a training step is made of: where the run stands, micro-batches, and the loss as a module."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from unspoken.training._base import Batch, Loss, Work
from unspoken.training._kernels import fuse_gelu


@dataclass
class Progress:
    """Where a run stands; saved with checkpoints.

    Attributes:
        t: Micro-batches done.
        step: Optimizer steps done.
        reset_at: The t of the last reset of the optimizer; -1 before any.
        previous: The method's sticky metrics of the last micro-batch.
        work: What the method remembers.
        pending: Whether the optimizer is to be reset before micro-batch t, if the method was asked already.
        scores: Best score so far of each kept checkpoint.
        seconds: Wall time so far.
        flops: Floating-point operations so far; 0 where they are not counted.
        loss_sum: Of the loss since the last log, ...
        items: ... of its items, ...
        rows: ... of rows, ...
        tokens: ... and of tokens read.
    """

    t: int = 0
    step: int = 0
    reset_at: int = -1
    previous: dict[str, float] = field(default_factory=dict)
    work: dict[str, Any] = field(default_factory=dict)
    pending: bool | None = None
    scores: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    flops: float = 0.0
    loss_sum: float = 0.0
    items: float = 0.0
    rows: int = 0
    tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


class LossModule(nn.Module):
    """The method's loss as a module, for wrappers (several processes, autocast) to be put around it."""

    def __init__(self, model: nn.Module, work: Work) -> None:
        super().__init__()
        fuse_gelu(model)
        self.model = model
        self.work = work
        self.config = model.config
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.sharded = False  # then the parameters are others than these
        # Which layers FSDP shards one by one.
        self._no_split_modules = getattr(model, "_no_split_modules", None)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch, without the walk through all modules at every step."""
        if self.sharded:
            super().zero_grad(set_to_none)
            return
        for parameter in self.trained:
            parameter.grad = None

    def forward(self, batch: Batch, detailed: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Total and metrics of the method's loss."""
        loss: Loss = self.work.loss(self.model, batch, detailed=detailed)
        return loss.total, loss.metrics


@dataclass
class Micro:
    """One micro-batch, as all processes see it."""

    t: int
    rows: Tensor
    batch: Batch
    items: float


def core_parameters(model: PreTrainedModel) -> int:
    """How many weights every token is multiplied with: all but those of the embeddings and the head."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    outside = {
        id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()
    }
    outside |= {id(p) for p in head.parameters()} if isinstance(head, nn.Module) else set()
    return sum(p.numel() for p in model.parameters() if id(p) not in outside)


def draw_seed(seed: int, t: int) -> int:
    """The seed of all draws of micro-batch t."""
    return (seed * 1_000_000_007 + t * 10_007) % 2**62


def tokens(batch: Batch) -> int:
    """How many tokens a batch reads."""
    if "attention_mask" in batch:
        return int(batch["attention_mask"].sum())
    return batch["input_ids"].numel() if "input_ids" in batch else 0


def divisor(name: str, items: float, rows: int) -> float:
    """What a summed metric is divided by for the log; see `Loss`."""
    if name.endswith("/items"):
        return max(items, 1.0)
    return max(rows, 1) if name.endswith("/rows") else 1.0


def scale_gradients(model: nn.Module, factor: float) -> None:
    """Multiply all gradients."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
