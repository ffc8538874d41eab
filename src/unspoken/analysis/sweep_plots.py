"""Figures of a sweep, from plain numbers: accuracy, accepted moves and costs of several methods at several depths."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unspoken.analysis.plots import COLOURS, LIGHT, MARKERS, Theme, _frame, _plane, _style
from unspoken.errors import DataError, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KL_LABEL = "KL(final || layer) in nats"
_DASHES = ((4, 3), (1, 2), (6, 2, 1, 2))


@dataclass(frozen=True)
class Point:
    """One method at one depth; shares are within 0 and 1.

    Attributes:
        method: Name of the method.
        layer: Layer up to which the model is whole; None where the depth is of another kind.
        label: The depth in a few words.
        accuracy: Share of the answers that are correct.
        low: Lower end of its interval.
        high: Upper end.
        acceptance: Share of accepted moves, if there were any.
        cost: Tokens an answer, if they were counted.
    """

    method: str
    layer: int | None
    label: str
    accuracy: float
    low: float
    high: float
    acceptance: float | None = None
    cost: float | None = None


@dataclass(frozen=True)
class KLCurve:
    """The divergence of a lens from the final law over the blocks: mean of problems +- one standard deviation, nats."""

    model: str
    lens: str
    layers: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def read_lens(path: str | Path) -> list[KLCurve]:
    """The curves of a CSV in long form (model, lens, layer, problem_id, position, kl, ...), one a model and lens.

    The mean is taken over the positions of each problem, and then over problems. What the first block reads (layer
    -1) is left out.

    Raises:
        DataError: If the file is not of this form.
    """
    sums: dict[tuple[str, str], dict[int, dict[str, list[float]]]] = {}
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            for cells in csv.DictReader(file):
                layer = int(cells["layer"])
                if layer >= 0 and cells["kl"] != "":
                    layers = sums.setdefault((cells["model"], cells["lens"]), {})
                    layers.setdefault(layer, {}).setdefault(cells["problem_id"], []).append(
                        float(cells["kl"])
                    )
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is not the CSV file of a lens ({type(error).__name__}: {error}).",
            "Make one with: unspoken lens --task TASK -m MODEL -o FOLDER",
        ) from error
    if not sums:
        raise DataError(f"{path} holds no value of kl.")
    curves = []
    for (model, lens), layers in sums.items():
        order = sorted(layers)
        problems = [[float(np.mean(values)) for values in layers[layer].values()] for layer in order]
        mean = np.array([np.mean(values) for values in problems])
        spread = np.array([np.std(values) for values in problems])
        ends = (tuple(map(float, values)) for values in (mean, np.maximum(mean - spread, 0.0), mean + spread))
        curves.append(KLCurve(model, lens, tuple(order), *ends))
    return curves


def accuracy_by_layer(points: Sequence[Point], kl: Sequence[KLCurve] = (), *, theme: Theme = LIGHT) -> Figure:
    """Accuracy over the layer up to which the model is whole, a line with its band for each method.

    Args:
        points: Those without a layer are left out.
        kl: Curves of lenses for the same layers, on an axis of their own.
        theme: Colours.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    with _style(theme):
        figure, axes = _plane("layer l: blocks 0 to l run", theme)
        for i, (method, line) in enumerate(_lines(points).items()):
            x = [p.layer for p in line]
            colour, low, high = (
                COLOURS[i % len(COLOURS)],
                [100 * p.low for p in line],
                [100 * p.high for p in line],
            )
            axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)  # type: ignore[arg-type]
            _draw(axes, x, [100 * p.accuracy for p in line], i, method, theme)
        axes.set_ylim(0, 104)
        _whole(axes)
        if kl:
            _second_axis(axes, kl, points, theme)
        figure.legend(loc="outside right upper", frameon=False, labelcolor=theme.ink, handletextpad=0.4)
    return figure


def method_bars(models: Sequence[str], points: Sequence[Sequence[Point]], *, theme: Theme = LIGHT) -> Figure:
    """A group of bars for each model: the accuracy of each method, with its interval.

    Args:
        models: Names of the groups.
        points: One for each method of each model, at one depth.
        theme: Colours.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    methods = list(dict.fromkeys(p.method for group in points for p in group))
    width = 0.8 / len(methods)
    with _style(theme):
        figure, axes = _plane("", theme)
        axes.grid(False, axis="x")
        for i, method in enumerate(methods):
            mine = [(place, p) for place, group in enumerate(points) for p in group if p.method == method]
            x = [place + (i - (len(methods) - 1) / 2) * width for place, _ in mine]
            heights = [100 * p.accuracy for _, p in mine]
            # Wilson's interval holds the accuracy; rounding may leave it a hair outside.
            ends = [
                [max(0.0, 100 * (p.accuracy - p.low)) for _, p in mine],
                [max(0.0, 100 * (p.high - p.accuracy)) for _, p in mine],
            ]
            colour = COLOURS[i % len(COLOURS)]
            axes.bar(x, heights, width * 0.9, color=colour, alpha=0.75, label=method)
            axes.errorbar(x, heights, yerr=ends, fmt="none", ecolor=theme.ink, elinewidth=1, capsize=2)
        axes.set_xticks(range(len(models)), models)
        axes.set_ylim(0, 104)
        figure.legend(loc="outside right upper", frameon=False, labelcolor=theme.ink, handletextpad=0.4)
    return figure


def acceptance_by_layer(points: Sequence[Point], *, theme: Theme = LIGHT) -> Figure:
    """Accepted moves over the layer up to which the model is whole; methods without moves are left out.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    with _style(theme):
        figure, axes = _plane("layer l: blocks 0 to l run", theme)
        axes.set_ylabel("accepted moves in %")
        # All methods are counted, so that each has the colour that it has elsewhere.
        for i, (method, line) in enumerate(_lines(points).items()):
            known = [(p.layer, 100 * p.acceptance) for p in line if p.acceptance is not None]
            if known:
                _draw(axes, [x for x, _ in known], [y for _, y in known], i, method, theme)
        axes.set_ylim(0, 104)
        _whole(axes)
        figure.legend(loc="outside right upper", frameon=False, labelcolor=theme.ink, handletextpad=0.4)
    return figure


def cost_by_method(points: Sequence[Point], *, theme: Theme = LIGHT) -> Figure:
    """Accuracy over the tokens an answer cost, a colour for each method and a label for each depth.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    with _style(theme):
        figure, axes = _plane("tokens an answer, rejected ones included", theme)
        costs = [p.cost for p in points if p.cost]
        for i, method in enumerate(dict.fromkeys(p.method for p in points)):
            mine = [(p.cost, p) for p in points if p.method == method and p.cost]
            for cost, p in mine:
                ends = [100 * p.low, 100 * p.high]
                axes.plot([cost, cost], ends, color=COLOURS[i % len(COLOURS)], linewidth=1.5, alpha=0.3)
                place = {"xytext": (5, 4), "textcoords": "offset points"}
                axes.annotate(p.label, (cost, 100 * p.accuracy), fontsize=7, color=theme.quiet, **place)  # type: ignore[arg-type]
            heights = [100 * p.accuracy for _, p in mine]
            _draw(axes, [cost for cost, _ in mine], heights, i, method, theme, line="none")
        if costs and max(costs) > 10 * min(costs):
            axes.set_xscale("log")
        elif costs:
            axes.set_xlim(0, max(costs) * 1.12)
        axes.set_ylim(0, 104)
        figure.legend(loc="outside right upper", frameon=False, labelcolor=theme.ink, handletextpad=0.4)
    return figure


def _lines(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The points of each method that have a layer, in order of the layers."""
    lines: dict[str, list[Point]] = {p.method: [] for p in points}
    for p in sorted((p for p in points if p.layer is not None), key=lambda p: p.layer or 0):
        lines[p.method].append(p)
    return lines


def _draw(
    axes: Axes, x: Sequence[Any], y: Sequence[float], i: int, name: str, theme: Theme, line: str = "-"
) -> None:
    axes.plot(
        x,
        y,
        color=COLOURS[i % len(COLOURS)],
        label=name,
        linestyle=line,
        linewidth=1.8,
        marker=MARKERS[i % len(MARKERS)],
        markersize=6,
        markeredgecolor=theme.paper,
        clip_on=False,
    )


def _whole(axes: Axes) -> None:
    """Ticks at whole layers only."""
    ticker = require("matplotlib.ticker", "plots", "A figure")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))


def _second_axis(axes: Axes, kl: Sequence[KLCurve], points: Sequence[Point], theme: Theme) -> None:
    """The curves of lenses, over the layers that the points span and two more to either side."""
    layers = [p.layer for p in points if p.layer is not None]
    low, high = (min(layers) - 2, max(layers) + 2) if layers else (-1, max(max(c.layers) for c in kl) + 1)
    other = axes.twinx()
    for i, curve in enumerate(kl):
        inside = [n for n, layer in enumerate(curve.layers) if low <= layer <= high]
        x = [curve.layers[n] for n in inside]
        style: dict[str, Any] = {"color": theme.quiet, "linewidth": 1.2}
        other.fill_between(
            x,
            [curve.low[n] for n in inside],
            [curve.high[n] for n in inside],
            color=theme.quiet,
            alpha=0.12,
            lw=0,
        )
        dashes = (0, _DASHES[i % len(_DASHES)])
        name = f"KL, {curve.lens.replace('_', ' ')} lens"
        other.plot(x, [curve.mean[n] for n in inside], linestyle=dashes, label=name, **style)
    other.set_ylabel(KL_LABEL)
    other.set_ylim(bottom=0)
    _frame(other, theme)
    other.patch.set_visible(False)
