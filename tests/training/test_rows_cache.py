"""Tokenised rows on disk: the same arrays with and without, never those of other rows, and no broken entries."""

from __future__ import annotations

import copy
import errno
import mmap
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rows_help import chains_of, word_lm
from tokenizers import models, pre_tokenizers, processors
from trainer_help import rows as metrics
from trainer_help import same
from transformers import PreTrainedTokenizerFast

from unspoken.tasks._chains import Chain
from unspoken.training import _rows, _rows_cache
from unspoken.training._base import Data
from unspoken.training._internalization import InternalizationWork
from unspoken.training._rows import Rows, Template, _tokenise
from unspoken.training._rows_cache import entry, load, save
from unspoken.training._trainer import train
from unspoken.training.internalize import Internalize

CHAINS = chains_of(40)
EOS = Template("<eos>", "<eos>", "<eos>")
ARRAYS: _rows_cache.Arrays = (np.arange(6, dtype=np.int16), np.array([2, 4]))


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache that keeps however few rows."""
    monkeypatch.setenv("UNSPOKEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_rows_cache, "_WORTH", 1)
    return tmp_path / "cache" / "rows"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of texts of each time that rows were tokenised."""
    calls, encode = [], _rows._encode

    def counted(chunks: Any, *given: Any) -> Any:
        listed = list(chunks)
        calls.append(sum(map(len, listed)))
        return encode(listed, *given)

    monkeypatch.setattr(_rows, "_encode", counted)
    return calls


def names(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def on_disk(array: Any) -> bool:
    while isinstance(array, np.ndarray | memoryview):
        array = array.base if isinstance(array, np.ndarray) else array.obj
    return isinstance(array, mmap.mmap)


# The same arrays


@pytest.mark.parametrize("kind", ["words", "gpt2", "wrapped"])
def test_first_and_later_starts_give_each_text_as_the_tokenizer_does(
    kind: str, cache: Path, encoded: list[int], tiny_lm: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_rows, "_CHUNK", 16)
    lm = tiny_lm("gpt2") if kind == "gpt2" else word_lm(CHAINS)
    template = Template(*[lm.tokenizer.eos_token] * 3)
    ends = 0
    if kind == "wrapped":
        ends, eos = 1, ("<eos>", lm.tokenizer.eos_token_id)
        lm.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<eos> $A <eos>", special_tokens=[eos]
        )
    expected = [lm.tokenizer(template.row(chain))["input_ids"] for chain in CHAINS]
    expected = [ids[: len(ids) - ends] for ids in expected]
    for start in range(3):
        rows = Rows.build(CHAINS, lm.tokens, template)
        source = rows.source
        found = [source.flat[a : a + n].tolist() for a, n in zip(source.start, source.n, strict=True)]
        assert found == expected and len(encoded) == 1, start
        assert source.flat.dtype == (torch.int16 if kind == "gpt2" else torch.uint8)
        assert on_disk(_tokenise(CHAINS, lm.tokenizer, template)[0])
    monkeypatch.setenv("UNSPOKEN_CACHE", str(cache / "elsewhere"))
    monkeypatch.setattr(_rows_cache, "_WORTH", 10**9)
    alone = Rows.build(CHAINS, lm.tokens, template).source
    assert len(encoded) == 2 and not on_disk(_tokenise(CHAINS, lm.tokenizer, template)[0])
    for name in ("flat", "start", "q", "c", "n"):
        kept, fresh = getattr(source, name), getattr(alone, name)
        assert kept.dtype == fresh.dtype and torch.equal(kept, fresh)
    assert len(names(cache)) == 1  # the small ones are not written anywhere


def test_a_run_and_its_resumption_are_the_same_with_and_without(
    cache: Path, encoded: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(output: Path) -> None:
        train(
            Internalize(remove_start_from=1), model=word_lm(CHAINS), data=Data(CHAINS, CHAINS[:8]), output=output,
            epochs=2, batch_size=8, save_every=2, log_every=1, lr=1e-2, quiet=True,
        )  # fmt: skip

    with monkeypatch.context() as without:
        without.setattr(_rows_cache, "_WORTH", 10**9)
        run(tmp_path / "without")
    assert encoded == [40, 8, 0]
    batch = InternalizationWork.batch

    def stopping(self: Any, t: int, *given: Any) -> Any:
        if t == 5:
            raise KeyError("stop")
        return batch(self, t, *given)

    with monkeypatch.context() as stopped:
        stopped.setattr(InternalizationWork, "batch", stopping)
        with pytest.raises(KeyError):
            run(tmp_path / "cut")
    assert encoded == [40, 8, 0] * 2 and len(names(cache)) == 2
    run(tmp_path / "cut")
    assert encoded[6:] == [0]  # no rows of the test split: nothing to keep
    assert same(tmp_path / "without", tmp_path / "cut")
    assert metrics(tmp_path / "without") == metrics(tmp_path / "cut")


# Other rows and tokenizers


def test_whatever_decides_the_ids_decides_the_entry(cache: Path, encoded: list[int]) -> None:
    tokenizer = word_lm(CHAINS).tokenizer

    def changed(change: Callable[[Any], Any]) -> Any:
        other = copy.deepcopy(tokenizer)
        change(other)
        return other

    def put_before(other: Any) -> None:
        other.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<eos> $A", special_tokens=[("<eos>", other.eos_token_id)]
        )

    def cut_at_digits(other: Any) -> None:
        other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Digits(individual_digits=True)

    edited = [*CHAINS[:-1], Chain(CHAINS[-1].question, CHAINS[-1].cot, "0 0")]
    cases = {
        "plain": (CHAINS, tokenizer, EOS),
        "a changed row": (edited, tokenizer, EOS),
        "another order": ([CHAINS[1], CHAINS[0], *CHAINS[2:]], tokenizer, EOS),
        "a row less": (CHAINS[:-1], tokenizer, EOS),
        "another template": (CHAINS, tokenizer, Template("<eos>", "<eos>", "<eos>", before="1")),
        "another tokenizer": (CHAINS, word_lm(chains_of(40, base=9)).tokenizer, EOS),
        "an added token": (CHAINS, changed(lambda t: t.add_tokens(["1 2"])), EOS),
        "a token before each text": (CHAINS, changed(put_before), EOS),
        "other words": (CHAINS, changed(cut_at_digits), EOS),
        "special tokens split": (CHAINS, changed(lambda t: setattr(t, "split_special_tokens", True)), EOS),
    }
    found = {}
    for number, (name, (chains, used, template)) in enumerate(cases.items(), start=1):
        flat, lengths, _ = _tokenise(chains, used, template)
        assert len(encoded) == len(names(cache)) == number, name
        expected = [used(template.row(chain))["input_ids"] for chain in chains]
        assert lengths.tolist() == [len(ids) for ids in expected], name
        assert flat.tolist() == [i for ids in expected for i in ids], name
        found[name] = flat.tobytes(), lengths.tobytes()
    for name, (chains, used, template) in cases.items():
        flat, lengths, _ = _tokenise(chains, used, template)
        assert (flat.tobytes(), lengths.tobytes()) == found[name], name
    assert len(encoded) == len(cases)


def test_rows_of_the_same_characters_are_other_rows(cache: Path) -> None:
    tokenizer = word_lm(CHAINS).tokenizer
    texts = [["1 1", "1"], ["1", " 11"], ["1 11"], ["1 1", "1", ""], ["1 1[1]", "1"]]
    assert len({entry([rows], tokenizer, np.uint8) for rows in texts}) == len(texts)
    assert entry([["1"]], tokenizer, np.uint8) != entry([["1"]], tokenizer, np.int16)


class Upper(PreTrainedTokenizerFast):
    """A tokenizer whose own Python code has a say."""

    def _encode_plus(self, text: Any, *given: Any, **named: Any) -> Any:
        texts = text.replace("1", "2") if isinstance(text, str) else [t.replace("1", "2") for t in text]
        return super()._encode_plus(texts, *given, **named)


class Blanks:
    """A part of a tokenizer that is written in Python."""

    def pre_tokenize(self, text: Any) -> None:
        text.split(lambda _, part: part.split(" ", "removed") if isinstance(part, str) else [part])


@pytest.mark.parametrize("kind", ["few rows", "own code", "a part in Python", "at random", "no home"])
def test_what_cannot_be_kept_is_not(
    kind: str, cache: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer: Any = word_lm(CHAINS).tokenizer
    core = tokenizer.backend_tokenizer
    if kind == "few rows":
        monkeypatch.setattr(_rows_cache, "_WORTH", 1 + sum(len(EOS.row(chain)) for chain in CHAINS))
    elif kind == "own code":
        tokenizer = Upper(tokenizer_object=core, eos_token="<eos>", unk_token="<unk>")
    elif kind == "a part in Python":
        core.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(Blanks())
    elif kind == "at random":
        core.model = models.BPE(core.get_vocab(), [], dropout=0.5, unk_token="<unk>")
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")
    else:
        monkeypatch.setattr(_rows_cache, "cache_dir", raising(RuntimeError("no home")))
    for start in (1, 2):
        flat, _, _ = _tokenise(CHAINS, tokenizer, EOS)
        assert len(encoded) == start and not cache.exists()
        expected = [i for chain in CHAINS for i in tokenizer(EOS.row(chain))["input_ids"]]
        assert kind == "at random" or flat.tolist() == expected


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise error

    return fail


# Entries that are damaged, or cannot be written


@pytest.mark.parametrize("file", ["ids", "lengths", "sums"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "flipped", "longer", "header"])
def test_a_damaged_entry_is_made_again(file: str, damage: str, cache: Path, encoded: list[int]) -> None:
    tokenizer = word_lm(CHAINS).tokenizer
    flat, lengths, _ = (np.copy(part) for part in _tokenise(CHAINS, tokenizer, EOS))
    path = cache / names(cache)[0] / f"{file}.npy"
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[-1] ^= 1
    elif damage == "header":
        data[20] ^= 1
    elif damage == "longer":
        other = np.load(path)
        np.save(path, np.append(other, other[-1:]))
        data = bytearray(path.read_bytes())
    path.write_bytes(data[:-1] if damage == "cut" else b"" if damage == "empty" else data)
    if damage == "gone":
        path.unlink()
    for _ in range(2):
        again = _tokenise(CHAINS, tokenizer, EOS)
        assert np.array_equal(again[0], flat) and np.array_equal(again[1], lengths)
        assert len(encoded) == 2 and len(names(cache)) == 1


@pytest.mark.parametrize("why", ["a file in the way", "a full disk"])
def test_a_cache_that_cannot_be_written_is_one_warning(
    why: str, cache: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = word_lm(CHAINS).tokenizer
    if why == "a full disk":
        write = np.save

        def full(path: Path, array: Any, **how: Any) -> None:
            if path.name == "lengths.npy":
                raise OSError(errno.ENOSPC, "No space left on device")
            write(path, array, **how)

        monkeypatch.setattr(np, "save", full)
    else:
        cache.parent.mkdir()
        cache.write_text("")
    with pytest.warns(UserWarning, match=r"not kept.*cannot be written.*UNSPOKEN_CACHE") as caught:
        flat, _, _ = _tokenise(CHAINS, tokenizer, EOS)
    assert len(caught) == 1 and encoded == [40]
    assert flat.tolist() == [i for chain in CHAINS for i in tokenizer(EOS.row(chain))["input_ids"]]
    assert cache.is_file() or names(cache) == []


def test_a_stop_while_writing_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save_half(path: Path, array: Any, **how: Any) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", save_half)
    with pytest.raises(KeyboardInterrupt):
        save(cache / "name", ARRAYS)
    assert names(cache) == [] and load(cache / "name") is None


def test_several_write_at_once(cache: Path) -> None:
    gate, failed = threading.Barrier(8), []

    def write() -> None:
        gate.wait()
        try:
            for _ in range(5):
                save(cache / "name", ARRAYS)
                found = load(cache / "name")
                assert found is not None and found[0].tolist() == ARRAYS[0].tolist()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and names(cache) == ["name"]


def test_a_changed_array_stays_in_memory(cache: Path) -> None:
    save(cache / "name", ARRAYS)
    first = load(cache / "name")
    assert first is not None
    first[0][:] = 9
    second = load(cache / "name")
    assert second is not None and second[0].tolist() == [0, 1, 2, 3, 4, 5] and second[0].dtype == np.int16


# How much is kept


def age(folder: Path, hours: float) -> None:
    then = time.time() - 3600 * hours
    os.utime(folder, (then, then))


def test_what_was_not_used_for_longest_goes_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, hours in (("a", 5), ("b", 4), ("c", 3)):
        save(cache / name, ARRAYS)
        age(cache / name, hours)
    size = sum(path.stat().st_size for path in (cache / "a").iterdir())
    assert load(cache / "a") is not None  # used now
    monkeypatch.setattr(_rows_cache, "_LIMIT", 3 * size)
    save(cache / "d", ARRAYS)
    assert names(cache) == ["a", "c", "d"]
    monkeypatch.setattr(_rows_cache, "_LIMIT", size - 1)
    save(cache / "e", ARRAYS)
    assert names(cache) == ["e"]  # the newest stays, however large


def test_what_killed_processes_left_goes_after_a_day(cache: Path) -> None:
    for name, hours in ((".old", 25), (".now", 23)):
        (cache / name).mkdir(parents=True)
        age(cache / name, hours)
    save(cache / "name", ARRAYS)
    assert names(cache) == [".now", "name"]
