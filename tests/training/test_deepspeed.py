"""Training under DeepSpeed: two processes are the same as one plain process, also where a run was stopped.

As a script it is one run of the toy method: python test_deepspeed.py OUTPUT [STOP_AT] [PRECISION].
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import toy_run
from toy import ToyWork
from trainer_help import rows, same, weights

from unspoken.errors import ConfigError, MissingExtraError
from unspoken.training import _setup
from unspoken.training._options import Options

CONFIG = Path(__file__).parents[2] / "recipes" / "accelerate" / "deepspeed_zero2.yaml"
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="DeepSpeed is not installed: DS_BUILD_OPS=0 pip install deepspeed",
)


def launch(output: Path, stop_at: int = -1, precision: str = "fp32") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG), __file__]
    # Two processes cannot share one GPU.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, str(output), str(stop_at), precision],
        capture_output=True,
        text=True,
        timeout=400,  # the first time DeepSpeed compiles what it sends with
        env=environment,
    )


def stop_before(t: int) -> None:
    """Let the run die where it makes micro-batch t."""
    batch = ToyWork.batch

    def stopping(self: Any, at: int, *given: Any) -> Any:
        if at == t:
            raise SystemExit(f"stopped before micro-batch {t}")
        return batch(self, at, *given)

    ToyWork.batch = stopping  # type: ignore[method-assign]


def close(one: Path, two: Path, **tolerance: float) -> bool:
    return weights(one).keys() == weights(two).keys() and same(one, two, **tolerance)


@needs_deepspeed
@pytest.mark.slow
def test_two_processes_are_the_same_as_one(tmp_path: Path) -> None:
    """With accumulation, clipping, and a reset of the optimizer inside a window."""
    toy_run.go(tmp_path / "one", device="cpu")
    done = launch(tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert list(
        (tmp_path / "two").glob("checkpoints/step-*/trainer/*/zero_pp_rank_1_*")
    )  # what only it writes
    assert close(tmp_path / "one", tmp_path / "two", atol=1e-5, rtol=1e-3)
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert one == {
            key: pytest.approx(v, rel=1e-3) if isinstance(v, float) else v for key, v in two.items()
        }
    for stop_at in (5, 9):  # after step 2, which a reset ended early, and after step 4, with a reset to come
        output = tmp_path / f"stopped-{stop_at}"
        stopped = launch(output, stop_at)
        assert stopped.returncode != 0 and f"stopped before micro-batch {stop_at}" in stopped.stderr
        done = launch(output)
        assert done.returncode == 0, done.stderr
        assert close(tmp_path / "two", output)


@needs_deepspeed
@pytest.mark.slow
def test_bf16_keeps_weights_in_float32(tmp_path: Path) -> None:
    toy_run.go(tmp_path / "one", device="cpu", precision="bf16")
    done = launch(tmp_path / "two", precision="bf16")
    assert done.returncode == 0, done.stderr
    assert {str(value.dtype) for value in weights(tmp_path / "two").values()} == {"torch.float32"}
    # Halves of a batch round differently; the run in float32 is 0.026 away.
    assert close(tmp_path / "one", tmp_path / "two", atol=1.5e-2)


def test_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="not installed") as error:
        _setup.arguments(Options(), tmp_path)
    assert "pip install deepspeed" in str(error.value)


def test_refuses_what_it_cannot_save_in_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All at once, before a model is loaded."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ConfigError) as error:
        _setup.arguments(Options(precision="pure_bf16"), tmp_path)
    assert len(error.value.problems) == 3
    for word in ("stage 3", "mixed_precision bf16", "pure_bf16"):
        assert word in str(error.value)
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert _setup.deepspeed_wanted("bf16")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "false")
    assert not _setup.deepspeed_wanted("pure_bf16")


if __name__ == "__main__":
    if (last := int(sys.argv[2])) >= 0:
        stop_before(last)
    toy_run.go(sys.argv[1], precision=sys.argv[3])
