"""A run of the toy method as a process of its own, for tests that kill it or start several."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from toy import Toy, ToyWork, toy_data, toy_model

from unspoken.training._trainer import train


def go(output: str | Path) -> None:
    train(
        Toy(reset_at=(3, 6)),
        model=toy_model(),
        data=toy_data(),
        output=output,
        epochs=3,
        lr=1e-2,
        eps=1e-4,
        batch_size=8,
        accumulate=2,
        log_every=2,
        save_every=2,
        quiet=True,
    )


if __name__ == "__main__":
    if "slow" in sys.argv:
        batch = ToyWork.batch

        def slow(self: Any, *given: Any) -> Any:
            time.sleep(0.2)
            return batch(self, *given)

        ToyWork.batch = slow  # type: ignore[method-assign]
    go(sys.argv[1])
