"""Whether runs may be compared: what differs between them besides what is compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unspoken.evaluation._folder import flatten
from unspoken.evaluation.records import Run

_MUST_AGREE = {
    "task.version": "grader and prompt version",
    "model.source": "model",
    "model.dtype": "dtype",
    "model.attn": "attention implementation",
    "model.depth.name": "depth",
}


def setting_warnings(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """Why each run may not be comparable with the first."""
    warnings = []
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
        for key in [*keys, "budget"]:
            if first.get(key) == other.get(key):
                continue
            what = {"budget": "budget of steps", "task.examples_hash": "data"}.get(key) or _MUST_AGREE.get(
                key, key
            )
            values = (
                "" if key == "task.examples_hash" else f" ({other.get(key)!r} against {first.get(key)!r})"
            )
            warnings.append(
                f"{name} and {base_name} differ in {what}{values}: accuracies may not be comparable."
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


def _budget(run: Run) -> Any:
    """The most steps an answer may take; a strategy's own total counts before the general one."""
    return run.config.get("strategy", {}).get("T_total") or run.config.get("max_new_tokens")
