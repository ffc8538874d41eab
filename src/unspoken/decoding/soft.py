"""Soft thinking: think in mixtures of embeddings for a while, then answer in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from unspoken.decoding import _mixtures, _prompt, _sampling
from unspoken.decoding._base import Feed, Prompt, Request, Row, State, Strategy
from unspoken.decoding._tokens import Sampler
from unspoken.errors import ConfigError

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM

Mixture = Literal[
    "non_uniform",
    "element_wise_max",
    "inverse_p",
    "dirichlet",
    "nucleus",
    "uniform",
    "hard_argmax",
    "hard_sample",
    "answer_directly_non_uniform",
    "answer_directly_element_wise_max",
    "answer_directly_inverse_p",
    "answer_directly_dirichlet",
    "answer_directly_nucleus",
    "answer_directly_uniform",
    "answer_directly_hard_argmax",
    "answer_directly_hard_sample",
]

_DIRECT = "answer_directly_"


@dataclass(frozen=True)
class SoftThinking(Strategy):
    """Feed back a weighted mixture of the likeliest tokens' embeddings, then answer (arXiv 2505.15778).

    Phase 1 takes up to `T_e` steps, each of which reads `sum_i w_i E[i]` over k candidates instead of one
    token. It ends when the probability of closing the thinking block, or of ending the text, reaches
    `min_end_prob`, or when its steps are used up. Then `transition` and `opener` are fed as they are, and
    phase 2 samples the answer.

    The hard mixtures are controls: one token is fed, through the same two phases.
    """

    formula: ClassVar[str] = "input = Σ wᵢ·E[i] over k tokens, then words"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "two-phase script": {"k": 5, "T_e": 200, "T_total": 600, "temperature": 0.6, "top_p2": 1.0},
        "live lab": {
            "k": 5,
            "T_e": 50,
            "T_total": 250,
            "temperature": 0.8,
            "temperature2": 0.6,
            "top_p2": 1.0,
        },
        "straight to the answer": {"mixture": "answer_directly_non_uniform", "T_e": 50, "T_total": 250},
        "arg-max control": {"mixture": "hard_argmax", "T_e": 50, "T_total": 250},
    }

    aliases: ClassVar[dict[str, str]] = {"strategy": "mixture", "top_p": "top_p2"}

    mixture: Mixture = "non_uniform"
    """What is mixed and how; `answer_directly_X` is X with an opener that asks for the answer at once."""
    k: int = 5
    """Tokens in each mixture (the nucleus takes its own number)."""
    T_e: int = 200
    """Most thinking steps; 0 skips phase 1."""
    T_total: int | None = None
    """Steps of both phases together; overrides max_new_tokens."""
    budget_mode: Literal["fixed", "refund"] = "fixed"
    """Whether thinking steps that were not needed are lost or go to the answer."""
    temperature: float = 0.6
    """Of the law that is mixed; 0 feeds the arg-max."""
    min_end_prob: float = 0.05
    """End thinking when its end is at least this likely."""
    temperature2: float | None = None
    """Of the answer; the same as temperature if not given. 0 is greedy."""
    top_k2: int = 0
    """Of the answer: keep only the k likeliest tokens; 0 keeps all."""
    top_p2: float = 0.95
    """Of the answer: keep the likeliest tokens that hold this much probability."""
    min_p2: float = 0.0
    """Of the answer: drop tokens below this share of the likeliest one."""
    dirichlet_alpha: float = 1.0
    """Concentration of the Dirichlet mixture; larger stays closer to the probabilities."""
    nucleus_p: float = 0.95
    """Probability that the nucleus mixture holds."""
    nucleus_cap: int = 64
    """Most tokens in a nucleus mixture."""
    mix_norm: Literal["none", "match"] = "none"
    """Rescale each mixture to the mean norm of its parts, or leave it."""
    transition: str = _prompt.CLOSE
    """Text fed when thinking ends."""
    opener: str | None = None
    """Text fed after the transition; `<think>`, or `<answer>` for answer_directly_*, if not given."""
    think_open: Literal["assistant_prefix", "user_suffix", "none"] = "assistant_prefix"
    """Where the prompt opens the thinking block."""

    @property
    def base_mixture(self) -> str:
        """The mixture without the `answer_directly_` prefix."""
        return self.mixture.removeprefix(_DIRECT)

    def problems(self) -> list[str]:
        found = filter_problems_of(self)
        if self.k < 1:
            found.append(f"k must be at least 1, not {self.k}.")
        if self.T_e < 0:
            found.append(f"T_e must be 0 or more, not {self.T_e}.")
        if self.T_total is not None and self.T_total < 1:
            found.append(f"T_total must be at least 1, not {self.T_total}.")
        elif self.T_total is not None and self.T_e > self.T_total:
            found.append(
                f"T_e ({self.T_e}) must not exceed T_total ({self.T_total}), which also holds the answer."
            )
        if not 0.0 < self.min_end_prob <= 1.0:
            found.append(f"min_end_prob must be in (0, 1], not {self.min_end_prob}.")
        if not self.dirichlet_alpha > 0.0:
            found.append(f"dirichlet_alpha must be above 0, not {self.dirichlet_alpha}.")
        if not 0.0 < self.nucleus_p <= 1.0:
            found.append(f"nucleus_p must be in (0, 1], not {self.nucleus_p}.")
        if self.nucleus_cap < 1:
            found.append(f"nucleus_cap must be at least 1, not {self.nucleus_cap}.")
        return found

    def check(self, lm: CausalLM) -> list[str]:
        if self.k > lm.vocab_size:
            return [f"k is {self.k}, but the model's vocabulary has {lm.vocab_size} tokens."]
        return []

    def budget(self, request: Request) -> int:
        total = self.T_total or request.max_new_tokens
        if self.T_e > total:
            raise ConfigError(
                f"T_e ({self.T_e}) must not exceed the whole budget ({total} steps), which also holds the answer.",
                f"Lower T_e, or raise T_total or max_new_tokens above {self.T_e}.",
            )
        return total

    @property
    def deterministic(self) -> bool:
        # A law that is one-hot leaves nothing to draw from, whatever the mixture.
        drawn = self.base_mixture in ("dirichlet", "hard_sample") and self.k > 1
        thinks = drawn and self.T_e > 0 and not _sampling.is_greedy(self.temperature)
        return not thinks and _sampling.is_greedy(self.answer_temperature, self.top_k2)

    @property
    def answer_temperature(self) -> float:
        """Temperature of phase 2."""
        return self.temperature if self.temperature2 is None else self.temperature2

    def prompt_ids(self, lm: CausalLM, prompt: Prompt) -> list[int]:
        return _prompt.with_opener(lm, prompt, self.think_open)

    def begin(self, lm: CausalLM, row: Row) -> None:
        opener = self.opener
        if opener is None:
            opener = "<answer>" if self.mixture.startswith(_DIRECT) else _prompt.OPEN
        # Pieces are encoded apart: together, "</think><think>" would merge into other tokens.
        row.memory["transition"] = lm.tokens.transition(self.transition, opener)
        row.enter("think")

    def next_input(self, logits: Tensor, hidden: Tensor, state: State) -> list[Feed]:
        feeds = []
        think = [i for i, row in enumerate(state.rows) if row.phase == "think"]
        for i in think:
            if state.rows[i].phase_steps >= self.T_e:
                self._close(state.rows[i], "budget")
        think = [i for i in think if state.rows[i].phase == "think"]
        if think:
            feeds += self._think(_pick(logits, think), think, state)
        answer = [i for i, row in enumerate(state.rows) if row.phase == "answer" and row.counted < row.budget]
        if answer:
            sampler = Sampler(self.answer_temperature, self.top_k2, self.top_p2, self.min_p2)
            feeds.append(sampler(_pick(logits, answer), answer, state))
        return feeds

    def _think(self, logits: Tensor, rows: list[int], state: State) -> list[Feed]:
        """One thinking step of these rows [n, V]; rows whose thinking ends here are closed instead."""
        p = _sampling.tempered(logits, self.temperature)  # [n, V]
        ends = torch.stack([_mass(p, state.lm.tokens.end_of_think_ids), _mass(p, state.lm.eos_ids)], -1)
        # The test comes before mixing, so a row that stops here appends nothing for this step.
        reached = (ends >= self.min_end_prob).tolist()
        for i, (end, eos) in zip(rows, reached, strict=True):
            if end or eos:
                self._close(state.rows[i], "end_prob" if end else "eos_prob")
        going = [j for j, (end, eos) in enumerate(reached) if not (end or eos)]
        if not going:
            return []
        rows = [rows[j] for j in going]
        logits, p, ends = _pick(logits, going), _pick(p, going), _pick(ends, going)
        if self.base_mixture == "nucleus":
            ids, probs = _mixtures.nucleus(p, self.nucleus_p, self.nucleus_cap)
        else:
            probs, ids = _sampling.top_k(p, self.k)
        feed = self._mix(logits, ids, probs, rows, state)
        if state.trace(rows, "summary"):
            feed.trace["entropy"] = _sampling.entropy(p, logits, self.temperature)
            feed.trace["end_prob"] = ends[:, 0]
        return [feed]

    def _mix(self, logits: Tensor, ids: Tensor, probs: Tensor, rows: list[int], state: State) -> Feed:
        """The feed of one thinking step from its candidates, ids and probabilities [n, K]."""
        lm = state.lm
        weights = _mixtures.weights(
            self.base_mixture, probs, alpha=self.dirichlet_alpha, draw=lambda: _draws(state, rows)
        )
        traced = state.trace(rows, "summary")
        if self.base_mixture in ("hard_argmax", "hard_sample"):
            place = weights.argmax(-1, keepdim=True)
            token = ids.gather(-1, place)[:, 0]
            feed = Feed(rows, "token", token_ids=token, ends=False)
            feed.logprob = _sampling.token_logprob(logits, token)
            share = probs.gather(-1, place)[:, 0] / probs.sum(-1)
            feed.sampled_logprob = (
                share.log() if self.base_mixture == "hard_sample" else torch.zeros_like(share)
            )
        else:
            if self.base_mixture == "element_wise_max":
                vectors = lm.element_wise_max(torch.where(probs > 0, ids, ids[:, :1]))
            else:
                vectors = lm.mix(ids, weights)
            if traced or self.mix_norm == "match":
                parts = (lm.embed(ids).float().norm(dim=-1) * weights).sum(-1)
                ratio = vectors.float().norm(dim=-1) / parts
                if self.mix_norm == "match":
                    vectors = (vectors.float() / ratio[:, None]).to(vectors.dtype)
                    ratio = torch.ones_like(ratio)
            feed = Feed(rows, "soft", vectors=vectors)
            if traced:
                feed.trace["norm_ratio"] = ratio
        if state.trace(rows, "full"):
            feed.trace |= {"top_ids": ids, "top_probs": probs, "top_weights": weights}
        return feed

    def _close(self, row: Row, reason: str) -> None:
        """End a row's thinking and queue the forced text that follows."""
        row.note("think_end", reason)
        row.note("think_steps", row.phase_steps)
        if self.budget_mode == "fixed":
            row.counted = self.T_e
        row.force(row.memory["transition"])


def filter_problems_of(strategy: SoftThinking) -> list[str]:
    """What is wrong with the sampling parameters of both phases."""
    found = _sampling.filter_problems(strategy.temperature, 0, 1.0, 0.0)
    second = 1.0 if strategy.temperature2 is None else strategy.temperature2
    return found + _sampling.filter_problems(second, strategy.top_k2, strategy.top_p2, strategy.min_p2, "2")


def _pick(values: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows of a tensor, without a copy where all are wanted."""
    return values if len(rows) == values.shape[0] else values[list(rows)]


def _mass(p: Tensor, ids: Sequence[int] | frozenset[int]) -> Tensor:
    """[n] probability of a few tokens together."""
    return p[:, sorted(ids)].sum(-1) if ids else p.new_zeros(p.shape[0])


def _draws(state: State, rows: Sequence[int]) -> list[torch.Generator]:
    return [state.rows[i].generator for i in rows]
