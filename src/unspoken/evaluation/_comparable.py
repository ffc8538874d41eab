"""Whether runs may be compared: what differs between them besides what is compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unspoken.evaluation._folder import flatten
from unspoken.evaluation.records import Run

_NAMES = {
    "budget": "budget of steps",
    "task.examples_hash": "data",
    "task.version": "grader and prompt version",
    "model.source": "model",
    "model.dtype": "dtype",
    "model.attn": "attention implementation",
}
_DEPTH = "model.depth."
_OF_DEPTH = ("model.parameters", "model.weights_hash")
"""What is another at another depth of one model."""


def setting_warnings(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """Why each run may not be comparable with the first."""
    warnings = _depths(runs, names)
    base, base_name = runs[0], names[0]
    first = {**flatten(base.config), "budget": _budget(base)}
    for run, name in zip(runs[1:], names[1:], strict=True):
        other = {**flatten(run.config), "budget": _budget(run)}
        keys = [k for k in dict.fromkeys([*first, *other]) if k.startswith(("task.", "model."))]
        if not any(key.startswith("task.") for key in first) or not any(
            key.startswith("task.") for key in other
        ):
            warnings.append(
                f"{name} and {base_name}: task, prompt and grader cannot be checked, they were not recorded."
            )
            keys = [key for key in keys if key in first and key in other]
        other_depth = first.get(f"{_DEPTH}kept_blocks") != other.get(f"{_DEPTH}kept_blocks")
        told = []
        for key in [*keys, "budget"]:
            if first.get(key) == other.get(key) or key.startswith(_DEPTH):
                continue
            if other_depth and key in _OF_DEPTH:
                continue
            values = "" if key.endswith("_hash") else f" ({other.get(key)!r} against {first.get(key)!r})"
            told.append(f"{_NAMES.get(key, key)}{values}")
        if told:
            warnings.append(
                f"{name} and {base_name} differ in {', '.join(told)}: accuracies may not be comparable."
            )
        samples = [r.summary.samples for r in (run, base)]
        if samples[0] != samples[1]:
            warnings.append(
                f"{name} has {samples[0]} samples an example and {base_name} {samples[1]}: "
                "they are paired by the mean of each example."
            )
        machine = [k for k in ("batch_size", "device", "trace") if first.get(k) != other.get(k)]
        machine += [
            k
            for k in ("device_name", "torch_threads", "torch")
            if base.environment.get(k) != run.environment.get(k)
        ]
        if machine and run.wall_seconds and base.wall_seconds:
            warnings.append(
                f"{name} and {base_name} differ in {', '.join(machine)}: seconds are not comparable."
            )
    for run, name in zip(runs, names, strict=True):
        if run.state != "complete":
            warnings.append(f"{name} is {'not finished' if run.state == 'running' else run.state}.")
        if run.errors:
            warnings.append(f"{name}: {len(run.errors)} rows failed and are counted nowhere.")
    if any(run.summary.samples > 1 for run in runs):
        warnings.append("With several samples an example, McNemar's test compares the majority votes.")
    return warnings


def _depths(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """One sentence with the depth of each run, where they are not all the same."""
    depths = [run.config.get("model", {}).get("depth", {}).get("name", "the full model") for run in runs]
    if len(set(depths)) < 2:
        return []
    listed = ", ".join(f"{name} is {depth}" for name, depth in zip(names, depths, strict=True))
    return [f"The runs are of different depths: {listed}."]


def _budget(run: Run) -> Any:
    """The most steps an answer may take; a strategy's own total counts before the general one."""
    return run.config.get("strategy", {}).get("T_total") or run.config.get("max_new_tokens")
