"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from unspoken.cli._arguments import option
from unspoken.errors import ConfigError

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and how it is loaded."""

    model: str = option("smollm2", flag="-m")
    """Hub id, local folder, GGUF file, or smollm2."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights; auto is float32 on a CPU, and on a GPU the checkpoint's own 16-bit type."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1; auto is the first GPU, else the CPU."""
    attn: Literal["sdpa", "eager"] = "sdpa"
    """Attention implementation."""
    threads: int | None = None
    """CPU threads of torch (default: torch's own choice)."""
    trust_remote_code: bool = False
    """Allow model code that comes with a checkpoint to run here."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads must be at least 1, not {self.threads}.")


def load_model(options: ModelOptions) -> CausalLM:
    """Load the model that the options name."""
    import torch

    import unspoken

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return unspoken.load(
        options.model,
        dtype=options.dtype,
        device=options.device,
        attn=options.attn,
        trust_remote_code=options.trust_remote_code,
    )
