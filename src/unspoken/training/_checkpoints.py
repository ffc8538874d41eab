"""Checkpoints on the disk: written aside, then renamed, so that a kill or a full disk leaves the last good one.

```
output/                 the trained model, when the run is over: a plain Hugging Face folder
    training.json       what the run is, and whether it is finished
    metrics.jsonl       one row for each log and evaluation
    best/               the model at its best score, where the method names scores
    best_by_removed/N/  the same of each stage of the curriculum, with save_stages
    checkpoints/step-N/ the model at step N
        trainer/        what else it takes to go on from there: optimizer, counters, adapters
```
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unspoken.config import json_ready
from unspoken.errors import ConfigError, RunError

_OF_WRITERS = ("SafetensorError", "RuntimeError", "Exception")


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes the place of `folder` when all is written.

    Raises:
        RunError: If it cannot be written; `folder` is as it was.
    """
    aside = folder.with_name(f".{folder.name}.writing")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        _sync(aside)
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:
        shutil.rmtree(aside, ignore_errors=True)
        # Of a full disk safetensors tells with an exception of its own, torch with a RuntimeError, tokenizers with
        # a bare Exception.
        if isinstance(error, OSError) or type(error).__name__ in _OF_WRITERS:
            raise RunError(
                f"Could not write the checkpoint {folder}: {error}",
                "Earlier checkpoints are as they were. Make room and run the same command again.",
            ) from error
        raise


def move_into(aside: Path, output: Path) -> None:
    """Move each file of a folder into another one, over what is there, and remove the folder."""
    for path in sorted(aside.iterdir()):
        target = output / path.name
        if path.is_dir() and target.exists():
            shutil.rmtree(target)
        os.replace(path, target)
    aside.rmdir()


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def newest_first(output: Path) -> list[tuple[int, Path]]:
    """The complete checkpoints of a run with their steps."""
    found = []
    for path in (output / "checkpoints").glob("step-*"):
        number = path.name.removeprefix("step-")
        if number.isdigit() and (path / "trainer" / "progress.json").is_file():
            found.append((int(number), path))
    return sorted(found, reverse=True)


def prune(output: Path, keep: int) -> None:
    """Remove all but the newest checkpoints, and what a kill left half-written; no process may be writing."""
    half = [path for place in (output, output / "checkpoints") for path in place.glob(".*") if path.is_dir()]
    half = [path for path in half if path.name.endswith((".writing", ".old"))]
    for path in [*(path for _, path in newest_first(output)[keep:]), *half]:
        shutil.rmtree(path, ignore_errors=True)


def newest_readable(output: Path, read: Callable[[Path], Any], tell: Callable[[str], None]) -> Any | None:
    """What `read` makes of the newest checkpoint that it can read; broken ones are told about and skipped."""
    for _, path in newest_first(output):
        try:
            return read(path)
        except Exception as error:  # whatever a damaged file makes its reader raise
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            tell(f"Skipping the checkpoint {path.name}, which cannot be read ({why}).")
    return None


def read_run(output: Path) -> dict[str, Any] | None:
    """`training.json` of a folder, or None where there is no run yet.

    Raises:
        ConfigError: If it cannot be read.
    """
    path = output / "training.json"
    if not path.exists():
        return None
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}", "Choose another output folder, or remove this one."
        ) from error
    return dict(run)


def write_run(output: Path, run: dict[str, Any]) -> None:
    """Write `training.json`, at once or not at all."""
    aside = output / ".training.json.writing"
    try:
        output.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(json_ready(run), indent=1) + "\n", encoding="utf-8")
        os.replace(aside, output / "training.json")
    except OSError as error:
        raise RunError(f"Cannot write into {output}: {error.strerror}.") from error


def refuse_differences(output: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse to go on with a run under another configuration.

    Raises:
        ConfigError: With every key that differs.
    """
    left, right = _flat(old), _flat(new)
    different = [
        f"{key} is {json.dumps(left.get(key))} there and {json.dumps(right.get(key))} now"
        for key in sorted({*left, *right})
        if left.get(key) != right.get(key)
    ]
    if different:
        raise ConfigError(
            [f"{output} holds a run of another configuration: {'; '.join(different)}."],
            "Choose another output folder, or resume='never' (--resume never) to move the old one aside.",
        )


def move_aside(output: Path) -> None:
    """Rename a folder to the first free `NAME.old-N`."""
    number = 1
    while (old := output.with_name(f"{output.name}.old-{number}")).exists():
        number += 1
    try:
        output.rename(old)
    except OSError as error:
        raise ConfigError(f"Cannot move {output} aside: {error.strerror}.") from error


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in json.loads(json.dumps(json_ready(values))).items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
