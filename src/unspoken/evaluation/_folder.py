"""Where rows go while a run works: into memory, and into a folder that survives being killed.

A run folder holds `run.json` (configuration, environment, state), `rows.jsonl` (one line an answer),
`measures.jsonl` (what may differ between machines: times, means of floats), with `trace="full"` also
`trace.jsonl`, `errors.jsonl` while rows fail, and `grades.NAME.jsonl` where it was graded again. A shard i of n
has its own files with `.i-of-n` in their names, in the same folder. A folder only grows: more samples or another
range may be added to it.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from unspoken import config as configs
from unspoken.errors import ConfigError, DataError, RunError
from unspoken.evaluation import _lines
from unspoken.evaluation.records import SCHEMA_VERSION, ResultRow, Run, Summary
from unspoken.types import Generation, Grade

IDENTITY = ("task", "strategy", "model", "max_new_tokens", "seed")
"""The parts of a configuration that decide what a row is. The rest says how many, or how fast."""


class Store:
    """A run's rows in memory."""

    def __init__(self, config: dict[str, Any], environment: dict[str, Any]) -> None:
        self.config, self.environment = config, environment
        self.rows: dict[str, ResultRow] = {}
        self.errors: list[dict[str, str]] = []
        self.kept: list[Generation] = []
        self.planned, self.skipped = 0, ()  # type: int, tuple[str, ...]
        self.session = 1
        self._clock = time.perf_counter()
        self.wall_seconds = 0.0
        self.started = _now()

    def begin(self, planned: int, skipped: tuple[str, ...]) -> None:
        """Work starts now: the clock runs, and failed rows get another chance."""
        self.planned, self.skipped = planned, skipped
        self._clock = time.perf_counter()

    def add(self, row: ResultRow, trace: Generation | None) -> None:
        """Keep a finished row, and its steps where they are wanted."""
        self.rows[row.id] = row
        if trace is not None:
            self.kept.append(trace)

    def error(self, row: str, reason: str) -> None:
        """Keep what went wrong with a row."""
        self.errors.append({"id": row, "reason": reason})

    def end(self, state: str) -> None:
        """Work is over."""
        self.wall_seconds += time.perf_counter() - self._clock
        self.state = state

    def close(self) -> None:
        """Let go of files and lock."""

    def run(self) -> Run:
        """What there is now."""
        rows = sorted(self.rows.values(), key=lambda r: (r.index, r.sample))
        return Run(
            config=self.config,
            rows=rows,
            state=self.state,
            environment=self.environment,
            skipped=self.skipped,
            errors=self.errors,
            planned=self.planned,
            wall_seconds=self.wall_seconds,
            started=self.started,
            finished=_now(),
            kept=self.kept,
        )


class Folder(Store):
    """A run's rows in a folder as well.

    Args:
        path: The folder; it is made where it is missing.
        config: The resolved configuration.
        environment: Versions and machine.
        shard: `i/n`, or None.
        force: Whether a folder of another configuration is moved aside instead of refused.

    Raises:
        ConfigError: If it cannot be written, is in use, or holds another configuration.
    """

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        environment: dict[str, Any],
        *,
        shard: str | None,
        force: bool,
    ) -> None:
        super().__init__(config, environment)
        self.path = path
        self.tag = f".{shard.replace('/', '-of-')}" if shard else ""
        self.fingerprint = configs.fingerprint(identity(config))
        self._lock = claim(path, self.tag)
        try:
            problems = _differences(path, config)
            if problems and force:
                self._move_aside()
            elif problems:
                raise ConfigError(
                    [f"{path} holds another configuration: {'; '.join(problems)}."],
                    "Choose another --output, or add --force to move the old folder aside.",
                )
            self._open()
        except BaseException:
            self._lock.close()
            raise

    def file(self, name: str, suffix: str = ".jsonl") -> Path:
        """The path of one of this run's (or shard's) files."""
        return self.path / f"{name}{self.tag}{suffix}"

    def begin(self, planned: int, skipped: tuple[str, ...]) -> None:
        super().begin(planned, skipped)
        self.errors.clear()
        self.file("errors").unlink(missing_ok=True)
        self._save("running")

    def add(self, row: ResultRow, trace: Generation | None) -> None:
        # The row comes last: whoever sees it may rely on its measures and steps being there.
        clock = round(time.perf_counter() - self._clock, 3)
        seconds = round(row.usage.seconds, 4)
        measures = {"id": row.id, "session": self.session, "clock": clock, "seconds": seconds, **row.measures}
        line = _lines.encode(row.to_dict())
        if trace is not None:
            self._append("trace", _lines.encode(trace.to_dict()))
        self._append("measures", _lines.encode(measures))
        self._append("rows", line)
        super().add(row, None)

    def error(self, row: str, reason: str) -> None:
        super().error(row, reason)
        self._append("errors", _lines.encode(self.errors[-1]))

    def end(self, state: str) -> None:
        """Put the files in the order of the examples, and record the state."""
        super().end(state)
        self._close_files()
        order = {row.id: (row.index, row.sample) for row in self.rows.values()}
        for name in ("trace", "measures", "rows"):
            _lines.sort(self.file(name), order)
        self._save(state)

    def close(self) -> None:
        self._close_files()
        self._lock.close()

    def run(self) -> Run:
        return read_folder(self.path)

    def _open(self) -> None:
        for name in ("rows", "measures", "trace"):
            _lines.repair(self.file(name))
        self.rows = {row.id: row for row in _read_rows(self.path)}
        sessions = [line["session"] for line in _lines.read(self.file("measures"))]
        self.session = max(sessions, default=0) + 1
        with contextlib.suppress(FileNotFoundError):
            self.started = _read_run(self.file("run", ".json"))["started"]
        self._files: dict[str, BinaryIO] = {}

    def _append(self, name: str, line: bytes) -> None:
        if name not in self._files:
            try:
                self._files[name] = self.file(name).open("ab")
            except OSError as error:
                raise RunError(f"Cannot write {self.file(name)}: {error.strerror}.") from error
        _lines.append(self._files[name], line)

    def _close_files(self) -> None:
        for file in self._files.values():
            # What a full disk did not take was reported when it was appended.
            with contextlib.suppress(OSError):
                file.close()
        self._files.clear()

    def _save(self, state: str) -> None:
        summary = Summary(self.planned, len(self.skipped), len(self.errors))
        for row in self.rows.values():
            summary.add(row)
        working = state == "running"
        record = {
            "schema_version": SCHEMA_VERSION,
            "state": state,
            "fingerprint": self.fingerprint,
            "config": self.config,
            "environment": self.environment,
            "started": self.started,
            "finished": "" if working else _now(),
            "wall_seconds": None if working else round(sum(_session_seconds(self.path).values()), 3),
            "planned": self.planned,
            "skipped": list(self.skipped),
            "totals": None if working else summary.to_dict(),
        }
        _lines.write_json(self.file("run", ".json"), record)

    def _move_aside(self) -> None:
        others = [
            p.name.removeprefix(".lock") for p in self.path.glob(".lock*") if p.name != f".lock{self.tag}"
        ]
        for tag in others:
            claim(self.path, tag).close()
        number = 1
        while (old := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        try:
            self.path.rename(old)
        except OSError as error:
            raise ConfigError(f"Cannot move {self.path} aside: {error.strerror}.") from error
        self._lock.close()
        self._lock = claim(self.path, self.tag)


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """The parts of a configuration that decide what a row is: a model by its weights, whatever its folder is called."""
    chosen = {key: config.get(key) for key in IDENTITY}
    model = chosen["model"]
    if isinstance(model, dict) and "weights_hash" in model:
        chosen["model"] = {key: value for key, value in model.items() if key != "source"}
    return chosen


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def is_run_folder(path: Path) -> bool:
    """Whether `evaluate` wrote this folder."""
    return path.is_dir() and any(path.glob("run*.json"))


def read_folder(path: Path) -> Run:
    """Read a run folder, its shards merged; reading never changes it.

    Raises:
        ConfigError: If it is none, or was written by a newer version.
        DataError: If a line is damaged.
    """
    records = {p.name[len("run") : -len(".json")]: _read_run(p) for p in sorted(path.glob("run*.json"))}
    if not records:
        raise ConfigError(f"{path} is not a run folder: it has no run.json.")
    if len({configs.fingerprint(identity(record["config"])) for record in records.values()}) > 1:
        raise ConfigError(f"The shards in {path} have different configurations.")
    first = next(iter(records.values()))
    rows = sorted(_read_rows(path), key=lambda r: (r.index, r.sample))
    done = {row.id for row in rows}
    failed = {
        e["id"]: e for p in sorted(path.glob("errors*.jsonl")) for e in _lines.read(p) if e["id"] not in done
    }
    planned = records[""]["planned"] if "" in records else sum(r["planned"] for r in records.values())
    return Run(
        config={**first["config"], "shard": None} if len(records) > 1 else first["config"],
        rows=rows,
        path=path,
        state=_state(records),
        environment=first["environment"],
        skipped=tuple(dict.fromkeys(name for r in records.values() for name in r["skipped"])),
        errors=list(failed.values()),
        planned=max(planned, len(rows)),
        wall_seconds=sum(_session_seconds(path).values()),
        started=min(r["started"] for r in records.values()),
        finished=max(r["finished"] for r in records.values()),
    )


def _state(records: dict[str, dict[str, Any]]) -> str:
    """The state of the whole: that of the unsharded run, or the worst of all shards."""
    if "" in records:
        return str(records[""]["state"])
    states = [record["state"] for record in records.values()]
    for state in ("running", "failed", "interrupted", "incomplete"):
        if state in states:
            return state
    shards = {tuple(map(int, tag[1:].split("-of-"))) for tag in records}
    whole = any(all((i, n) in shards for i in range(n)) for _, n in shards)
    return "complete" if whole else "incomplete"


def _read_run(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        schema = record["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not the record of a run.") from error
    if schema > SCHEMA_VERSION:
        raise ConfigError(
            f"{path} has schema version {schema}; this version of unspoken reads up to {SCHEMA_VERSION}.",
            "Run: pip install --upgrade unspoken",
        )
    return record


def _read_rows(path: Path) -> list[ResultRow]:
    measures = {m["id"]: m for p in sorted(path.glob("measures*.jsonl")) for m in _lines.read(p)}
    later = {name: read_grades(path, name) for name in graded_later(path)}
    found: dict[str, ResultRow] = {}
    for file in sorted(path.glob("rows*.jsonl")):
        for line in _lines.read(file):
            try:
                row = ResultRow.from_dict(line, measures.get(line["id"]))
                beside = {name: lines[row.id] for name, lines in later.items() if row.id in lines}
                found[row.id] = replace(row, grades={**row.grades, **beside}) if beside else row
            except (KeyError, TypeError) as error:
                raise DataError(f"{file} holds a line that is no row of this version: {error}.") from error
    return list(found.values())


def grades_file(path: Path, name: str) -> Path:
    """Where a later grader's opinions lie beside the rows."""
    return path / f"grades.{name.replace(' ', '-')}.jsonl"


def graded_later(path: Path) -> list[str]:
    """The names of the graders whose opinions lie beside the rows."""
    return [p.name.split(".")[1].replace("-", " ") for p in sorted(path.glob("grades.*.jsonl"))]


def read_grades(path: Path, name: str, of: Mapping[str, str] | None = None) -> dict[str, Grade]:
    """A later grader's opinions by row; with `of` only those of rows that have this fingerprint."""
    lines = _lines.read(grades_file(path, name))
    return {
        line["id"]: Grade(line["status"], line["answer"], line["rule"])
        for line in lines
        if of is None or of.get(line["id"]) == line["of"]
    }


def _session_seconds(path: Path) -> dict[tuple[str, int], float]:
    """How long each session of each shard worked, read off its last row: known also after a kill."""
    clocks: dict[tuple[str, int], float] = {}
    for file in sorted(path.glob("measures*.jsonl")):
        for line in _lines.read(file):
            key = (file.name, line["session"])
            clocks[key] = max(clocks.get(key, 0.0), line["clock"])
    return clocks


def _differences(path: Path, config: dict[str, Any]) -> list[str]:
    """What the folder's configuration and this one disagree on."""
    mine = flatten(identity(config))
    problems: dict[str, None] = {}
    others: dict[str, None] = {}
    records = sorted(path.glob("run*.json"))
    if not records and any(path.glob("rows*.jsonl")):
        return ["it has rows but no run.json"]
    for file in records:
        record = _read_run(file)
        theirs = flatten(identity(record["config"]))
        for key in dict.fromkeys([*theirs, *mine]):
            if theirs.get(key) != mine.get(key):
                problems[f"{key} is {theirs.get(key)!r} there and {mine.get(key)!r} here"] = None
        for part in ("task", "strategy"):
            there, here = theirs.get(f"{part}.name"), mine.get(f"{part}.name")
            if there != here:
                others[f"{part} is {there!r} there and {here!r} here"] = None
    # Another task or strategy has other fields, too, and they would only hide what matters.
    return list(others or problems)


def claim(path: Path, tag: str) -> BinaryIO:
    """Make the folder and lock it; the system drops the lock when the process ends, however it ends."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / f".lock{tag}").open("ab")
    except OSError as error:
        raise ConfigError(
            f"Cannot write to the output folder {str(path)!r}: {error.strerror}.", "Choose another --output."
        ) from error
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ConfigError(
            f"Another process is writing to {str(path)!r}.", "Wait for it, or choose another --output."
        ) from error
    return lock


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
