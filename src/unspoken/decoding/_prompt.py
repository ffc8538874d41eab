"""The thinking block: opening it in a prompt, and noticing in generated text where it opens and closes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from unspoken.decoding._base import Prompt, Row
from unspoken.types import RawText

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM

OPEN, CLOSE = "<think>", "</think>"

ThinkOpen = Literal["none", "assistant_prefix", "user_suffix"]


def with_opener(lm: CausalLM, prompt: Prompt, think_open: ThinkOpen) -> list[int]:
    """The ids of a prompt, with `<think>` added where `think_open` says.

    A template that already opens the block gets no second opener. Raw text and token ids are used as they are.

    Raises:
        ConfigError: If the prompt is empty.
    """
    if isinstance(prompt, str) and not isinstance(prompt, RawText):
        prompt = [{"role": "user", "content": prompt}]
    is_chat = isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)
    if is_chat and think_open == "user_suffix":
        *before, last = prompt
        content = last.get("content") if isinstance(last, Mapping) else None
        if isinstance(content, str) and content.strip():  # else encode_prompt says what is wrong
            prompt = [*before, {**last, "content": f"{content}\n{OPEN}"}]  # type: ignore[dict-item]
    ids = lm.tokens.encode_prompt(prompt)
    if is_chat and think_open == "assistant_prefix" and not opens_think(lm, ids):
        ids = lm.tokens.append_to_prompt(ids, OPEN)
    return ids


def opens_think(lm: CausalLM, prompt_ids: list[int]) -> bool:
    """Whether the prompt ends inside a thinking block that it has just opened."""
    return lm.tokens.decode(prompt_ids[-8:]).rstrip().endswith(OPEN)


def follow_markers(row: Row, text: str) -> None:
    """Change the row's phase where its own text opens or closes a thinking block.

    A marker may span several tokens, so the tail of the text is kept; the step that completes a marker
    belongs to the block.
    """
    if not text:
        return
    tail = (row.memory.get("tail", "") + text)[-64:]
    row.memory["tail"] = tail
    if row.phase == "answer" and row.memory.get("may_open", True):
        stripped = tail.lstrip()
        if stripped.startswith(OPEN):
            row.memory["tail"] = ""
            row.enter("think")
        elif not OPEN.startswith(stripped[: len(OPEN)]):
            row.memory["may_open"] = False  # only the very start of a reply opens a block
    if row.phase == "think" and CLOSE in tail:
        row.memory["tail"], row.memory["may_open"] = "", False
        row.enter("answer")
