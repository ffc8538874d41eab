"""The settings of `internalize` that go together; without heavy imports, so that they can be listed at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

DEFAULTS: dict[str, Any] = {
    "schedule": "count",
    "unit": "token",
    "remove_per_epoch": 8.0,
    "remove_every_n_step": 0,
    "remove_start_from": 0.0,
    "remove_all_when_remove_beyond": math.inf,
    "pretrain_epochs": 0.0,
    "remove_from_n_steps": 0,
    "removal_smoothing_lambda": math.inf,
    "removal_side": "left",
    "reset_optimizer": False,
    "switch_from_n_rate": 0.0,
    "ramp_end": 0.8,
    "mode": "drop",
    "fill_pattern": "prefix",
    "fill_kind": "single",
    "fill_text": " .",
    "fill_target": "ignore",
    "fill_ratio": 1.0,
    "n_fillers": 0,
    "force_sep2": True,
    "sample_fillers": False,
    "sep_mode": "eos",
    "sep1": "",
    "sep2": "",
}

_STEPWISE: dict[str, Any] = {"removal_smoothing_lambda": 4.0, "reset_optimizer": True}

PRESETS: dict[str, dict[str, Any]] = {
    "no_cot": {"remove_start_from": math.inf},
    "explicit_cot": {"pretrain_epochs": math.inf},
    "icot_si": _STEPWISE,
    "filler_replace": {**_STEPWISE, "mode": "replace"},
    "filler_fixed": {**_STEPWISE, "mode": "fixed", "n_fillers": 8},
    "seed_switch": {
        "schedule": "switch",
        "remove_from_n_steps": 5000,
        "ramp_end": 1.0,
        "mode": "ratio",
        "fill_pattern": "random",
        "fill_target": "fill",
        "fill_kind": "text",
        "fill_text": "<|pause|>",
        "force_sep2": False,
        "sample_fillers": True,
        "sep_mode": "distinct",
        "sep1": "<|start|>",
        "sep2": "<|ready|>",
    },
}

COUNTED = ("count", "accuracy_gated")
"""Schedules that count the units removed."""


def defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the fields that are not given are: as the preset has them, as far as what is given leaves them a sense.

    Args:
        given: Fields by name; None is not given.
    """
    found = {**DEFAULTS, **PRESETS.get(given["preset"] if isinstance(given["preset"], str) else "", {})}

    def value(name: str) -> Any:
        return found[name] if given[name] is None else given[name]

    if given["switch_mode"] is not None:
        found["fill_pattern"] = "random" if given["switch_mode"] == "random" else "prefix"
    if value("schedule") not in COUNTED:
        found["reset_optimizer"] = False  # it acts when the count grows
    if value("sample_fillers") or given["remove_separator"]:
        found["force_sep2"] = False  # the model writes what stands before the answer, or nothing does
    return found
