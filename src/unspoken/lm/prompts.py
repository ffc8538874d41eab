"""What a caller passes as prompts: one of them, or many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

from torch import Tensor

from unspoken.errors import ConfigError
from unspoken.types import Message

Prompt = str | Sequence[Message] | Sequence[int]


def as_prompts(prompts: Prompt | Iterable[Prompt]) -> tuple[list[Prompt], bool]:
    """The prompts as a list, and whether many were given.

    A string, a list of mappings (messages) and a list of integers (ids) are one prompt each; any other
    list holds prompts.
    """
    if isinstance(prompts, str):
        return [prompts], False
    if isinstance(prompts, Mapping) or not isinstance(prompts, Iterable):
        raise ConfigError(
            f"A prompt is a string, a list of messages or a list of ids, not a {type(prompts).__name__}.",
            "A single message goes in a list: [{'role': 'user', 'content': '...'}]",
        )
    items: list[Any] = prompts.tolist() if isinstance(prompts, Tensor) else list(prompts)
    if items and all(isinstance(item, Mapping) for item in items):
        return [items], False
    if items and all(isinstance(item, Integral) for item in items):
        return [items], False
    for number, item in enumerate(items):
        if not isinstance(item, (str, Sequence)):
            raise ConfigError(
                f"Item {number} of the prompts is a {type(item).__name__}; each must be a string, a list of "
                "messages or a list of ids."
            )
    return items, True
