"""The grid of a sweep: which configurations there are, what they are called, and which cells are to be run.

A configuration is a method at a depth, and a depth is the list of blocks that run: two requests that keep the same
blocks are one configuration with two labels. A cell is one data shard of a configuration.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unspoken import config as configs
from unspoken.errors import ConfigError, DataError
from unspoken.lm.depth import Depth, Kept
from unspoken.types import Example

if TYPE_CHECKING:
    from unspoken.decoding import Strategy

SCHEMA_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class Asked:
    """A depth as it was asked for: its label in the tables, and what it means."""

    label: str
    depth: Depth


@dataclass(frozen=True)
class Configuration:
    """One method at one depth.

    Attributes:
        method: Name of the method.
        strategy: What it decodes with.
        kept: The blocks that run.
        labels: How this depth was asked for, each once.
        folder: Where its run lies, within the sweep's folder.
    """

    method: str
    strategy: Strategy
    kept: Kept
    labels: tuple[str, ...]
    folder: str


@dataclass(frozen=True)
class Cell:
    """One data shard of a configuration: what one job runs.

    Attributes:
        index: Its number in the grid.
        configuration: Method and depth.
        shard: `i/n`, or None where the data are whole.
    """

    index: int
    configuration: Configuration
    shard: str | None


@dataclass(frozen=True)
class Grid:
    """All configurations of a sweep over one model, by depth and then by method.

    Attributes:
        source: The model's name.
        blocks: How many blocks it has.
        configurations: Each once.
        shards: Data shards of each.
    """

    source: str
    blocks: int
    configurations: tuple[Configuration, ...]
    shards: int = 1

    @classmethod
    def make(
        cls,
        source: str,
        blocks: int,
        methods: Mapping[str, Strategy],
        depths: Sequence[Asked],
        shards: int = 1,
    ) -> Grid:
        """The grid of some methods at some depths.

        Args:
            source: The model's name.
            blocks: How many blocks it has.
            methods: Strategies by name.
            depths: As they were asked for; those that keep the same blocks become one.
            shards: Data shards of each configuration.

        Raises:
            ConfigError: With all that is wrong.
        """
        problems = [
            f"The sweep names no {what}." for what, of in (("method", methods), ("depth", depths)) if not of
        ]
        problems += [
            f"A method's name is letters, digits and . _ + -, not {name!r}: it becomes the name of a folder."
            for name in methods
            if not _NAME.fullmatch(name)
        ]
        if shards < 1:
            problems.append(f"shards must be at least 1, not {shards}.")
        labels: dict[Kept, list[str]] = {}
        for asked in depths:
            try:
                known = labels.setdefault(asked.depth.resolve(blocks), [])
            except ConfigError as error:
                problems += [f"{asked.label}: {problem}" for problem in error.problems]
                continue
            if asked.label not in known:
                known.append(asked.label)
        if problems:
            raise ConfigError(problems)
        found = tuple(
            Configuration(name, strategy, kept, tuple(of), f"{slug(source)}/{name}-{depth_slug(kept)}")
            for kept, of in labels.items()
            for name, strategy in methods.items()
        )
        return cls(source, blocks, found, shards)

    @property
    def cells(self) -> list[Cell]:
        """All cells in the order of their numbers."""
        shards = [f"{i}/{self.shards}" for i in range(self.shards)] if self.shards > 1 else [None]
        pairs = [(configuration, shard) for configuration in self.configurations for shard in shards]
        return [Cell(index, configuration, shard) for index, (configuration, shard) in enumerate(pairs)]


def part_of(text: str) -> tuple[int, int]:
    """The numbers of `i/n` with 0 <= i < n.

    Raises:
        ValueError: If it is not of that form.
    """
    first, _, second = text.partition("/")
    i, n = int(first), int(second)
    if not 0 <= i < n:
        raise ValueError(text)
    return i, n


def slug(source: str) -> str:
    """A model's name as the name of a folder, as the original scripts write it."""
    return source.strip("/").replace("/", "_").replace(os.sep, "_") or "model"


def depth_slug(kept: Kept) -> str:
    """The depth as a part of a folder's name, equal for equal blocks: `full`, `24`, `24+last`, `drop-3,5-7`."""
    first = first_blocks(kept.blocks)
    if not kept.n_dropped:
        return "full"
    if first == len(kept.blocks):
        return str(first)
    if kept.blocks[first:] == (kept.of - 1,):
        return f"{first}+last"
    return f"drop-{ranges(sorted(set(range(kept.of)) - set(kept.blocks)))}"


def first_blocks(blocks: Sequence[int]) -> int:
    """How many blocks run from the first on without a gap."""
    return next((i for i, block in enumerate(blocks) if i != block), len(blocks))


def ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers in short: `0-24,27`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


@dataclass(frozen=True)
class Manifest:
    """What a sweep planned, read from or written to its folder: only so can it be known what is missing.

    Attributes:
        path: The file.
        model: The model's name.
        blocks: How many blocks it has.
        configurations: `method`, `labels`, `kept_blocks` and `folder` of each.
        shards: Data shards of each.
        samples: Answers to each example.
        examples: Ids of the examples, in order; of the n-th shard every n-th.
        skipped: Those among them without a readable gold answer.
    """

    path: Path
    model: str
    blocks: int
    configurations: tuple[Mapping[str, Any], ...]
    shards: int
    samples: int
    examples: tuple[str, ...]
    skipped: frozenset[str]

    def rows_of(self, shard: int) -> list[str]:
        """The ids of the rows of one shard."""
        chosen = [e for e in self.examples[shard :: self.shards] if e not in self.skipped]
        return [f"{example}#{sample}" for example in chosen for sample in range(self.samples)]


def write_manifest(folder: Path, grid: Grid, task: str, examples: Sequence[Example], samples: int) -> None:
    """Keep what a sweep plans; the same plan is the same file, whichever of its jobs writes it.

    Raises:
        ConfigError: If the folder cannot be written.
    """
    values = {
        "schema_version": SCHEMA_VERSION,
        "task": task,
        "model": grid.source,
        "blocks": grid.blocks,
        "shards": grid.shards,
        "samples": samples,
        "configurations": [
            {
                "method": c.method,
                "strategy": {"name": c.strategy.name, **configs.to_dict(c.strategy)},
                "labels": list(c.labels),
                "kept_blocks": list(c.kept.blocks),
                "n_dropped": c.kept.n_dropped,
                "folder": c.folder,
            }
            for c in grid.configurations
        ],
        "examples": [e.id for e in examples],
        "skipped": [e.id for e in examples if e.answer is None],
    }
    path = folder / f"sweep-{configs.fingerprint(values)}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            return
        # A name of its own: the jobs of an array may begin at the same moment.
        handle, temporary = tempfile.mkstemp(prefix=".sweep-", dir=folder)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(values, file, ensure_ascii=False, indent=1, default=str)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise ConfigError(
            f"Cannot write to the output folder {str(folder)!r}: {error.strerror}.",
            "Choose another --output.",
        ) from error


def read_manifests(folder: Path) -> list[Manifest]:
    """The plans of all sweeps in a folder or below it, in order of their paths.

    Raises:
        ConfigError: If one was written by a newer version.
        DataError: If one is damaged.
    """
    found = []
    for path in sorted(folder.rglob("sweep-*.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["schema_version"] > SCHEMA_VERSION:
                raise ConfigError(
                    f"{path} has schema version {values['schema_version']}; this version of unspoken reads up to "
                    f"{SCHEMA_VERSION}.",
                    "Run: pip install --upgrade unspoken",
                )
            manifest = Manifest(
                path,
                values["model"],
                values["blocks"],
                tuple(values["configurations"]),
                values["shards"],
                values["samples"],
                tuple(values["examples"]),
                frozenset(values["skipped"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} is not the plan of a sweep ({type(error).__name__}: {error})."
            ) from error
        found.append(manifest)
    return found
