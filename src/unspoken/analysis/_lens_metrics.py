"""The numbers of a lens, computed for a few positions at a time: logits of all layers never exist together.

For one chunk of c positions the final law p is made once; then the logits of a few layers at a time come and go in
memory that is used again. What is alive at once is p and its logits [c, V], those layers' logits, and a scratch of a
few rows that stays in the processor's cache.
Everything is in float32 and natural logarithms; ranks are counted, not sorted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unspoken.errors import ConfigError

GROUPS: dict[str, tuple[str, ...]] = {
    "kl": ("kl",),
    "reverse_kl": ("reverse_kl",),
    "js": ("js",),
    "entropy": ("entropy",),
    "agreement": ("agreement",),
    "overlap": ("overlap",),
    "final": ("final_rank", "final_logprob"),
    "gold": ("gold_rank", "gold_logprob"),
    "answer": ("answer_rank", "answer_logprob"),
    "geometry": ("cosine", "norm_ratio"),
}
"""What can be asked for, and the arrays [L, T] that it gives."""
DEFAULT = ("kl", "entropy", "agreement", "overlap", "final", "gold", "answer", "geometry")
BUFFERS = 3
_ALIGN = 16
# On a CPU the scratch and what is read beside it stay in the second-level cache: 33 ms instead of 57 ms for the KL of
# 128 positions of a vocabulary of 49,152.
_SCRATCH_BYTES = {"cpu": 3 * 2**19}
_SCRATCH_ON_DEVICE = 2**26
LEAST = -87.0
"""Logarithm of what counts as nothing beside 1.

Below it, exp leaves the normal numbers of float32: 40 to 100 times as slow on a CPU, and early layers are full of it.
"""


def check_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    """The groups asked for, in their own order.

    Raises:
        ConfigError: If one is unknown, or there is none.
    """
    wanted = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    unknown = [name for name in wanted if name not in GROUPS]
    if unknown or not wanted:
        given = ", ".join(map(repr, unknown)) or "none"
        raise ConfigError(f"metrics must be of {', '.join(GROUPS)}, not {given}.")
    return tuple(name for name in GROUPS if name in wanted)


def rows_for(budget: int, width: int) -> int:
    """Rows of logits that fit, `BUFFERS` times, into `budget` bytes of float32."""
    rows = budget // (4 * width * BUFFERS)
    return max(1, rows - rows % _ALIGN if rows > _ALIGN else rows)


def _layers_together(rows: int, chunk: int, size: int) -> int:
    """Layers whose logits of `chunk` positions, of `size` bytes each, fit beside the final law's.

    The head reads them in one go: it reads all its weights each time, and a thousand states take a third less time for
    each than a hundred.
    """
    copied = chunk if size < 4 else 0  # one layer at a time, from half precision to float32
    free = BUFFERS * rows - 2 * chunk - copied
    return max(1, 4 * free // (size * chunk))


@dataclass(eq=False)
class Ask:
    """What is to be computed.

    Attributes:
        metrics: Names of `GROUPS`.
        top_k: Candidates kept of each law; 0 keeps none.
        gold: [T] the next token at each position, -1 where there is none.
        answers: [A] tokens of the answer.
        width: Only ids below this one count, in p and q alike.
        rows: Positions in a chunk.
    """

    metrics: tuple[str, ...]
    top_k: int
    gold: Tensor
    answers: Tensor
    width: int
    rows: int


class _Final:
    """The final law p of one chunk: what every layer is compared with.

    Where logits are states times weights W [V, d] and nothing else, sum_v p_v z_v = h . (p W): the mean of W's rows is
    made once, and what KL needs of a layer's logits, but their logsumexp, is a product of two vectors of length d.
    """

    def __init__(self, logits: Tensor, states: Tensor, weight: Tensor | None, ask: Ask) -> None:
        """Logits [c, V] of the normed states [c, d]; `weight` [V, d] makes them, or None if it takes more than that."""
        self.logits = logits
        peak = logits.amax(-1, keepdim=True)
        probs = logits - peak
        probs.exp_()
        total = probs.sum(-1, keepdim=True)
        self.lse = (peak + total.log())[:, 0]
        # argmax takes a fifth of the time of topk, but may choose another of several equal ones than a layer's topk.
        compared = ask.top_k or {"agreement", "overlap"} & set(ask.metrics)
        best = logits.topk(max(ask.top_k, 1), dim=-1).indices if compared else logits.argmax(-1, keepdim=True)
        self.top = best  # [c, k]
        needs = {"kl", "js"} & set(ask.metrics)
        self.probs = probs.div_(total) if needs else None
        self.states = states
        self.mean = probs @ weight if "kl" in needs and weight is not None else None
        if needs == {"kl"} and self.mean is not None:
            self.probs = None

    def mean_difference(self, states: Tensor) -> Tensor | None:
        """[c] sum_v p_v (z_p - z)_v of a layer's normed states [c, d]; None where it takes the logits themselves."""
        return None if self.mean is None else ((self.states - states) * self.mean).sum(-1)


class Kept:
    """Memory for logits that is kept from one product to the next: new memory would be handed out page by page."""

    def __init__(self) -> None:
        self._all: Tensor | None = None

    def take(self, rows: int, like: Tensor) -> Tensor:
        """[rows, V] of whatever content, in the width, dtype and on the device of `like` [n, V]."""
        held = self._all
        if held is None or len(held) < rows or held.shape[1] != like.shape[1]:
            held = None
        if held is None or (held.dtype, held.device) != (like.dtype, like.device):
            held = self._all = like.new_empty(rows, like.shape[1])
        return held[:rows]


class Numbers:
    """The arrays of one reading as they fill: [L, T] each, and the candidates [L, T, k]."""

    def __init__(self, layers: int, positions: int, ask: Ask, device: torch.device) -> None:
        self.ask = ask
        names = [name for group in ask.metrics for name in GROUPS[group]]
        if not len(ask.answers):
            names = [name for name in names if not name.startswith("answer")]
        self.values = {name: torch.zeros(layers, positions, device=device) for name in names}
        shape = (layers, positions, ask.top_k)
        self.top_ids = torch.zeros(shape, dtype=torch.long, device=device)
        self.top_logprobs = torch.zeros(shape, device=device)
        self.needs = set(ask.metrics)

    def fill(self, layer: int, start: int, z: Tensor, states: Tensor, final: _Final, gold: Tensor) -> None:
        """Measure one layer's logits z [c, V] of normed states [c, d] at the positions from `start` on.

        z is left as it is.
        """
        kind, size = z.device.type, z.shape[0]
        rows = max(1, _SCRATCH_BYTES.get(kind, _SCRATCH_ON_DEVICE) // (4 * z.shape[1]))
        scratch = z.new_empty(min(rows, size), z.shape[1])
        for first in range(0, size, rows):
            part = slice(first, min(first + rows, size))
            cells = slice(start + part.start, start + part.stop)
            for name, value in self._rows(
                z[part], final, part, gold[part], scratch[: part.stop - part.start], (layer, cells)
            ):
                self.values[name][layer, cells] = value
        if (difference := final.mean_difference(states)) is not None:
            self.values["kl"][layer, start : start + size] += difference

    def _rows(
        self, z: Tensor, final: _Final, part: slice, gold: Tensor, scratch: Tensor, place: tuple[int, slice]
    ) -> list[tuple[str, Tensor]]:
        """The metrics of a few rows; `scratch` is as large as z."""
        needs, found = self.needs, []
        z_p, lse_p = final.logits[part], final.lse[part]
        if {"agreement", "overlap"} & needs or self.ask.top_k:
            best = z.topk(max(1, self.ask.top_k), dim=-1)
            peak, top = best.values[:, :1], best.indices
        else:
            best, peak = None, z.amax(-1, keepdim=True)
        torch.sub(z, peak, out=scratch)
        total = scratch.clamp_(min=LEAST).exp_().sum(-1)
        lse = peak[:, 0] + total.log()
        if best is not None:
            if self.ask.top_k:
                self.top_ids[place] = top[:, : self.ask.top_k]
                self.top_logprobs[place] = best.values[:, : self.ask.top_k] - lse[:, None]
            if "agreement" in needs:
                found.append(("agreement", (top[:, 0] == final.top[part, 0]).float()))
            if "overlap" in needs:
                theirs = final.top[part]
                shared = top[:, : theirs.shape[1], None] == theirs[:, None, :]
                found.append(("overlap", shared.any(-1).float().mean(-1)))
        found += self._divergences(z, z_p, final, part, scratch, total, lse, lse_p)
        for name, target in self._targets(z, final, part, gold):
            torch.gt(z, target[:, None], out=scratch)
            found.append((f"{name}_rank", scratch.sum(-1) + 1))
        for name, logit in self._targets(z, final, part, gold, whole=True):
            found.append((f"{name}_logprob", logit - lse))
        return found

    def _divergences(
        self,
        z: Tensor,
        z_p: Tensor,
        final: _Final,
        part: slice,
        scratch: Tensor,
        total: Tensor,
        lse: Tensor,
        lse_p: Tensor,
    ) -> list[tuple[str, Tensor]]:
        """Entropy and divergences. `scratch` holds exp(z - max z), whose sum is `total`, and is used up.

        It is never 0, not even where z is minus infinity: there z itself tells.
        With p = exp(z_p - lse_p) and q = exp(z - lse): KL(p || q) = sum p (z_p - z) - lse_p + lse. The sum is left out
        where `final.mean_difference` gives it.
        """
        needs, found = self.needs, []
        if "reverse_kl" in needs:
            terms = (z - z_p).mul_(scratch)
            found.append(("reverse_kl", summed(terms, z, -torch.inf) / total - lse + lse_p))
        if "js" in needs:
            assert final.probs is not None
            p, q = final.probs[part], scratch / total[:, None]
            middle = ((p + q) / 2).clamp_(min=torch.finfo(z.dtype).tiny).log_()
            # The halves are taken against the same middle, so that rounding does not leave a difference of entropies.
            left = p * ((z_p - lse_p[:, None]) - middle)
            right = q * ((z - lse[:, None]) - middle)
            found.append(("js", (summed(left, p) + summed(right, z, -torch.inf)) / 2))
        if "entropy" in needs:
            found.append(("entropy", lse - summed(scratch.mul_(z), z, -torch.inf) / total))
        if "kl" in needs and final.mean is not None:
            found.append(("kl", lse - lse_p))
        elif "kl" in needs:
            assert final.probs is not None
            p = final.probs[part]
            torch.sub(z_p, z, out=scratch)
            found.append(("kl", summed(scratch.mul_(p), p) - lse_p + lse))
        return found

    def _targets(
        self, z: Tensor, final: _Final, part: slice, gold: Tensor, whole: bool = False
    ) -> list[tuple[str, Tensor]]:
        """The logit of each token that is followed; of several answers the best, or of all of them together."""
        found = []
        if "final" in self.needs:
            found.append(("final", z.gather(-1, final.top[part, :1])[:, 0]))
        if "gold" in self.needs:
            found.append(("gold", z.gather(-1, gold.clamp(min=0)[:, None])[:, 0]))
        if "answer" in self.needs and len(self.ask.answers):
            given = z[:, self.ask.answers]
            found.append(("answer", given.logsumexp(-1) if whole else given.amax(-1)))
        return found


def summed(terms: Tensor, of: Tensor, nothing: float = 0.0) -> Tensor:
    """[n] sums of rows of products, in which a token without probability counts nothing.

    A model that rules tokens out gives them a logit of minus infinity, and nearly 0 times infinity is infinite or no
    number. Few do, so this is looked for in the sums only.

    Args:
        terms: [n, V] probabilities times logarithms; used up.
        of: [n, V] what says which tokens have no probability: those where it is `nothing`.
        nothing: That value.
    """
    sums = terms.sum(-1)
    if not bool(sums.isfinite().all()):
        sums = terms.masked_fill_(of == nothing, 0.0).sum(-1)
    return sums


def measure(
    hidden: Tensor,
    raw: Tensor,
    ask: Ask,
    *,
    transform: Callable[[Tensor, int], Tensor],
    norm: Callable[[Tensor], Tensor],
    unembed: Callable[[Tensor, Tensor | None], Tensor],
    weight: Tensor | None,
    kept: Kept,
) -> Numbers:
    """All metrics of all layers.

    Args:
        hidden: [L, T, d] states to be read, before the final norm.
        raw: [L, T, d] the model's own, of which the last one is the final layer's; it is read as it is.
        ask: What to compute.
        transform: From [n, d] states and a layer (-1 for the embeddings) to the states that are read.
        norm: The final norm.
        unembed: From [n, d] normed states, and memory [n, V] that may be used, to [n, V] logits.
        weight: [V, d] where logits are `states @ weight.T` and nothing else, None otherwise.
        kept: Memory of the reading before, if there was one.
    """
    layers, positions = raw.shape[:2]
    numbers = Numbers(layers, positions, ask, hidden.device)
    if weight is not None:
        # Half precision rounds the logits themselves, and p is in float32.
        weight = weight[: ask.width] if weight.dtype == torch.float32 else None

    chunk = min(ask.rows, positions)
    for start in range(0, positions, chunk):
        stop = min(start + chunk, positions)
        states = norm(raw[-1, start:stop])
        last = unembed(states, None)
        final = _Final(last.float()[:, : ask.width], states, weight, ask)
        gold = ask.gold[start:stop]
        together = _layers_together(ask.rows, stop - start, last.element_size())
        out = kept.take(min(together, layers - 1) * (stop - start), last)
        for first in range(0, layers - 1, together):
            group = range(first, min(first + together, layers - 1))
            states = norm(torch.cat([transform(hidden[i, start:stop], i - 1) for i in group]))
            z = unembed(states, out[: len(states)])
            parts = zip(group, torch.split(states, stop - start), torch.split(z, stop - start), strict=True)
            for layer, some, logits in parts:
                numbers.fill(layer, start, logits[:, : ask.width].float(), some, final, gold)
        numbers.fill(layers - 1, start, final.logits, final.states, final, gold)
    if "geometry" in numbers.needs:
        _geometry(raw, numbers)
    return numbers


def _geometry(hidden: Tensor, numbers: Numbers) -> None:
    """Cosine and norm ratio of each state to the final one."""
    last = hidden[-1].float()
    length = last.norm(dim=-1)
    for layer in range(hidden.shape[0]):
        state = hidden[layer].float()
        norm = state.norm(dim=-1)
        numbers.values["cosine"][layer] = (state * last).sum(-1) / (norm * length)
        numbers.values["norm_ratio"][layer] = norm / length
