"""Choosing ordinary tokens: shared by every strategy that samples some of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unspoken.decoding import _sampling
from unspoken.decoding._base import Feed, State
from unspoken.types import Kind

TOP_SHOWN = 20
"""Candidates a token step reports with `trace="full"`."""


@dataclass(frozen=True)
class Sampler:
    """How one token is drawn: temperature 0 is the arg-max."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __call__(self, logits: Tensor, rows: Sequence[int], state: State, kind: Kind = "token") -> Feed:
        """Choose a token for some rows of the group.

        Args:
            logits: [n, V] float32, of these rows.
            rows: Their places in the group.
            state: The group.
            kind: The kind of step to report.
        """
        summary = state.trace(rows, "summary")
        probs: Tensor | None = None
        if self.temperature < _sampling.GREEDY_BELOW:
            ids = logits.argmax(-1)
            sampled = logits.new_zeros(len(rows))
        else:
            probs = _sampling.tempered(logits, self.temperature)
            law = _sampling.filtered(probs, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p)
            ids, sampled = _sampling.sample(law, state.uniform(rows))
        feed = Feed(
            list(rows),
            kind,
            token_ids=ids,
            logprob=_sampling.token_logprob(logits, ids),
            sampled_logprob=sampled,
        )
        if summary:
            # A greedy choice is shown against the model's own law.
            shown, temperature = (
                (probs, self.temperature) if probs is not None else (torch.softmax(logits, -1), 1.0)
            )
            feed.trace["entropy"] = _sampling.entropy(shown, logits, temperature)
            if state.trace(rows, "full"):
                add_top(feed, shown, ids)
        return feed


def add_top(feed: Feed, probs: Tensor, ids: Tensor) -> None:
    """Add the best candidates to a token step, the chosen token always among them."""
    k = min(TOP_SHOWN, probs.shape[-1])
    best, top = _sampling.top_k(probs, k)
    missing = (top != ids[:, None]).all(-1)
    top[:, -1] = torch.where(missing, ids, top[:, -1])
    best[:, -1] = torch.where(missing, probs.gather(-1, ids[:, None])[:, 0], best[:, -1])
    feed.trace["top_ids"], feed.trace["top_probs"] = top, best
    feed.trace["top_weights"] = (top == ids[:, None]).to(probs.dtype)
