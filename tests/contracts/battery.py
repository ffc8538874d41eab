"""What the battery runs: every discovered strategy, in the settings that differ in kind, on tiny models.

A new strategy is in the battery as soon as its file exists, with its defaults. One that has several ways to work
gets its settings here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, get_args

import torch
from torch import Tensor

from unspoken.decoding import Request, Strategy, run
from unspoken.decoding._sequence import SequenceStrategy
from unspoken.decoding.soft import Mixture
from unspoken.discovery import STRATEGIES
from unspoken.lm.model import CausalLM
from unspoken.types import LATENT_KINDS, Done, Event, Generation, RowId, Step, fold

TOLERANCE = 1e-4
THINK, BUDGETS = 4, (11, 7, 9, 6)
PROMPTS: tuple[Any, ...] = (
    "What is 12 + 30?",
    "Hi",
    [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "Tom has 3 apples and buys 4 more. How many apples does he have now?"},
    ],
    [86, 261, 40, 41, 42, 43, 44],
)


@dataclass(frozen=True)
class Case:
    """One strategy in one setting.

    Attributes:
        name: The strategy.
        fields: Its settings.
        random: Whether its results depend on the seed.
    """

    name: str
    fields: dict[str, Any] = field(default_factory=dict, hash=False)
    random: bool = True
    label: str = ""

    def __str__(self) -> str:
        return f"{self.name}-{self.label}" if self.label else self.name

    def strategy(self, **fields: Any) -> Strategy:
        made: Strategy = STRATEGIES.find(self.name)(**{**self.fields, **fields})
        return made


def _soft(label: str, random: bool = True, **fields: Any) -> Case:
    # A high threshold, for the ends of the tiny models are likely at every step.
    return Case("soft", {"T_e": THINK, "min_end_prob": 0.6, "temperature": 0.8, **fields}, random, label)


SETTINGS: dict[str, list[Case]] = {
    "cot": [
        Case("cot", {"temperature": 0.0}, False, "greedy"),
        Case("cot", {"temperature": 1.0}, True, "sampled"),
        Case("cot", {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "min_p": 0.02}, True, "filtered"),
    ],
    "soft": [
        *(
            _soft(mixture, mixture=mixture)
            for mixture in get_args(Mixture)
            if not mixture.startswith("answer_")
        ),
        _soft("answer_directly", mixture="answer_directly_dirichlet"),  # they differ in the opener only
        _soft("greedy", False, temperature=0.0),
        _soft("deterministic", False, temperature2=0.0),
        _soft("match-refund", mix_norm="match", budget_mode="refund", mixture="element_wise_max"),
        _soft("nothing-forced", transition="", opener="", think_open="none", top_k2=50, min_p2=0.01),
        _soft("T_e=0", T_e=0, think_open="user_suffix", top_p2=1.0),
    ],
    "filler": [
        Case("filler", {"n_fillers": 5}, False, "greedy"),
        Case("filler", {"n_fillers": 3, "temperature": 1.0, "force_sep2": True}, True, "sampled"),
        Case(
            "filler", {"n_fillers": 0, "separators": 2, "temperature": 1.3, "top_k": 40}, True, "separators"
        ),
    ],
}


def _power(label: str, **fields: Any) -> Case:
    return Case("power", {"alpha": 2.0, "block_size": 3, "mcmc_steps": 2, **fields}, True, label)


SETTINGS["power"] = [
    _power("corrected"),
    _power("no_op", cut="no_op", stop_mode="full", top_k=50),
    _power("max_swap", max_swap=True, alpha=None, skip_agreement=False, early_rejection=False),
    _power("reference", mode="reference"),
]

SETTINGS["best_of_n"] = [
    Case("best_of_n", {"n": 3}, True, "sum"),
    Case("best_of_n", {"n": 2, "by": "mean", "inner": {"name": "cot", "top_k": 40}}, True, "mean"),
]
SETTINGS["vote"] = [
    Case("vote", {"n": 3}, True, "count"),
    Case("vote", {"n": 2, "weights": "probability", "inner": {"name": "best_of_n", "n": 2}}, True, "nested"),
]
SETTINGS["beam"] = [
    Case("beam", {"width": 3}, False, "sum"),
    Case("beam", {"width": 2, "length_penalty": 1.0}, False, "mean"),
]
SETTINGS["importance"] = [Case("importance", {"alpha": 1.5, "n": 3})]
SETTINGS["smc"] = [
    Case(
        "smc", {"alpha": 1.5, "particles": 4, "ramp": 6, "check_every": 3, "ess_threshold": 1.0}, True, "ramp"
    ),
    Case("smc", {"alpha": 2.0, "particles": 3, "ramp": 0, "check_every": 2}, True, "flat"),
]
SETTINGS["lookahead"] = [
    Case("lookahead", {"alpha": 1.5, "block_size": 3, "candidates": 3, "rollouts": 2}, True, "blocks"),
    Case("lookahead", {"alpha": 1.2, "block_size": 1, "candidates": 4, "rollouts": 2}, True, "tokens"),
]


def of(name: str) -> list[Case]:
    """The settings of a strategy."""
    return SETTINGS.get(name, [Case(name)])


CASES = [case for name in STRATEGIES.names() for case in of(name)]
FAMILIES = ("llama", "qwen3", "gpt2")


def about_sequences(case: Case) -> bool:
    """Whether the strategy decides about whole sequences: its work is more than the steps that it keeps."""
    return isinstance(case.strategy(), SequenceStrategy)


def _families(name: str, turn: int) -> tuple[str, ...]:
    """The settings of a strategy take turns at the families, unless there are too few of a strategy of steps."""
    every = len(of(name)) < len(FAMILIES) and not about_sequences(of(name)[0])
    return FAMILIES if every else (FAMILIES[turn % len(FAMILIES)],)


# Each setting with every family, and a shorter list for what is not about caches or positions. Branches of sequences
# are rows of the strategies of steps, so that one family is enough for most of them.
TURNS = [
    (case, family)
    for name in STRATEGIES.names()
    for turn, case in enumerate(of(name))
    for family in _families(name, turn)
]
PAIRS = [
    (case, family)
    for case in CASES
    for family in FAMILIES
    if not about_sequences(case) or str(case) == "power-corrected" or (case, family) in TURNS
]


@cache
def ending_lm(model: Any, tokenizer: Any) -> CausalLM:
    """The tiny model, calmer, with an end token in eleven: rows end by themselves, at different times.

    Weights as wide as those of the fixtures amplify a difference tenfold with every mixture that is read, so
    that rounding, which depends on the shape of the batch, would show after a few.
    """
    model = copy.deepcopy(model)
    factor = 0.6 if model.config.tie_word_embeddings else 0.3  # the former would only repeat themselves
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and ("layers." in name or "h." in name):
                weight *= factor
    lm = CausalLM(model, tokenizer)
    lm.__dict__["eos_ids"] = frozenset(range(3, lm.vocab_size, 11))
    return lm


@cache
def unending(lm: CausalLM) -> CausalLM:
    """The same model without any end token: rows go on until something else ends them."""
    made = CausalLM(lm.model, lm.tokenizer)
    made.__dict__["eos_ids"] = frozenset()
    return made


def requests(strategy: Strategy, **options: Any) -> list[Request]:
    """One request for each prompt, each with its own budget and seed."""
    return [
        Request(
            prompt,
            strategy,
            **{"id": i, "max_new_tokens": BUDGETS[i], "seed": 100 + i, "trace": "full", **options},
        )
        for i, prompt in enumerate(PROMPTS)
    ]


def decode(
    lm: CausalLM, asked: Sequence[Request], batch_size: int = 8, live: bool = False
) -> dict[RowId, Generation]:
    """The rows by name."""
    return fold(run(lm, asked, batch_size=batch_size, live=live))


@cache
def alone(lm: CausalLM, case: Case) -> dict[RowId, Generation]:
    """Every prompt by itself, in a run of its own: what all other ways must give."""
    return {row.id: decode(lm, [row], batch_size=1)[row.id] for row in requests(case.strategy())}


def timeless(event: Event) -> Event:
    """The event without the seconds that it took."""
    return replace(event, usage=replace(event.usage, seconds=0.0)) if isinstance(event, Done) else event


def path(generation: Generation) -> list[tuple[Any, ...]]:
    """What was read and said, without numbers."""
    return [(s.index, s.phase, s.kind, s.token_id, s.text) for s in generation.steps]


def assert_same(got: Generation, want: Generation, forwards: bool = True) -> None:
    """The same steps, ends, notes and work, and numbers within the tolerance of fp32."""
    assert path(got) == path(want)
    assert got.reason == want.reason and close(got.notes, want.notes)
    assert replace(got.usage, seconds=0.0) == replace(want.usage, seconds=0.0)
    for mine, theirs in zip(got.steps, want.steps, strict=True):
        for name in ("logprob", "sampled_logprob", "entropy", "end_prob", "norm_ratio"):
            assert _close(getattr(mine, name), getattr(theirs, name)), name
        assert (mine.top is None) == (theirs.top is None)
        if mine.top is not None and theirs.top is not None:
            fed, wanted = (dict(zip(top.ids, top.weights, strict=True)) for top in (mine.top, theirs.top))
            for token in fed.keys() | wanted.keys():
                assert abs(fed.get(token, 0.0) - wanted.get(token, 0.0)) < 1e-3


def close(a: Any, b: Any) -> bool:
    """Whether two values of notes are the same, their numbers within the tolerance."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(close, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return _close(a, b)
    return type(a) is type(b) and bool(a == b)


def _close(a: float | None, b: float | None) -> bool:
    return a is b if a is None or b is None else math.isclose(a, b, abs_tol=TOLERANCE, rel_tol=TOLERANCE)


# The naive way: no cache, no batch, no strategy.


def fed_vector(lm: CausalLM, strategy: Strategy, step: Step) -> Tensor:
    """The vector that was read at a step, rebuilt from what the step reports."""
    table = lm.model.get_input_embeddings()
    if step.token_id is not None:
        return table(torch.tensor(step.token_id))
    assert step.kind == "soft" and step.top is not None
    parts = table(torch.tensor(step.top.ids))
    weights = torch.tensor(step.top.weights)
    if "element_wise_max" in getattr(strategy, "mixture", ""):
        vector = parts.max(dim=0).values
    else:
        vector = sum((w * part for w, part in zip(weights, parts, strict=True)), torch.zeros_like(parts[0]))
    if getattr(strategy, "mix_norm", "none") == "match":
        vector = vector / vector.norm() * (weights * parts.norm(dim=-1)).sum()
    return vector


@torch.no_grad()
def recomputed_logprobs(
    lm: CausalLM, strategy: Strategy, prompt: Any, steps: Sequence[Step]
) -> list[float | None]:
    """Log-probability of each step's token, the whole sequence being read again from the start at every step."""
    sequence = lm.model.get_input_embeddings()(torch.tensor(strategy.prompt_ids(lm, prompt)))
    found: list[float | None] = []
    for step in steps:
        logits = lm.model(inputs_embeds=sequence[None], use_cache=False).logits[0, -1]
        found.append(None if step.token_id is None else logits.double().log_softmax(-1)[step.token_id].item())
        if step.kind in LATENT_KINDS and step.kind != "soft":
            break  # a hidden state cannot be rebuilt from what the step reports
        sequence = torch.cat([sequence, fed_vector(lm, strategy, step)[None]])
    return found
