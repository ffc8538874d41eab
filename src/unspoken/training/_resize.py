"""Changes of a model that its data ask for: new words, more positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import AddedToken

from unspoken.lm.anatomy import find_anatomy, text_config
from unspoken.lm.model import CausalLM
from unspoken.lm.tokens import THINK_CLOSE, THINK_OPEN, Tokens

Init = Literal["mean_emb", "eos", "random"]


def add_words(lm: CausalLM, words: Sequence[str], init: Init = "mean_emb", seed: int = 0) -> list[int]:
    """Make words single tokens of a model, special ones except for `<think>` and `</think>`.

    Args:
        lm: Changed in place: its tokenizer, and its embeddings and head where they are too small.
        words: The tokens; those that the tokenizer has are left as they are.
        init: Rows of the new ones: the mean of all rows, that of the end token, or random.
        seed: Of random rows.

    Returns:
        The id of each word.
    """
    tokenizer = lm.tokenizer
    known = tokenizer.get_vocab()
    new = [word for word in dict.fromkeys(words) if word not in known]
    if new:
        old_size = len(tokenizer)
        for word in new:  # thinking markers stay in decoded text: phases are told by them
            special = word not in (THINK_OPEN, THINK_CLOSE)
            added = AddedToken(word, special=special, normalized=False)
            tokenizer.add_tokens([added], special_tokens=special)
        rows = lm.anatomy.embed.weight.shape[0]  # type: ignore[index]
        if len(tokenizer) > rows:
            with torch.random.fork_rng(devices=[]):
                lm.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        _init_rows(lm, list(range(old_size, len(tokenizer))), init, seed)
        refresh(lm)
    return [int(tokenizer.convert_tokens_to_ids(word)) for word in words]  # type: ignore[arg-type]


def _init_rows(lm: CausalLM, rows: list[int], init: Init, seed: int) -> None:
    tables: dict[int, Tensor] = {}
    for module in (lm.model.get_input_embeddings(), lm.model.get_output_embeddings()):
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor):
            tables[weight.data_ptr()] = weight  # a tied head has its row by then
    generator = torch.Generator().manual_seed(seed)
    for table in tables.values():
        with torch.no_grad():
            if init == "random":
                spread = float(getattr(text_config(lm.model), "initializer_range", 0.02))
                drawn = torch.randn(len(rows), table.shape[1], generator=generator) * spread
                table[rows] = drawn.to(table)
            elif init == "eos":
                table[rows] = table[lm.tokenizer.eos_token_id].clone()
            else:
                table[rows] = table[: rows[0]].mean(dim=0)


def refresh(lm: CausalLM) -> None:
    """Find a model's parts again after they were replaced."""
    lm.model.eval()
    lm.anatomy = find_anatomy(lm.model)
    lm.tokens = Tokens(lm.tokenizer, lm.anatomy.vocab_size)
    for name in ("eos_ids", "weights_hash"):
        lm.__dict__.pop(name, None)


def grow_positions(lm: CausalLM, wanted: int) -> None:
    """Let a model read `wanted` positions; a table of learned ones goes on with its last vector.

    The size is in the configuration, so that the model can be saved and loaded again.
    """
    config = text_config(lm.model)
    old = int(config.max_position_embeddings)
    for module in lm.anatomy.base.modules():
        # Some tables have two rows more than positions (OPT).
        if (
            isinstance(module, nn.Embedding)
            and module is not lm.anatomy.embed
            and module.num_embeddings - old in (0, 2)
        ):
            weight = module.weight.detach()
            longer = torch.cat([weight, weight[-1:].expand(wanted - old, -1)])
            module.weight = nn.Parameter(longer, requires_grad=module.weight.requires_grad)
            module.num_embeddings = len(longer)
    config.max_position_embeddings = wanted
