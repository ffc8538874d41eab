"""Run a model's head only where predictions are scored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from unspoken.errors import ModelError
from unspoken.training._base import Batch
from unspoken.training._forwards import direct_forward
from unspoken.training._kernels import float32_attention


def scored_logits(model: nn.Module, index: Tensor, **inputs: Tensor) -> Tensor:
    """The logits of a model at some positions, at the price of those only.

    Args:
        model: The model, which may be wrapped (for many devices, with adapters).
        index: [n, P] positions in each row.
        **inputs: Of its forward.

    Returns:
        [n, P, V] in the model's dtype, with gradient if the model has.
    """
    inner, head = _unwrapped(model), head_of(model)
    direct = direct_forward(model) if index.numel() else None
    if direct is not None:
        with float32_attention(inner, index.device):
            states = direct(
                index, inputs["input_ids"], inputs.get("position_ids"), inputs.get("attention_mask")
            )
        return head(states)  # type: ignore[no-any-return]
    again = any(getattr(module, "gradient_checkpointing", False) for module in inner.modules())
    with nullcontext() if again else float32_attention(inner, index.device), _gathered(head, index):
        output = model(**inputs, use_cache=False)
    logits: Tensor = output.logits
    if logits.shape[:2] != index.shape:
        raise ModelError(
            f"{type(model).__name__} gives logits of shape {tuple(logits.shape)} where its head was run on "
            f"{tuple(index.shape)} positions.",
            "Its head is called in an unusual way, so it cannot be trained here.",
        )
    return logits


def head_of(model: nn.Module) -> nn.Module:
    """The language-model head inside all wrappers, as it is called now."""
    head: nn.Module = _unwrapped(model).get_output_embeddings()
    return head


def _unwrapped(model: nn.Module) -> Any:
    inner: Any = model
    while not hasattr(inner, "get_output_embeddings"):
        wrapped = getattr(inner, "module", None) or getattr(inner, "_orig_mod", None)
        if wrapped is None:
            raise ModelError(f"{type(model).__name__} has no language-model head.")
        inner = wrapped
    return inner


@contextmanager
def _gathered(head: nn.Module, index: Tensor) -> Iterator[None]:
    def gather(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = args
        return (hidden.gather(1, index.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])), *rest)

    handle = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


def summed_nll(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Scalar float32: the negative log-likelihood of all targets, summed.

    Args:
        logits: [n, P, V].
        targets: [n, P], -100 where there is none.
        weights: [n, P], or None for 1.
    """
    flat = logits.flatten(0, 1).float()
    if weights is None:
        return nn.functional.cross_entropy(flat, targets.flatten(), reduction="sum")
    each = nn.functional.cross_entropy(flat, targets.flatten(), reduction="none")
    return torch.dot(each, weights.flatten())


def forward_inputs(batch: Batch) -> Batch:
    """What of a batch the model itself reads."""
    return {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask") if name in batch}
