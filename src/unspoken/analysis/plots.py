"""Figures from plain numbers: accuracy with intervals, along a curve, tokens an answer, cost against accuracy.

Each function gives a matplotlib `Figure`; `render` turns one into PNG or SVG bytes. Nothing touches pyplot,
so no display, no global state, and no figure stays open.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from unspoken.errors import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with every kind of colour vision; black is left for the text.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#B8A800")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p")


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of a figure's text, quiet lines and background."""

    ink: str
    quiet: str
    grid: str
    paper: str


LIGHT = Theme(ink="#1f2328", quiet="#656d76", grid="#e4e7eb", paper="#ffffff")
DARK = Theme(ink="#e6edf3", quiet="#9aa4af", grid="#30363d", paper="#161b22")


def accuracy(
    names: Sequence[str],
    values: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    *,
    theme: Theme = LIGHT,
) -> Figure:
    """One line a run: its accuracy as a dot, its interval as a bar. All numbers are shares.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    figure, axes = _figure(names, theme)
    last = 100 * max(highs)
    for i, (value, low, high) in enumerate(zip(values, lows, highs, strict=True)):
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(
            [100 * low, 100 * high], [i, i], color=colour, linewidth=3, alpha=0.45, solid_capstyle="round"
        )
        axes.plot(100 * value, i, marker="o", markersize=8, color=colour, linestyle="none", clip_on=False)
        axes.annotate(
            f"{100 * value:.1f} %",
            (100 * high, i),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=theme.ink,
        )
    axes.axvline(100 * values[0], color=theme.quiet, linewidth=1, linestyle=(0, (4, 4)), zorder=0)
    axes.set_xlim(0, max(5.0, last * 1.16))
    # Room for the numbers on the right, but no tick beyond 100 %.
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= 100])
    axes.set_xlabel("accuracy in %, with 95 % interval")
    return figure


def distribution(
    names: Sequence[str], values: Sequence[Sequence[float]], *, label: str, theme: Theme = LIGHT
) -> Figure:
    """One line a run: a box over its quartiles, whiskers to the extremes, a dot for each answer.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    figure, axes = _figure(names, theme)
    rng = np.random.default_rng(0)
    for i, numbers in enumerate(values):
        colour = COLOURS[i % len(COLOURS)]
        shown = np.asarray(numbers, dtype=float)
        low, first, middle, third, high = np.quantile(shown, [0, 0.25, 0.5, 0.75, 1])
        axes.plot([low, high], [i, i], color=colour, linewidth=1.2, alpha=0.8)
        axes.barh(i, third - first, left=first, height=0.5, color=colour, alpha=0.3, linewidth=0)
        axes.plot([middle, middle], [i - 0.25, i + 0.25], color=colour, linewidth=2.5, solid_capstyle="butt")
        if len(shown) > 300:
            shown = rng.choice(shown, 300, replace=False)
        heights = i + rng.uniform(-0.2, 0.2, len(shown))
        axes.plot(
            shown,
            heights,
            marker="o",
            markersize=3,
            color=colour,
            alpha=0.45,
            linestyle="none",
            markeredgewidth=0,
        )
    top = max(max(numbers) for numbers in values)
    axes.set_xlim(0, max(1.0, top * 1.04))
    axes.set_xlabel(label)
    return figure


def curves(
    names: Sequence[str],
    xs: Sequence[Sequence[float]],
    values: Sequence[Sequence[float]],
    lows: Sequence[Sequence[float]],
    highs: Sequence[Sequence[float]],
    *,
    label: str,
    hollow: Sequence[Sequence[bool]] | None = None,
    hollow_label: str = "",
    theme: Theme = LIGHT,
) -> Figure:
    """One line of points for each name, with a band between lows and highs. All values are shares.

    Args:
        names: Of the lines.
        xs: Of the points of each line.
        values: Likewise.
        lows: Lower ends.
        highs: Upper ends.
        label: Of the horizontal axis.
        hollow: Which points are drawn as rims only, because they are of another kind.
        hollow_label: What these are, in the legend.
        theme: Colours.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    with _style(theme):
        figure, axes = _plane(label, theme)
        rim: dict[str, Any] = {"linestyle": "none", "markersize": 5, "markerfacecolor": theme.paper}
        for i, (name, x, value, low, high) in enumerate(zip(names, xs, values, lows, highs, strict=True)):
            colour = COLOURS[i % len(COLOURS)]
            axes.fill_between(
                x, [100 * v for v in low], [100 * v for v in high], color=colour, alpha=0.18, lw=0
            )
            axes.plot(
                x,
                [100 * v for v in value],
                color=colour,
                label=name,
                linewidth=1.8,
                marker=MARKERS[i % len(MARKERS)],
                markersize=5,
                markeredgecolor=theme.paper,
            )
            rims = (
                [(a, 100 * v) for a, v, is_rim in zip(x, value, hollow[i], strict=True) if is_rim]
                if hollow
                else []
            )
            for a, v in rims:
                axes.plot(a, v, marker=MARKERS[i % len(MARKERS)], markeredgecolor=colour, zorder=3, **rim)
        if hollow and any(map(any, hollow)):
            axes.plot([], [], marker="o", markeredgecolor=theme.ink, label=hollow_label, **rim)
        if all(float(v).is_integer() for x in xs for v in x):
            axes.locator_params(axis="x", integer=True)
        axes.set_ylim(0, 104)
        figure.legend(loc="outside right upper", frameon=False, labelcolor=theme.ink, handletextpad=0.4)
    return figure


def cost_accuracy(
    names: Sequence[str],
    costs: Sequence[float],
    values: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    *,
    label: str,
    theme: Theme = LIGHT,
) -> Figure:
    """One point a run: what an answer costs, and how often it is right. Up and left is better.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    with _style(theme):
        figure, axes = _plane(label, theme)
        for i, (name, cost, value, low, high) in enumerate(
            zip(names, costs, values, lows, highs, strict=True)
        ):
            colour = COLOURS[i % len(COLOURS)]
            axes.plot([cost, cost], [100 * low, 100 * high], color=colour, linewidth=2, alpha=0.35)
            # The rim keeps points that lie on one another apart.
            style: dict[str, Any] = {
                "marker": MARKERS[i % len(MARKERS)],
                "markersize": 10,
                "markeredgecolor": theme.paper,
            }
            axes.plot(cost, 100 * value, color=colour, linestyle="none", label=name, clip_on=False, **style)
        if min(costs) > 0 and max(costs) > 10 * min(costs):
            axes.set_xscale("log")
        else:
            axes.set_xlim(0, max(1.0, max(costs) * 1.1))
        axes.set_ylim(0, min(100.0, max(5.0, 108 * max(highs))))
        figure.legend(loc="outside right upper", frameon=False, labelcolor=theme.ink, handletextpad=0.3)
    return figure


def render(figure: Figure, form: Literal["png", "svg"]) -> bytes:
    """The figure as a file; equal figures give equal bytes."""
    matplotlib = require("matplotlib", "plots", "A figure")
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "unspoken", "svg.fonttype": "path"}):
        metadata = {"Date": None} if form == "svg" else {"Software": None}
        figure.savefig(buffer, format=form, dpi=160, metadata=metadata)
    return buffer.getvalue()


def _figure(names: Sequence[str], theme: Theme) -> tuple[Figure, Axes]:
    """A figure with one named line for each run, the first on top."""
    figure_class = require("matplotlib.figure", "plots", "A figure").Figure
    with _style(theme):
        figure: Figure = figure_class(figsize=(7.2, 1.0 + 0.46 * len(names)), layout="constrained")
        axes = figure.subplots()
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(True, axis="x", color=theme.grid, linewidth=0.8)
        axes.tick_params(axis="y", length=0)
        _frame(axes, theme)
    return figure, axes


def _plane(label: str, theme: Theme) -> tuple[Figure, Axes]:
    """A figure of accuracies over something, to be drawn in within `_style`."""
    figure: Figure = require("matplotlib.figure", "plots", "A figure").Figure(
        figsize=(7.2, 3.9), layout="constrained"
    )
    axes = figure.subplots()
    axes.set_xlabel(label)
    axes.set_ylabel("accuracy in %")
    axes.grid(True, color=theme.grid, linewidth=0.8)
    _frame(axes, theme)
    return figure, axes


def _frame(axes: Axes, theme: Theme) -> None:
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.grid)
    axes.tick_params(colors=theme.quiet, labelcolor=theme.ink, length=0)


def _style(theme: Theme) -> AbstractContextManager[Any]:
    matplotlib = require("matplotlib", "plots", "A figure")
    context: AbstractContextManager[Any] = matplotlib.rc_context(
        {
            "font.size": 10,
            "font.family": "sans-serif",
            "text.parse_math": False,  # a run's name may contain dollar signs
            "text.color": theme.ink,
            "axes.labelcolor": theme.quiet,
            "figure.facecolor": theme.paper,
            "axes.facecolor": theme.paper,
            "savefig.facecolor": theme.paper,
        }
    )
    return context
