"""The residual stream of many rows at some positions: what a lens is trained and evaluated on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unspoken.errors import ModelError

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM


def batch_states(lm: CausalLM, ids: Tensor, at: Tensor) -> Tensor:
    """States before the final norm, from one forward without gradient.

    Args:
        lm: The model, in eval mode.
        ids: [n, T] rows without padding.
        at: [n, P] positions in each row.

    Returns:
        [D + 1, n P, d]: what the first block reads, then what each block gives, on the head's device.

    Raises:
        ModelError: If the model does not run each of its blocks once.
    """
    blocks = lm.anatomy.blocks
    kept: list[Tensor | None] = [None] * (len(blocks) + 1)

    def keep(place: int, state: Tensor) -> None:
        # Only what is wanted, at once: the whole stream of a batch is D times as large as the batch.
        index = at.to(state.device).unsqueeze(-1).expand(-1, -1, state.shape[-1])
        kept[place] = state.gather(1, index).flatten(0, 1)

    def enter(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(0, args[0] if args else kwargs["hidden_states"])

    def leave(place: int) -> Any:
        def hook(_block: nn.Module, _args: Any, output: Any) -> None:
            keep(place, output[0] if isinstance(output, tuple) else output)

        return hook

    handles = [blocks[0].register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [block.register_forward_hook(leave(i + 1)) for i, block in enumerate(blocks)]
    try:
        with torch.no_grad():
            lm.model(input_ids=ids, use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    device = next(lm.anatomy.head.parameters()).device
    states = [state.to(device) for state in kept if state is not None]
    if len(states) != len(kept):
        raise ModelError(
            f"{type(lm.model).__name__} runs {len(states) - 1} of its {len(blocks)} blocks in a forward; "
            "a lens needs each of them once."
        )
    return torch.stack(states)
