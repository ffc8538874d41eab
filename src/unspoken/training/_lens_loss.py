"""The loss of a tuned lens, a few positions and one layer at a time: logits of two layers never exist together.

The translators of different layers share nothing, so each chunk of each layer is differentiated at once and its
logits are dropped; only the gradients of the translators stay. The slope of the loss in the logits z is known:
`q - p` for `KL(p || q)`, and `q - onehot` for a cross-entropy, where q = softmax(z).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unspoken.analysis._lens_metrics import LEAST, summed
from unspoken.analysis._translators import Translators

# On a CPU a few rows of logits stay in the second-level cache while they are worked on.
_CACHED_BYTES = 3 * 2**18


class _Known(torch.autograd.Function):
    """A number whose gradients are there already: its backward pass hands them out."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return total.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return (None, None, *(gradient * grad for gradient in ctx.gradients))


class FinalLaw:
    """The final law of one chunk of positions.

    Args:
        logits: [c, V] of the model.
        targets: [c] tokens that follow, for a cross-entropy; None for the KL divergence from this law.
    """

    def __init__(self, logits: Tensor, targets: Tensor | None) -> None:
        self.targets = targets
        self.probs: Tensor | None = None
        self.negative_entropy: Tensor | None = None
        if targets is None:
            logits = logits.float()
            self.probs = logits.softmax(-1)
            self.negative_entropy = summed(self.probs * logits, self.probs) - logits.logsumexp(-1)

    def loss(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a layer's logits in nats and its slope.

        Args:
            z: [c, V] in any dtype; the loss is taken in float32.

        Returns:
            [c] losses in float32, and [c, V] their derivatives by z, in its dtype.
        """
        slope, losses = torch.empty_like(z), z.new_empty(len(z), dtype=torch.float32)
        rows = max(1, _CACHED_BYTES // (4 * z.shape[1])) if z.device.type == "cpu" else len(z)
        for start in range(0, len(z), rows):
            part = slice(start, start + rows)
            logits = z[part].float()
            peak = logits.amax(-1, keepdim=True)
            q = (logits - peak).clamp_(min=LEAST).exp_()
            total = q.sum(-1, keepdim=True)
            lse = (peak + total.log())[:, 0]
            q.div_(total)
            if self.targets is None:
                assert self.probs is not None and self.negative_entropy is not None
                p = self.probs[part]
                losses[part] = lse - summed(logits.mul(p), p) + self.negative_entropy[part]
                q.sub_(p)
            else:
                target = self.targets[part, None]
                losses[part] = lse - logits.gather(-1, target)[:, 0]
                q.scatter_add_(-1, target, q.new_full(target.shape, -1.0))
            slope[part] = q
        return losses, slope


def lens_loss(
    translators: Translators,
    hidden: Tensor,
    unembed: Callable[[Tensor], Tensor],
    *,
    rows: int,
    targets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss of all translators, summed over layers and positions.

    Args:
        translators: D of them.
        hidden: [D + 1, m, d] states before the final norm, without gradient.
        unembed: From [c, d] states to [c, V] logits, the final norm included.
        rows: Positions in a chunk.
        targets: [m] next tokens for a cross-entropy; None for `KL(final || lens)`.

    Returns:
        A scalar that is differentiable once in the translators' parameters, and [D] its parts by layer, in nats.
    """
    parts = translators.parts()
    gradients = [[torch.zeros_like(p) for p in layer] for layer in parts]
    by_layer = hidden.new_zeros(len(parts), dtype=torch.float32)
    for start in range(0, hidden.shape[1], rows):
        chunk = slice(start, start + rows)
        with torch.no_grad():
            final = FinalLaw(unembed(hidden[-1, chunk]), None if targets is None else targets[chunk])
        for i, layer in enumerate(parts):
            with torch.enable_grad():
                state = hidden[i, chunk]
                z = unembed(translators[i](state).to(state.dtype))
            with torch.no_grad():
                losses, slope = final.loss(z.detach())
                by_layer[i] += losses.sum()
                for kept, new in zip(gradients[i], torch.autograd.grad(z, layer, slope), strict=True):
                    kept += new
    flat = [p for layer in parts for p in layer]
    total = _Known.apply(by_layer.sum(), [g for layer in gradients for g in layer], *flat)  # type: ignore[no-untyped-call]
    return total, by_layer
