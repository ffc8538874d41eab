"""Kept runs: whole or not there, found only by ids that the server made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unspoken.errors import ConfigError
from unspoken.web._history import History, default_folder, new_id


def start(prompt: str = "hi") -> dict[str, Any]:
    return {"time": "t", "prompt": {"user": prompt}, "strategy": {"name": "soft"}, "seed": 3}


DONE = {"text": "é" * 300, "reason": "eos", "usage": {"tokens": 2}, "grade": {"status": "wrong"}}


def test_a_run_comes_back_as_it_was(folder: Path) -> None:
    history = History(folder)
    run = new_id()
    events = [{"event": "step", "text": "line\nbreak\u2028"}]
    history.save(run, start(), events, DONE)
    assert history.read(run) == {"start": start(), "events": events, "done": DONE}
    assert History(folder).read(run) == history.read(run)  # another time
    assert [p.name for p in folder.iterdir()] == [f"{run}.jsonl"]


def test_the_list_is_newest_first_and_goes_on(folder: Path) -> None:
    history = History(folder)
    ids = [f"20260101-00000{i}-000-aaaa" for i in range(5)]
    for i, run in enumerate(ids):
        history.save(run, start(f"question {i}" + "x" * 300), [], DONE)
    first = history.list(2)
    assert [entry["id"] for entry in first] == ids[:2:-1]
    assert [entry["id"] for entry in history.list(9, before=ids[3])] == ids[2::-1]
    assert len(first[0]["prompt"]) == len(first[0]["text"]) == 200
    assert (
        first[0] | {"strategy": "soft", "seed": 3, "reason": "eos", "grade": {"status": "wrong"}} == first[0]
    )
    assert History(folder).list(5) == history.list(5)


def test_another_lab_s_runs_are_seen_and_forgotten(folder: Path) -> None:
    mine, other = History(folder), History(folder)
    run = new_id()
    other.save(run, start(), [], DONE)
    assert mine.read(run) and mine.list()
    assert other.delete(run) and not other.delete(run)
    assert mine.list() == [] and mine.read(run) is None


@pytest.mark.parametrize("run", ["../secret", "..%2fsecret", "/etc/passwd", "", ".", "secret\x00", "a" * 300])
def test_nothing_else_is_read(folder: Path, run: str) -> None:
    history = History(folder)
    (folder.parent / "secret.jsonl").write_text(json.dumps(start()) + "\n" + json.dumps(DONE) + "\n")
    assert history.read(run) is None and not history.delete(run)
    assert (folder.parent / "secret.jsonl").exists()


def test_files_that_are_no_runs_are_left_alone(folder: Path) -> None:
    folder.mkdir()
    for name, content in (
        ("20260101-broken.jsonl", "{"),
        ("20260101-empty.jsonl", ""),
        ("20260101-other.jsonl", '{"a": 1}\n'),
        ("UPPER-CASE-ID.jsonl", json.dumps(start()) + "\n" + json.dumps(DONE)),
        ("20260101-list.jsonl", "[]\n[]\n"),
    ):
        (folder / name).write_text(content)
    assert History(folder).list() == [] and len(list(folder.iterdir())) == 5


def test_ids_are_ordered_and_fit_the_pattern() -> None:
    first, second = new_id(), new_id()
    assert len(first) <= 40 and first.split("-")[:2] <= second.split("-")[:2]


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--history|cannot be kept"):
        History(tmp_path / "file" / "runs")


def test_the_usual_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "unspoken" / "lab"
