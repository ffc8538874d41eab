"""`unspoken sweep` from end to end, on a tiny random model."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from unspoken import load_run
from unspoken.cli.main import main

Folder = Callable[[str], Path]
SMALL = [
    "--n",
    "4",
    "--level",
    "0",
    "--max-new-tokens",
    "8",
    "--num-blocks",
    "2",
    "--mcmc-steps",
    "1",
    "--quiet",
]
GRID = [
    "--layers",
    "0",
    "100",
    "--depths",
    "1",
    "--methods",
    "power",
    "baseline",
    "vote",
    "--candidates",
    "2",
]


@pytest.fixture(scope="module")
def swept(tiny_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep over a model with two blocks: layer 0 with the last block is the full model."""
    root = tmp_path_factory.mktemp("sweep")
    assert main(["sweep", "arithmetic", "-m", str(tiny_folder("llama")), *SMALL, *GRID, "-o", str(root)]) == 0
    return root


def folders(root: Path) -> dict[str, Path]:
    return {p.parent.name: p.parent for p in sorted(root.rglob("run*.json"))}


def test_runs_table_and_figures(swept: Path) -> None:
    assert list(folders(swept)) == [
        "baseline-1",
        "baseline-full",
        "power-1",
        "power-full",
        "vote-1",
        "vote-full",
    ]
    with (swept / "summary_table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["Method"], r["Layer"], r["n_dropped"]) for r in rows if r["Method"] == "power"] == [
        ("power", "first 1", "1"),
        ("power", "0", "0"),
        ("power", "100", "0"),
    ]
    plots = sorted(p.name.partition("-")[0].removesuffix(".png") for p in (swept / "plots").glob("*.png"))
    assert plots == ["acceptance", "accuracy", "cost", "methods"]
    run = load_run(folders(swept)["power-1"])
    assert run.config["model"]["depth"]["kept_blocks"] == [0]
    assert run.config["strategy"]["num_blocks"] == 2 and run.rows[0].notes["power"]["alpha"] == 2.0
    assert load_run(folders(swept)["vote-1"]).config["strategy"]["inner"]["temperature"] == 0.5


def test_cells_are_listed_shared_out_and_the_same(
    swept: Path, tiny_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", "arithmetic", "-m", str(tiny_folder("llama")), *SMALL, *GRID, "--shards", "2"]
    words += ["-o", str(tmp_path)]
    assert main([*words, "--list"]) == 0
    out = capsys.readouterr().out
    assert "12 cells" in out and re.search(r"^0 +power +0, 100 +full model", out, re.MULTILINE)
    assert not list(tmp_path.iterdir())
    assert main([*words, "--cell", "0"]) == 0
    assert "cell 0  power at layer 0, 100 (full model), shard 0/2" in capsys.readouterr().out
    assert main([*words, "--batch-idx", "1"]) == 0
    assert main([*words, "--shard", "0/2"]) == 0
    capsys.readouterr()
    assert main(["sweep", "--summarize", str(tmp_path)]) == 0
    assert "missing" not in capsys.readouterr().out
    for name, folder in folders(tmp_path).items():
        whole = [(r.id, r.text, r.status) for r in load_run(folders(swept)[name]).rows]
        assert [(r.id, r.text, r.status) for r in load_run(folder).rows] == whole


def test_show_compare_and_export(swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = folders(swept)
    assert main(["show", str(found["power-1"])]) == 0
    assert "first 1 of 2 blocks" in capsys.readouterr().out
    assert main(["compare", str(found["baseline-full"]), str(found["power-full"])]) == 0
    capsys.readouterr()
    exported = tmp_path / "originals"
    words = ["sweep", "--summarize", str(swept), "-o", str(tmp_path / "summary")]
    assert main([*words, "--export", str(exported)]) == 0
    out = capsys.readouterr().out
    assert "no place for the strategy 'vote'" in out
    files = sorted(p.name for p in exported.rglob("*.csv"))
    assert files == sorted(
        f"{kind}_temp0.5_batch0.csv"
        for layer in (0, 100)
        for kind in (f"baseline_results_layer{layer}", f"truncated_ps_results_layer{layer}_steps1")
    )
    assert main(["show", str(next(exported.rglob("truncated*layer0*.csv"))), "--text"]) == 0
    assert main(["sweep", "--summarize", str(exported), "--blocks", "2", "-o", str(tmp_path / "again")]) == 0
    out = capsys.readouterr().out
    assert "0 (full)" in out and "100 (full)" in out
    assert main(["sweep", "--summarize", str(swept), "--export", str(swept / "x")]) == 2
    assert "twice" in capsys.readouterr().err


def test_a_recipe_defines_methods_and_flags_choose_among_them(
    tiny_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        json.dumps(
            {
                "command": "sweep",
                "task": "arithmetic",
                "model": str(tiny_folder("llama")),
                "layers": [100],
                "level": 0,
                "methods": {"cold": {"strategy": "cot", "temperature": 0.1}, "baseline": {"top_k": 50}},
            }
        )
    )
    words = ["-c", str(recipe), "--n", "2", "--max-new-tokens", "4", "-o", str(tmp_path / "s"), "--quiet"]
    assert main([*words, "--list"]) == 0
    assert "2 cells" in capsys.readouterr().out
    assert main(["sweep", *words, "--methods", "cold", "greedy"]) == 0
    assert sorted(folders(tmp_path / "s")) == ["cold-full", "greedy-full"]
    assert load_run(folders(tmp_path / "s")["cold-full"]).config["strategy"]["temperature"] == 0.1


def test_a_collapsed_cell_says_so(
    tiny_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", "arithmetic", "-m", str(tiny_folder("llama")), "--n", "6", "--level", "0", "--quiet"]
    words += ["--max-new-tokens", "3", "--layers", "100", "--methods", "greedy", "-o", str(tmp_path)]
    assert main([*words, "--collapse-after", "2"]) == 0
    assert "given up: collapsed" in capsys.readouterr().out
    folder = folders(tmp_path)["greedy-full"]
    assert len(load_run(folder).rows) == 2
    assert main(["show", str(folder)]) == 0
    assert "given up" in capsys.readouterr().out
    assert main([*words, "--collapse-after", "2", "--no-collapse-stop"]) == 0
    assert len(load_run(folder).rows) == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep"], "No task given"),
        (["sweep", "sums", "--layers", "x"], "x"),
        (["sweep", "sums"], "No depth is named: give --layers"),
        (["sweep", "sums", "--layers", "1", "--shard", "3/3"], "shard must be i/n"),
        (
            ["sweep", "sums", "--layers", "1", "--shard", "0/3", "--cell", "1"],
            "shard and cell each choose cells",
        ),
        (
            ["sweep", "sums", "--layers", "1", "--batch-idx", "2", "--shards", "2"],
            "batch_idx must be from 0 to 1",
        ),
        (["sweep", "sums", "--layers", "1", "--methods", "grady"], "Did you mean"),
        (["sweep", "sums", "--layers", "1", "--temperature", "0"], "temperature must be above 0"),
        (["sweep", "sums", "--layers", "1", "--collapse-after", "0"], "collapse_after must be at least 1"),
        (["sweep", "sums", "--depths", "first:3"], "depth must be N"),
        (
            ["sweep", "sums", "--layers", "1", "--num-blocks", "9", "--max-new-tokens", "8"],
            "num_blocks (9) must not exceed max_new_tokens (8)",
        ),
        (["sweep", "sums", "-m", "tiny-arithmetic", "--layers", "1", "--cell", "9", "--list"], "no cell 9"),
        (["sweep", "sums", "-m", "tiny-arithmetic", "--depths", "drop:5", "--list"], "drop:5: drop names 5"),
        (["sweep", "--summarize", "nowhere"], "No folder 'nowhere'"),
        (["sweep", "--summarize", "x", "--blocks", "0"], "blocks must be at least 1"),
    ],
)
def test_mistakes_are_one_message_and_exit_with_two(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert said in captured.err + captured.out
    assert "Traceback" not in captured.err


def test_a_small_budget_has_fewer_blocks(tiny_folder: Folder, tmp_path: Path) -> None:
    words = [
        "sweep",
        "arithmetic",
        "-m",
        str(tiny_folder("llama")),
        "--n",
        "2",
        "--level",
        "0",
        "--layers",
        "100",
    ]
    words += ["--methods", "power", "--mcmc-steps", "1", "--quiet", "--max-new-tokens"]
    for budget, blocks in (("3", 3), ("20", 16)):
        assert main([*words, budget, "-o", str(tmp_path / budget)]) == 0
        run = load_run(folders(tmp_path / budget)["power-full"])
        assert run.config["strategy"]["num_blocks"] == blocks and not run.errors


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--layers" in out and "--collapse-after" in out and "hf-default" in out
    assert main(["sweep", "--summarize", "--help"]) == 0
    assert "--lens" in capsys.readouterr().out
