"""`unspoken lens` from end to end."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unspoken import LogitLens, load
from unspoken.cli.lens import LensOptions
from unspoken.cli.main import main
from unspoken.discovery import STRATEGIES, TASKS

Folder = Callable[[str], Path]
NAMES = {"lens.csv", "lens.npz", "lens.html", "lens.png", "lens-metrics.png", "lens-heatmap.png"}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    lines = [
        {"problem": f"What is {i} + 30? " * 20, "answer": str(i + 30), "solution": "So 42."} for i in range(7)
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def test_text(tiny_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_folder("llama")
    words = ["lens", "What is 12 + 30?", "-m", str(folder), "-o", str(tmp_path / "out"), "--answer", "42"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert {path.name for path in (tmp_path / "out").iterdir()} == NAMES
    assert "KL falls most in block" in out and str(tmp_path / "out" / "lens.html") in out
    assert err == ""
    grid = LogitLens(load(folder))("What is 12 + 30?", answers="42")
    found = [float(row["kl"]) for row in rows(tmp_path / "out" / "lens.csv")]
    np.testing.assert_allclose(found, grid.kl.flatten(), rtol=1e-4, atol=1e-6)
    assert "answer_rank" in rows(tmp_path / "out" / "lens.csv")[0]


def test_flags_of_the_original(
    tiny_folder: Folder, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_folder("qwen3")
    words = ["lens", "--model_name", str(folder), "--n_problems", "3", "--max_length", "20"]
    assert main([*words, "--data", str(problems), "--output_file", str(tmp_path / "figure.png")]) == 0
    assert "3 problems" in capsys.readouterr().out
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    found = rows(tmp_path / "figure.csv")
    assert len({row["problem_id"] for row in found}) == 3
    assert {row["position"] for row in found} == {"19"}  # the last of 20 tokens
    lm = load(folder)
    question = ("What is 0 + 30? " * 20).strip()
    ids = lm.tokens.encode(f"Q: {question} A:")[:20]
    grid = LogitLens(lm)(ids, positions="last")
    np.testing.assert_allclose(
        [float(r["kl"]) for r in found[: len(grid.kl)]], grid.kl[:, 0], rtol=1e-4, atol=1e-6
    )


def test_task_with_its_solution_and_two_lenses(
    tiny_folder: Folder, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["lens", "--task", "math500", "--data", str(problems), "--limit", "2", "--gold", "-m"]
    words += [
        str(tiny_folder("llama")),
        "--lens",
        "logit",
        "last_block",
        "-o",
        str(tmp_path),
        "--band",
        "bootstrap",
    ]
    assert main([*words, "--metric", "js", "--log-y", "--weight", "token"]) == 0
    found = rows(tmp_path / "lens.csv")
    assert {row["lens"] for row in found} == {"logit", "last_block"}
    assert {row["kind"] for row in found} == {"forced"}  # the response only
    assert "js" in found[0]
    assert "last block lens" in capsys.readouterr().out


def test_a_narrow_table_cuts_texts_and_no_numbers(
    tiny_folder: Folder,
    problems: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["lens", "--task", "math500", "--data", str(problems), "--limit", "2", "-m"]
    words += [str(tiny_folder("llama")), "-o", str(tmp_path), "--band", "bootstrap"]
    tables = []
    for columns in ("80", "300"):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setattr("unspoken.analysis.lens_grid.visible", lambda _text: "·" * 60)
        assert main(words) == 0
        lines = capsys.readouterr().out.splitlines()
        tables.append([line.split("%")[0].split() for line in lines if " to " in line and "%" in line][:-1])
    assert tables[0] == tables[1] and len(tables[0]) >= 3


def test_thoughts_that_were_never_sampled(tiny_folder: Folder, tmp_path: Path) -> None:
    words = [
        "lens",
        "soft",
        "hi",
        "-m",
        str(tiny_folder("llama")),
        "-o",
        str(tmp_path),
        "--max-new-tokens",
        "10",
    ]
    assert main([*words, "--T_e", "4", "--min_end_prob", "1.0", "--k", "3"]) == 0
    kinds = [row["kind"] for row in rows(tmp_path / "lens.csv") if row["layer"] == "0"]
    assert kinds.count("soft") == 4 and "token" in kinds and "prompt" not in kinds


def test_two_models_and_a_depth(tiny_folder: Folder, tmp_path: Path) -> None:
    words = ["lens", "What is 12?", "-m", str(tiny_folder("llama")), "--also", str(tiny_folder("gpt2"))]
    assert main([*words, "-o", str(tmp_path / "two")]) == 0
    assert {path.name for path in (tmp_path / "two").iterdir()} == {*NAMES, "lens-depth.png"}
    assert len({row["model"] for row in rows(tmp_path / "two" / "lens.csv")}) == 2
    assert main([*words[:4], "--depth", "1", "-o", str(tmp_path / "one")]) == 0
    assert {row["layer"] for row in rows(tmp_path / "one" / "lens.csv")} == {"-1", "0"}


def test_text_from_standard_input(
    tiny_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.StringIO("What is 12?\n"))
    assert (
        main(["lens", "-", "-m", str(tiny_folder("llama")), "-o", str(tmp_path), "--positions", "last"]) == 0
    )
    assert rows(tmp_path / "lens.csv")[0]["token"] == "?"


@pytest.mark.parametrize("without", [0, 1])
def test_a_problem_without_an_answer_loses_nothing(
    without: int, tiny_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "problems.jsonl"
    lines = [{"question": f"What is {i} + 3?", "answer": f"#### {i + 3}"} for i in range(3)]
    lines[without]["answer"] = "unknown"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    words = ["--task", "gsm8k", "--data", str(path), "-m", str(tiny_folder("llama")), "-o", str(tmp_path)]
    assert main(["lens", *words, "--metric", "answer_rank"]) == 0
    assert (tmp_path / "lens-heatmap.png").stat().st_size
    found = {row["problem_id"]: row["answer_rank"] for row in rows(tmp_path / "lens.csv")}
    assert [bool(rank) for rank in found.values()] == [i != without for i in range(3)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to read"),
        (["hi", "--task", "gsm8k"], "a text or a task"),
        (["hi", "--gold"], "--gold reads a task's solution"),
        (["hi", "--output_file", "x.pdf"], "must end in .png"),
        (["hi", "--lens", "tuend"], "Unknown lens 'tuend'"),
        (["hi", "--metric", "kll"], "metric must be one of kl,"),
        (["hi", "--limit", "0", "--memory", "0"], "2 problems"),
        (["hi", "--posiitons", "last"], "Did you mean '--positions'?"),
        (["hi", "--positions", "lats"], "did you mean 'last'"),
    ],
)
def test_mistakes(
    words: list[str], said: str, tiny_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["-m", str(tiny_folder("llama"))] + ([] if "--output_file" in words else ["-o", str(tmp_path)])
    assert main(["lens", *words, *where]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["task", "strategy"])
def test_options_share_no_name_with_a_task_or_strategy(kind: str) -> None:
    registry = TASKS if kind == "task" else STRATEGIES
    own = {field.name for field in dataclasses.fields(LensOptions)}
    for name in registry.names():
        assert not own & {field.name for field in dataclasses.fields(registry.find(name))}, name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["text", "--limit", "3"], "--limit counts the problems of a task"),
        (["text", "--max-new-tokens", "3"], "name a strategy"),
        (["text", "--metric", "answer_rank"], "give it with --answer"),
        (["--task", "sums", "--metric", "cross_entropy"], "--positions prompt"),
        (["--task", "sums", "--metric", "gold_rank"], "add --gold"),
    ],
)
def test_options_without_effect_are_refused_before_anything_is_read(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lens", *words, "-m", "no-such-model", "-o", str(tmp_path / "out")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
