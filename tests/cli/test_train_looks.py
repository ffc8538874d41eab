"""`unspoken data` and `unspoken curve`: the files before a training run, and the figures after it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unspoken.cli.main import main

Said = pytest.CaptureFixture[str]
TINY = ["--model", "tiny", "--layers", "1", "--width", "16", "--heads", "2"]
SHORT = [*TINY, "--steps", "2", "--batch_size", "4"]


class TestData:
    """`unspoken data`."""

    def test_files_that_can_be_trained_on(self, tmp_path: Path, capsys: Said) -> None:
        words = ["data", "modsum", "--n_train", "16", "--n_valid", "4", "--n_test", "4", "-o", str(tmp_path)]
        assert main(words) == 0
        assert "16 rows" in capsys.readouterr().out
        before = (tmp_path / "train.txt").read_bytes()
        assert main(words) == 0
        assert (tmp_path / "train.txt").read_bytes() == before
        assert json.loads((tmp_path / "manifest.json").read_text())["counts"]["train"] == 16

    def test_a_task_without_chains(self, tmp_path: Path, capsys: Said) -> None:
        assert main(["data", "math500", "-o", str(tmp_path)]) == 2
        assert "modsum" in capsys.readouterr().err


class TestCurve:
    """`unspoken curve`."""

    def run(
        self, folder: Path, seed: int, accuracies: dict[float, float], bounds: tuple[float, ...] = ()
    ) -> str:
        folder.mkdir()
        configuration = {"options": {"seed": seed, "lr": 1.0}, "method": {"name": "internalize"}}
        (folder / "training.json").write_text(json.dumps({"configuration": configuration}), encoding="utf-8")
        measures = ["teacher_forced_exact" if x in bounds else "exact_match" for x in accuracies]
        lines = [
            {"event": "eval", "split": "valid", "removed": x, measure: y, "rows": 100, "step": i}
            for i, ((x, y), measure) in enumerate(zip(accuracies.items(), measures, strict=True))
        ]
        text = "".join(json.dumps(each) + "\n" for each in [{"event": "train", "step": 0}, *lines])
        (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
        return str(folder)

    def test_seeds_are_one_curve(self, tmp_path: Path, capsys: Said) -> None:
        pytest.importorskip("matplotlib")
        runs = [self.run(tmp_path / f"icot-s{i}", i, {0.0: 1.0, 8.0: 0.6 + 0.2 * i}) for i in (0, 1)]
        assert main(["curve", *runs, "-o", str(tmp_path / "figures")]) == 0
        out = capsys.readouterr().out
        assert "  icot\n" in out
        assert "70.0 % ± 14.1 (mean and sd of 2 seeds)" in out
        assert (tmp_path / "figures" / "removed.png").read_bytes().startswith(b"\x89PNG")
        assert main(["curve", runs[0], "-o", str(tmp_path / "figures")]) == 0
        assert "60.0 % [50.2, 69.1]" in capsys.readouterr().out

    def test_decoded_and_teacher_forced_points_are_told_apart(self, tmp_path: Path, capsys: Said) -> None:
        seen = {0.0: 0.9, 8.0: 0.6}
        first = self.run(tmp_path / "icot-s0", 0, seen, bounds=(0.0,))
        second = self.run(tmp_path / "icot-s1", 1, {0.0: 1.0, 8.0: 0.8})
        figures = tmp_path / "figures"
        assert main(["curve", first, "-o", str(figures)]) == 0
        out = capsys.readouterr().out
        assert "0  ○  90.0 %" in out
        assert "8  ●  60.0 %" in out
        assert "○ teacher_forced_exact: " in out
        assert "● exact_match: " in out
        table = (figures / "removed.csv").read_text(encoding="utf-8").splitlines()
        assert table[0] == "curve,x,accuracy,low,high,seeds,n,measure"
        assert [line.split(",")[-1] for line in table[1:]] == ["teacher_forced_exact", "exact_match"]
        # Over seeds, a mean is of one measure only.
        assert main(["curve", first, second, "-o", str(figures)]) == 0
        out = capsys.readouterr().out
        assert "0  ● 100.0 % [" in out
        assert "0  ○  90.0 % [" in out
        assert "8  ●  70.0 % ± 14.1" in out

    def test_a_folder_without_a_run(self, tmp_path: Path, capsys: Said) -> None:
        assert main(["curve", str(tmp_path)]) == 1
        assert "no training run" in capsys.readouterr().err
