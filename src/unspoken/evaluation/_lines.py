"""JSON Lines that survive being killed: appended and synced line by line, a torn last line is dropped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from unspoken.errors import DataError, RunError


def encode(values: Mapping[str, Any]) -> bytes:
    """One line, with its newline."""
    return json.dumps(values, ensure_ascii=False).encode("utf-8") + b"\n"


def append(file: BinaryIO, line: bytes) -> None:
    """Append one line and see it on the disk.

    Raises:
        RunError: If it cannot be written, on a full disk for example.
    """
    try:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise RunError(
            f"Cannot write to {Path(file.name).name!r}: {error.strerror}. The rows finished so far are kept.",
            "Free some space and run the same command again: it goes on where it stopped.",
        ) from error


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file, without a torn last one; nothing if there is no such file.

    Raises:
        DataError: If a line other than the last is damaged; names the line.
    """
    for _, _, values in _scan(path):
        yield values


def repair(path: Path) -> None:
    """Cut a torn last line off the file, so that the next line starts cleanly."""
    if not path.exists():
        return
    end = 0
    for start, length, _ in _scan(path):
        end = start + length
    if end != path.stat().st_size:
        with path.open("r+b") as file:
            file.truncate(end)


def sort(path: Path, order: Mapping[str, Any]) -> None:
    """Rewrite a file of lines with an `id` (or `row`) in the given order, in one atomic step.

    The last line of each id is kept, and ids that are not in `order` are dropped. Lines are copied as
    bytes and never held in memory together.
    """
    if not path.exists():
        return
    places: dict[str, tuple[int, int]] = {}
    for start, length, values in _scan(path):
        key = values["id"] if "id" in values else values["row"]
        if key in order:
            places[key] = (start, length)
    temporary = path.with_name(path.name + ".tmp")
    with path.open("rb") as source, temporary.open("wb") as target:
        for key in sorted(places, key=lambda k: order[k]):
            start, length = places[key]
            source.seek(start)
            target.write(source.read(length))
        target.flush()
        os.fsync(target.fileno())
    os.replace(temporary, path)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write one JSON file in one atomic step."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(values, ensure_ascii=False, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _scan(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Start, length and values of each whole line."""
    if not path.exists():
        return
    size, start = path.stat().st_size, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                values = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                values = None
            if isinstance(values, dict):
                yield start, len(line), values
            elif start + len(line) < size:
                raise DataError(
                    f"Line {number} of {path} is damaged.",
                    "Delete this line and run the same command again: only its row is generated anew.",
                )
            start += len(line)
