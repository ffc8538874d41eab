"""Faster kernels compute the same functions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from toy import Toy, toy_data, toy_model
from transformers import (
    AttentionInterface,
    FalconConfig,
    FalconForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.activations import NewGELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from unspoken.training._options import Options
from unspoken.training._scored import scored_logits
from unspoken.training._steps import LossModule


def large(model: Any) -> Any:
    """Weights so large that attention is far from uniform."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(std=0.2, generator=torch.Generator().manual_seed(weight.numel()))
    return model


def gpt2() -> Any:
    return large(toy_model().model)


def falcon() -> Any:
    """It looks into its configuration for "sdpa", and keeps its own attention."""
    return large(
        FalconForCausalLM(
            FalconConfig(
                vocab_size=14, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, hidden_dropout=0.0,
                attention_dropout=0.0, bos_token_id=0, eos_token_id=1,
            )
        )
    )  # fmt: skip


def llama() -> Any:
    return large(
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=14, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=16, bos_token_id=None, eos_token_id=1,
            )
        )
    )  # fmt: skip


def gradients(model: Any, bf16: bool, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    model = copy.deepcopy(model).train()
    index = torch.tensor([[2, 4, 5], [0, 3, 5]])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        logits = scored_logits(model, index, **inputs)
    logits.float().log_softmax(-1)[..., 3].sum().backward()
    return {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}


def watched(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtypes of the queries that reach transformers' attention."""
    seen: list[torch.dtype] = []

    def watch(module: nn.Module, query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(query.dtype)
        return sdpa_attention_forward(module, query, *args, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", watch)
    return seen


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("make", [gpt2, llama, falcon])
def test_attention_of_bfloat16_training_is_that_of_float32(
    make: Any, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    inputs = {"input_ids": torch.tensor([[2, 3, 4, 5, 6, 7], [7, 2, 9, 4, 3, 2]])}
    if padded:
        inputs["attention_mask"] = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    exact = gradients(model, False, **inputs)
    seen = watched(monkeypatch)
    ours = gradients(model, True, **inputs)
    assert seen == ([] if make is falcon else [torch.float32] * model.config.num_hidden_layers)
    assert ours.keys() == exact.keys()
    for name in exact:
        assert (ours[name] - exact[name]).norm() <= 0.05 * exact[name].norm() + 1e-5, name


def test_attention_is_left_alone_where_it_is_not_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gpt2().bfloat16()
    index, ids = torch.tensor([[1]]), torch.tensor([[2, 3]])
    seen = watched(monkeypatch)
    with torch.no_grad():
        scored_logits(model, index, input_ids=ids)
    model.activation_checkpointing_enable()
    scored_logits(model.train(), index, input_ids=ids)
    assert seen == [torch.bfloat16] * 2
    model.activation_checkpointing_disable()
    out = scored_logits(model, index, input_ids=ids)
    assert seen[2:] == [torch.float32]
    assert out.dtype == torch.bfloat16


def test_a_failing_forward_leaves_the_attention_as_it_was() -> None:
    model = gpt2().bfloat16().train()
    with pytest.raises(IndexError):
        scored_logits(model, torch.tensor([[1]]), input_ids=torch.tensor([[2, 99]]))
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward


def test_gelu_of_gpt2_becomes_one_kernel_with_the_same_values_and_gradients() -> None:
    lm = toy_model()
    plain = copy.deepcopy(lm.model)
    assert type(plain.transformer.h[0].mlp.act) is NewGELUActivation
    work = Toy().prepare(lm, toy_data(), Options(batch_size=4))
    module = LossModule(lm.model, work)
    assert type(lm.model.transformer.h[0].mlp.act) is nn.GELU
    assert lm.model.config.activation_function == "gelu_new"  # what is saved says what it was
    batch = work.batch(0, torch.arange(4), torch.Generator().manual_seed(0))
    total, _ = module(batch, False)
    expected = work.loss(plain, batch, detailed=False).total
    assert torch.allclose(total, expected, rtol=1e-6)
    total.backward()
    expected.backward()
    for ours, theirs in zip(lm.model.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)
    wide = torch.linspace(-6, 6, 4001)
    found = []
    for model in (lm.model, plain):
        x = wide.clone().requires_grad_()
        y = model.transformer.h[0].mlp.act(x)
        y.sum().backward()
        found.append((y.detach(), x.grad))
    for ours, theirs in zip(*found, strict=True):  # the exact function is 0.0005 off
        assert torch.allclose(ours, theirs, atol=1e-5)
