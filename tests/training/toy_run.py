"""A run of the toy method as a process of its own, for tests that kill it or start several.

python toy_run.py OUTPUT [slow | die-saving | lora | fsdp]
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from toy import Toy, ToyWork, toy_data, toy_model

from unspoken.training._trainer import train


def go(output: str | Path, *, lora: bool = False, **given: Any) -> None:
    adapters: dict[str, Any] = {"lora_r": 2, "lora_target": ("c_attn",)} if lora else {}
    how = {
        "epochs": 3,
        "lr": 1e-2,
        "eps": 1e-4,
        "batch_size": 8,
        "accumulate": 2,
        "log_every": 2,
        "save_every": 2,
    }
    train(
        Toy(reset_at=(3, 6), new_token=lora),
        model=toy_model(),
        data=toy_data(),
        output=output,
        quiet=True,
        **{**how, **adapters, **given},
    )


def slow_batches() -> None:
    batch = ToyWork.batch

    def slow(self: Any, *given: Any) -> Any:
        time.sleep(0.2)
        return batch(self, *given)

    ToyWork.batch = slow  # type: ignore[method-assign]


def die_in_the_second_save() -> None:
    """Leave half of the optimizer's file, as a kill does."""
    save, calls = torch.save, []

    def dying(state: Any, path: Path, **given: Any) -> None:
        save(state, path, **given)
        calls.append(path)
        if len(calls) == 2:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = dying


def shard_on_cpu() -> None:
    """Let accelerate shard by FSDP although there is no GPU: where it has none, it leaves FSDP out by itself."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    init = AcceleratorState.__init__

    def sharded(self: Any, *args: Any, **given: Any) -> None:
        init(self, *args, **given)
        if given.get("fsdp_plugin") is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, given["fsdp_plugin"]
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = sharded


if __name__ == "__main__":
    if "slow" in sys.argv:
        slow_batches()
    if "die-saving" in sys.argv:
        die_in_the_second_save()
    if "fsdp" in sys.argv:
        shard_on_cpu()
    go(sys.argv[1], lora="lora" in sys.argv)
