"""Runs that are kept: a file each, found by ids that the server made.

A file `ID.jsonl` has the start message, then every event, then the done message, one JSON object a line. It is
written aside and then put in its place, so a file is whole or not there.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unspoken.errors import ConfigError, DataError

SUFFIX = ".jsonl"
_ID = re.compile(r"[a-z0-9-]{8,40}")
SHOWN = 200
"""Characters of prompt and text in the list."""
MOST_LISTED = 200
_TAIL = 4 * 2**20


class DamagedRun(DataError):
    """A kept run whose file cannot be read."""


def new_id() -> str:
    """A name for a run; later ones sort after earlier ones."""
    now = time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
    return f"{stamp}-{int(now % 1 * 1000):03d}-{secrets.token_hex(4)}"


class History:
    """The kept runs of a folder.

    Args:
        folder: Where they are; it is made if it is missing.

    Raises:
        ConfigError: If the folder cannot be made or written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser()
        self._index: dict[str, dict[str, Any]] = {}
        self._unread: set[str] = set()  # files that are no runs
        self._lock = threading.Lock()
        check_folder(folder)
        self._look()

    def save(
        self, run: str, start: dict[str, Any], events: Sequence[dict[str, Any] | bytes], done: dict[str, Any]
    ) -> None:
        """Keep a run under an id of `new_id`.

        Args:
            run: The id.
            start: Its first message.
            events: Its events, as JSON where they are bytes.
            done: Its last message.

        Raises:
            OSError: If it cannot be written.
        """
        lines = (
            item
            if isinstance(item, bytes)
            else json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode()
            for item in (start, *events, done)
        )
        aside = self.folder / f".{run}{SUFFIX}.part"
        with aside.open("wb") as file:
            file.writelines(line + b"\n" for line in lines)
        os.replace(aside, self.folder / f"{run}{SUFFIX}")
        with self._lock:
            self._index[run] = _summary(run, start, done)

    def list(self, limit: int = 50, before: str | None = None) -> list[dict[str, Any]]:
        """What is known of the runs, newest first.

        Args:
            limit: Most of them.
            before: Only those older than the run of this id.
        """
        with self._lock:
            self._look()
            found = [entry for run, entry in self._index.items() if before is None or run < before]
        return sorted(found, key=lambda entry: str(entry["id"]), reverse=True)[: min(limit, MOST_LISTED)]

    def read(self, run: str) -> dict[str, Any] | None:
        """The whole run: `start`, `events`, `done`; None if none is kept under this id.

        Raises:
            DamagedRun: If its file is not JSON line by line.
        """
        path = self._path(run)
        if path is None:
            return None
        try:
            # Not splitlines, which also breaks lines within texts (U+2028).
            lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
            start, *events, done = map(_loads, lines)
        except OSError:
            return None
        except (ValueError, RecursionError) as error:
            raise DamagedRun(
                f"The file of this run is damaged ({error}).", "Delete the run, or restore it."
            ) from None
        return {"start": start, "events": events, "done": done}

    def delete(self, run: str) -> bool:
        """Remove a run; whether there was one."""
        path = self._path(run)
        if path is None:
            return False
        path.unlink(missing_ok=True)
        with self._lock:
            self._index.pop(run, None)
        return True

    def _path(self, run: str) -> Path | None:
        """The file of a run that the index knows; text from outside never becomes part of a path otherwise."""
        with self._lock:
            if run not in self._index:
                self._look()
            return self.folder / f"{run}{SUFFIX}" if run in self._index else None

    def _look(self) -> None:
        """Bring the index in line with the folder: another lab may use it, too."""
        try:
            names = {name.removesuffix(SUFFIX) for name in os.listdir(self.folder) if name.endswith(SUFFIX)}
        except OSError:
            return
        for gone in self._index.keys() - names:
            del self._index[gone]
        for run in names - self._index.keys() - self._unread:
            entry = _read_summary(self.folder / f"{run}{SUFFIX}", run) if _ID.fullmatch(run) else None
            if entry is None:
                self._unread.add(run)
            else:
                self._index[run] = entry


def _read_summary(path: Path, run: str) -> dict[str, Any] | None:
    """From the first and the last line of a file."""
    try:
        with path.open("rb") as file:
            first = file.readline(_TAIL)
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL))
            last = file.read().rstrip(b"\n").rpartition(b"\n")[2]
        summary = _summary(run, _loads(first), _loads(last))
        json.dumps(summary)  # what cannot be told is not listed
        return summary
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _loads(line: str | bytes) -> Any:
    """One line as what can be told again: its numbers are finite."""
    return json.loads(line, parse_float=_finite, parse_constant=_finite)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:40]} is not finite")
    return value


def check_folder(folder: Path) -> None:
    """Make the folder if it is missing, and find out whether it can be written to.

    Raises:
        ConfigError: If it cannot.
    """
    folder = folder.expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{secrets.token_hex(4)}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"Runs cannot be kept in {str(folder)!r}: {error.strerror}.",
            "Name another folder with --history DIR, or keep none with --history none.",
        ) from error


def _summary(run: str, start: dict[str, Any], done: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": run,
        "time": start.get("time"),
        "prompt": str((start.get("prompt") or {}).get("user", start.get("prompt_text", "")))[:SHOWN],
        "strategy": start["strategy"]["name"],
        "seed": start["seed"],
        "text": str(done["text"])[:SHOWN],
        "reason": done["reason"],
        "usage": done["usage"],
        "grade": done.get("grade"),
    }


def now() -> str:
    """The time as it is kept: ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def default_folder() -> Path:
    """The user's own folder for runs."""
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "unspoken" / "lab"
