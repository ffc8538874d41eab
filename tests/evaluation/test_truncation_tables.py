from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from deep_help import swept

from unspoken.errors import DataError
from unspoken.evaluation import compare, load_run, load_runs
from unspoken.evaluation.records import ResultRow, Run
from unspoken.evaluation.sweep_summary import summarize
from unspoken.evaluation.truncation_tables import COLUMNS, export_run, read_tree
from unspoken.types import Usage

MODEL = "Qwen_Qwen2.5-Math-1.5B"
POWER = "truncated_ps_results_layer{}_steps10_temp0.5_batch{}.csv"
BASE = "baseline_results_layer{}_temp0.5_batch{}.csv"


def write(path: Path, rows: list[tuple[str, ...]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return path


def problem(i: int, answer: str, gold: str | None = None, accepted: str = "0.4") -> tuple[str, ...]:
    return (f"What is {i}?", gold or str(i), f"It is \\boxed{{{answer}}},\nI think", answer, accepted)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two batches of the power files and of the baseline, and one batch of another layer with a batch missing."""
    folder = tmp_path / "results" / MODEL
    for batch in (0, 1):
        numbers = range(3 * batch, 3 * batch + 3)
        write(folder / POWER.format(25, batch), [problem(i, str(i)) for i in numbers])
        write(
            folder / BASE.format(25, batch), [problem(i, str(i + (i % 3 > 0)), accepted="") for i in numbers]
        )
    write(folder / POWER.format(26, 1), [problem(i, "7") for i in range(3, 6)])
    write(folder / POWER.format(100, 0), [problem(i, "7") for i in range(3)])
    return tmp_path / "results"


def test_all_numeric_answers_and_names_of_nothing_stay_text(tmp_path: Path) -> None:
    answers = ["7", "007", "NA", "None", "nan", "", "{}", "0.5", "\\frac{1}{2}", 'x, "y"\n z']
    golds = ["7", "7", "NA", "None", "3", "4", "5", "\\frac{1}{2}", "\\frac12", "x"]
    path = write(
        tmp_path / MODEL / BASE.format(3, 0),
        [problem(i, a, g) for i, (a, g) in enumerate(zip(answers, golds, strict=True))],
    )
    (run,) = read_tree(path)
    assert [row.answer for row in run.rows] == ["7", "007", "NA", "None", "nan", None, None, *answers[7:]]
    assert [row.gold for row in run.rows] == golds
    assert [row.status for row in run.rows] == [
        "correct",
        "correct",
        "correct",  # the text NA is what was asked for
        "correct",
        "wrong",
        "unparsed",
        "unparsed",  # what the originals read off the prompt when nothing is boxed
        "correct",
        "correct",
        "wrong",
    ]


def test_a_tree_becomes_runs(tree: Path) -> None:
    runs = load_runs(tree)
    assert [run.name for run in runs] == [
        "baseline_results_layer25_temp0.5",
        "truncated_ps_results_layer25_steps10_temp0.5",
        "truncated_ps_results_layer26_steps10_temp0.5",
        "truncated_ps_results_layer100_steps10_temp0.5",
    ]
    power = runs[1]
    assert power.config["strategy"] == {
        "name": "power", "mode": "reference", "mcmc_steps": 10, "alpha": 2.0, "temperature": 0.5,
    }  # fmt: skip
    assert (power.accuracy, runs[0].accuracy) == (1.0, 2 / 6)
    assert [row.question for row in power.rows] == [f"What is {i}?" for i in range(6)]
    # Each can be named by itself, as a single file can.
    assert load_run(tree / MODEL / power.name).rows == power.rows
    assert len(load_run(tree / MODEL / POWER.format(25, 1)).rows) == 3
    compared = compare(runs[0], power)
    assert compared.entries[1].difference is not None and compared.entries[1].difference.n == 6


def test_batches_are_read_in_the_order_of_their_numbers_and_problems_once(tmp_path: Path) -> None:
    for batch in (10, 2, 1):
        write(tmp_path / MODEL / BASE.format(1, batch), [problem(batch, "1"), problem(99, str(batch))])
    (run,) = read_tree(tmp_path)
    assert [row.question for row in run.rows] == ["What is 1?", "What is 99?", "What is 2?", "What is 10?"]
    assert run.rows[1].answer == "1" and run.config["files"]["repeated_rows"] == 2


def test_the_summary_of_a_tree(tree: Path) -> None:
    summary = summarize(tree)
    lines = {(line.method, line.labels[0]): line for line in summary.lines}
    power = lines["power, 10 steps", "25"]
    # Four problems are solved by the power run only: 2 / 2^4.
    assert (power.p, power.paired, power.accept_rate) == (2 / 16, 6, pytest.approx(0.4))
    assert (power.kept, power.tokens, power.mean_length, power.finished) == (None, None, None, None)
    assert lines["power, 10 steps", "26"].gaps == (
        "batch 0: truncated_ps_results_layer26_steps10_temp0.5_batch0.csv is missing",
    )
    assert lines["power, 10 steps", "26"].state == "incomplete"
    assert "--blocks N" in str(summary)
    known = {(line.method, line.labels[0]): line for line in summarize(tree, blocks=28).lines}
    assert known["power, 10 steps", "26"].full and known["power, 10 steps", "100"].full
    assert known["power, 10 steps", "25"].kept_blocks == "0-25,27"
    assert (known["baseline", "25"].accept_rate, known["baseline", "25"].p) == (None, None)


def test_an_export_is_read_back(tmp_path: Path) -> None:
    run = Run(
        config={
            "strategy": {"name": "power", "alpha": 2.0, "temperature": None, "mcmc_steps": 10},
            "model": {"source": "org/m", "depth": {"kept_blocks": [0, 1, 2, 5], "n_dropped": 2}},
        },
        rows=[
            ResultRow(
                f"x-{i}#0", f"x-{i}", i, 0, 0, f"Q {i}", str(i), "correct", answer, "boxed", "eos",
                f"so,\n\"{i}\" \\boxed{{{answer}}}", "", Usage(tokens=3),
                notes={"power": {"acceptance": 0.25, "moves": 4}},
            )
            for i, answer in enumerate(["0", "1", None, "NA", "4,5", " 5 ", "6"])
        ],
    )  # fmt: skip
    done = export_run(run, tmp_path, batch=3)
    names = [f"truncated_ps_results_layer2_steps10_temp0.5_batch{b}.csv" for b in range(3)]
    assert [f.relative_to(tmp_path).as_posix() for f in done.files] == [f"org_m/{name}" for name in names]
    assert done.left_out == []
    with done.files[0].open(newline="") as file:
        assert next(csv.reader(file)) == list(COLUMNS)
    (again,) = read_tree(tmp_path)
    for name in ("question", "gold", "text", "answer"):
        assert [getattr(r, name) for r in again.rows] == [getattr(r, name) for r in run.rows]
    assert summarize(tmp_path).lines[0].accept_rate == pytest.approx(0.25)
    # What is read can be written again, to the same bytes.
    layers = [str(again.config["model"]["layer_idx"])]
    twice = export_run(again, tmp_path / "twice", layers=layers, batch=3)
    assert [f.read_bytes() for f in twice.files] == [f.read_bytes() for f in done.files]


def test_what_has_no_place_is_named(tmp_path: Path) -> None:
    base = Run(
        config={"strategy": {"name": "cot", "temperature": 0.5}, "model": {"source": "m"}},
        rows=[
            ResultRow(f"{i}#0", str(i), i, 0, 0, f"Q {i}", "1", "wrong", "2", None, "eos", "2", "", Usage())
            for i in (0, 1, 3, 4)
        ],
    )
    taken: set[Path] = set()
    first = export_run(base, tmp_path, layers=["26", "100"], batch=3, taken=taken)
    assert len(first.files) == 4  # two batches, under both names of the full model
    assert first.left_out[0].endswith(
        "1 problems of baseline_results_layer26_temp0.5_batch0.csv are missing."
    )
    same = export_run(base, tmp_path, layers=["26"], batch=3, taken=taken)
    assert same.files == [] and "another run has the same file name" in same.left_out[0]
    soft = export_run(
        replace(base, config={**base.config, "strategy": {"name": "soft"}}), tmp_path, layers=["1"]
    )
    assert soft.files == [] and "no place for the strategy 'soft'" in soft.left_out[0]
    window = {"source": "m", "depth": {"kept_blocks": [0, 3], "n_dropped": 2}}
    assert export_run(replace(base, config={**base.config, "model": window}), tmp_path / "w").files
    hole = {"source": "m", "depth": {"kept_blocks": [0, 2, 3], "n_dropped": 2}}
    done = export_run(replace(base, config={**base.config, "model": hole}), tmp_path)
    assert done.files == [] and "no place for its depth" in done.left_out[0]
    full = export_run(base, tmp_path / "f", blocks=28)
    assert full.files[0].name == "baseline_results_layer100_temp0.5_batch0.csv"


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / MODEL / BASE.format(1, 0)
    path.parent.mkdir()
    path.write_text("question,answer\na,b\n")
    with pytest.raises(DataError, match="has no column correct_answer, mcmc_completion, mcmc_answer"):
        load_runs(tmp_path)
    path.write_text(",".join(COLUMNS) + "\nonly,two\n")
    with pytest.raises(DataError, match="Row 1 of .* is cut off"):
        load_runs(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as CSV"):
        load_runs(tmp_path)


def test_a_sweep_of_other_strategies_exports_nothing(tmp_path: Path) -> None:
    swept(tmp_path / "s")
    for line in summarize(tmp_path / "s").lines:
        done = export_run(line.run, tmp_path / "out", layers=line.labels)
        assert done.files == [] and "fake_loop" in done.left_out[0]


def test_long_completions_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / MODEL / BASE.format(1, 0), [("Q", "1", "x" * 300_000, "1", "")])
    assert len(read_tree(path)[0].rows[0].text) == 300_000
    assert csv.field_size_limit() < 300_000  # other readers keep their limit
