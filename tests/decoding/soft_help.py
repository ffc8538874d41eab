"""Scripts and short cuts for the tests of soft thinking."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from scripted import Script, ScriptedLM

from unspoken.decoding import Request, run
from unspoken.decoding.soft import SoftThinking
from unspoken.lm.model import CausalLM
from unspoken.types import Generation, fold

MakeLM = Callable[..., ScriptedLM]
Ids = Callable[[str], list[int]]
Tiny = Callable[[str], CausalLM]
PROMPT = [10, 11, 12]
A, B, C, D = 50, 60, 70, 80
BASES = (
    "non_uniform",
    "element_wise_max",
    "inverse_p",
    "dirichlet",
    "nucleus",
    "uniform",
    "hard_argmax",
    "hard_sample",
)


def end_at(at: int, p_end: float) -> Script:
    """A script in which `</think>` becomes this likely after `at` vectors, and is very unlikely otherwise."""

    def script(lm: ScriptedLM, prompt: tuple[int, ...], read: int) -> torch.Tensor:
        p = p_end if read == at else 0.001
        return lm.law({lm.close: p, A: 0.5 * (1 - p), B: 0.3 * (1 - p), C: 0.2 * (1 - p)})

    return script


def always(probs: dict[int, float]) -> Script:
    return lambda lm, prompt, read: lm.law(probs)


def solve(lm: Any, strategy: SoftThinking, **options: Any) -> Generation:
    options = {"max_new_tokens": 16, "trace": "full", **options}
    return fold(run(lm, [Request(PROMPT, strategy, **options)], batch_size=2))[0]


def kinds(generation: Generation) -> list[tuple[str, str]]:
    return [(step.phase, step.kind) for step in generation.steps]


def soft(**fields: Any) -> SoftThinking:
    return SoftThinking(**{"T_e": 6, "temperature": 1.0, "temperature2": 0.0, **fields})
