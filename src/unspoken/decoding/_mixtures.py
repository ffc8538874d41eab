"""Weights of a mixture of embeddings: pure functions on the candidates of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unspoken.decoding._sampling import top_k

_TINY = 1e-6
_LEAST_CONCENTRATION = 1e-4


def weights(
    mixture: str, probs: Tensor, *, alpha: float, draw: Callable[[], Sequence[torch.Generator]]
) -> Tensor:
    """Mixture weights [n, K] of candidates with probabilities `probs` [n, K], descending.

    Weights are at least 0 and sum to 1; a candidate of probability 0 gets none. With
    `q_i = p_i / sum p`:

    * `non_uniform`, `nucleus`: `q_i`; also what `element_wise_max` displays.
    * `inverse_p`: `(1 / q_i) / sum_j (1 / q_j)`.
    * `uniform`: `1 / K`.
    * `dirichlet`: one draw from Dirichlet(alpha q), whose mean is q.
    * `hard_argmax`, `hard_sample`: one-hot at the best candidate, or at one drawn from q.

    Args:
        mixture: One of the above.
        probs: The candidates' probabilities.
        alpha: Concentration of the Dirichlet draw.
        draw: Gives each row's generator; called only where something is drawn.
    """
    q = probs / probs.sum(-1, keepdim=True)
    alive = probs > 0
    if mixture in ("non_uniform", "nucleus", "element_wise_max"):
        return q
    if mixture == "inverse_p":
        inverse = torch.where(alive, 1.0 / q.clamp(min=_TINY), 0.0)
        return inverse / inverse.sum(-1, keepdim=True)
    if mixture == "uniform":
        return alive.to(q.dtype) / alive.sum(-1, keepdim=True)
    if mixture == "hard_argmax":
        return torch.zeros_like(q).scatter_(-1, q.argmax(-1, keepdim=True), 1.0)
    if mixture == "hard_sample":
        u = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in draw()]).to(q.device)
        # The last candidate with any mass bounds the place, whatever rounding does to the cumulative sum.
        place = torch.searchsorted(q.double().cumsum(-1), u[:, None], right=True)
        place = torch.minimum(place, (alive.sum(-1, keepdim=True) - 1).clamp(min=0))
        return torch.zeros_like(q).scatter_(-1, place, 1.0)
    assert mixture == "dirichlet", mixture
    return dirichlet(q, alpha, draw())


def dirichlet(q: Tensor, alpha: float, generators: Sequence[torch.Generator]) -> Tensor:
    """One draw a row from Dirichlet(alpha q) [n, K], over the entries above 0.

    Gamma draws can all underflow at a tiny concentration; the row is then one-hot at its best candidate.
    """
    concentration = (alpha * q).double().cpu()
    drawn = torch.zeros_like(concentration)
    for row, generator in enumerate(generators):
        alive = concentration[row] > 0
        shape = concentration[row][alive].clamp(min=_LEAST_CONCENTRATION)
        drawn[row, alive] = torch._standard_gamma(shape, generator=generator)
    # torch gives the least normal number where a draw underflows; all of them alike would be an even mixture.
    least = torch.finfo(torch.float64).tiny
    drawn = torch.where(drawn > least, drawn, 0.0)
    total = drawn.sum(-1, keepdim=True)
    one_hot = torch.zeros_like(drawn).scatter_(-1, concentration.argmax(-1, keepdim=True), 1.0)
    result = torch.where(total > 0, drawn / total.clamp(min=least), one_hot)
    return result.to(device=q.device, dtype=q.dtype)


def nucleus(p: Tensor, mass: float, cap: int) -> tuple[Tensor, Tensor]:
    """The smallest set of likeliest tokens that holds `mass`, at most `cap` of them.

    Args:
        p: [n, V] probabilities.
        mass: In (0, 1].
        cap: Most tokens.

    Returns:
        [n, K] ids and probabilities, K the largest number any row needs; rows that need fewer have
        probability 0 at the end.
    """
    probs, ids = top_k(p, min(cap, p.shape[-1]))
    kept = probs.cumsum(-1) - probs < mass
    kept[:, 0] = True
    width = int(kept.sum(-1).max())
    return ids[:, :width], torch.where(kept, probs, 0.0)[:, :width]
