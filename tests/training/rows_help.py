"""Rows and models for the tests of the training methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from unspoken.tasks._chains import Chain


def chains_of(n: int, digits: int = 6, base: int = 5) -> list[Chain]:
    """Running sums modulo `base`: rows of 2 * digits + 3 words."""
    drawn = torch.randint(base, (n, digits), generator=torch.Generator().manual_seed(1))
    sums = drawn.cumsum(1) % base
    return [
        Chain(" ".join(map(str, x)), " ".join(map(str, s[1:-1])), str(s[-1]))
        for x, s in zip(drawn.tolist(), sums.tolist(), strict=True)
    ]


def word_lm(chains: Sequence[Chain], kind: str = "tiny", *, width: int = 16, max_positions: int = 64) -> Any:
    """A tiny model with the words of these rows."""
    from unspoken.lm.compact import compact_tokenizer
    from unspoken.lm.model import CausalLM
    from unspoken.lm.tiny import tiny_model

    tokenizer = compact_tokenizer(f"{c.question} {c.cot} {c.answer}" for c in chains)
    model = tiny_model(
        kind,
        tokenizer,
        layers=1,
        width=width,
        heads=2,
        max_positions=max_positions,
        seed=0,  # type: ignore[arg-type]
    )
    return CausalLM(model, tokenizer, source="test")
