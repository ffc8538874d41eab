"""Tokenised rows kept on disk, so that a run that starts again or goes on need not tokenise them again.

An entry is a folder `rows/DIGEST` of the user's cache folder. The digest is of all that decides the ids, so an
entry is never out of date; it is removed when the folder grows too large and others were used since.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from unspoken.lm.zoo import cache_dir, settle

_FORMAT = 1  # raise it when the same rows come to be written as other arrays
# Characters of all rows from which an entry is worth its place: tokenised in 1 s (one id a word) to 2 s (GPT-2's
# vocabulary) on one core; 12,000 rows of 4x4 multiplication.
_WORTH = 2_000_000
_LIMIT = 4 * 2**30  # bytes of all entries; 800,000 rows of 71 tokens of GPT-2's vocabulary take 0.23 GB
_STALE = 24 * 3600.0  # seconds after which a folder written aside belongs to a process that was killed
_FILES = ("ids", "lengths", "sums")

Arrays = tuple[NDArray[np.integer], NDArray[np.int64]]
"""The ids of all rows, one after the other, and how many each row has."""


def backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The compiled tokenizer, if it alone decides the ids of a text; None if Python code may have a say."""
    kind = type(tokenizer)
    alone = (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and kind.__call__ is PreTrainedTokenizerFast.__call__
        and kind._encode_plus is PreTrainedTokenizerFast._encode_plus
    )
    return tokenizer.backend_tokenizer if alone else None


def entry(
    chunks: Iterable[list[str]], tokenizer: PreTrainedTokenizerBase, dtype: type[np.integer]
) -> Path | None:
    """Where the ids of these rows are kept, whether or not they are there yet.

    Args:
        chunks: The texts of the rows, in order; always cut alike.
        tokenizer: What they are tokenised with.
        dtype: The type of the ids.

    Returns:
        The folder, or None if nothing is to be kept: few rows, a tokenizer whose state cannot be told in full
        or that tokenises at random, or no folder for it.
    """
    digest, characters = hashlib.sha256(f"{_FORMAT}".encode()), 0
    for texts in chunks:
        lengths = [len(text) for text in texts]
        characters += sum(lengths)
        # With their number and lengths in front, no two lists of rows are the same bytes.
        digest.update(json.dumps(lengths).encode())
        digest.update("".join(texts).encode("utf-8", "surrogatepass"))
    if characters < _WORTH:
        return None
    core = backend(tokenizer)
    if core is None or getattr(core.model, "dropout", None):
        return None
    try:
        state = core.to_str()
    except Exception:  # what the library raises if a part of the tokenizer is written in Python
        return None
    # `to_str` leaves out whether special tokens in a text are split.
    rest = (np.dtype(dtype).str, core.encode_special_tokens, tokenizers.__version__, transformers.__version__)
    digest.update(f"{rest} {state}".encode("utf-8", "surrogatepass"))
    try:
        return cache_dir() / "rows" / digest.hexdigest()[:32]
    except RuntimeError:  # the user has no home folder
        return None


def load(folder: Path) -> Arrays | None:
    """The arrays of an entry, mapped to memory; None if it is not there. A damaged one is removed."""
    if not folder.is_dir():
        return None
    try:
        # "c": what is written stays in memory. Torch warns of arrays that cannot be written at all.
        ids, lengths, sums = (
            np.asarray(np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False)) for name in _FILES
        )
        whole = sums.tolist() == [_checksum(ids), _checksum(lengths)]
    except Exception:  # damaged headers make numpy raise all sorts
        whole = False
    if not whole:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    with contextlib.suppress(OSError):  # others' entries may be read, too
        os.utime(folder)
    return ids, lengths


def save(folder: Path, arrays: Arrays) -> None:
    """Write an entry beside and rename it, so that a folder of the final name is whole; remove old ones.

    Two processes may do so at once: the second rename fails, and its equal copy is dropped. What cannot be
    written is a warning.
    """
    sums = np.array([_checksum(array) for array in arrays], dtype=np.uint32)
    contents: list[NDArray[Any]] = [*arrays, sums]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for name, array in zip(_FILES, contents, strict=True):
                np.save(work / f"{name}.npy", array, allow_pickle=False)
            settle(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        _remove_old(folder)
    except OSError as error:
        warnings.warn(
            f"Tokenised rows are not kept for the next start: {str(folder.parent)!r} cannot be written "
            f"({error.strerror or error}). UNSPOKEN_CACHE may name another folder.",
            stacklevel=2,
        )


def _checksum(array: NDArray[Any]) -> int:
    return zlib.crc32(array.data, zlib.crc32(f"{array.dtype.str} {array.shape}".encode()))


def _remove_old(newest: Path) -> None:
    """Remove what was not used for longest until the entries fit; the newest stays."""
    used = {}
    for folder in newest.parent.iterdir():
        with contextlib.suppress(OSError):  # another process may remove it meanwhile
            used[folder] = (folder.stat().st_mtime, sum(file.stat().st_size for file in folder.iterdir()))
    total = sum(size for _, size in used.values())
    for folder, (last, size) in sorted(used.items(), key=lambda item: item[1]):
        aside = folder.name.startswith(".")
        if (time.time() - last > _STALE) if aside else (total > _LIMIT and folder != newest):
            shutil.rmtree(folder, ignore_errors=True)
            total -= size
