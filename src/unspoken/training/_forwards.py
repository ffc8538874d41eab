"""GPT-2 and Llama for training: only what is needed for the predictions that are scored.

The same functions as those of transformers, with two savings. The last block makes keys and values at all positions,
but queries, projection and feed-forward layer only where predictions are scored: what it makes elsewhere is read by
nobody. And tokens stay in one dimension, which saves most of the small kernels around the matrix products: of a step
of a tiny model they are a tenth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, LlamaForCausalLM
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, rotate_half
from transformers.pytorch_utils import Conv1D


class _Places:
    """Some positions of each row.

    Args:
        index: [n, P] positions.
        width: T.
    """

    def __init__(self, index: Tensor, width: int) -> None:
        rows = torch.arange(len(index), device=index.device)[:, None]
        self.rows, self.index, self.width = len(index), index, width
        self.flat = (index + rows * width).flatten()

    def take(self, states: Tensor) -> Tensor:
        """[n * P, D] of [n * T, D]."""
        return states.index_select(0, self.flat)

    def mask(self, mask: Tensor | None) -> Tensor:
        """[n, 1, P, T] what each position attends to, of the mask of all, [n, 1, T, T] or None if it is causal."""
        if mask is None:
            return self.index[:, None, :, None] >= torch.arange(self.width, device=self.index.device)
        return mask.expand(self.rows, -1, -1, -1).gather(
            2, self.index[:, None, :, None].expand(-1, -1, -1, self.width)
        )

    def heads(self, states: Tensor, size: int) -> Tensor:
        """[n, H, T or P, size] of [n * (T or P), H * size]."""
        return states.view(self.rows, -1, states.shape[-1] // size, size).transpose(1, 2)


Forward = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]


def direct_forward(model: Any) -> Forward | None:
    """A model's forward up to its head, for some positions.

    Args:
        model: A transformers model, which may be wrapped.

    Returns:
        A function of positions [n, P], input ids [n, T], position ids [n, T] (None if they count from 0) and an
        attention mask [n, T] (None if no padding comes before a token) that returns what the head is to read,
        [n, P, D]. None for a model that must be run as it is: of another architecture, wrapped, checkpointed, sharded
        block by block, or with another attention than "sdpa".
    """
    kind = _KINDS.get(type(model))
    if kind is None or model.config._attn_implementation != "sdpa":
        return None
    blocks, usual, forward = kind
    for block in getattr(model.base_model, blocks):
        if "forward" in vars(block) or block.gradient_checkpointing or type(block) is not usual:
            return None

    def states(index: Tensor, ids: Tensor, positions: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        n, width = ids.shape
        mask: Any = None
        if attention_mask is not None or positions is not None:
            mask = create_causal_mask(  # of what is embedded it asks the shape alone
                config=model.config,
                inputs_embeds=model.get_input_embeddings().weight[:1].expand(n, width, -1),
                attention_mask=attention_mask,
                past_key_values=None,
                position_ids=positions,
            )
        if positions is None:
            positions = torch.arange(width, device=ids.device)[None]
        final = forward(model.base_model, _Places(index, width), ids, positions, mask)
        return final.view(*index.shape, final.shape[-1])

    return states


def _gpt2(model: Any, places: _Places, ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
    hidden = model.drop(model.wte(ids) + model.wpe(positions)).flatten(0, 1)
    for block in model.h:
        attention = block.attn
        q, k, v = _affine(attention.c_attn, block.ln_1(hidden)).chunk(3, dim=1)
        if block is model.h[-1]:
            hidden, q, mask = places.take(hidden), places.take(q), places.mask(mask)
        q, k, v = (places.heads(x, attention.head_dim) for x in (q, k, v))
        out = _attention(attention, q, k, v, mask, attention.attn_dropout.p)
        hidden = hidden + attention.resid_dropout(_affine(attention.c_proj, out))
        mlp = block.mlp
        wide = mlp.act(_affine(mlp.c_fc, block.ln_2(hidden)))
        hidden = hidden + mlp.dropout(_affine(mlp.c_proj, wide))
    return model.ln_f(hidden)  # type: ignore[no-any-return]


def _llama(model: Any, places: _Places, ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
    hidden = model.embed_tokens(ids)
    angles = [x.expand(*ids.shape, -1) for x in model.rotary_emb(hidden, position_ids=positions)]
    turns = of_queries = [x[:, None] for x in angles]
    hidden = hidden.flatten(0, 1)
    for block in model.layers:
        attention = block.self_attn
        states = block.input_layernorm(hidden)
        k, v = attention.k_proj(states), attention.v_proj(states)
        if block is model.layers[-1]:
            hidden, states, mask = places.take(hidden), places.take(states), places.mask(mask)
            of_queries = [places.take(x.flatten(0, 1)).view(places.rows, 1, -1, x.shape[-1]) for x in angles]
        q, k, v = (places.heads(x, attention.head_dim) for x in (attention.q_proj(states), k, v))
        q, k = (x * cos + _turned(x) * sin for x, (cos, sin) in ((q, of_queries), (k, turns)))
        out = _attention(attention, q, k, v, mask, attention.attention_dropout)
        hidden = hidden + attention.o_proj(out)
        hidden = hidden + block.mlp(block.post_attention_layernorm(hidden))
    return model.norm(hidden)  # type: ignore[no-any-return]


def _turned(states: Tensor) -> Tensor:
    return rotate_half(states)  # type: ignore[no-any-return, no-untyped-call]


def _affine(layer: Any, states: Tensor) -> Tensor:
    if type(layer) is Conv1D:  # its own forward adds two views and their gradients
        return torch.addmm(layer.bias, states, layer.weight)
    return layer(states)  # type: ignore[no-any-return]


def _attention(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """[n * P, D] of queries [n, H, P, size]; keys and values may have fewer heads."""
    out, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](
        module, q, k, v, mask, dropout=dropout if module.training else 0.0, scaling=module.scaling
    )
    return out.reshape(-1, out.shape[-2] * out.shape[-1])  # type: ignore[no-any-return]


_KINDS: dict[type, tuple[str, type, Callable[[Any, _Places, Tensor, Tensor, Tensor | None], Tensor]]] = {
    GPT2LMHeadModel: ("h", GPT2Block, _gpt2),
    LlamaForCausalLM: ("layers", LlamaDecoderLayer, _llama),
}
