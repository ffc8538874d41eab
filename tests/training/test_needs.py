"""Options that would do nothing are refused; what presets and defaults say of them is not."""

from __future__ import annotations

from typing import Any

import pytest

from unspoken.config import to_dict
from unspoken.errors import ConfigError
from unspoken.training._internalize_checks import NEEDS
from unspoken.training._options import NEEDS as OPTION_NEEDS
from unspoken.training._options import Options
from unspoken.training.internalize import PRESETS, Internalize

REPLACE: dict[str, Any] = {"mode": "replace", "infer_num_fillers": 3}
# An option that would do nothing, beside what, and what it is to be given with to act.
IDLE: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({"gate_accuracy": 0.5}, {}, {"schedule": "accuracy_gated"}),
    ({"gate_max_steps": 9}, {}, {"schedule": "accuracy_gated"}),
    ({"joint_beta": 0.5}, {"schedule": "fraction"}, {"schedule": "joint"}),
    ({"ramp_end": 0.5}, {"schedule": "joint"}, {"schedule": "fraction"}),
    ({"switch_from_n_rate": 0.5}, {}, {"schedule": "fraction"}),
    ({"remove_per_epoch": 3}, {"schedule": "joint"}, {}),
    ({"remove_per_epoch": 3}, {"schedule": "accuracy_gated"}, {}),
    ({"remove_per_epoch": 3}, {"remove_every_n_step": 5}, {"remove_every_n_step": 0}),
    ({"remove_every_n_step": 3}, {"schedule": "accuracy_gated"}, {}),
    ({"step_delimiters": ("+",)}, {}, {"unit": "step"}),
    ({"fill_kind": "distinct"}, {}, REPLACE),
    ({"fill_text": " x"}, {}, {**REPLACE, "fill_kind": "text"}),
    ({"fill_text": " x"}, REPLACE, {**REPLACE, "fill_kind": "text"}),
    ({"init_fill": "random"}, {}, {"sep_mode": "distinct"}),
    ({"fill_ratio": 0.5}, REPLACE, {"mode": "ratio", "infer_num_fillers": 3}),
    ({"n_fillers": 3}, REPLACE, {"mode": "capped"}),
    ({"fill_loss_anneal": True}, REPLACE, {**REPLACE, "fill_target": "fill"}),
    ({"fill_loss_weight": 0.5}, REPLACE, {**REPLACE, "fill_target": "fill"}),
    ({"infer_num_fillers": 3}, {}, {"mode": "replace"}),
    ({"infer_num_fillers": 3}, {"preset": "seed_switch"}, {"mode": "replace"}),
    ({"force_sep2": True}, {"preset": "seed_switch"}, {}),
    ({"force_sep2": True}, {"remove_separator": True}, {}),
    ({"max_len_action": "drop_batch"}, {}, {"max_len_train": 9}),
]


@pytest.mark.parametrize(("option", "beside", "acts"), IDLE, ids=lambda fields: " ".join(fields))
def test_an_option_that_would_do_nothing(
    option: dict[str, Any], beside: dict[str, Any], acts: dict[str, Any]
) -> None:
    (name,) = option
    with pytest.raises(ConfigError) as caught:
        Internalize(**option, **beside)
    assert [problem for problem in caught.value.problems if problem.startswith(f"{name} ")]
    method = Internalize(**{**option, **acts})
    assert Internalize(**to_dict(method)) == method
    Internalize(**beside)


def test_every_need_is_tried() -> None:
    tried = {name for option, _, _ in IDLE for name in option}
    assert {name for need in NEEDS for name in need.names.split()} == tried


def test_they_come_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Internalize(gate_accuracy=0.5, joint_beta=0.5, ramp_end=0.5, fill_kind="distinct", init_fill="eos")
    assert len(caught.value.problems) == 5


@pytest.mark.parametrize("preset", PRESETS)
def test_what_a_preset_says_is_not_held_against_anyone(preset: Any) -> None:
    Internalize(preset=preset, unit="token", fill_loss_weight=1.0, gate_accuracy=0.98, remove_per_epoch=8)
    if preset in ("filler_fixed", "filler_replace"):
        Internalize(preset=preset, mode="drop")
        Internalize(preset=preset, schedule="joint", joint_beta=0.5, infer_num_fillers=None)


@pytest.mark.parametrize("schedule", ["fraction", "joint"])
def test_presets_reset_only_where_something_counts(schedule: Any) -> None:
    assert Internalize(preset="icot_si").reset_optimizer is True
    assert Internalize(preset="icot_si", schedule=schedule).reset_optimizer is False
    with pytest.raises(ConfigError, match="reset_optimizer"):
        Internalize(preset="icot_si", schedule=schedule, reset_optimizer=True)


def test_separators_that_are_removed_are_neither_scattered_nor_read_in_advance() -> None:
    assert Internalize(remove_separator=True).force_sep2 is False
    assert Internalize().force_sep2 is True
    for fields in ({"fill_pattern": "random"}, {"preset": "seed_switch"}):
        with pytest.raises(ConfigError, match="remove_separator needs fill_pattern prefix"):
            Internalize(remove_separator=True, **fields)


@pytest.mark.parametrize("beta", [float("inf"), float("nan"), 1e-9, 0.001, 0.0, -1.0, 1e9])
def test_shares_that_could_not_be_drawn(beta: float) -> None:
    with pytest.raises(ConfigError, match="joint_beta must be from"):
        Internalize(schedule="joint", joint_beta=beta)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"lora_alpha": 8.0}, "lora_alpha 8.0 would do nothing"),
        ({"lora_dropout": 0.5}, "lora_dropout 0.5 would do nothing"),
        ({"lora_target": ("q", "v")}, "lora_target q v would do nothing"),
        ({"epochs": 3, "steps": 9}, "epochs 3.0 would do nothing"),
        ({"lora_r": 2, "lora_dropout": 1.0}, "lora_dropout must be at least 0 and below 1"),
        ({"seed": 2**32}, "seed must be below"),
        ({"seed": 99999999999999999999}, "seed must be below"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_options_of_a_run(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Options(**fields)
    assert said in str(caught.value)
    assert {name for need in OPTION_NEEDS for name in need.names.split()} == {
        "epochs", "lora_alpha", "lora_dropout", "lora_target",
    }  # fmt: skip
    Options(seed=2**32 - 1, lora_r=2, lora_alpha=8.0, lora_dropout=0.5)


@pytest.mark.parametrize(
    "given", ["wandb,tensorboard", ("wandb,tensorboard",), ["wandb", "tensorboard"], "wandb tensorboard"]
)
def test_lists_are_written_in_any_way(given: Any) -> None:
    assert Options(report_to=given).report_to == ("wandb", "tensorboard")
    assert Options(lora_r=2, lora_target=given).lora_target == ("wandb", "tensorboard")


def test_sizes_are_of_models_made_to_measure() -> None:
    assert Options(layers=3, width=64).model_problems("gpt2")[0].startswith("layers, width would do nothing")
    assert not Options(layers=3).model_problems("tiny-llama") and not Options().model_problems("gpt2")
