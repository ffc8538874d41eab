from __future__ import annotations

import csv
import math
import shutil
from pathlib import Path

import fake_loop
import pytest
from deep_help import LOOP, METHODS, swept

from unspoken.errors import ConfigError, DataError
from unspoken.evaluation import load_run, stats
from unspoken.evaluation.sweep import ask
from unspoken.evaluation.sweep_figures import write_figures
from unspoken.evaluation.sweep_summary import COLUMNS, SweepSummary, summarize


def table(summary: SweepSummary, folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    with summary.write_csv(folder / "t.csv").open(newline="") as file:
        return {(row["Method"], row["Layer"]): row for row in csv.DictReader(file)}


def test_numbers_against_hand_computations(tmp_path: Path) -> None:
    swept(tmp_path / "s", size=40)
    found = table(summarize(tmp_path / "s"), tmp_path)
    assert list(next(iter(found.values()))) == list(COLUMNS)
    power, base = (load_run(tmp_path / f"s/org_deep/{m}-3+last") for m in ("power", "baseline"))
    row = found["power", "2"]
    correct, n = sum(r.text == r.gold for r in power.rows), len(power.rows)
    assert (row["Total Questions"], row["Correct"]) == (str(n), str(correct))
    assert float(row["Accuracy"]) == pytest.approx(correct / n, abs=1e-6)
    # Wilson's score interval, written out.
    z, p = 1.959964, correct / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert float(row["ci_low"]) == pytest.approx((middle - half) / (1 + z * z / n), abs=1e-5)
    assert float(row["ci_high"]) == pytest.approx((middle + half) / (1 + z * z / n), abs=1e-5)
    # McNemar's exact test: a binomial with p = 1/2 over the problems that only one of them solves.
    pairs = list(zip(power.rows, base.rows, strict=True))
    only = [
        sum(a.correct and not b.correct for a, b in pairs),
        sum(b.correct and not a.correct for a, b in pairs),
    ]
    tail = sum(math.comb(sum(only), k) for k in range(min(only) + 1)) / 2 ** sum(only)
    assert only[0] != only[1]
    assert float(row["p_vs_baseline"]) == pytest.approx(min(1.0, 2 * tail), rel=1e-5)
    assert row["n_paired"] == str(n)
    assert found["baseline", "2"]["p_vs_baseline"] == ""
    assert (row["kept_blocks"], row["n_dropped"], row["grader"], row["state"]) == (
        "0-2,5",
        "2",
        "default",
        "complete",
    )
    finished = sum(r.reason == "eos" for r in power.rows) / n
    assert float(row["finished_frac"]) == pytest.approx(finished, abs=1e-6)
    assert row["tokens"] == str(sum(r.usage.tokens for r in power.rows))
    assert float(row["mean_len"]) == pytest.approx(
        sum(sum(r.phases.values()) for r in power.rows) / n, rel=1e-5
    )


def test_both_layers_of_a_no_op_point_at_the_same_run(tmp_path: Path) -> None:
    swept(tmp_path / "s")
    summary = summarize(tmp_path / "s")
    found = table(summary, tmp_path)
    assert {key for key in found if key[0] == "power"} == {("power", "2"), ("power", "4"), ("power", "100")}
    assert {**found["power", "4"], "Layer": ""} == {**found["power", "100"], "Layer": ""}
    assert (found["power", "4"]["n_dropped"], found["power", "4"]["kept_blocks"]) == ("0", "0-5")
    assert len(summary.lines) == 4
    text = str(summary)
    assert "4, 100 (full)" in text and "layers 4, 100 drop nothing: that is the full model" in text


def test_only_shared_problems_are_tested(tmp_path: Path) -> None:
    both = ask([100])
    swept(tmp_path / "s", size=20, depths=both, methods={"baseline": METHODS["baseline"]}, limit=10)
    swept(tmp_path / "s", size=20, depths=both, methods={"power": METHODS["power"]}, start=5)
    (power,) = (line for line in summarize(tmp_path / "s").lines if line.method == "power")
    assert power.paired == 4  # 5 to 9 without 6, which has no answer
    assert (power.run.summary.n, power.state) == (13, "complete")
    assert {
        line.p for line in summarize(tmp_path / "s", baseline="power").lines if line.method == "power"
    } == {None}


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    swept(tmp_path / "s", shards=3, cells=[0, 2, 3, 4, 5])
    summary = summarize(tmp_path / "s")
    lines = {(line.method, line.labels): line for line in summary.lines}
    assert lines["power", ("2",)].gaps == ("shard 1/3: 4 of 4 rows are missing",)
    assert lines["power", ("2",)].state == "incomplete"
    assert lines["baseline", ("2",)].gaps == ()
    never = lines["power", ("4", "100")]  # planned and never begun
    assert never.missing == 11 and never.run.rows == []
    assert table(summary, tmp_path)["power", "4"]["Accuracy"] == ""
    assert "power at layer 2: shard 1/3: 4 of 4 rows are missing." in str(summary)
    swept(tmp_path / "s", shards=3)
    assert {line.state for line in summarize(tmp_path / "s").lines} == {"complete"}


def test_collapsed_cells_are_said_to_be_and_are_no_gaps(tmp_path: Path) -> None:
    for i in range(3):
        fake_loop.TEXTS[f"toy-{i}#0"] = LOOP
    swept(tmp_path / "s", collapse_after=3)
    summary = summarize(tmp_path / "s")
    assert {line.state for line in summary.lines} == {"collapsed"}
    assert all(line.gaps == () and line.run.summary.n == 3 for line in summary.lines)
    assert table(summary, tmp_path)["power", "2"]["Total Questions"] == "3"
    assert "Given up early" in str(summary) and "--no-collapse-stop" in str(summary)
    assert "The full model was given up as well" in str(summary)


def test_folders_moved_aside_are_not_counted(tmp_path: Path) -> None:
    swept(tmp_path / "s")
    swept(tmp_path / "s", seed=1, force=True)
    summary = summarize(tmp_path / "s")
    assert len(summary.lines) == 4 and "4 folders that were moved aside" in str(summary)


def test_ordinary_evaluations_are_read_too(tmp_path: Path) -> None:
    swept(tmp_path / "s")
    for plan in (tmp_path / "s").glob("sweep-*.json"):
        plan.unlink()
    summary = summarize(tmp_path / "s")
    assert sorted(line.labels for line in summary.lines) == [("3+last",)] * 2 + [("full",)] * 2
    assert {line.method for line in summary.lines} == {"fake_loop non_uniform"}


def test_empty_and_foreign_folders_are_errors(tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="holds no run of a sweep"):
        summarize(tmp_path)
    with pytest.raises(ConfigError, match="No folder"):
        summarize(tmp_path / "nowhere")
    swept(tmp_path / "s")
    shutil.rmtree(tmp_path / "s/org_deep")
    with pytest.raises(ConfigError, match="1 sweeps are planned there, and nothing"):
        summarize(tmp_path / "s")
    (tmp_path / "s/sweep-0.json").write_text("{}")
    with pytest.raises(DataError, match="not the plan of a sweep"):
        summarize(tmp_path / "s")


def test_another_grader_must_have_graded_everything(tmp_path: Path) -> None:
    swept(tmp_path / "s")
    assert len(summarize(tmp_path / "s", grader="default").lines) == 4
    with pytest.raises(ConfigError, match="'strict' has not graded power-3"):
        summarize(tmp_path / "s", grader="strict")


def lens_csv(path: Path, model: str) -> Path:
    lines = ["model,lens,layer,depth,problem_id,position,token,kind,kl,entropy,top"]
    for layer in range(-1, 6):
        for problem, values in {"a": (4.0, 2.0), "b": (1.0,)}.items():
            lines += [
                f"{model},logit,{layer},0.5,{problem},{i},x,prompt,{value * (5 - layer)},1,y"
                for i, value in enumerate(values)
            ]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_figures_and_the_curve_of_a_lens(tmp_path: Path) -> None:
    from unspoken.analysis.sweep_plots import Point, accuracy_by_layer, read_lens

    swept(tmp_path / "s")
    summary = summarize(tmp_path / "s")
    file = lens_csv(tmp_path / "lens.csv", "org/deep")
    (curve,) = read_lens(file)
    assert curve.layers == (0, 1, 2, 3, 4, 5)
    # Of problem a the mean of its positions (3), then the mean of the problems: (3 + 1) / 2 a block that is missing.
    assert curve.mean == pytest.approx([10.0, 8.0, 6.0, 4.0, 2.0, 0.0])
    assert curve.high[0] == pytest.approx(15.0) and curve.low[0] == pytest.approx(5.0)
    written = write_figures(summary, tmp_path / "plots", lens=file)
    assert [p.name for p in written] == ["accuracy-org_deep.png", "cost-org_deep.png", "methods.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in written)
    with pytest.raises(ConfigError, match=r"is of other/model, and the sweep of org/deep"):
        write_figures(summary, tmp_path / "plots", lens=lens_csv(tmp_path / "other.csv", "other/model"))
    with pytest.raises(DataError, match="not the CSV file of a lens"):
        write_figures(summary, tmp_path / "plots", lens=tmp_path / "s/sweep-0.csv")
    points = [Point("a", layer, str(layer), 0.5, 0.3, 0.7, 0.4, 10.0) for layer in (5, 3)]
    figure = accuracy_by_layer([*points, Point("a", None, "drop", 0.1, 0.0, 0.2)], [curve])
    axes, second = figure.axes
    assert list(axes.lines[0].get_xdata()) == [3, 5] and list(axes.lines[0].get_ydata()) == [50, 50]
    assert list(second.lines[0].get_xdata()) == [1, 2, 3, 4, 5]
    assert list(second.lines[0].get_ydata()) == pytest.approx([8.0, 6.0, 4.0, 2.0, 0.0])


def test_points_of_the_figures(tmp_path: Path) -> None:
    from unspoken.evaluation.sweep_figures import _deepest, _points

    swept(tmp_path / "s", depths=ask([2, 100], ["3", "drop:1"]))
    lines = summarize(tmp_path / "s").lines
    points = {(p.method, p.label): p.layer for p in _points(lines)}
    assert points["power, with the last block", "2"] == 2
    assert points["power, first blocks only", "first 3"] == 2
    assert points["power", "full"] == 5
    assert points["power", "drop:1"] is None
    assert {line.where for line in _deepest(lines)} == {"100 (full)"}


def test_interval_of_the_record_is_that_of_the_statistics(tmp_path: Path) -> None:
    swept(tmp_path / "s")
    for line in summarize(tmp_path / "s").lines:
        expected = stats.wilson(line.run.summary.correct, line.run.summary.n)
        assert line.run.summary.interval == expected
