"""Which settings of `internalize` contradict each other."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from unspoken.training._internalize_presets import COUNTED, defaults
from unspoken.training._needs import Need, idle

NEEDS = (
    Need("gate_accuracy gate_max_steps", lambda m: m.schedule == "accuracy_gated", "schedule accuracy_gated"),
    Need("joint_beta", lambda m: m.schedule == "joint", "schedule joint"),
    Need(
        "ramp_end switch_from_n_rate",
        lambda m: m.schedule in ("fraction", "switch"),
        "a ramp (schedule fraction or switch)",
    ),
    Need("remove_per_epoch remove_every_n_step", lambda m: m.schedule == "count", "schedule count"),
    Need(
        "remove_per_epoch",
        lambda m: not m.remove_every_n_step,
        "remove_every_n_step 0, which else sets the pace",
    ),
    Need("step_delimiters", lambda m: m.unit == "step", "unit step"),
    Need("fill_kind", lambda m: m.mode != "drop", "fillers, but mode is drop"),
    Need("fill_text", lambda m: m.mode != "drop" and m.fill_kind == "text", "fillers of fill_kind text"),
    Need(
        "init_fill",
        lambda m: m.mode != "drop" or m.sep_mode != "eos",
        "new tokens: fillers (mode), or separators of their own (sep_mode)",
    ),
    Need("fill_ratio", lambda m: m.mode == "ratio", "mode ratio; mode is {m.mode}"),
    Need(
        "n_fillers", lambda m: m.mode in ("fixed", "capped"), "the modes fixed and capped; mode is {m.mode}"
    ),
    Need(
        "fill_loss_weight fill_loss_anneal",
        lambda m: m.fill_target != "ignore",
        "fill_target fill or cot: with ignore there is no loss at fillers",
    ),
    Need(
        "infer_num_fillers",
        lambda m: m.mode in ("replace", "ratio") and not m.sample_fillers,
        "the modes replace and ratio and without sample_fillers; mode is {m.mode}",
    ),
    Need(
        "force_sep2",
        lambda m: not m.sample_fillers and not m.remove_separator,
        "a separator that can be read in advance: without sample_fillers and remove_separator",
    ),
    Need("max_len_action", lambda m: m.max_len_train > 0, "max_len_train"),
)


def problems(method: Any) -> list[str]:
    """All that is wrong with the fields of an `Internalize`, each as one sentence."""
    values = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    otherwise = {f.name: f.default for f in dataclasses.fields(method)} | defaults(values)
    return [
        *_ranges(method),
        *_schedule(method),
        *_fillers(method),
        *_separators(method),
        *idle(method, NEEDS, otherwise),
    ]


def _ranges(m: Any) -> list[str]:
    found = []
    at_least_0 = ("remove_per_epoch", "remove_start_from", "pretrain_epochs", "remove_every_n_step")
    for name in (*at_least_0, "remove_from_n_steps", "n_fillers", "gate_max_steps"):
        if not getattr(m, name) >= 0:
            found.append(f"{name} must be 0 or more, not {getattr(m, name)}.")
    for name in ("removal_smoothing_lambda", "remove_all_when_remove_beyond"):
        if not getattr(m, name) > 0:
            found.append(f"{name} must be above 0, not {getattr(m, name)}.")
    # Below, both Gamma variates that a share is made of would be 0 in floating point now and then.
    if not 0.01 <= m.joint_beta <= 1e6:
        found.append(f"joint_beta must be from 0.01 to 1e6, not {m.joint_beta}.")
    if math.isinf(m.remove_per_epoch):
        found.append(
            "remove_per_epoch must be finite; remove_start_from inf removes everything from the start."
        )
    if m.remove_start_from < math.inf and m.remove_start_from % 1:
        found.append(f"remove_start_from must be a whole number or inf, not {m.remove_start_from}.")
    for name in ("fill_ratio", "gate_accuracy", "ramp_end"):
        if not 0 < getattr(m, name) <= 1:
            found.append(f"{name} must be above 0 and at most 1, not {getattr(m, name)}.")
    for name in ("fill_loss_weight", "switch_from_n_rate"):
        if not 0 <= getattr(m, name) <= 1:
            found.append(f"{name} must be from 0 to 1, not {getattr(m, name)}.")
    for name in ("max_len_train", "truncation"):
        if getattr(m, name) != -1 and getattr(m, name) < 1:
            found.append(f"{name} must be -1 (no limit) or at least 1, not {getattr(m, name)}.")
    return found


def _schedule(m: Any) -> list[str]:
    found = []
    if m.switch_tokens and m.remove_tokens:
        found.append("switch_tokens and remove_tokens are two different schedules; give one of them.")
    if m.switch_tokens and m.preset != "seed_switch":
        found.append(f"switch_tokens is the preset seed_switch, but preset is {m.preset!r}.")
    if m.remove_tokens and m.schedule != "count":
        found.append(f"remove_tokens is the schedule count, but schedule is {m.schedule!r}.")
    if m.switch_mode and m.schedule != "switch":
        found.append(f"switch_mode belongs to the schedule switch, but schedule is {m.schedule!r}.")
    if m.switch_mode and (m.switch_mode == "random") != (m.fill_pattern == "random"):
        found.append(
            f"switch_mode {m.switch_mode} contradicts fill_pattern {m.fill_pattern}; give one of them."
        )
    if m.schedule not in COUNTED:
        usual = {"remove_start_from": 0.0, "remove_all_when_remove_beyond": math.inf}
        counted = [name for name, value in usual.items() if getattr(m, name) != value]
        if counted:  # also by a preset, which then is not what was asked for
            found.append(
                f"{', '.join(counted)} (preset: {m.preset}) belongs to the schedules count and accuracy_gated, but "
                f"schedule is {m.schedule}: leave it out, or add --schedule count."
            )
    if m.reset_optimizer and m.schedule not in COUNTED:
        found.append(
            f"reset_optimizer acts when the count grows; the schedule {m.schedule} has none. Leave one of them out."
        )
    if m.unit == "step" and not m.step_delimiters:
        found.append("unit step needs step_delimiters.")
    if m.unit == "step" and m.schedule == "switch":
        found.append("The schedule switch draws single tokens; it cannot have unit step.")
    return found


def _fillers(m: Any) -> list[str]:
    found = []
    if m.mode in ("fixed", "capped") and m.n_fillers < 1:
        found.append(f"mode {m.mode} needs n_fillers of at least 1.")
    if m.keep_position and m.removal_side == "right" and m.mode != "drop":
        found.append("keep_position with removal_side right needs mode drop.")
    if m.keep_position and m.mode == "fixed":
        found.append("keep_position with mode fixed: the fillers are there before anything is removed.")
    if m.fill_pattern == "random":
        if m.keep_position:
            found.append("keep_position needs fill_pattern prefix: random removal leaves holes all over.")
        if m.mode in ("fixed", "capped"):
            found.append(f"mode {m.mode} puts its fillers in one place and needs fill_pattern prefix.")
        if m.unit == "step":
            found.append("unit step needs fill_pattern prefix.")
        if m.remove_separator:
            found.append(
                "remove_separator needs fill_pattern prefix: random removal would take it apart like the chain."
            )
        if m.removal_side == "right":
            found.append("removal_side right needs fill_pattern prefix: random removal has no side.")
    in_place = m.mode == "replace" or (m.mode == "ratio" and m.fill_ratio == 1)
    if m.fill_target == "cot" and not in_place:
        found.append(
            f"fill_target cot needs a filler for each removed token (mode replace); mode is {m.mode}."
        )
    if m.fill_target == "fill" and m.mode == "drop":
        found.append("fill_target fill needs fillers; mode is drop.")
    if m.sample_fillers and m.fill_target != "fill":
        found.append("sample_fillers needs fill_target fill: the model must learn to write them.")
    if m.fill_kind == "text" and not m.fill_text.strip():
        found.append("fill_text must not be blank.")
    return found


def _separators(m: Any) -> list[str]:
    if m.sep_mode == "custom":
        return [f"sep_mode custom needs {name}." for name in ("sep1", "sep2") if not getattr(m, name).strip()]
    if m.preset != "seed_switch" and (m.sep1 or m.sep2):
        return [f"sep1 and sep2 belong to sep_mode custom; sep_mode is {m.sep_mode}."]
    return []
