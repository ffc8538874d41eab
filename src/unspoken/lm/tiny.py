"""Tiny models from scratch, for work on a laptop: `tiny` is a GPT-2, `tiny-llama` a Llama."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from unspoken.errors import ConfigError
from unspoken.lm.model import CausalLM

Kind = Literal["tiny", "tiny-llama"]
KINDS: tuple[str, ...] = get_args(Kind)


def tiny_model(
    kind: Kind,
    tokenizer: PreTrainedTokenizerBase,
    *,
    layers: int = 2,
    width: int = 128,
    heads: int = 4,
    max_positions: int = 512,
    seed: int = 0,
) -> PreTrainedModel:
    """A model with random weights and no dropout, in float32.

    Both kinds have about 12 * layers * width^2 parameters in their blocks. GPT-2 has learned positions and
    shares its embedding with the head; the Llama has rotary positions and a head of its own.

    Args:
        kind: Which.
        tokenizer: Sets the size of the vocabulary, and the end and padding tokens.
        layers: Blocks.
        width: Of the hidden states; a multiple of `heads` (of twice that for rotary positions).
        heads: Attention heads.
        max_positions: Longest row.
        seed: Of the weights; torch's own random state is left as it was.

    Raises:
        ConfigError: If the sizes do not fit.
    """
    problems = []
    if kind not in KINDS:
        problems.append(f"A tiny model is {' or '.join(KINDS)}, not {kind!r}.")
    for name, value in (("layers", layers), ("heads", heads), ("max_positions", max_positions)):
        if value < 1:
            problems.append(f"{name} must be at least 1, not {value}.")
    unit = heads * (2 if kind == "tiny-llama" else 1)
    if width < 1 or (unit > 0 and width % unit):
        problems.append(f"width must be a multiple of {unit} for {heads} heads, not {width}.")
    if problems:
        raise ConfigError(problems)
    shared: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the generators of GPUs, too.
        torch.default_generator.manual_seed(seed)
        if kind == "tiny":
            return GPT2LMHeadModel(_gpt2(shared, layers, width, heads, max_positions))
        return LlamaForCausalLM(_llama(shared, layers, width, heads, max_positions))


def letters_lm(size: int, *, kind: Kind = "tiny", seed: int = 0, spread: float = 1.5) -> CausalLM:
    """A random model in float64 over so few tokens that all its short answers can be listed.

    Args:
        size: Tokens: letters, and the last one, which ends a text.
        kind: Of the model; it has 2 blocks of width 16.
        seed: Of the weights.
        spread: Factor on the weights: the larger, the less alike the laws of different prefixes.
    """
    from tokenizers import Tokenizer, decoders, models

    names = [chr(ord("a") + i) for i in range(size - 1)] + ["<end>"]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="a"))
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, eos_token="<end>", pad_token="<end>"
    )
    model = tiny_model(kind, tokenizer, width=16, heads=2, max_positions=64, seed=seed).double()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(spread)
    return CausalLM(model, tokenizer, source=f"{size} letters")


def _gpt2(shared: dict[str, Any], layers: int, width: int, heads: int, max_positions: int) -> GPT2Config:
    return GPT2Config(
        **shared,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_positions=max_positions,
        # The exact function that GPT-2's own gelu_new comes near: torch's kernel for it takes a third of the time of
        # the one with tanh, forward and backward on a CPU.
        activation_function="gelu",
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        tie_word_embeddings=True,
        initializer_range=_spread(width),
    )


def _llama(shared: dict[str, Any], layers: int, width: int, heads: int, max_positions: int) -> LlamaConfig:
    return LlamaConfig(
        **shared,
        hidden_size=width,
        # Three matrices of 8/3 widths are as large as GPT-2's two of 4.
        intermediate_size=-(-width * 8 // 24) * 8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max_positions,
        attention_dropout=0.0,
        tie_word_embeddings=False,
        initializer_range=_spread(width),
    )


def _spread(width: int) -> float:
    """Standard deviation of new weights: 0.1 at width 64.

    With the usual 0.02, which suits widths near 1,000, embeddings of positions stay too small to be told apart and
    a tiny model learns nothing for thousands of steps: sums mod 10 with their chain of thought were at chance after
    1,000 steps, and solved after 200 with this.
    """
    return float(0.8 * width**-0.5)
