"""Depth: which blocks of a model run, as it is asked for and as it is recorded. `view.py` makes such models."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from unspoken.config import check_fields
from unspoken.errors import ConfigError

SPECS = "N (the first N blocks), N+last, drop:I,J,... or window:START:LENGTH, with blocks counted from 0"
FULL = "full model (nothing dropped)"

_WAYS = ("keep_first", "drop", "drop_window", "layer_idx")


@dataclass(frozen=True, kw_only=True)
class Depth:
    """Which blocks of a model to keep, before it is known how many it has. Blocks are counted from 0.

    Exactly one of `keep_first`, `drop`, `drop_window` and `layer_idx` is given.

    Attributes:
        keep_first: Number of first blocks that are kept.
        keep_last: Whether the last block is kept as well; goes with `keep_first` (default: no) and `layer_idx`
            (default: yes).
        drop: Blocks that are dropped.
        drop_window: First block that is dropped, and how many are.
        layer_idx: The last of the first blocks that are kept: 26 keeps blocks 0 to 26. A number beyond the last
            block means the full model.

    Raises:
        ConfigError: With everything that is wrong.
    """

    keep_first: int | None = None
    keep_last: bool | None = None
    drop: tuple[int, ...] | None = None
    drop_window: tuple[int, int] | None = None
    layer_idx: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.drop, range):
            object.__setattr__(self, "drop", tuple(self.drop))
        problems = check_fields(self) or self._problems()
        if problems:
            raise ConfigError(problems, "Such as: lm.truncated(keep_first=24, keep_last=True)")

    @classmethod
    def read(cls, depth: Depth | str | None = None, **fields: Any) -> Depth:
        """A depth in words, by its fields, or ready made.

        Args:
            depth: A text as in `SPECS`, or a `Depth`.
            **fields: Those of this class; None is as if left out. Beside a text that is a number, `keep_last` alone.

        Raises:
            ConfigError: With everything that is wrong.
        """
        given = {name: value for name, value in fields.items() if value is not None}
        if isinstance(depth, Depth):
            if given:
                raise _contradiction(depth, given)
            return depth
        said = {} if depth is None else _read(depth)
        clashes = [
            name for name in given if said and (name in _WAYS or said.get(name, given[name]) != given[name])
        ]
        if clashes:
            raise _contradiction(depth, clashes)
        return cls(**{**said, **given})

    def resolve(self, blocks: int) -> Kept:
        """The blocks that this keeps of a model with so many.

        Raises:
            ConfigError: If they are not there, or none is kept.
        """
        problems = []
        have = f"but the model has {blocks} blocks (0 to {blocks - 1})."
        if self.keep_first is not None and self.keep_first > blocks:
            problems.append(
                f"depth {self.keep_first} asks for the first {self.keep_first} blocks, but the model has {blocks}; "
                f"allowed are 1 to {blocks}."
            )
        outside = [i for i in self.drop or () if i >= blocks]
        if outside:
            problems.append(f"drop names {', '.join(map(str, outside))}, {have}")
        if self.drop_window is not None and sum(self.drop_window) > blocks:
            start, length = self.drop_window
            problems.append(f"the window drops {length} blocks from {start} on, {have}")
        kept = tuple(i for i in range(blocks) if self._keeps(i, blocks))
        if not kept:
            problems.append(f"This drops all of the model's {blocks} blocks; at least one must be kept.")
        if problems:
            raise ConfigError(problems, f"A depth is {SPECS}; {blocks} is the full model.")
        return Kept(kept, blocks)

    def _keeps(self, block: int, blocks: int) -> bool:
        if self.drop is not None:
            return block not in self.drop
        if self.drop_window is not None:
            start, length = self.drop_window
            return not start <= block < start + length
        if self.layer_idx is not None:
            first, keep_last = self.layer_idx + 1, self.keep_last is not False
        else:
            first, keep_last = self.keep_first or 0, bool(self.keep_last)
        return block < first or (keep_last and block == blocks - 1)

    def _problems(self) -> list[str]:
        given = [name for name in _WAYS if getattr(self, name) is not None]
        problems = []
        if not given:
            problems.append(
                f"No blocks are chosen; give {', '.join(_WAYS[:-1])} or {_WAYS[-1]}, or a depth: {SPECS}."
            )
        if len(given) > 1:
            problems.append(f"{' and '.join(given)} contradict each other; give one of them.")
        if self.keep_last is not None and given and not {"keep_first", "layer_idx"} & set(given):
            problems.append(f"keep_last goes with keep_first or layer_idx, not with {' or '.join(given)}.")
        for name in ("keep_first", "layer_idx"):
            value = getattr(self, name)
            if value is not None and value < 0:
                problems.append(f"{name} must be at least 0, not {value}.")
        if self.keep_first == 0 and not self.keep_last:
            problems.append(
                "depth 0 (keep_first=0) keeps no block; 0+last (with keep_last) keeps the last one."
            )
        drop = self.drop or ()
        if any(i < 0 for i in drop):
            problems.append(f"drop must hold numbers of blocks from 0 on, not {list(drop)}.")
        if len(set(drop)) < len(drop):
            problems.append(f"drop names a block twice: {list(drop)}.")
        if min(self.drop_window or (0,)) < 0:
            problems.append(
                f"drop_window must hold a first block and a length, both from 0 on, not {self.drop_window}."
            )
        return problems


@dataclass(frozen=True)
class Kept:
    """The blocks of a model that run: what tells depths apart, however they were asked for.

    Attributes:
        blocks: Their numbers in the full model, in order.
        of: How many blocks the full model has.
    """

    blocks: tuple[int, ...]
    of: int

    @property
    def n_dropped(self) -> int:
        """How many blocks do not run."""
        return self.of - len(self.blocks)

    @property
    def name(self) -> str:
        """The depth in words, equal for equal blocks; a depth that drops nothing is called the full model."""
        if not self.n_dropped:
            return FULL
        first = next((i for i, block in enumerate(self.blocks) if i != block), len(self.blocks))
        if first == len(self.blocks):
            return f"first {first} of {self.of} blocks"
        if self.blocks[first:] == (self.of - 1,):
            return f"first {first} and last of {self.of} blocks" if first else f"last of {self.of} blocks"
        return f"{self.of} blocks without {_ranges(set(range(self.of)) - set(self.blocks))}"

    def of_view(self, inner: Kept) -> Kept:
        """The blocks of a view of this view, numbered as in the full model."""
        return Kept(tuple(self.blocks[i] for i in inner.blocks), self.of)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict, for the records."""
        return {"name": self.name, "kept_blocks": list(self.blocks), "n_dropped": self.n_dropped}


def _read(spec: str) -> dict[str, Any]:
    """The fields of a `Depth` that a spec names.

    Raises:
        ConfigError: If it is none.
    """
    text = spec.replace(" ", "")
    kind, _, rest = text.partition(":")
    try:
        if kind == "drop":
            return {"drop": tuple(int(i) for i in rest.split(","))}
        if kind == "window":
            start, length = rest.split(":")
            return {"drop_window": (int(start), int(length))}
        first, plus, last = text.partition("+")
        if plus and last != "last":
            raise ValueError
        if int(first) < 0:
            raise ValueError
        return {"keep_first": int(first), **({"keep_last": True} if plus else {})}
    except ValueError as error:
        raise ConfigError(f"depth must be {SPECS}, not {spec!r}.") from error


def _contradiction(depth: Depth | str | None, names: Iterable[str]) -> ConfigError:
    return ConfigError(f"depth={depth!r} and {' and '.join(names)} contradict each other; give one of them.")


def _ranges(numbers: set[int]) -> str:
    """`3, 5-7`."""
    found = []
    for _, run in itertools.groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        found.append(str(members[0]) if len(members) == 1 else f"{members[0]}-{members[-1]}")
    return ", ".join(found)
