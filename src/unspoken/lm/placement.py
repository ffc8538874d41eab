"""Where a model goes, and in which number format."""

from __future__ import annotations

from typing import Any

import torch

from unspoken.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device_of(name: str) -> torch.device:
    """The device called so.

    Raises:
        ConfigError: If torch knows no such device or there is none.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = ", ".join(["auto", "cpu", *(["cuda"] if gpus else []), *(f"cuda:{i}" for i in range(gpus))])
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise ConfigError(f"device {name!r} cannot be used ({reason}). On this computer: {here}.") from error
    return device


def dtype_of(name: str, config: Any, device: torch.device) -> torch.dtype:
    """The number format called so; `auto` is float32 on a CPU, else the checkpoint's own 16-bit type, or bfloat16."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cpu":
        return torch.float32
    own = config.get_text_config(decoder=True).dtype
    return own if own in (torch.bfloat16, torch.float16) else torch.bfloat16
