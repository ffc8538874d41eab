"""What a run writes down: rows of its log, steps, what was kept; and what it makes only once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rows_help import chains_of, word_lm
from toy import Toy, toy_data, toy_model

from unspoken.errors import RunError
from unspoken.tasks._chains import Chain
from unspoken.tasks.modsum import ModSum
from unspoken.training import _checkpoints as checkpoints
from unspoken.training import _log, _setup
from unspoken.training._base import Data
from unspoken.training._options import Options
from unspoken.training._trainer import train
from unspoken.training.internalize import Internalize

CHAINS = chains_of(24)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def toy(output: Path, method: Toy | None = None, **given: Any) -> Any:
    given = {"epochs": 2, "batch_size": 8, "log_every": 2, "quiet": True, **given}
    return train(method or Toy(), model=toy_model(), data=toy_data(), output=output, **given)


def test_a_kill_at_the_very_end_leaves_no_row_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(tmp_path / "whole")
    write = checkpoints.write_run

    def killed(output: Path, run: dict[str, Any]) -> None:
        if run["state"] == "finished":
            raise KeyboardInterrupt
        write(output, run)

    monkeypatch.setattr(checkpoints, "write_run", killed)
    with pytest.raises(KeyboardInterrupt):
        toy(tmp_path / "out")
    assert any(row.get("final") for row in rows(tmp_path / "out"))
    monkeypatch.setattr(checkpoints, "write_run", write)
    toy(tmp_path / "out")
    marks = [[(r["event"], r["step"], r.get("final")) for r in rows(tmp_path / n)] for n in ("whole", "out")]
    assert marks[0] == marks[1] and len(set(marks[1])) == len(marks[1])


@pytest.mark.parametrize(
    ("kept", "said"), [(2, "The checkpoint of step 4 is kept"), (0, "Nothing was saved")]
)
def test_a_loss_that_is_no_number_says_what_is_left(tmp_path: Path, kept: int, said: str) -> None:
    with pytest.raises(RunError) as caught:
        toy(tmp_path / "out", Toy(nan_at=5), save_every=kept)
    assert said in str(caught.value.hint)


@pytest.mark.parametrize(("accumulate", "epochs"), [(1, 2), (3, 2), (3, 1.5), (5, 1)])
def test_steps_are_known_beforehand(
    tmp_path: Path, accumulate: int, epochs: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    init = _log.Log.__init__

    def noting(self: Any, path: Any, total: int, *, quiet: bool) -> None:
        shown.append(total)
        init(self, path, total, quiet=quiet)

    monkeypatch.setattr(_log.Log, "__init__", noting)
    # 26 rows are 4 micro-batches an epoch, which 3 do not divide.
    done = toy(tmp_path / "out", epochs=epochs, accumulate=accumulate)
    assert [done.steps] == shown


def test_no_loss_is_logged_where_all_rows_are_left_out(tmp_path: Path) -> None:
    chains = [Chain("1 2", "3 4 1 2 3", "1"), Chain("1 2", "3 4 1 2 1", "1")]
    data = Data(chains, [])
    given: dict[str, Any] = {"max_len_train": 9, "remove_per_epoch": 1, "log_every": 1, "quiet": True}
    output = tmp_path / "out"
    train("internalize", model=word_lm(CHAINS), data=data, output=output, epochs=6, batch_size=2, **given)
    losses = [row.get("loss", "none") for row in rows(output) if row["event"] == "train"]
    # Of 12 tokens with the whole chain: the first that fit are those without three.
    assert losses[:3] == ["none"] * 3 and all(loss > 0 for loss in losses[3:]) and len(losses) == 6


def test_each_split_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    task = ModSum(n_train=16, n_valid=4, n_test=4)
    made = []
    chains = type(task).chains
    monkeypatch.setattr(type(task), "chains", lambda self, split: made.append(split) or chains(self, split))
    data = _setup.gather_data(task, None, Options(), Internalize())
    assert made == ["train", "valid", "test"]
    assert data.manifest == task.manifest()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 20),
        ({"preset": "explicit_cot"}, 20),
        ({"preset": "no_cot"}, 12),
        ({"preset": "no_cot", "mode": "fixed", "n_fillers": 5}, 17),
        ({"preset": "no_cot", "mode": "capped", "n_fillers": 50}, 20),
        ({"mode": "fixed", "n_fillers": 5}, 25),
        ({"mode": "capped", "n_fillers": 5}, 20),
        ({"mode": "replace", "infer_num_fillers": 1}, 20),
        ({"preset": "seed_switch"}, 21),
    ],
)
def test_the_longest_form_of_a_row(fields: dict[str, Any], expected: int) -> None:
    assert Internalize(**fields).longest_row(20, 8) == expected


@pytest.mark.parametrize(
    "fields", [{"mode": "fixed", "n_fillers": 3}, {"preset": "no_cot"}, {"preset": "icot_si"}]
)
def test_it_is_what_batches_hold(fields: dict[str, Any]) -> None:
    method, options = Internalize(**fields, remove_per_epoch=1), Options(batch_size=24, epochs=2)
    work = method.prepare(word_lm(CHAINS), Data(CHAINS), options)
    source = work.rows.source
    longest = max(method.longest_row(n, c) for n, c in zip(source.n.tolist(), source.c.tolist(), strict=True))
    widths = [
        work.batch(t, torch.arange(24), torch.Generator().manual_seed(t))["input_ids"].shape[1]
        for t in range(2)
    ]
    assert max(widths) == longest - 1  # the end of a row is predicted, not read
