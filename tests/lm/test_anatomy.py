"""The parts of a model are found by structure and proven; what cannot be proven is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from unspoken.errors import ModelError
from unspoken.lm.anatomy import find_anatomy

ROTARY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "llama": ROTARY,
    "qwen2": {k: v for k, v in ROTARY.items() if k != "head_dim"},
    "qwen3": ROTARY | {"tie_word_embeddings": True},
    "mistral": ROTARY,
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "gpt_neox": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "use_parallel_residual": True,
    },
    "gemma": ROTARY,
    "gemma2": ROTARY | {"final_logit_softcapping": 30.0, "sliding_window": 4},
    "gemma3_text": ROTARY | {"sliding_window": 4},
    "cohere": ROTARY | {"logit_scale": 0.0625},
    "granite": ROTARY | {"logits_scaling": 13.0, "embedding_multiplier": 12.0},
    # As many experts as layers: a list of the right length inside a block is not the list of blocks.
    "mixtral": ROTARY | {"num_local_experts": 3, "num_experts_per_tok": 2},
}
TRANSFORMS = {"gemma2": (1.0, 30.0), "cohere": (0.0625, None), "granite": (1 / 13, None)}


def tiny(model_type: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    values = {"vocab_size": 97, "pad_token_id": 0, "initializer_range": 0.3, **LAYOUTS[model_type], **changes}
    config = AutoConfig.for_model(model_type, **values)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("model_type", LAYOUTS)
def test_parts_are_found_and_give_the_models_logits(model_type: str, dtype: torch.dtype) -> None:
    model = tiny(model_type, dtype)
    anatomy = find_anatomy(model)
    assert len(anatomy.blocks) == 3
    assert anatomy.vocab_size == 97
    assert (anatomy.scale, anatomy.softcap) == pytest.approx(TRANSFORMS.get(model_type, (1.0, None)))
    for name, path in anatomy.names.items():
        assert model.get_submodule(path) is getattr(anatomy, name), name
    # An independent check: hidden states as transformers reports them (the last one is normed).
    ids = torch.tensor([[5, 9, 33, 2, 71]])
    with torch.no_grad():
        output = model(ids, output_hidden_states=True)
        logits = anatomy.logits_transform(anatomy.head(output.hidden_states[-1]))
    torch.testing.assert_close(logits.float(), output.logits.float(), atol=1e-5, rtol=1e-5)


def test_a_soft_cap_is_told_from_none_although_random_logits_are_small() -> None:
    model = tiny("gemma2", initializer_range=0.01)
    assert find_anatomy(model).softcap == 30.0
    model.config.final_logit_softcapping = None
    assert find_anatomy(model).softcap is None


def test_probing_leaves_no_hooks_behind() -> None:
    model = tiny("llama")
    find_anatomy(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_head_that_is_not_the_one_used_is_refused() -> None:
    model = tiny("llama")
    other = nn.Linear(32, 97, bias=False)
    model.get_output_embeddings = lambda: other
    with pytest.raises(ModelError, match="never calls its head"):
        find_anatomy(model)


def test_logits_that_are_not_the_heads_are_refused() -> None:
    class Shifted(type(tiny("llama"))):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits + torch.arange(97.0)
            return output

    model = tiny("llama")
    model.__class__ = Shifted
    with pytest.raises(ModelError, match="changes its logits after the head"):
        find_anatomy(model)


def test_a_head_that_depends_on_more_than_the_hidden_state_is_refused() -> None:
    class Drifting(nn.Linear):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().forward(x) * self.calls

    model = tiny("llama")
    model.lm_head = Drifting(32, 97, bias=False)
    with pytest.raises(ModelError, match=r"head\(norm\(h\)\).*model\.norm.*lm_head.*differ"):
        find_anatomy(model)


def test_without_a_final_norm_the_error_says_between_what_it_was_sought() -> None:
    class NoModule(nn.Module):
        def __call__(self, x: torch.Tensor) -> torch.Tensor:  # past the hooks, as plain functions are
            return x + 1

    model = tiny("llama")
    model.model.norm = NoModule()
    with pytest.raises(
        ModelError, match=r"no single final norm between its blocks \(model\.layers\) and its head"
    ):
        find_anatomy(model)


def test_missing_blocks_are_reported_with_the_lists_that_were_seen() -> None:
    model = tiny("llama")
    model.config.num_hidden_layers = 5
    with pytest.raises(ModelError, match=r"no list of 5 blocks; lists of modules: model\.layers \(3\)"):
        find_anatomy(model)


def test_a_model_that_looks_ahead_is_refused() -> None:
    config = AutoConfig.for_model(
        "bert",
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    config.is_decoder = False
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ModelError):
        find_anatomy(model)
    llama = tiny("llama")
    for block in llama.model.layers:
        block.self_attn.is_causal = False
    llama.config._attn_implementation = "eager"
    llama.model.forward = _without_mask(llama.model)
    with pytest.raises(ModelError, match="not causal"):
        find_anatomy(llama)


def _without_mask(base: Any) -> Any:
    original = type(base).forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("attention_mask", None)
        inputs = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
        mask = torch.zeros(1, 1, inputs.shape[1], inputs.shape[1])
        return original(base, *args, attention_mask=mask, **kwargs)

    return forward


def test_a_model_whose_embeddings_are_not_its_tokens_is_refused() -> None:
    model = tiny("llama")
    wrong = nn.Embedding(97, 32)
    model.get_input_embeddings = lambda: wrong
    with pytest.raises(ModelError, match="other logits for the embeddings"):
        find_anatomy(model)
