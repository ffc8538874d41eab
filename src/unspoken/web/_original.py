"""The reply of `/api/generate` as the original lab gave it, beside the project's own fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unspoken.types import LATENT_KINDS, Generation
from unspoken.web._bodies import Ask

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM


def original_reply(
    start: Mapping[str, Any], generation: Generation, body: Ask, lm: CausalLM
) -> dict[str, Any]:
    """`success`, `generated_text`, `phase_info`, `token_texts`, `prompt_used` and `parameters`.

    A step of phase 1 is what was fed: ids and weights. `token_texts` names every id that occurs, so that a reader
    never has to ask for one.
    """
    think = [step for step in generation.steps if step.phase == "think"]
    phase_info: dict[str, Any] = {
        "total_tokens": len(generation.steps),
        "phase1_tokens": len(think),
        "phase2_tokens": sum(step.phase == "answer" for step in generation.steps),
        "transition_tokens": sum(step.phase == "transition" for step in generation.steps),
        "phase1_rounds_completed": sum(step.kind in LATENT_KINDS for step in think),
        "phase1_rounds_requested": start["strategy"].get("T_e", 0),
        "phase2_rounds_requested": start["max_new_tokens"] - start["strategy"].get("T_e", 0),
        "phase1_token_ids": [_fed(step) for step in think],
        "phase2_token_ids": [step.token_id for step in generation.steps if step.phase == "answer"],
        "transition_token_ids": [step.token_id for step in generation.steps if step.phase == "transition"],
    }
    ids = {step.token_id for step in generation.steps if step.token_id is not None}
    ids |= {i for step in generation.steps if step.top is not None for i in step.top.ids}
    return {
        "success": True,
        "generated_text": generation.text,
        "phase_info": phase_info,
        "token_texts": {str(i): lm.tokens.token_text(i) for i in sorted(ids)},
        "prompt_used": start["prompt_text"],
        "parameters": {
            **start["strategy"],
            "max_new_tokens": start["max_new_tokens"],
            "seed": start["seed"],
            "experiment_name": body.experiment_name,
        },
    }


def _fed(step: Any) -> list[list[Any]]:
    """The ids and weights that one step of phase 1 was made of."""
    if step.top is None:
        return [[step.token_id], [1.0]] if step.token_id is not None else [[], []]
    fed = [(i, w) for i, w in zip(step.top.ids, step.top.weights, strict=True) if w > 0]
    return [[i for i, _ in fed], [w for _, w in fed]]
