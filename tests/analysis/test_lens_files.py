"""Curves, tables, pages and figures of a lens."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from lens_help import IDS, lens_lm

from unspoken import LogitLens
from unspoken.analysis import lens_plots
from unspoken.analysis._lens_html import page
from unspoken.analysis.lens_curves import LensCurve, curve
from unspoken.analysis.lens_grid import LensGrid, visible, write_csv, write_npz
from unspoken.analysis.plots import render
from unspoken.errors import ConfigError

EVIL = "</script><img src=x onerror=alert(1)>"


@pytest.fixture
def grids() -> list[LensGrid]:
    lens = LogitLens(lens_lm("llama"))
    return [lens(IDS[:4], problem_id="a"), lens(IDS, problem_id="b"), lens(IDS[3:], problem_id="c")]


def line(means: list[float]) -> LensCurve:
    values = np.array(means)
    return LensCurve("x", "kl", np.arange(-1, len(means) - 1), values, values, values, "std", 1)


class TestCurves:
    """Means over problems, their bands, and the drop."""

    def test_problems_or_tokens_count_alike(self, grids: list[LensGrid]) -> None:
        means = np.stack([g.kl.astype(float).mean(1) for g in grids])
        by_problem = curve(grids)
        np.testing.assert_allclose(by_problem.mean, means.mean(0))
        np.testing.assert_allclose(by_problem.high - by_problem.mean, means.std(0))
        tokens = np.concatenate([g.kl.astype(float) for g in grids], axis=1)
        by_token = curve(grids, weight="token", band="iqr")
        np.testing.assert_allclose(by_token.mean, tokens.mean(1))
        np.testing.assert_allclose(by_token.low, np.quantile(tokens, 0.25, axis=1))
        np.testing.assert_allclose(by_token.high, np.quantile(tokens, 0.75, axis=1))
        assert by_token.problems == 3

    def test_positions_without_a_value_do_not_count(self, grids: list[LensGrid]) -> None:
        expected = np.mean([g.cross_entropy[:, :-1].astype(float).mean(1) for g in grids], axis=0)
        np.testing.assert_allclose(curve(grids, "cross_entropy").mean, expected)

    @pytest.mark.parametrize("weight", ["problem", "token"])
    def test_bootstrap_is_narrower_with_more_problems(self, grids: list[LensGrid], weight: str) -> None:
        few = curve(grids, band="bootstrap", weight=weight)  # type: ignore[arg-type]
        many = curve(grids * 8, band="bootstrap", weight=weight)  # type: ignore[arg-type]
        assert (few.low <= few.mean).all() and (few.mean <= few.high).all()
        assert (many.high - many.low)[1:-1].max() < (few.high - few.low)[1:-1].max()
        again = curve(grids, band="bootstrap", weight=weight)  # type: ignore[arg-type]
        np.testing.assert_array_equal(few.low, again.low)

    def test_drop(self) -> None:
        # From 90 % (9 of 10) at block 1.5 to 10 % (1 of 10) at block 3.5, embeddings left out.
        falling = line([50, 10, 10, 8, 2, 0])
        assert falling.steepest_drop == 3
        assert falling.drop_width == pytest.approx(3.5 - 1.5)
        assert falling.relative_drop_width == pytest.approx(2 / 5)
        assert np.isnan(line([5, 4, 4, 3]).drop_width)

    def test_mistakes(self, grids: list[LensGrid]) -> None:
        other = LogitLens(lens_lm("gpt2"))(IDS)
        with pytest.raises(ConfigError, match="several models"):
            curve([*grids, other])
        with pytest.raises(ConfigError, match="2 problems"):
            curve(grids, band="sd", weight="word")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="no grids"):
            curve([])
        with pytest.raises(ConfigError, match="no 'js'"):
            curve(grids, "js")
        single = LogitLens(lens_lm("llama"))([20])
        with pytest.raises(ConfigError, match="No position has a value"):
            curve([single], "gold_rank")


class TestFiles:
    """CSV, npz and the page."""

    def test_csv_long_form(self, grids: list[LensGrid], tmp_path: Path) -> None:
        write_csv(tmp_path / "lens.csv", grids)
        with (tmp_path / "lens.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == sum(g.kl.size for g in grids)
        head = ["model", "lens", "layer", "depth", "problem_id", "position", "token", "kind"]
        assert list(rows[0])[:8] == head
        (row,) = [r for r in rows if (r["problem_id"], r["layer"], r["position"]) == ("b", "2", "5")]
        assert float(row["kl"]) == pytest.approx(float(grids[1].kl[3, 5]), rel=1e-5)
        assert row["top"] == visible(grids[1].top(2, 5)[0][0])
        (last,) = [r for r in rows if (r["problem_id"], r["layer"], r["position"]) == ("a", "0", "3")]
        assert last["gold_rank"] == ""
        assert [path.name for path in tmp_path.iterdir()] == ["lens.csv"]

    def test_npz_without_pickle(self, grids: list[LensGrid], tmp_path: Path) -> None:
        grids[0].to_npz(tmp_path / "one.npz")
        with np.load(tmp_path / "one.npz", allow_pickle=False) as one:
            np.testing.assert_array_equal(one["kl"], grids[0].kl)
            assert one["tokens"].tolist() == list(grids[0].tokens)
        write_npz(tmp_path / "all.npz", grids)
        with np.load(tmp_path / "all.npz", allow_pickle=False) as many:
            np.testing.assert_array_equal(many["2/entropy"], grids[2].entropy)

    def test_page_holds_the_numbers_and_no_markup_of_the_model(
        self, grids: list[LensGrid], tmp_path: Path
    ) -> None:
        grid = grids[0]
        grid.model = grid.problem_id = EVIL
        grid.tokens = (EVIL, " <script>", "a\n", "\u2028")
        grid.texts = dict.fromkeys(grid.texts, EVIL)
        grid.to_html(tmp_path / "lens.html")
        text = (tmp_path / "lens.html").read_text(encoding="utf-8")
        assert EVIL not in text and "<img" not in text and "\u2028" not in text
        assert text.count("<script") == 2 and text.count("</script>") == 2
        assert "http" not in re.sub(r"http-equiv", "", text)  # nothing of another origin
        data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
        assert data[0]["tokens"] == [EVIL.replace(" ", "·"), "·<script>", "a\\n", "\\u2028"]
        assert data[0]["values"]["kl"][1][0] == pytest.approx(float(grid.kl[1, 0]), rel=1e-3)
        assert data[0]["values"]["gold_rank"][0][-1] is None
        assert len(data[0]["top"][0][0]) == 5

    def test_only_the_pages_own_script_may_run(self, grids: list[LensGrid]) -> None:
        import base64
        import hashlib

        text = page(grids)
        script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)[0]
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in text
        assert "default-src 'none'" in text

    def test_white_space_and_bytes_are_shown(self) -> None:
        assert visible(" a\tb\n") == "·a\\tb\\n"
        assert visible("<0xE2>é你") == "<0xE2>é你"


class TestFigures:
    """Figures are drawn from the grids, and say what they show."""

    def test_curves_of_models_of_unlike_depth(self, grids: list[LensGrid]) -> None:
        deep = curve([LogitLens(lens_lm("llama", 6))(IDS)], name="deep")
        lines = [curve(grids, name="shallow $x$"), deep]
        absolute = lens_plots.curves(lines, log_y=True).axes[0]
        assert [list(l.get_xdata()) for l in absolute.lines] == [list(range(4)), list(range(6))]  # noqa: E741
        assert absolute.get_yscale() == "log"
        figure = lens_plots.curves(lines, relative=True)
        assert all(l.get_xdata()[-1] == 1 for l in figure.axes[0].lines)  # type: ignore[index] # noqa: E741
        np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), lines[0].mean[1:])  # type: ignore[arg-type]
        assert render(figure, "png")[:4] == b"\x89PNG"
        with pytest.raises(ConfigError, match="one metric"):
            lens_plots.curves([deep, curve(grids, "entropy")])

    def test_metric_grid(self, grids: list[LensGrid]) -> None:
        names = ("kl", "entropy", "agreement", "final_rank")
        figure = lens_plots.metric_grid([[curve(grids, name)] for name in names])
        shown = [axes for axes in figure.axes if axes.get_visible()]
        assert [axes.get_title() for axes in shown] == [lens_plots.LABELS[name] for name in names]
        assert render(figure, "png")[:4] == b"\x89PNG"

    def test_heat_map(self, grids: list[LensGrid], tmp_path: Path) -> None:
        grid = grids[1]
        grid.tokens = ("你好", *grid.tokens[1:])  # not in the figure's font
        figure = lens_plots.heat_map(grid, "final_rank")
        axes = figure.axes[0]
        assert len(axes.texts) == grid.kl.size  # every cell is annotated
        assert axes.get_xticklabels()[0].get_text() == "□□"
        assert not axes.yaxis_inverted()  # the last layer is on top
        grid.to_png(tmp_path / "x.png", "gold_rank")
        assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
        wide = LogitLens(lens_lm("llama"))(IDS * 6)
        assert not lens_plots.heat_map(wide).axes[0].texts  # too many to write in
