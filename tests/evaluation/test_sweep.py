from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fake_loop
import pytest
from deep_help import LOOP, METHODS, DeepLM, rows_in, swept

from unspoken.errors import ConfigError
from unspoken.evaluation import compare, evaluate, load_run
from unspoken.evaluation._collapse import loops, marks
from unspoken.evaluation._grid import Grid, read_manifests
from unspoken.evaluation.sweep import Settings, ask, make_methods, sweep
from unspoken.lm.depth import Depth


def test_the_grid_has_each_depth_once_and_remembers_how_it_was_asked_for() -> None:
    asked = ask([21, 25, 26, 100], ["26+last", "3", "drop:25,26"])
    grid = Grid.make("Qwen/Qwen2.5-Math-1.5B", 28, METHODS, asked, shards=2)
    found = {c.folder: (c.labels, c.kept.n_dropped) for c in grid.configurations if c.method == "power"}
    assert found == {
        "Qwen_Qwen2.5-Math-1.5B/power-22+last": (("21",), 5),
        "Qwen_Qwen2.5-Math-1.5B/power-26+last": (("25", "26+last"), 1),
        "Qwen_Qwen2.5-Math-1.5B/power-full": (("26", "100"), 0),
        "Qwen_Qwen2.5-Math-1.5B/power-3": (("first 3",), 25),
        "Qwen_Qwen2.5-Math-1.5B/power-25+last": (("drop:25,26",), 2),
    }
    cells = grid.cells
    assert [cell.index for cell in cells] == list(range(20))
    assert [(c.configuration.method, c.shard) for c in cells[:4]] == [
        ("power", "0/2"),
        ("power", "1/2"),
        ("baseline", "0/2"),
        ("baseline", "1/2"),
    ]
    without = Grid.make("m", 28, METHODS, ask([26], keep_last=False))
    assert without.configurations[0].kept.n_dropped == 1


def test_all_mistakes_of_a_grid_come_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        Grid.make("m", 4, {"a/b": METHODS["power"]}, ask([1], ["9", "drop:7"]), shards=0)
    assert len(error.value.problems) == 4
    with pytest.raises(ConfigError) as error:
        ask([-1], ["last"])
    assert len(error.value.problems) == 2
    with pytest.raises(ConfigError, match="names no method"):
        Grid.make("m", 4, {}, ask([1]))


def test_methods_by_name_by_definition_and_by_strategy() -> None:
    made = make_methods(
        ["power", "power-original", "baseline", "hf-default", "greedy", "vote", "mine", "base"],
        Settings(temperature=0.25, mcmc_steps=3, num_blocks=8, candidates=5),
        {"mine": {"strategy": "cot", "top_p": 0.9}, "base": {"top_k": 7}},
    )
    power = made["power"]
    assert (power.name, power.alpha, power.mcmc_steps, power.num_blocks, power.top_k) == (
        "power",
        4.0,
        3,
        8,
        0,
    )  # type: ignore[attr-defined]
    assert (made["power-original"].mode, made["power-original"].top_k) == ("reference", 50)  # type: ignore[attr-defined]
    cots = {name: (s.temperature, s.top_k, s.top_p) for name, s in made.items() if s.name == "cot"}  # type: ignore[attr-defined]
    assert cots == {
        "baseline": (0.25, 0, 1.0),
        "hf-default": (1.0, 50, 1.0),
        "greedy": (0.0, 0, 1.0),
        "mine": (0.6, 0, 0.9),
        "base": (1.0, 7, 1.0),  # a built-in method with one field changed
    }
    assert made["vote"].n == 5 and made["vote"].inner.temperature == 0.25  # type: ignore[attr-defined]
    with pytest.raises(ConfigError) as error:
        make_methods(
            ["pwoer", "x", "y"],
            None,
            {"x": {"strategy": "cot", "top_pp": 1}, "y": {"strategy": "cot", "top_p": 7}},
        )
    assert len(error.value.problems) == 3 and "power" in str(error.value)


def test_every_cell_is_an_ordinary_run_and_views_are_made_once_a_depth(tmp_path: Path) -> None:
    lm = DeepLM()
    results = swept(tmp_path, lm=lm)
    assert [r.cell.configuration.folder for r in results] == [
        f"org_deep/{method}-{depth}" for depth in ("3+last", "full") for method in ("power", "baseline")
    ]
    # Layer 4 of 6 with the last block is the full model, as 100 is.
    assert results[2].cell.configuration.labels == ("4", "100")
    assert lm.views == [(0, 1, 2, 5)]
    view: Any = lm.truncated(drop=[3, 4])
    alone = evaluate(
        view,
        fake_loop.Toy(12),
        METHODS["power"],
        output=tmp_path / "alone",
        batch_size=3,
        max_new_tokens=1024,
    )
    rows, config = (tmp_path / "org_deep/power-3+last/rows.jsonl"), load_run(tmp_path / "alone").config
    assert rows.read_bytes() == (tmp_path / "alone/rows.jsonl").read_bytes() and len(alone.rows) == 11
    assert results[0].run is not None and results[0].run.config == config
    assert "depth" not in load_run(tmp_path / "org_deep/power-full").config["model"]
    assert compare(tmp_path / "org_deep/baseline-full", tmp_path / "org_deep/power-full").entries[1].n == 11


def test_interrupted_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    swept(tmp_path / "whole")
    for after in (2, 4, 4, 9):
        fake_loop.INTERRUPT_AFTER[:] = [after]
        with pytest.raises(KeyboardInterrupt):
            swept(tmp_path / "cut")
    fake_loop.INTERRUPT_AFTER.clear()
    swept(tmp_path / "cut")
    assert rows_in(tmp_path / "cut") == rows_in(tmp_path / "whole")
    rows = "org_deep/power-3+last/rows.jsonl"
    assert (tmp_path / "cut" / rows).read_bytes() == (tmp_path / "whole" / rows).read_bytes()
    fake_loop.TAKEN.clear()
    swept(tmp_path / "cut")
    assert fake_loop.TAKEN == []


def test_shards_and_single_cells_are_the_whole(tmp_path: Path) -> None:
    swept(tmp_path / "whole", collapse_after=2)
    for index in (7, 0, 3, 11, 1, 2, 4, 5, 6, 8, 9, 10):
        done = swept(tmp_path / "parts", collapse_after=2, shards=3, cells=[index])
        assert [r.cell.index for r in done] == [index]
    assert rows_in(tmp_path / "parts") == rows_in(tmp_path / "whole")
    assert len(read_manifests(tmp_path / "parts")) == 1  # every job wrote the same plan
    with pytest.raises(ConfigError, match="no cell 12; the grid has cells 0 to 11"):
        swept(tmp_path / "parts", shards=3, cells=[12])


def test_a_collapsed_cell_stops_marked_and_can_be_forced_on(tmp_path: Path) -> None:
    for i in range(4):
        fake_loop.TEXTS[f"toy-{i}#0"] = LOOP
    results = swept(tmp_path / "a", collapse_after=4)
    assert [r.collapsed for r in results] == [True] * 4
    folder = tmp_path / "a/org_deep/power-full"
    assert len(load_run(folder).rows) == 4
    assert marks(folder) == [""]
    assert json.loads((folder / "collapsed.json").read_text())["after_rows"] == 4
    before = (folder / "rows.jsonl").read_bytes()
    fake_loop.TAKEN.clear()
    assert [r.collapsed for r in swept(tmp_path / "a", collapse_after=4)] == [True] * 4
    assert fake_loop.TAKEN == [] and (folder / "rows.jsonl").read_bytes() == before
    # One row with hope among the first is enough to go on.
    assert not any(r.collapsed for r in swept(tmp_path / "b", collapse_after=5))
    # Forced on, the folder is as if nothing had been given up, and stays so.
    swept(tmp_path / "a", collapse_after=None)
    assert marks(folder) == [] and rows_in(tmp_path / "a") == rows_in(tmp_path / "b")
    assert not any(r.collapsed for r in swept(tmp_path / "a", collapse_after=4))


def test_collapse_does_not_depend_on_interruptions_or_the_order_of_rows(tmp_path: Path) -> None:
    for i in range(5):
        fake_loop.TEXTS[f"toy-{i}#0"] = LOOP
    swept(tmp_path / "whole", collapse_after=5)
    for after in (1, 3):
        fake_loop.INTERRUPT_AFTER[:] = [after]
        with pytest.raises(KeyboardInterrupt):
            swept(tmp_path / "cut", collapse_after=5, batch_size=2)
    fake_loop.INTERRUPT_AFTER.clear()
    swept(tmp_path / "cut", collapse_after=5, batch_size=5)
    assert rows_in(tmp_path / "cut") == rows_in(tmp_path / "whole")
    assert all(len(rows) == 5 for rows in rows_in(tmp_path / "cut").values())


def test_each_shard_is_given_up_by_its_own_rows(tmp_path: Path) -> None:
    for i in (0, 2, 4):
        fake_loop.TEXTS[f"toy-{i}#0"] = LOOP
    results = swept(
        tmp_path, collapse_after=3, shards=2, depths=ask([100]), methods={"power": METHODS["power"]}
    )
    assert [r.collapsed for r in results] == [True, False]
    folder = tmp_path / "org_deep/power-full"
    assert marks(folder) == ["0/2"]
    assert [row.index for row in load_run(folder).rows] == [0, 1, 2, 3, 4, 5, 7, 9, 11]


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("1 2 1 2 1 2 1 2 1 2 1 2 1 2", True),
        ("the answer is the answer is the answer is the answer is the ans", True),
        ("x" * 50, True),
        ("So 17 + 5 = 22, and 22 is the answer. The answer is 22.", False),
        ("ha ha ha ha", False),  # too short to be a loop
        ("", False),
        ("a long beginning that says something of its own. " + "no\n\n" * 30, True),
        ("one two three four five six seven eight nine ten " * 3, False),  # three times only
    ],
)
def test_loops(text: str, loop: bool) -> None:
    assert loops(text) is loop


def test_an_answer_that_can_be_read_is_hope_even_in_a_loop(tmp_path: Path) -> None:
    for i in range(6):
        fake_loop.TEXTS[f"toy-{i}#0"] = "1" * 40  # a wrong number
    assert not any(r.collapsed for r in swept(tmp_path, collapse_after=4))
    for i in range(6):
        fake_loop.TEXTS[f"toy-{i}#0"] = "I do not know."  # nothing to read, but it ended
    assert not any(r.collapsed for r in swept(tmp_path / "b", collapse_after=4))


def test_a_cell_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    fake_loop.FAIL.update(f"toy-{i}#0" for i in range(12))
    results = swept(tmp_path)
    assert len(results) == 4 and all(r.run is None and "All 11 rows failed" in str(r.error) for r in results)


def test_mistakes_are_found_before_anything_is_generated(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="power: k is above the vocabulary"):
        swept(tmp_path, methods={"power": fake_loop.Fake(impossible=True)})
    with pytest.raises(ConfigError, match="starts from the full model"):
        swept(tmp_path, lm=DeepLM().truncated(drop=[1]))
    with pytest.raises(ConfigError, match="start is 99"):
        swept(tmp_path, start=99)
    with pytest.raises(ConfigError, match="holds another configuration"):
        swept(tmp_path, seed=0)
        swept(tmp_path, seed=1)
    assert fake_loop.TAKEN and len(rows_in(tmp_path)) == 4
    (tmp_path / "run.json").touch()
    with pytest.raises(ConfigError, match="holds a run of its own"):
        swept(tmp_path, seed=0)


def test_no_view_of_a_view(tiny_lm: object) -> None:
    assert Depth(layer_idx=4).resolve(6).n_dropped == 0
    with pytest.raises(ConfigError, match="Unknown task"):
        sweep(DeepLM(), "gsm", METHODS, ask([1]), "x")  # type: ignore[arg-type]
