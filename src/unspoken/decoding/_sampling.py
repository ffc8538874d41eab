"""Pure functions on logits [B, V]: filters, sampling by one uniform number a row, statistics.

The order of filters is: temperature, softmax, top-k, top-p, min-p, renormalise. Top-p keeps the token that
crosses the threshold; min-p is relative to the largest probability.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GREEDY_BELOW = 1e-6
"""A temperature below this means the arg-max."""

_BLOCK = 64
_NUCLEUS_FIRST = 1024


@dataclass(frozen=True)
class Law:
    """A next-token law restricted to the tokens that survived the filters.

    Attributes:
        probs: [B, V] or [B, K], sums to 1.
        ids: [B, K] the tokens `probs` belongs to, best first; None when it covers the vocabulary.
    """

    probs: Tensor
    ids: Tensor | None


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """`softmax(logits / T)` [B, V]; one-hot at the arg-max for T = 0."""
    if temperature < GREEDY_BELOW:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    return torch.softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)


def top_k(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries of each row, descending: values and indices [B, k].

    Exact, and several times as fast as `torch.topk` for a large vocabulary on a CPU: the k largest
    entries lie in the k blocks with the largest maxima.
    """
    rows, width = values.shape
    blocks = width // _BLOCK
    if values.device.type != "cpu" or k > 64 or blocks < 4 * k:
        return values.topk(k, dim=-1)
    even = blocks * _BLOCK
    maxima = values[:, :even].view(rows, blocks, _BLOCK).amax(-1)
    best = maxima.topk(k, dim=-1, sorted=False).indices  # [B, k]
    index = (best[:, :, None] * _BLOCK + torch.arange(_BLOCK, device=values.device)).view(rows, -1)
    if even < width:
        rest = torch.arange(even, width, device=values.device).expand(rows, -1)
        index = torch.cat([index, rest], dim=-1)
    found, place = values.gather(-1, index).topk(k, dim=-1)
    return found, index.gather(-1, place)


def filtered(probs: Tensor, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Law:
    """Apply top-k, top-p and min-p to tempered probabilities [B, V] and renormalise.

    Args:
        probs: [B, V], rows sum to 1.
        top_k: Keep the k largest; 0 keeps all.
        top_p: Keep the smallest set of largest tokens with this much mass; 1 keeps all.
        min_p: Drop tokens below this share of the largest probability; 0 keeps all.
    """
    vocabulary = probs.shape[-1]
    if top_k >= vocabulary:
        top_k = 0
    if not top_k and top_p >= 1.0:
        if min_p <= 0.0:
            return Law(probs, None)
        kept = torch.where(probs < min_p * probs.amax(-1, keepdim=True), 0.0, probs)
        return Law(kept / kept.sum(-1, keepdim=True), None)
    kept, ids = _sorted_head(probs, top_k, top_p)
    if top_k:
        kept = kept / kept.sum(-1, keepdim=True)
    if top_p < 1.0:
        # A token stays when the mass before it is below the threshold, so the crossing one stays.
        kept = torch.where(kept.cumsum(-1) - kept >= top_p, 0.0, kept)
        kept[:, 0].clamp_(min=torch.finfo(kept.dtype).tiny)
    if min_p > 0.0:
        kept = torch.where(kept < min_p * kept[:, :1], 0.0, kept)
    return Law(kept / kept.sum(-1, keepdim=True), ids)


def _sorted_head(probs: Tensor, k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """Enough of the descending sort: the top k, or a head that holds `top_p` of the mass."""
    if k:
        return top_k(probs, k)
    if probs.shape[-1] > _NUCLEUS_FIRST:
        kept, ids = probs.topk(_NUCLEUS_FIRST, dim=-1)
        flat = kept.sum(-1) < top_p + 1e-4
        if not bool(flat.any()):
            return kept, ids
        # Row by row, so that a flat row does not change how its neighbours break ties.
        pad = (0, probs.shape[-1] - _NUCLEUS_FIRST)
        kept, ids = torch.nn.functional.pad(kept, pad), torch.nn.functional.pad(ids, pad)
        kept[flat], ids[flat] = probs[flat].sort(dim=-1, descending=True)
        return kept, ids
    return probs.sort(dim=-1, descending=True)


def sample(law: Law, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token a row by inverting the distribution function.

    Args:
        law: The law.
        uniform: [B] float64 in [0, 1).

    Returns:
        [B] ids and [B] log-probabilities under the law.
    """
    place = _invert(law.probs, uniform)
    logprob = law.probs.gather(-1, place[:, None])[:, 0].log()
    ids = place if law.ids is None else law.ids.gather(-1, place[:, None])[:, 0]
    return ids, logprob


def _invert(probs: Tensor, uniform: Tensor) -> Tensor:
    """The first index whose cumulative mass exceeds `uniform` times the total: [B].

    In two levels (blocks, then within one), which keeps float32 sums short and is fast for a large
    vocabulary. An index of probability zero is never returned.
    """
    rows, width = probs.shape
    if width <= 4 * _BLOCK:
        return _invert_flat(probs.double(), uniform)
    pad = -width % _BLOCK
    padded = torch.nn.functional.pad(probs, (0, pad)) if pad else probs
    blocks = padded.view(rows, -1, _BLOCK)
    mass = blocks.sum(-1).double()  # [B, V / 64]
    block = _invert_flat(mass, uniform)
    before = mass.cumsum(-1).gather(-1, block[:, None])[:, 0] - mass.gather(-1, block[:, None])[:, 0]
    inside = blocks[torch.arange(rows, device=probs.device), block].double()
    # The remainder of the uniform number, rescaled to the block, picks the token within it.
    rest = (uniform * mass.sum(-1) - before) / inside.sum(-1)
    place = block * _BLOCK + _invert_flat(inside, rest.clamp(0.0, 1.0 - 1e-15))
    return place.clamp(max=width - 1)  # NaN points into the padding; the row ends by its log-probability


def _invert_flat(mass: Tensor, uniform: Tensor) -> Tensor:
    total = mass.cumsum(-1)
    place = torch.searchsorted(total, (uniform * total[:, -1])[:, None], right=True)[:, 0]
    # Rounding can point one past the last entry with mass.
    last = mass.shape[-1] - 1 - (mass.flip(-1) > 0).to(torch.int8).argmax(-1)
    return torch.minimum(place, last)


def token_logprob(logits: Tensor, ids: Tensor) -> Tensor:
    """[B] natural log-probability of the tokens at temperature 1, unfiltered."""
    return logits.gather(-1, ids[:, None])[:, 0] - torch.logsumexp(logits, dim=-1)


def entropy(probs: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """[B] entropy in nats of `probs = softmax(logits / T)` [B, V]; 0 for T = 0.

    With L the log of the normaliser, `-sum p log p = L - sum p z / T`, and the largest entry gives L: one
    logarithm a row instead of one a token.
    """
    if temperature < GREEDY_BELOW:
        return logits.new_zeros(logits.shape[0])
    finite = logits.clamp(min=torch.finfo(logits.dtype).min)  # 0 x -inf would be NaN
    gap = logits.amax(-1) - (probs * finite).sum(-1)
    return (gap / temperature - probs.amax(-1).log()).clamp(min=0.0)


def is_greedy(temperature: float, top_k: int = 0) -> bool:
    """Whether nothing is left to chance."""
    return temperature < GREEDY_BELOW or top_k == 1


def filter_problems(
    temperature: float, top_k: int, top_p: float, min_p: float, suffix: str = ""
) -> list[str]:
    """What is wrong with sampling parameters, each as one sentence."""
    problems = []
    if not temperature >= 0.0:
        problems.append(f"temperature{suffix} must be 0 (greedy) or more, not {temperature}.")
    if top_k < 0:
        problems.append(f"top_k{suffix} must be 0 (all) or more, not {top_k}.")
    if not 0.0 < top_p <= 1.0:
        problems.append(f"top_p{suffix} must be in (0, 1], not {top_p}.")
    if not 0.0 <= min_p < 1.0:
        problems.append(f"min_p{suffix} must be in [0, 1), not {min_p}.")
    return problems
