"""The trainer: trackers, budgets, stages, schedules and its own options."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from toy import Toy, toy_data, toy_model
from trainer_help import DEFAULTS, Stop, rows, run, same, stopped_at
from transformers import TrainerCallback

from unspoken.errors import ConfigError, MissingExtraError
from unspoken.training._base import Data
from unspoken.training._estimate import estimate
from unspoken.training._options import Options


def test_trackers_get_the_metrics_while_they_are_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.integrations import integration_utils

    seen: list[tuple[str, dict[str, float]]] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
            seen.append((args.run_name, integration_utils.rewrite_logs(logs)))

        def on_train_end(self, *given: Any, **named: Any) -> None:
            seen.append(("closed", {}))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "trackio", Tracker)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    data = toy_data()
    run(tmp_path / "mine", data=Data(data.train, data.valid, data.valid), report_to="trackio", epochs=1)
    names = [sorted(name for name in ("train/loss", "eval/accuracy", "test/accuracy") if name in numbers)
             for _, numbers in seen]  # fmt: skip
    assert names == [["train/loss"], ["train/loss"], ["eval/accuracy"], ["test/accuracy"], []]
    assert [name for name, _ in seen] == ["mine"] * 4 + ["closed"]


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
def test_a_missing_tracker_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(MissingExtraError) as error:
        run(tmp_path / "out", report_to=name)
    assert error.value.hint == f"Run: pip install {name}"
    assert not (tmp_path / "out").exists()


def test_a_budget_of_operations_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    core = sum(
        p.numel() for n, p in toy_model().model.named_parameters() if "wte" not in n and "wpe" not in n
    )
    whole = run(tmp_path / "whole", save_every=2)
    words = sum(len(row.question.split()) + 2 for row in toy_data().train)
    assert whole.flops == 6 * core * words * DEFAULTS["epochs"]
    half = run(tmp_path / "half", max_flops=whole.flops / 2, save_every=0)
    spent = [row["flops"] for row in rows(tmp_path / "half") if row["event"] == "train"]
    assert spent[-2] < whole.flops / 2 <= spent[-1] == half.flops < whole.flops
    # The rows of one more step at most.
    assert half.flops - whole.flops / 2 < 6 * core * 8 * 5
    with pytest.raises(Stop):
        run(tmp_path / "cut", stopped_at(5)(), max_flops=whole.flops / 2, save_every=2)
    run(tmp_path / "cut", max_flops=whole.flops / 2, save_every=2)
    assert same(tmp_path / "half", tmp_path / "cut")
    short = run(tmp_path / "short", max_flops=whole.flops * 2, quiet=False)
    assert short.flops == whole.flops and "it has no more epochs" in capsys.readouterr().out

    class Lens(Toy):
        trains_model = False

    with pytest.raises(ConfigError, match="max_flops"):
        run(tmp_path / "lens", Lens(), max_flops=1.0)


def test_models_of_stages_are_kept_where_wanted(tmp_path: Path) -> None:
    class Staged(Toy):
        def prepare(self, lm: Any, data: Data, options: Any) -> Any:
            work = super().prepare(lm, data, options)
            work.scores = lambda metrics, t: {f"by/{t // 8}": metrics["accuracy"], "best": 1.0}  # type: ignore
            return work

    Staged.__module__ = Toy.__module__
    for name, wanted in (("none", False), ("all", True)):
        run(tmp_path / name, Staged(), save_stages=wanted)
        assert (tmp_path / name / "best").is_dir()
        assert sorted(p.name for p in (tmp_path / name).glob("by/*")) == (["0", "1"] if wanted else [])
        kept = json.loads((tmp_path / name / "unspoken.json").read_text())["provenance"]["scores"]
        assert sorted(kept) == ["best", "by/0", "by/1"]


def test_warm_up_and_schedules(tmp_path: Path) -> None:
    def rates(name: str, **how: Any) -> list[float]:
        run(tmp_path / name, Toy(reset_at=(6,)), epochs=2, log_every=1, save_every=0, **how)
        return [round(row["lr"] / 1e-2, 4) for row in rows(tmp_path / name) if row["event"] == "train"]

    assert rates("warm", warmup_steps=3, reset_warmup=1) == [0.25, 0.5, 0.75, 1, 1, 1, 0.5, 1]
    assert rates("linear", lr_schedule="linear") == [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]


def test_options_report_all_mistakes_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        Options(
            learning_rate=0, batch_size=0, width=10, heads=4, report_to="wandb,mlflow", beta2=1, max_flops=0
        )  # type: ignore[call-arg]
    assert len(error.value.problems) == 6
    assert Options(report_to="none").report_to == ()  # type: ignore[arg-type]


def test_estimate_counts() -> None:
    options = Options(epochs=2.5, batch_size=8, accumulate=2)
    found = estimate(toy_model().model, options, rows=26, mean_tokens=4.0, longest=5)
    assert (found.micro_batches_per_epoch, found.micro_batches, found.steps) == (4, 10, 5)
    assert found.rows_per_step == 16 and found.tokens == 320
    assert found.optimizer == 2 * found.weights == 8 * found.parameters
