"""Options that several commands share."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from unspoken.cli._arguments import option
from unspoken.discovery import STRATEGIES
from unspoken.errors import ConfigError

if TYPE_CHECKING:
    from unspoken.decoding._base import Strategy
    from unspoken.lm.depth import Depth
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
    depth: str | None = None
    """Which blocks run, counted from 0: 24 (the first 24), 24+last, drop:3,5 or window:10:4 (without 4 from 10 on)."""
    layer_idx: int | None = None
    """Instead of depth: blocks 0 to this one and the last; beyond the last block, all."""
    keep_last: bool | None = None
    """Whether the last block runs as well, after the first ones of depth (default: no) or layer_idx (default: yes)."""
    threads: int | None = None
    """CPU threads of torch (default: torch's own choice)."""
    trust_remote_code: bool = False
    """Allow model code that comes with a checkpoint to run here."""

    def __post_init__(self) -> None:
        problems = []
        if self.threads is not None and self.threads < 1:
            problems.append(f"threads must be at least 1, not {self.threads}.")
        try:
            self.truncation()
        except ConfigError as error:
            problems += error.problems
        if problems:
            raise ConfigError(problems)

    def truncation(self) -> Depth | None:
        """The depth that is asked for; None for the full model."""
        from unspoken.lm.depth import Depth

        if self.depth is None and self.layer_idx is None and self.keep_last is None:
            return None
        return Depth.read(self.depth, layer_idx=self.layer_idx, keep_last=self.keep_last)


def remembered_strategy(model: str, usage: str) -> Strategy:
    """The strategy that a checkpoint remembers, for a line that names none; its weights are not read.

    Args:
        model: The model that the line names.
        usage: How a line that names a strategy is written.

    Raises:
        ConfigError: If the model remembers none.
    """
    from unspoken.lm import checkpoint, sources, zoo

    strategy = None
    if model not in zoo.names() or zoo.packaged(model):  # others would have to be fetched or converted first
        found = sources.resolve(model)
        strategy = checkpoint.recall(found.location)[0] if found.local and not found.gguf else None
    if strategy is None:
        raise ConfigError(
            f"No strategy given, and the model {model!r} remembers none. Known: {', '.join(STRATEGIES.names())}.",
            f"Write: {usage}",
        )
    return strategy


def load_model(options: ModelOptions) -> CausalLM:
    """Load the model that the options name, and truncate it if they say so."""
    import torch

    import unspoken

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    lm = unspoken.load(
        options.model,
        dtype=options.dtype,
        device=options.device,
        attn=options.attn,
        trust_remote_code=options.trust_remote_code,
    )
    depth = options.truncation()
    if depth is None:
        return lm
    view = lm.truncated(depth)
    if view.depth is not None and not view.depth.n_dropped:
        sys.stderr.write(f"Note: this depth is the {view.depth.name}.\n")
    return view
