"""Tiny models over a few letters, and the oracle for them: what the tests of power sampling share."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from power_oracle import Answer, Oracle

from unspoken.decoding import Request, Strategy, run
from unspoken.decoding._base import derive_seed
from unspoken.lm.model import CausalLM
from unspoken.lm.tiny import Kind, letters_lm
from unspoken.types import Generation, fold

PROMPT = [0, 1, 0]


@cache
def model(kind: Kind = "tiny", size: int = 4, *, ends: bool = True, single: bool = False) -> CausalLM:
    """A random transformer over `size` tokens, in float64; some layers of the Llama round to float32."""
    lm = letters_lm(size, kind=kind, seed=2)
    if single:
        lm = CausalLM(lm.model.float(), lm.tokenizer)
    if not ends:
        lm.__dict__["eos_ids"] = frozenset()
    return lm


@torch.no_grad()
def next_law(lm: CausalLM, prefix: Answer) -> np.ndarray:
    """[V] from one forward without any cache."""
    logits = lm.model(input_ids=torch.tensor([[*PROMPT, *prefix]]), use_cache=False).logits[0, -1]
    return logits.double().softmax(-1).numpy()


def oracle(lm: CausalLM, limit: int, **fields: Any) -> Oracle:
    """The oracle of a model's answers to the prompt."""
    return Oracle(lambda prefix: next_law(lm, prefix), lm.eos_ids, limit, **fields)


def chains(
    lm: CausalLM, strategy: Strategy, limit: int, count: int, seed: int = 0, batch_size: int = 128
) -> list[Generation]:
    """Independent chains, in one run."""
    asked = [
        Request(PROMPT, strategy, id=i, max_new_tokens=limit, seed=derive_seed(seed, i), trace="none")
        for i in range(count)
    ]
    return [g for _, g in sorted(fold(run(lm, asked, batch_size=batch_size)).items())]
