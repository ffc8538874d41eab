"""Faster kernels for the same functions while training, without touching a model's own code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.activations import NewGELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION = "unspoken_float32"


def fuse_gelu(model: nn.Module) -> None:
    """Replace the GELU that transformers puts together from eight kernels (`gelu_new`, GPT-2's) by torch's own.

    Forward and backward take 0.4 of the time on a CPU (float32, 3,400 x 512), where a tiny GPT-2 spends a third of
    its step on it.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, nn.GELU(approximate="tanh"))


@contextmanager
def float32_attention(model: Any, device: torch.device) -> Iterator[None]:
    """Torch's fused attention in float32 while the rest of a model trains in bfloat16 on a CPU.

    There its backward takes four to five times as long in bfloat16 as in float32 (torch 2.13; rows of 32 and of
    105 tokens), casts included. Plain matrix products are as fast on short rows and take 1.7 times as long on
    rows of 105.

    Args:
        model: A transformers model. Checkpointed layers run again outside of this, so they keep what they have.
        device: Of the batch.
    """
    config = model.config
    bf16 = torch.is_autocast_enabled("cpu") or model.dtype == torch.bfloat16
    now = getattr(config, "_attn_implementation", None)
    slow = device.type == "cpu" and bf16 and now == "sdpa" and torch.is_grad_enabled()
    if not slow or getattr(model.base_model, "gradient_checkpointing", False):
        yield
        return
    config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        config._attn_implementation = now


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **others: Any
) -> tuple[Tensor, None]:
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        attention_mask = attention_mask.float()
    with torch.autocast(query.device.type, enabled=False):
        out, _ = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **others
        )
    return out.to(query.dtype), None


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
