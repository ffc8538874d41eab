"""The forwards of GPT-2 and Llama for training are those of transformers, at the positions asked for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from unspoken.training._forwards import direct_forward
from unspoken.training._scored import scored_logits

IDS = torch.tensor([[2, 3, 4, 5, 6, 7, 9], [7, 2, 9, 4, 3, 2, 8], [1, 1, 3, 5, 7, 9, 11]])
FEW = torch.tensor([[2, 4, 5], [0, 3, 6], [4, 0, 0]])  # rows with fewer positions are filled with 0
ALL = torch.arange(7).expand(3, -1)
INPUTS: dict[str, dict[str, torch.Tensor]] = {
    "plain": {},
    "padded": {
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7, [1, 1, 1, 1, 1, 1, 0]]),
        "position_ids": torch.tensor([[0, 0, 0, 1, 2, 3, 4], list(range(7)), list(range(7))]),
    },
    "hole": {
        "attention_mask": torch.ones_like(IDS),
        "position_ids": torch.tensor([[0, 1, 2, 5, 6, 7, 8], list(range(7)), [0, 3, 4, 5, 6, 7, 8]]),
    },
}


def gpt2(**others: Any) -> GPT2LMHeadModel:
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    shape = {"n_layer": 2, "n_embd": 16, "n_head": 4, "n_positions": 16, "vocab_size": 14}
    return GPT2LMHeadModel(GPT2Config(**(shape | dropout | {"bos_token_id": 0, "eos_token_id": 1} | others)))


def llama(**others: Any) -> LlamaForCausalLM:
    shape = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4}
    ends = {"bos_token_id": None, "eos_token_id": 1, "vocab_size": 14, "max_position_embeddings": 16}
    return LlamaForCausalLM(LlamaConfig(**(shape | ends | {"num_key_value_heads": 2} | others)))


MODELS = {
    "gpt2": gpt2,
    "gpt2, scaled by layer": lambda: gpt2(scale_attn_by_inverse_layer_idx=True),
    "gpt2, one layer": lambda: gpt2(n_layer=1),
    "llama": llama,
    "llama, biases": lambda: llama(attention_bias=True, mlp_bias=True, num_hidden_layers=3),
    "llama, long context": lambda: llama(
        rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}, tie_word_embeddings=True
    ),
}


def double(model: Any) -> Any:
    """Float64, with weights so large that attention is far from uniform, biases too."""
    generator = torch.Generator().manual_seed(0)
    model = model.double().train()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.empty_like(weight).normal_(std=0.3, generator=generator))
    return model


def outcome(logits: torch.Tensor, model: Any) -> list[torch.Tensor]:
    model.zero_grad()
    logits.log_softmax(-1)[..., 3].pow(2).sum().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters())]


def own(model: Any, index: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    """What transformers' own forward gives at the positions."""
    logits = model(input_ids=IDS, use_cache=False, **inputs).logits
    return logits.gather(1, index[..., None].expand(-1, -1, logits.shape[-1]))


@pytest.mark.parametrize("index", [FEW, ALL], ids=["few", "all"])
@pytest.mark.parametrize("inputs", list(INPUTS))
@pytest.mark.parametrize("name", list(MODELS))
def test_values_and_gradients_are_those_of_transformers(name: str, inputs: str, index: torch.Tensor) -> None:
    model = double(MODELS[name]())
    assert direct_forward(model) is not None
    ours = outcome(scored_logits(model, index, input_ids=IDS, **INPUTS[inputs]), model)
    theirs = outcome(own(model, index, **INPUTS[inputs]), model)
    assert max(float(x.abs().max()) for x in theirs[1:]) > 0.1
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize(
    "make",
    [
        lambda: gpt2(embd_pdrop=0.2, resid_pdrop=0.3, attn_pdrop=0.4),
        lambda: llama(attention_dropout=0.4),
    ],
    ids=["gpt2", "llama"],
)
def test_dropout_draws_as_in_transformers(make: Any) -> None:
    model = double(make())
    torch.manual_seed(1)
    ours = outcome(scored_logits(model, ALL, input_ids=IDS), model)
    torch.manual_seed(1)
    theirs = outcome(own(model, ALL), model)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(ours, theirs, strict=True))
    assert not torch.allclose(ours[0], own(model.eval(), ALL), atol=1e-3)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_the_last_block_reads_only_what_is_scored(make: Any) -> None:
    model = make()
    layers = model.transformer.h if make is gpt2 else model.model.layers
    read: list[int] = []
    for layer in layers:
        norm = layer.ln_2 if make is gpt2 else layer.post_attention_layernorm
        norm.register_forward_hook(lambda _module, args, _out: read.append(args[0].numel() // 16))
    assert scored_logits(model, FEW, input_ids=IDS).shape == (3, 3, 14)
    assert read == [21, 9]


class Sub(GPT2LMHeadModel):
    """It may do anything."""


def checkpointed() -> Any:
    model = gpt2().train()
    model.activation_checkpointing_enable()
    return model


def eager() -> Any:
    model = gpt2()
    model.set_attn_implementation("eager")
    return model


def patched() -> Any:
    model = llama()
    layer = model.model.layers[0]
    layer.forward = layer.forward
    return model


def adapted() -> Any:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=2, target_modules=["c_attn", "c_fc"], init_lora_weights=False, fan_in_fan_out=True
    )
    return peft.get_peft_model(gpt2(), config)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers so
@pytest.mark.parametrize("make", [checkpointed, eager, patched, adapted, lambda: Sub(gpt2().config)])
def test_other_models_run_as_they_are(make: Any) -> None:
    model = make()
    assert direct_forward(model) is None
    ours = scored_logits(model, FEW, input_ids=IDS)
    assert torch.allclose(ours, own(model, FEW), atol=1e-5)


def test_layers_that_were_replaced_are_called() -> None:
    peft = pytest.importorskip("peft")
    model = double(gpt2())
    before = own(model, FEW).detach()
    targets = ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"]
    config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False, fan_in_fan_out=True)
    model = peft.inject_adapter_in_model(config, model).double()
    assert direct_forward(model) is not None
    ours = scored_logits(model, FEW, input_ids=IDS)
    assert torch.allclose(ours, own(model, FEW), atol=1e-10)
    assert not torch.allclose(ours, before, atol=1e-3)


def test_it_leaves_a_model_as_it_was() -> None:
    model = gpt2()
    before = copy.deepcopy(model.state_dict())
    scored_logits(model, FEW, input_ids=IDS)
    assert all(torch.equal(a, before[name]) for name, a in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
