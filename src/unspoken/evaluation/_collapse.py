"""When a configuration is hopeless: its first answers all say nothing and do not end.

A model that has lost too many blocks repeats itself to the end of its budget: the dearest answers there are, and none
of them can be read. Whether a cell of a sweep is given up depends on its first rows in the order of the examples alone,
not on batches, interruptions or other cells.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from unspoken.evaluation._lines import write_json
from unspoken.evaluation.records import ResultRow

AFTER = 20
"""Examples after which a cell may be given up."""
_TAIL, _TIMES, _LEAST = 400, 4, 24


def loops(text: str) -> bool:
    """Whether a text ends in a loop: one piece again and again, at least 4 times over at least 24 characters.

    Only the last 400 characters are looked at, so that a piece may be up to 100 characters long; white space counts
    as one space.
    """
    tail = " ".join(text[-2 * _TAIL :].split())[-_TAIL:]
    for period in range(1, len(tail) // _TIMES + 1):
        piece = tail[-period:]
        length = period
        while length < len(tail) and tail[-length - 1] == piece[-(length % period) - 1]:
            length += 1
        if length >= max(_TIMES * period, _LEAST):
            return True
    return False


def hopeless(row: ResultRow) -> bool:
    """Whether no answer can be read, and the text was cut by the budget or ends in a loop."""
    if row.status not in ("unparsed", "truncated"):
        return False
    return row.reason in ("length", "context") or loops(row.thinking + row.text)


def collapsed(rows: Iterable[ResultRow]) -> bool:
    """Whether there are rows, and none of them holds any hope."""
    found = list(rows)
    return bool(found) and all(map(hopeless, found))


def mark_file(folder: Path, shard: str | None) -> Path:
    """Where a run folder says that it, or one of its shards, was given up."""
    tag = f".{shard.replace('/', '-of-')}" if shard else ""
    return folder / f"collapsed{tag}.json"


def mark(folder: Path, shard: str | None, rows: int) -> None:
    """Say in a run folder that a shard was given up after so many rows."""
    why = "no answer could be read, and every text was cut by the budget or ends in a loop"
    write_json(mark_file(folder, shard), {"collapsed": True, "after_rows": rows, "shard": shard, "why": why})


def marks(folder: Path) -> list[str]:
    """The shards of a run folder that were given up; the empty string for a folder without shards."""
    names = [p.name.removeprefix("collapsed").removesuffix(".json") for p in folder.glob("collapsed*.json")]
    return sorted(name.lstrip(".").replace("-of-", "/") for name in names)
