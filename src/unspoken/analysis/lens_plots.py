"""Figures of a lens: curves over layers with bands, several metrics at a glance, and heat maps of one row."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from unspoken.analysis.lens_curves import LensCurve
from unspoken.analysis.lens_grid import Array, LensGrid, visible
from unspoken.analysis.plots import COLOURS, LIGHT, MARKERS, Theme, _frame, _style
from unspoken.errors import ConfigError, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {
    "kl": "KL(final || layer) in nats",
    "reverse_kl": "KL(layer || final) in nats",
    "js": "Jensen-Shannon divergence in nats",
    "entropy": "entropy in nats",
    "agreement": "top token is the final one",
    "overlap": "share of the final top tokens",
    "final_rank": "rank of the final top token",
    "final_logprob": "log-probability of the final top token",
    "final_prob": "probability of the final top token",
    "gold_rank": "rank of the next token",
    "gold_logprob": "log-probability of the next token",
    "gold_prob": "probability of the next token",
    "cross_entropy": "cross-entropy to the next token in nats",
    "answer_rank": "rank of the answer",
    "answer_logprob": "log-probability of the answer",
    "answer_prob": "probability of the answer",
    "cosine": "cosine to the final state",
    "norm_ratio": "norm over that of the final state",
}
BAND_LABELS = {"std": "± standard deviation", "bootstrap": "95 % interval", "iqr": "middle half"}
ANNOTATED_POSITIONS = 48
ANNOTATED_LAYERS = 48
_LONGEST = 9


def curves(
    lines: Sequence[LensCurve], *, relative: bool = False, log_y: bool = False, theme: Theme = LIGHT
) -> Figure:
    """One line over the blocks for each curve, with its band.

    Args:
        lines: Curves of one metric.
        relative: Over the share of the blocks that have run, so that models of unlike depth can be compared.
        log_y: A logarithmic vertical axis; what is not above 0 is left out.
        theme: Colours.

    Raises:
        ConfigError: If there is nothing to draw, or the metrics differ.
        MissingExtraError: If matplotlib is not installed.
    """
    if len({line.metric for line in lines}) != 1:
        raise ConfigError("A figure is of curves of one metric; draw one figure for each.")
    figure_class = require("matplotlib.figure", "plots", "A figure").Figure
    with _style(theme):
        figure: Figure = figure_class(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        _draw(axes, lines, relative=relative, log_y=log_y, theme=theme)
        axes.set_xlabel("share of the blocks that have run" if relative else "block")
        axes.set_ylabel(LABELS.get(lines[0].metric, lines[0].metric))
        axes.set_title(_caption(lines), fontsize=9, color=theme.quiet, loc="left")
        if len(lines) > 1:
            figure.legend(loc="outside right upper", frameon=False, labelcolor=theme.ink, handletextpad=0.4)
    return figure


def metric_grid(rows: Sequence[Sequence[LensCurve]], *, theme: Theme = LIGHT) -> Figure:
    """Small figures side by side, one for each metric; each entry holds the curves of one metric.

    Raises:
        ConfigError: If there is nothing to draw.
        MissingExtraError: If matplotlib is not installed.
    """
    if not rows or not all(rows):
        raise ConfigError("There are no curves to draw.")
    figure_class = require("matplotlib.figure", "plots", "A figure").Figure
    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    with _style(theme):
        figure: Figure = figure_class(figsize=(3.6 * columns, 2.6 * lines), layout="constrained")
        planes = np.atleast_1d(figure.subplots(lines, columns)).flatten()
        for axes, curves_of in zip(planes, rows, strict=False):
            _draw(axes, curves_of, relative=False, log_y=curves_of[0].metric.endswith("_rank"), theme=theme)
            axes.set_title(LABELS.get(curves_of[0].metric, curves_of[0].metric), fontsize=9)
        for axes in planes[len(rows) :]:
            axes.set_visible(False)
        if len(rows[0]) > 1:
            handles, names = planes[0].get_legend_handles_labels()
            figure.legend(handles, names, loc="outside lower center", frameon=False, ncols=len(names))
    return figure


def heat_map(grid: LensGrid, metric: str = "kl", *, theme: Theme = LIGHT) -> Figure:
    """Layers (the last on top) by positions, coloured by one metric; cells hold the likeliest token where it fits.

    Raises:
        ConfigError: If the grid has no such metric.
        MissingExtraError: If matplotlib is not installed.
    """
    values = grid[metric]
    figure_class = require("matplotlib.figure", "plots", "A figure").Figure
    colors = require("matplotlib.colors", "plots", "A figure")
    layers, positions = values.shape
    annotated = positions <= ANNOTATED_POSITIONS and layers <= ANNOTATED_LAYERS and grid.top_ids.shape[2] > 0
    width = max(5.0, 2.0 + (0.62 if annotated else 0.12) * positions)
    # The scale is that of the blocks: what the head makes of embeddings is often far off.
    blocks = values[grid.layers >= 0]
    low, high = float(np.nanmin(blocks, initial=np.inf)), float(np.nanmax(blocks, initial=-np.inf))
    if metric.endswith("_rank"):
        norm: Any = colors.LogNorm(vmin=1, vmax=max(2.0, high))
    else:
        norm = colors.Normalize(vmin=low, vmax=high) if low < high else None
    with _style(theme):
        figure: Figure = figure_class(
            figsize=(min(width, 60.0), max(2.5, 1.6 + 0.24 * layers)), layout="constrained"
        )
        axes = figure.subplots()
        image = axes.imshow(values, aspect="auto", origin="lower", cmap="cividis", norm=norm)
        if annotated:
            _annotate(axes, grid, values, image)
        step = 1 if annotated else max(1, -(-positions // 60))
        shown = range(0, positions, step)
        axes.set_xticks(
            list(shown), [_short(grid.tokens[i]) for i in shown], rotation=60, ha="right", fontsize=7
        )
        axes.set_yticks(
            range(layers), ["in" if layer < 0 else str(layer) for layer in grid.layers], fontsize=7
        )
        axes.set_ylabel("block")
        axes.set_title(
            _drawable(f"{grid.model}, {grid.lens.replace('_', ' ')} lens, {grid.problem_id}"),
            fontsize=9,
            color=theme.quiet,
            loc="left",
        )
        _frame(axes, theme)
        bar = figure.colorbar(image, ax=axes, pad=0.01)
        bar.set_label(LABELS.get(metric, metric))
        bar.outline.set_visible(False)
    return figure


def _draw(axes: Axes, lines: Sequence[LensCurve], *, relative: bool, log_y: bool, theme: Theme) -> None:
    for i, line in enumerate(lines):
        # What the head makes of embeddings is often far off, and would press everything else flat.
        blocks = line.layers >= 0
        x = (line.depth if relative else line.layers)[blocks]
        mean, low, high = line.mean[blocks], line.low[blocks], line.high[blocks]
        if line.metric in ("agreement", "overlap") or line.metric.endswith("_prob"):
            low, high = np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)
        if log_y:
            mean, low, high = (_positive(values) for values in (mean, low, high))
        colour = COLOURS[i % len(COLOURS)]
        axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
        axes.plot(
            x,
            mean,
            color=colour,
            label=_drawable(line.name),
            linewidth=1.8,
            marker=MARKERS[i % len(MARKERS)],
            markersize=4,
            markeredgecolor=theme.paper,
        )
    if log_y:
        axes.set_yscale("log")
    axes.grid(True, color=theme.grid, linewidth=0.8)
    _frame(axes, theme)


def _positive(values: Array) -> Array:
    """Values for a logarithmic axis: a band that reaches 0 goes down to the least value there is."""
    above = values[values > 0]
    return np.asarray(np.maximum(values, above.min() if len(above) else 1e-9))


def _caption(lines: Sequence[LensCurve]) -> str:
    numbers = sorted({line.problems for line in lines})
    problems = "1 problem" if numbers == [1] else f"{'-'.join(map(str, numbers))} problems"
    return f"mean of {problems}, band: {BAND_LABELS[lines[0].band]}"


def _annotate(axes: Axes, grid: LensGrid, values: Array, image: Any) -> None:
    for row in range(len(grid.layers)):
        for place in range(len(grid.positions)):
            value = float(values[row, place])
            # A missing value has no colour: the paper shows.
            red, green, blue, _ = image.cmap(image.norm(value)) if value == value else (1.0, 1.0, 1.0, 1.0)
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            axes.text(
                place,
                row,
                _short(grid.texts[int(grid.top_ids[row, place, 0])]),
                ha="center",
                va="center",
                fontsize=6,
                color="#ffffff" if dark else "#000000",
            )


def _short(text: str) -> str:
    shown = _drawable(visible(text))
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"


def _drawable(text: str) -> str:
    """The text with what the figure's font does not have as boxes."""
    known = _characters()
    return "".join(char if ord(char) in known else "□" for char in text)


@cache
def _characters() -> frozenset[int]:
    """What the figures' font can draw."""
    manager = require("matplotlib.font_manager", "plots", "A figure")
    path = manager.findfont(manager.FontProperties(family=["sans-serif"]))
    return frozenset(manager.get_font(path).get_charmap())
