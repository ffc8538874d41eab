"""Tiny models for the lens, and the lens worked out naively in float64."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from unspoken.lm.model import CausalLM

FAMILIES = ("llama", "gpt2", "qwen3", "gemma2")
IDS = [20, 31, 42, 53, 64, 75, 86, 97, 108, 119, 130]


@cache
def lens_lm(family: str, layers: int = 4) -> CausalLM:
    """A tiny random model with enough layers to tell them apart; gemma2 caps its logits and scales its embeddings."""
    from tiny_models import make_tokenizer
    from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, Qwen3Config

    tokenizer = make_tokenizer()
    ends = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    # Wider than the tokenizer, as models are that pad their vocabulary.
    shared = {"vocab_size": len(tokenizer) + 11, "initializer_range": 0.3, **ends}
    rotary = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
    }
    config: Any = {
        "llama": lambda: LlamaConfig(**shared, **rotary, tie_word_embeddings=False),
        "qwen3": lambda: Qwen3Config(**shared, **rotary, tie_word_embeddings=True),
        "gpt2": lambda: GPT2Config(**shared, n_embd=32, n_layer=layers, n_head=4, n_positions=256),
        "gemma2": lambda: Gemma2Config(
            **shared, **rotary, final_logit_softcapping=5.0, attn_logit_softcapping=20.0, sliding_window=6
        ),
    }[family]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():  # norms that do something
        for name, weight in model.named_parameters():
            if "norm" in name or "ln_" in name:
                weight.add_(torch.linspace(-0.3, 0.5, weight.numel()).view(weight.shape))
    return CausalLM(model.eval(), tokenizer)


def plain_states(lm: CausalLM, vectors: Tensor) -> list[Tensor]:
    """[S, d] float64 before the final norm: embeddings, then each block's output, by hooks on a float64 copy."""
    import copy

    model = copy.deepcopy(lm.model).double()
    seen: list[Tensor] = []
    blocks = model.get_submodule(lm.anatomy.names["blocks"])
    first = blocks[0].register_forward_pre_hook(lambda _m, args: seen.append(args[0][0]))
    rest = [
        block.register_forward_hook(
            lambda _m, _a, out: seen.append((out[0] if isinstance(out, tuple) else out)[0])
        )
        for block in blocks
    ]
    with torch.no_grad():
        model(inputs_embeds=vectors[None].double(), use_cache=False)
    for handle in [first, *rest]:
        handle.remove()
    return seen


def plain_logits(lm: CausalLM, states: list[Tensor]) -> Tensor:
    """[L, S, V] float64, with the soft cap written out."""
    import copy

    norm, head = copy.deepcopy(lm.anatomy.norm).double(), copy.deepcopy(lm.anatomy.head).double()
    with torch.no_grad():
        logits = torch.stack([head(norm(state)) for state in states])
    cap = getattr(lm.model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def embed(lm: CausalLM, ids: list[int]) -> Tensor:
    """[S, D] the vectors of some ids."""
    with torch.no_grad():
        return lm.embed(torch.tensor(ids))


def plain_metrics(
    logits: Tensor, states: list[Tensor], gold: list[int], answers: list[int], k: int
) -> dict[str, Any]:
    """Every metric [L, S], each by its definition, with full sorts."""
    logq = logits.log_softmax(-1)
    logp = logq[-1]
    p, q = logp.exp(), logq.exp()
    middle = ((p + q) / 2).log()
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    place = order.argsort(-1)  # rank from 0
    top = p.argmax(-1)

    def of(values: Tensor, ids: Tensor) -> Tensor:
        return values.gather(-1, ids.expand(len(values), -1)[..., None])[..., 0]

    golds = torch.tensor(gold)
    final_k = order[-1, :, :k]
    found = {
        "kl": (p * (logp - logq)).sum(-1),
        "reverse_kl": (q * (logq - logp)).sum(-1),
        "js": ((p * (logp - middle)).sum(-1) + (q * (logq - middle)).sum(-1)) / 2,
        "entropy": -(q * logq).sum(-1),
        "agreement": (order[..., 0] == top).double(),
        "overlap": torch.tensor(
            [
                [
                    len(set(row[:k].tolist()) & set(last.tolist())) / k
                    for row, last in zip(layer, final_k, strict=True)
                ]
                for layer in order
            ]
        ),
        "final_rank": of(place, top) + 1,
        "final_logprob": of(logq, top),
        "gold_rank": of(place, golds) + 1,
        "gold_logprob": of(logq, golds),
        "cross_entropy": -of(logq, golds),
        "answer_rank": place[..., answers].amin(-1) + 1,
        "answer_logprob": q[..., answers].sum(-1).log(),
        "cosine": torch.stack([torch.cosine_similarity(s, states[-1], dim=-1) for s in states]),
        "norm_ratio": torch.stack([s.norm(dim=-1) / states[-1].norm(dim=-1) for s in states]),
    }
    for name in ("final", "gold", "answer"):
        found[f"{name}_prob"] = found[f"{name}_logprob"].exp()
    found["top_ids"], found["top_probs"] = order[..., :k], q.gather(-1, order[..., :k])
    return found
