"""One forward that keeps the residual stream after every block, and a proof that a lens reads it as the model does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unspoken.errors import ModelError, RunError

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM

CHECKED = 4
"""Positions at which the model's own logits are compared with the lens at the last block."""
LAST_KL = {torch.float32: 1e-5, torch.float64: 1e-5}
LAST_KL_HALF = 2e-2  # half precision rounds logits of 20 to steps of 0.06 or more


@dataclass(eq=False)
class States:
    """What one row leaves in the residual stream.

    Attributes:
        hidden: [D + 1, S, d]: what the first block reads, then what each block gives, before the final norm.
        logits: [n, V] float32, the model's own at the last n positions.
        last_call: The last block's arguments, without its hidden states.
    """

    hidden: Tensor
    logits: Tensor
    last_call: tuple[tuple[Any, ...], dict[str, Any]]


def read_states(lm: CausalLM, vectors: Tensor, position_ids: Tensor | None = None) -> States:
    """Let the model read vectors [S, D] as one row.

    Args:
        lm: The model.
        vectors: What it reads.
        position_ids: [S], where the row has a gap in its positions (default: 0 to S - 1).
    """
    blocks = lm.anatomy.blocks
    size = len(vectors)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def enter_last(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"}))

    # Without a mask, transformers takes a gap in the positions for the border of two packed rows.
    mask = torch.ones(1, size, dtype=torch.long, device=vectors.device)
    inputs: dict[str, Any] = {"inputs_embeds": vectors[None], "attention_mask": mask}
    if position_ids is not None:
        inputs["position_ids"] = position_ids.to(vectors.device)[None]
    training = lm.model.training
    handle = blocks[-1].register_forward_pre_hook(enter_last, with_kwargs=True)
    try:
        lm.model.eval()
        hidden, out = _forward(lm, lambda state: state[0], **inputs, logits_to_keep=min(CHECKED, size))
    finally:
        lm.model.train(training)
        handle.remove()
    return States(hidden, out.logits[0, -min(CHECKED, size) :].float(), calls[0])


def batch_states(lm: CausalLM, ids: Tensor, at: Tensor) -> Tensor:
    """States of many rows at some positions, before the final norm: what a lens is trained and evaluated on.

    Args:
        lm: The model, in eval mode.
        ids: [n, T] rows without padding.
        at: [n, P] positions in each row.

    Returns:
        [D + 1, n P, d]: what the first block reads, then what each block gives, on the head's device.

    Raises:
        ModelError: If the model does not run each of its blocks once.
    """

    def keep(state: Tensor) -> Tensor:
        # Only what is wanted, at once: the whole stream of a batch is D times as large as the batch.
        index = at.to(state.device).unsqueeze(-1).expand(-1, -1, state.shape[-1])
        return state.gather(1, index).flatten(0, 1)

    return _forward(lm, keep, input_ids=ids, logits_to_keep=1)[0]


def _forward(lm: CausalLM, keep: Callable[[Tensor], Tensor], **inputs: Any) -> tuple[Tensor, Any]:
    """One forward without gradient or cache, which leaves the residual stream behind.

    Args:
        lm: The model.
        keep: From a state [n, T, d] to what is kept of it.
        inputs: Of the model's forward.

    Returns:
        [D + 1, ...] what was kept of the first block's input and of each block's output, on the head's device; and
        what the model returned.

    Raises:
        ModelError: If the model does not run each of its blocks once.
    """
    blocks = lm.anatomy.blocks
    kept: list[list[Tensor]] = [[] for _ in range(len(blocks) + 1)]

    def enter(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept[0].append(keep(args[0] if args else kwargs["hidden_states"]))

    def leave(place: int) -> Any:
        def hook(_block: nn.Module, _args: Any, output: Any) -> None:
            kept[place].append(keep(output[0] if isinstance(output, tuple) else output))

        return hook

    handles = [blocks[0].register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [block.register_forward_hook(leave(i + 1)) for i, block in enumerate(blocks)]
    try:
        with torch.no_grad():
            out = lm.model(**inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    runs = [len(states) for states in kept]
    if set(runs) != {1}:
        told = f"{sum(map(bool, runs[1:]))} of its {len(blocks)} blocks"
        told += ", some of them several times" if max(runs) > 1 else ""
        raise ModelError(
            f"{type(lm.model).__name__} runs {told} in a forward; a lens needs each of them once."
        )
    # Blocks may be spread over devices; the head's is where they are read.
    return torch.stack([states[0].to(out.logits.device) for states in kept]), out


def last_kl(lm: CausalLM, states: States) -> float:
    """Largest KL(model's own logits || lens at the last block), in nats, over the last positions."""
    with torch.no_grad():
        seen = lm.unembed(lm.anatomy.norm(states.hidden[-1, -len(states.logits) :])).float()
    own, seen = states.logits.double().log_softmax(-1), seen.double().log_softmax(-1)
    terms = own.exp() * (own - seen)
    return float(
        terms.masked_fill(own.isneginf(), 0.0).sum(-1).max()
    )  # a token that cannot come adds nothing


def check_last(lm: CausalLM, states: States) -> float:
    """The self-check of every reading: the lens at the last block is the model.

    Returns:
        The largest KL seen, in nats.

    Raises:
        ModelError: If it is not below 1e-5 (2e-2 in half precision).
        RunError: If logits of the model are NaN or infinite, or all of one position minus infinity.
    """
    # Minus infinity is a law of its own: that of a model that rules tokens out.
    peaks = states.logits.amax(-1)
    if not bool(peaks.isfinite().all()):
        raise RunError("The model gave logits that are not finite; try dtype='float32'.")
    found = last_kl(lm, states)
    allowed = LAST_KL.get(lm.dtype, LAST_KL_HALF)
    if not found < allowed:
        raise ModelError(
            f"The lens at the last block is not the model: KL {found:.3g} nats, allowed is {allowed:g}. "
            f"{type(lm.model).__name__} computes its logits otherwise than head(norm(h)) on this input.",
            "Load the model again; if that does not help, it cannot be read by a lens.",
        )
    return found


def through_last_block(lm: CausalLM, states: States) -> Tensor:
    """[D + 1, S, d]: each state as the last block would leave it, read at the same positions under the same mask.

    The entry of the last block's own output stays as it is: it is through already.

    Raises:
        ModelError: If calling the block by itself does not give what it gave in the model.
    """
    block, (args, kwargs) = lm.anatomy.blocks[-1], states.last_call
    result = states.hidden.clone()

    def apply(state: Tensor) -> Tensor:
        device = next(block.parameters()).device
        out = block(state[None].to(device), *args, **kwargs)
        after: Tensor = out[0] if isinstance(out, tuple) else out
        return after[0].to(state.device)

    with torch.no_grad():
        again = apply(states.hidden[-2])
        limit = 1e-4 if lm.dtype in LAST_KL else 5e-2
        if float((again - states.hidden[-1]).abs().max()) > limit * float(states.hidden[-1].abs().max()):
            raise ModelError(
                f"The last block of {type(lm.model).__name__} gives other states by itself than in the model, "
                "so the last-block lens cannot read it."
            )
        for layer in range(len(states.hidden) - 1):
            result[layer] = apply(states.hidden[layer])
    return result
