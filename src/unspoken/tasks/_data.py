"""Read data files, name their broken rows by line, and go on with the good ones."""

from __future__ import annotations

import csv
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from unspoken.errors import DataError, MissingExtraError, require

T = TypeVar("T")
Row = dict[str, Any]
_SHOWN = 10  # broken rows named in one warning


class DataWarning(UserWarning):
    """Some rows of a data file were left out; the message names them by line."""


def read_rows(path: str | Path, parse: Callable[[Row, int], T]) -> list[T]:
    """Read a JSONL file, a JSON file that holds one list, or a CSV file with a header, one object a row.

    Args:
        path: The file. A name ending in `.csv` is read as CSV, all of whose values are text; a text starting
            with `[` as one list.
        parse: Makes one item of a row and its index (from 0, broken rows counted, so that an item's
            place does not depend on its neighbours); raises `ValueError` with the reason if it cannot.

    Raises:
        DataError: If the file cannot be read or has no good row.
    """
    path = Path(path)
    text = read_text(path)
    rows = _csv_rows(text) if path.suffix.lower() == ".csv" else numbered_rows(text)

    def parse_row(row: Any, index: int) -> T:
        if not isinstance(row, dict):
            raise ValueError(f"an object is needed, not {_kind(row)}")
        return parse(row, index)

    return _collect(path, rows, parse_row)


def read_lines(path: str | Path, parse: Callable[[str, int], T]) -> list[T]:
    """Read a text file with one item a line; blank lines are skipped. As `read_rows` otherwise."""
    path = Path(path)
    lines = (
        (number, line, None) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()
    )
    return _collect(path, lines, lambda line, index: parse(line.strip(), index))


def load_hub(
    name: str, config: str | None, split: str, parse: Callable[[Row, int], T], local: str
) -> list[T]:
    """Load a data set of the hub through the `datasets` package.

    Args:
        name: Repository of the data set.
        config: Its configuration, or None.
        split: Which split.
        parse: As in `read_rows`.
        local: What a local file must look like, for the error.

    Raises:
        MissingExtraError: If `datasets` is not installed.
        DataError: If the data set cannot be loaded or has no good row.
    """
    instead = f"Or give a local file with --data FILE ({local})."
    try:
        datasets = require("datasets", "eval", f"Loading {name} from the hub")
    except MissingExtraError as error:
        raise MissingExtraError(error.message, f"{error.hint}\n  {instead}") from error
    try:
        loaded = datasets.load_dataset(name, config, split=split)
    # The hub's client raises errors of many packages, most of which are not imported here.
    except Exception as error:
        raise DataError(
            f"Cannot load {name} (split {split}) from the hub: {type(error).__name__}: {error}", instead
        ) from error
    rows = ((number, dict(row), None) for number, row in enumerate(loaded, 1))
    return _collect(Path(f"{name}:{split}"), rows, parse, unit="row")


def text_field(row: Row, *names: str) -> str:
    """The first of the named fields, as stripped text; numbers are accepted.

    Raises:
        ValueError: If none is there, or it is empty or neither text nor a number.
    """
    for name in names:
        if name in row:
            value = row[name]
            if isinstance(value, bool) or not isinstance(value, (str, int, float)):
                raise ValueError(f"the field {name!r} must be text, not {_kind(value)}")
            if not str(value).strip():
                raise ValueError(f"the field {name!r} is empty")
            return str(value).strip()
    wanted = " or ".join(map(repr, names))
    raise ValueError(f"no field {wanted} (fields: {', '.join(map(repr, row)) or 'none'})")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return names.get(type(value), "a number")


def located(path: str | Path) -> Path:
    """`path`, or what has this name in the folder that `UNSPOKEN_DATA` names, if nothing here has it."""
    here = Path(path)
    folder = os.environ.get("UNSPOKEN_DATA")
    return here if here.exists() or not folder or not (Path(folder) / here).exists() else Path(folder) / here


def read_text(path: Path) -> str:
    """The text of a file (`located`); bytes that are no UTF-8 are kept for `check_utf8` to find.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        # Bytes that are no UTF-8 stay as lone surrogates, so that only the lines holding them are broken.
        return located(path).read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(
            f"Cannot read the data file {str(path)!r}: {error.strerror}.",
            f"Looked in {str(Path.cwd())!r}{_second_place()}; "
            "name a file that is there (--data, --train_path, --texts).",
        ) from error


def _second_place() -> str:
    folder = os.environ.get("UNSPOKEN_DATA")
    return f" and in UNSPOKEN_DATA={folder!r}" if folder else " (UNSPOKEN_DATA could name a folder of data)"


Numbered = tuple[int, Any, str | None]  # line, value, reason why it could not be read


def numbered_rows(text: str) -> Iterator[Numbered]:
    """The values of a JSONL text, or of one JSON list, each with its line."""
    return _list_rows(text) if text.lstrip().startswith("[") else _jsonl_rows(text)


def _csv_rows(text: str) -> Iterator[Numbered]:
    # Every value stays the text it is: types guessed from a column would turn "007" into a number.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield reader.line_num, None, f"not valid CSV ({error}); nothing after it was read"
            return
        if header is None:
            header = cells
        elif len(cells) == len(header):
            yield reader.line_num, dict(zip(header, cells, strict=True)), None
        elif cells:
            yield reader.line_num, None, f"{len(cells)} cells where the header has {len(header)}"


def _jsonl_rows(text: str) -> Iterator[Numbered]:
    # Not `splitlines`: JSON text may hold characters such as U+2028 that it would split at.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line), None
            except (ValueError, RecursionError) as error:
                yield number, None, f"not valid JSON ({getattr(error, 'msg', error)})"


def _list_rows(text: str) -> Iterator[Numbered]:
    decoder = json.JSONDecoder()
    at, line, counted = text.index("[") + 1, 1, 0

    def skip(at: int) -> int:
        while at < len(text) and text[at].isspace():
            at += 1
        return at

    while True:
        at = skip(at)
        line += text.count("\n", counted, at)
        counted = at
        if text[at : at + 1] == "]":
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            reason = f"not valid JSON ({getattr(error, 'msg', error)}); nothing after it was read"
            yield getattr(error, "lineno", line), None, reason
            return
        yield line, value, None
        at = skip(at)
        if text[at : at + 1] == ",":
            at += 1
        elif text[at : at + 1] != "]":
            line += text.count("\n", counted, at)
            yield line, None, "not valid JSON (a comma or ] is missing); nothing after it was read"
            return


def _collect(
    path: Path, rows: Iterator[Numbered], parse: Callable[[Any, int], T], unit: str = "line"
) -> list[T]:
    items: list[T] = []
    broken: list[str] = []
    total = 0
    for index, (number, row, reason) in enumerate(rows):
        total += 1
        try:
            if reason is None:
                check_utf8(row)
                items.append(parse(row, index))
        except ValueError as error:
            reason = str(error)
        if reason is not None:
            broken.append(f"{unit} {number}: {reason}")
    if not items:
        why = _listed(broken) if broken else "it is empty"
        raise DataError(f"No usable row in {str(path)!r}: {why}.")
    if broken:
        message = f"{len(broken)} of {total} rows of {str(path)!r} were left out: {_listed(broken)}."
        warnings.warn(message, DataWarning, stacklevel=4)
    return items


def check_utf8(row: Any) -> None:
    """Check a text, or the texts of a row.

    Raises:
        ValueError: If one was not valid UTF-8.
    """
    values = row.values() if isinstance(row, dict) else [row]
    for text in (value for value in values if isinstance(value, str)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError("not valid UTF-8") from error


def _listed(broken: Sequence[str]) -> str:
    rest = len(broken) - _SHOWN
    return "; ".join(broken[:_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")
