"""Questions with a chain of thought and an answer: readers, splits, and the tasks made of them.

The text form is one row a line, `question||chain of thought #### answer` (implicit CoT, arXiv 2405.14838).
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from unspoken.config import to_dict
from unspoken.errors import DataError, require
from unspoken.tasks._base import Task
from unspoken.tasks._data import DataWarning, Row, check_utf8, numbered_rows, read_text, text_field
from unspoken.tasks._extract import LAST_NUMBER, candidates
from unspoken.types import Example, Grade, Message

MARKER = "####"
Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
_NAMES = {"valid": ("valid", "val", "validation", "dev"), "test": ("test",), "train": ("train",)}
_SUFFIXES = (".txt", ".jsonl", ".json")
_FORMS = "lines `question||cot #### answer`, or JSONL with question, cot and answer (or input and output)"
_SHOWN = 5  # line numbers shown for each reason


class MissingSplitError(DataError):
    """A folder that has no file for a split."""


@dataclass(frozen=True, slots=True)
class Chain:
    """One row: a question, its chain of thought, and the answer.

    Attributes:
        question: The problem as text.
        cot: The chain of thought; may be empty.
        answer: The answer, without the marker `####` and without commas.
    """

    question: str
    cot: str
    answer: str

    @property
    def line(self) -> str:
        """The row as a line of a text file."""
        return f"{self.question}||{self.cot} {MARKER} {self.answer}".replace("\n", " ")


@dataclass(frozen=True)
class ChainReport:
    """What was odd about a source.

    Attributes:
        source: The file or data set.
        rows: Rows that can be used.
        dropped: Lines that were left out, by reason.
        no_marker: Lines without `####`: the whole right side was taken as the answer, the chain is empty.
        empty_cot: How many rows have an empty chain, those without a marker included.
    """

    source: str
    rows: int
    dropped: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    no_marker: tuple[int, ...] = ()
    empty_cot: int = 0

    def __str__(self) -> str:
        found = [f"{len(lines)} left out, {why} ({_lines(lines)})" for why, lines in self.dropped.items()]
        if self.no_marker:
            found.append(f"{len(self.no_marker)} without {MARKER} ({_lines(self.no_marker)})")
        if self.empty_cot:
            found.append(f"{self.empty_cot} with an empty chain of thought")
        return f"{self.source}: {self.rows} rows" + "".join(f"; {text}" for text in found)

    def warn(self) -> None:
        """Warn if lines were left out or had no marker; an empty chain is nothing odd."""
        if self.dropped or self.no_marker:
            warnings.warn(str(self), DataWarning, stacklevel=3)


class ChainFile(NamedTuple):
    """The usable rows of a source, and what was odd about it."""

    rows: list[Chain]
    report: ChainReport


def _lines(numbers: Sequence[int]) -> str:
    more = ", .." if len(numbers) > _SHOWN else ""
    return f"line {', '.join(map(str, numbers[:_SHOWN]))}{more}"


# Readers


def read_chains(path: str | Path) -> ChainFile:
    """Read a file of rows.

    A name ending in `.jsonl` or `.json` is read as JSON objects (`question` or `problem`, `cot` or `steps`,
    `answer`; or `input` and `output`, or `question` and `answer`, whose right part holds chain and answer),
    anything else as text lines. A line is kept if it splits at `||` into exactly two parts; the chain is what
    stands before the first `####`, the answer what follows, without commas.

    Raises:
        DataError: If the file cannot be read or has no usable row; names the file and the lines.
    """
    path = Path(path)
    text = read_text(path)
    if path.suffix in (".jsonl", ".json"):
        return _gather(str(path), numbered_rows(text), _parse_row)
    # A file without line feeds is of a system that ends lines by carriage returns.
    ends = "\n" if "\n" in text else "\r"
    lines = ((number, line, None) for number, line in enumerate(text.split(ends), 1) if line.strip())
    return _gather(str(path), lines, _parse_line)


def load_chains(data_path: str, data_name: str | None = None, split: str = "train") -> ChainFile:
    """One split of a local file, a local folder of split files, or a data set of the hub.

    A folder holds `train.txt`, `valid.txt` and `test.txt` (or `.jsonl`; `val`, `validation` and `dev` are
    `valid`, and any other name of a split is the name of its file), itself or in a sub-folder `data_name`;
    `data_name_split.txt` is found, too. A file is read whole, whatever the split.

    Args:
        data_path: The file, the folder, or the repository of a data set.
        data_name: Sub-folder, or configuration of the data set.
        split: Name of the split.

    Raises:
        DataError: If there is no such source or split, or it has no usable row.
        MissingExtraError: If the hub is asked and `datasets` is not installed.
    """
    path = Path(data_path).expanduser()
    if path.is_file():
        return read_chains(path)
    if path.is_dir():
        return read_chains(split_file(path, data_name, split))
    if data_path.startswith((".", "~", "/")) or data_path.count("/") != 1 or path.suffix in _SUFFIXES:
        raise DataError(
            f"There is no file or folder {data_path!r} (and it is no OWNER/NAME of a data set of the hub).",
            f"A file holds {_FORMS}; a folder holds {', '.join(f'{s}.txt' for s in SPLITS)}.",
        )
    return _hub_chains(data_path, data_name, split)


def split_file(folder: Path, name: str | None, split: str) -> Path:
    """The file of a split in a folder, as `load_chains` finds it.

    Raises:
        MissingSplitError: If there is none; says what is there.
    """
    alike = next((names for names in _NAMES.values() if split in names), ())
    stems = [split, *(other for other in alike if other != split)]
    tried = []
    for stem in stems:
        for suffix in _SUFFIXES:
            file = f"{stem}{suffix}"
            tried += [folder / name / file, folder / f"{name}_{file}"] if name else [folder / file]
    found = next((path for path in tried if path.is_file()), None)
    if found is None:
        looked = folder / name if name and (folder / name).is_dir() else folder
        there = sorted(path.name for path in looked.iterdir())
        raise MissingSplitError(
            f"No split {split!r} in {str(looked)!r}; there is: {', '.join(there[:20]) or 'nothing'}.",
            f"Expected {' or '.join(f'{stem}.txt' for stem in stems)} (or .jsonl), holding {_FORMS}.",
        )
    return found


def _hub_chains(repo: str, name: str | None, split: str) -> ChainFile:
    instead = "Or give a local folder that holds train.txt, valid.txt and test.txt."
    datasets = require("datasets", "train", f"Loading {repo} from the hub")
    try:
        loaded = datasets.load_dataset(repo, name, split=split)
    # The hub's client raises errors of many packages, most of which are not imported here.
    except Exception as error:
        where = repo if name is None else f"{repo} ({name})"
        raise DataError(
            f"Cannot load {where}, split {split}, from the hub: {type(error).__name__}: {error}", instead
        ) from error
    source = "/".join(part for part in (repo, name, split) if part)
    return _gather(source, ((number, dict(row), None) for number, row in enumerate(loaded, 1)), _parse_row)


Parsed = tuple[Chain, bool]  # the row, and whether it had a marker


def _gather(
    source: str, rows: Iterable[tuple[int, Any, str | None]], parse: Callable[[Any], Parsed]
) -> ChainFile:
    chains: list[Chain] = []
    dropped: dict[str, list[int]] = {}
    no_marker = []
    for number, row, reason in rows:
        try:
            if reason is None:
                check_utf8(row)
                chain, marked = parse(row)
        except ValueError as error:
            reason = str(error)
        if reason is not None:
            dropped.setdefault(reason, []).append(number)
            continue
        chains.append(chain)
        if not marked:
            no_marker.append(number)
    report = ChainReport(
        source=source,
        rows=len(chains),
        dropped={reason: tuple(lines) for reason, lines in dropped.items()},
        no_marker=tuple(no_marker),
        empty_cot=sum(not chain.cot for chain in chains),
    )
    if not chains:
        raise DataError(f"No usable row in {report if dropped else f'{source!r}: it is empty'}.", _FORMS)
    return ChainFile(chains, report)


def _parse_line(line: str) -> Parsed:
    parts = line.strip().split("||")
    if len(parts) != 2:
        raise ValueError("no '||'" if len(parts) == 1 else "more than one '||'")
    return _parse_sides(*parts)


def _parse_sides(question: str, right: str) -> Parsed:
    cot, marker, answer = right.partition(MARKER)
    if not marker:
        cot, answer = "", right
    return _checked(question.strip(), cot.strip(), answer), bool(marker)


def _parse_row(row: Any) -> Parsed:
    if not isinstance(row, dict):
        raise ValueError("not an object")
    question = text_field(row, "question", "problem", "input")
    if "output" in row:
        return _parse_sides(question, text_field(row, "output"))
    answer = text_field(row, "answer")
    if "cot" in row or "steps" in row:
        return _checked(question, _cot_field(row), answer.removeprefix(MARKER)), True
    return _parse_sides(question, answer)


def _cot_field(row: Row) -> str:
    value = row["cot"] if "cot" in row else row["steps"]
    if isinstance(value, list) and all(isinstance(step, str) for step in value):
        value = " ".join(step.strip() for step in value)
    if not isinstance(value, str):
        raise ValueError("the chain of thought must be text, or a list of texts")
    return value.strip()


def _checked(question: str, cot: str, answer: str) -> Chain:
    answer = answer.replace(",", "").strip()
    if not question or not answer:
        raise ValueError("no answer" if question else "no question")
    return Chain(question, cot, answer)


# Splits


def digest(chains: Iterable[Chain]) -> str:
    """SHA-256 of the rows as a text file."""
    hashed = hashlib.sha256()
    for chain in chains:
        hashed.update(f"{chain.line}\n".encode())
    return hashed.hexdigest()


def check_disjoint(splits: Mapping[Any, Iterable[Chain]]) -> None:
    """Check that no question is in two splits.

    Raises:
        DataError: Naming the splits, how many questions they share, and one of them.
    """
    seen: dict[str, set[str]] = {}
    for name, chains in splits.items():
        questions = {chain.question for chain in chains}
        for other, known in seen.items():
            shared = questions & known
            if shared:
                raise DataError(
                    f"{len(shared)} questions are both in {other} and in {name}, such as {min(shared)!r}."
                )
        seen[name] = questions


@dataclass(frozen=True)
class ChainTask(Task):
    """A task whose examples come with chains of thought, in disjoint splits for training.

    Attributes:
        split: Which split `examples` gives.
    """

    split: Split = field(default="test", kw_only=True)

    @abstractmethod
    def chains(self, split: Split) -> list[Chain]:
        """All rows of a split, in a fixed order; the same on every machine."""

    def example_ids(self, split: Split) -> str:
        """What the ids of a split begin with."""
        return f"{self.name}-{split}"

    def examples(self) -> list[Example]:
        """The rows of `split`; the chain of thought is in `meta`."""
        start = self.example_ids(self.split)
        return [
            Example(f"{start}-{i:05d}", chain.question, chain.answer, {"cot": chain.cot})
            for i, chain in enumerate(self.chains(self.split))
        ]

    def prompt(self, example: Example) -> list[Message]:
        """The question as it is."""
        return [{"role": "user", "content": example.question}]

    def manifest(self, splits: Mapping[Split, Sequence[Chain]] | None = None) -> dict[str, Any]:
        """What the data are: task, fields, counts and SHA-256 of each split, JSON-ready.

        Args:
            splits: The rows of all splits, for those who have them already; they are made if not given.
        """
        return _manifest(self, splits or {split: self.chains(split) for split in SPLITS})


def _manifest(task: ChainTask, splits: Mapping[Split, Sequence[Chain]]) -> dict[str, Any]:
    check_disjoint(splits)
    fields = {name: value for name, value in to_dict(task).items() if name != "split"}
    return {
        "task": task.name,
        "version": type(task).version,
        "args": fields,
        "seed": fields.get("data_seed"),
        "counts": {split: len(chains) for split, chains in splits.items()},
        "sha256": {split: digest(chains) for split, chains in splits.items()},
    }


def write_splits(task: ChainTask, folder: str | Path) -> dict[str, Any]:
    """Write `train.txt`, `valid.txt`, `test.txt` and `manifest.json` into a folder.

    All are written aside and then renamed, the manifest last: where there is one, the files are whole.

    Returns:
        The manifest.
    """
    folder = Path(folder)
    splits: dict[Split, list[Chain]] = {split: task.chains(split) for split in SPLITS}
    manifest = _manifest(task, splits)
    texts: dict[str, Iterator[str]] = {
        f"{split}.txt": (f"{chain.line}\n" for chain in chains) for split, chains in splits.items() if chains
    }
    texts["manifest.json"] = iter([json.dumps(manifest, indent=2) + "\n"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, lines in texts.items():
            with open(folder / f".{name}.part", "w", encoding="utf-8", newline="\n") as file:
                file.writelines(lines)
        (folder / "manifest.json").unlink(missing_ok=True)
        for name in texts:
            os.replace(folder / f".{name}.part", folder / name)
    except OSError as error:
        raise DataError(f"Cannot write the splits into {str(folder)!r}: {error.strerror}.") from error
    return manifest


def answer_in(text: str) -> str:
    """The answer in a row's text: what follows the first `####`, or all of it; as `normal` gives it."""
    _, marker, after = text.partition(MARKER)
    return normal(after if marker else text)


def normal(answer: str) -> str:
    """An answer as it is compared: without commas, with single spaces."""
    return " ".join(answer.replace(",", "").split())


def grade_word(gold: str, text: str, *, truncated: bool = False) -> Grade:
    """Grade an answer that is one word, such as `T` or `True`.

    The word is looked for where answers are (a box, after `####`, "the answer is"); a text of one word is
    itself the answer.
    """
    found = next(((c.rule, c.text) for c in candidates(text) if c.rule != LAST_NUMBER), None)
    if found is None and len(text.split()) == 1:
        found = ("word", text)
    words = found[1].split() if found else []
    word = words[0].strip("$*_.,;:") if words else ""
    if found is None or not word:
        return Grade("truncated" if truncated else "unparsed")
    return Grade("correct" if word == gold else "wrong", word, found[0])
