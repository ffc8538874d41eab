"""What a tuned lens has learnt: one affine map for each layer, added to the state (arXiv 2303.08112)."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from unspoken.errors import ConfigError

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM

Kind = Literal["full", "low_rank", "bias"]
_HASHED_ROWS = 4096  # of the head, converted at a time


class Translator(nn.Module):
    """`h -> h + W h + b`, in float32 whatever h is in; at the start W = 0 and b = 0.

    Args:
        width: d.
        rank: Of W = A B with A [d, r] and B [r, d]; 0 for a full W [d, d].
        bias_only: Whether there is no W.
        bias: Whether there is a b.
        generator: For A, which begins at random (variance 1 / r) so that B, which begins at 0, has a gradient.
    """

    def __init__(
        self,
        width: int,
        *,
        rank: int = 0,
        bias_only: bool = False,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width)) if bias or bias_only else None
        self.weight = nn.Parameter(torch.zeros(width, width)) if not rank and not bias_only else None
        self.a = self.b = None
        if rank and not bias_only:
            self.a = nn.Parameter(torch.randn(width, rank, generator=generator) / math.sqrt(rank))
            self.b = nn.Parameter(torch.zeros(rank, width))

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., d] states to [..., d] float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            state = hidden.float()
            result = state
            if self.weight is not None:
                result = result + nn.functional.linear(state, self.weight)
            if self.a is not None and self.b is not None:
                result = result + nn.functional.linear(nn.functional.linear(state, self.b), self.a)
            return result if self.bias is None else result + self.bias


class Translators(nn.ModuleList):
    """The translators of a model of D blocks: of what the first block reads, and of all blocks but the last.

    `translators[i]` reads the state after block i - 1; the final state has none, it is the model's own. The names of
    the tensors are `0.weight`, `0.bias` and so on, or `0.a`, `0.b` at a low rank.

    Args:
        layers: D.
        width: d.
        rank: See `Translator`.
        bias_only: See `Translator`.
        bias: See `Translator`.
        seed: For what begins at random.

    Raises:
        ConfigError: If the rank does not fit.
    """

    def __init__(
        self,
        layers: int,
        width: int,
        *,
        rank: int = 0,
        bias_only: bool = False,
        bias: bool = True,
        seed: int = 0,
    ) -> None:
        problems = []
        if not 0 <= rank <= width:
            problems.append(f"rank must be from 0 (full) to {width}, the model's width, not {rank}.")
        if rank and bias_only:
            problems.append("bias_only has no matrix, so it has no rank either; give one of them.")
        if problems:
            raise ConfigError(problems)
        generator = torch.Generator().manual_seed(seed)
        super().__init__(
            Translator(width, rank=rank, bias_only=bias_only, bias=bias, generator=generator)
            for _ in range(layers)
        )
        self.layers, self.width, self.rank = layers, width, rank
        self.kind: Kind = "bias" if bias_only else "low_rank" if rank else "full"
        self.has_bias = bias or bias_only

    def parts(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer."""
        return [list(translator.parameters()) for translator in self]


def unembed_hash(lm: CausalLM) -> str:
    """64 hex digits that name what a lens reads states with: the final norm and the head.

    Weights count as rounded to bfloat16, so that a float32 and a bfloat16 copy of a model have the same.
    """
    digest = hashlib.sha256(f"{lm.anatomy.scale} {lm.anatomy.softcap}".encode())
    for part in ("head", "norm"):
        for name, parameter in sorted(getattr(lm.anatomy, part).named_parameters()):
            digest.update(f"{part} {name} {tuple(parameter.shape)}".encode())
            for rows in parameter.detach().split(_HASHED_ROWS):
                digest.update(rows.to(torch.bfloat16).contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()
