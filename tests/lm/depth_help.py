"""Models of six blocks, of many families, and the full model with some blocks passed over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from unspoken.lm.model import CausalLM

BLOCKS = 6
TURNS = ["sliding_attention", "full_attention"] * 3
# Named so that no two blocks in a row, and neither of the kept ones, have the same attention.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4, "layer_types": TURNS},
    "qwen3": {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3},
    "gpt2": {"model_type": "gpt2"},
    "gemma2": {"model_type": "gemma2", "sliding_window": 4, "layer_types": TURNS},
    "gemma3": {"model_type": "gemma3_text", "sliding_window": 4},
    "mistral": {"model_type": "mistral", "sliding_window": 4},
    "gpt_neox": {"model_type": "gpt_neox"},
    "gpt_neo": {
        "model_type": "gpt_neo",
        "num_heads": 4,
        "attention_types": [[["global", "local"], 3]],
        "window_size": 4,
    },
    "smollm3": {"model_type": "smollm3", "use_sliding_window": True, "sliding_window": 4},
    "qwen2_moe": {
        "model_type": "qwen2_moe",
        "mlp_only_layers": [1, 4],
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
}
MAIN = ("llama", "qwen2", "qwen3", "gpt2", "gemma2")
REQUESTS: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({"keep_first": 3}, (0, 1, 2)),
    ({"keep_first": 2, "keep_last": True}, (0, 1, 5)),
    ({"layer_idx": 1}, (0, 1, 5)),
    ({"layer_idx": 1, "keep_last": False}, (0, 1)),
    ({"drop": [0, 2, 4]}, (1, 3, 5)),
    ({"drop_window": (1, 2)}, (0, 3, 4, 5)),
    ({"depth": "window:0:5"}, (5,)),
]


def settings(family: str) -> dict[str, Any]:
    given = {
        "vocab_size": 398,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 2,
        **FAMILIES[family],
    }
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": BLOCKS,
        "max_position_embeddings": 256,
        # Wide enough that each block matters and greedy tokens are no near-ties.
        "initializer_range": 0.3,
    }
    if family not in ("gpt2", "gpt_neox", "gpt_neo"):
        sizes["num_key_value_heads"] = 2
    if family in ("llama", "qwen3", "gemma2", "gemma3", "mistral"):
        sizes["head_dim"] = 8
    return {**sizes, **given}


def attention(family: str) -> str:
    """The only kind that some have: Gemma 2 caps its scores, and GPT-Neo is old."""
    return "eager" if family in ("gemma2", "gpt_neo") else "sdpa"


def build(family: str, **changes: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(**{**settings(family), **changes})
        auto: Any = AutoModelForCausalLM
        return auto.from_config(config, dtype=torch.float32, attn_implementation=attention(family)).eval()


@cache
def deep(family: str, tokenizer: Any) -> CausalLM:
    return CausalLM(build(family), tokenizer, source=family)


def ids(rows: int = 1, width: int = 20) -> Tensor:
    return torch.randint(5, 390, (rows, width), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(lm: CausalLM, tokens: Tensor) -> Tensor:
    return lm.model(tokens, use_cache=False).logits  # type: ignore[no-any-return]


@contextmanager
def passed_over(lm: CausalLM, blocks: Sequence[int]) -> Iterator[None]:
    """The full model, with these blocks giving out what they are given."""

    def hook(_module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        return (given, *output[1:]) if isinstance(output, tuple) else given

    handles = [lm.anatomy.blocks[i].register_forward_hook(hook, with_kwargs=True) for i in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
