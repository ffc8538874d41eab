"""Runs of the toy method, and what they left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from toy import Toy, toy_data, toy_model

from unspoken.training._base import Data
from unspoken.training._trainer import TrainRun, train

DEFAULTS: dict[str, Any] = {"epochs": 3, "lr": 1e-2, "batch_size": 8, "log_every": 2, "quiet": True}
TIMES = ("seconds", "rows_per_second", "tokens_per_second", "items_per_second")


def run(
    output: Path, method: Toy | None = None, lm: Any = None, data: Data | None = None, **given: Any
) -> TrainRun:
    given = {**DEFAULTS, **given}
    return train(method or Toy(), model=lm or toy_model(), data=data or toy_data(), output=output, **given)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same(left: Path, right: Path, **tolerance: float) -> bool:
    a, b = weights(left), weights(right)
    if tolerance:
        return all(torch.allclose(a[name], b[name], **tolerance) for name in a)
    return all(torch.equal(a[name], b[name]) for name in a)


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: v for key, v in json.loads(line).items() if key not in TIMES} for line in lines]


class Stop(Exception):
    pass


def stopped_at(step: int) -> Any:
    """A method whose batches run out: as a kill, in the middle of whatever comes after `step` batches."""

    class Stopping(Toy):
        def prepare(self, lm: Any, data: Data, options: Any) -> Any:
            work = super().prepare(lm, data, options)
            batch = work.batch

            def stopping(t: int, chosen: Any, generator: Any) -> Any:
                if t == step:
                    raise Stop
                return batch(t, chosen, generator)

            work.batch = stopping  # type: ignore[method-assign]
            return work

    Stopping.__module__ = Toy.__module__
    return Stopping
