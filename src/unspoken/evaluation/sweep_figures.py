"""The figures of a sweep's summary, as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unspoken.errors import ConfigError
from unspoken.evaluation._grid import depth_slug, slug
from unspoken.evaluation._sweep_line import Line
from unspoken.evaluation.sweep_summary import SweepSummary

if TYPE_CHECKING:
    from unspoken.analysis.sweep_plots import KLCurve, Point


def write_figures(summary: SweepSummary, folder: str | Path, *, lens: str | Path | None = None) -> list[Path]:
    """Write the figures of a summary as PNG files.

    For each model `accuracy-MODEL.png` (over layers, with the curves of a lens), `acceptance-MODEL.png` where moves
    were made, and `cost-MODEL.png` where tokens were counted; for all of them `methods.png`, at the greatest depth
    that every method of a model has.

    Args:
        summary: What to draw.
        folder: Where to write.
        lens: A CSV file of `unspoken lens`.

    Returns:
        The files.

    Raises:
        ConfigError: If the folder cannot be written, or the lens read another model.
        DataError: If the file is none of a lens.
        MissingExtraError: If matplotlib is not installed.
    """
    from unspoken.analysis import sweep_plots as plots
    from unspoken.analysis.plots import render

    lines = [line for line in summary.lines if line.run.summary.graded]
    models = list(dict.fromkeys(line.model for line in lines))
    curves = plots.read_lens(lens) if lens is not None else []
    figures: dict[str, Any] = {}
    drawn = 0
    for model in models:
        mine = [line for line in lines if line.model == model]
        points = _points(mine)
        kl = _of_model(curves, model, len(models))
        drawn += len(kl)
        if any(p.layer is not None for p in points):
            figures[f"accuracy-{slug(model)}"] = plots.accuracy_by_layer(points, kl)
            if any(p.acceptance is not None and p.layer is not None for p in points):
                figures[f"acceptance-{slug(model)}"] = plots.acceptance_by_layer(points)
        if any(p.cost for p in points):
            figures[f"cost-{slug(model)}"] = plots.cost_by_method(points)
    if curves and not drawn:
        raise ConfigError(
            f"{lens} is of {', '.join(dict.fromkeys(c.model for c in curves))}, and the sweep of {', '.join(models)}."
        )
    if models:
        groups = [_deepest([line for line in lines if line.model == model]) for model in models]
        names = [f"{model}\n{group[0].where}" for model, group in zip(models, groups, strict=True)]
        figures["methods"] = plots.method_bars(names, [_points(group) for group in groups])
    return _write(figures, Path(folder), render)


def _write(figures: dict[str, Any], folder: Path, render: Any) -> list[Path]:
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            path = folder / f"{name}.png"
            temporary = path.with_name(f".{path.name}.part")
            temporary.write_bytes(render(figure, "png"))
            temporary.replace(path)
            written.append(path)
    except OSError as error:
        raise ConfigError(f"Cannot write figures to {str(folder)!r}: {error.strerror}.") from error
    return written


def _points(lines: Sequence[Line]) -> list[Point]:
    from unspoken.analysis.sweep_plots import Point

    kinds = {(line.method, _kind(line)) for line in lines}
    points = []
    for line in lines:
        totals, interval = line.run.summary, line.run.summary.interval
        kind = _kind(line)
        # The same method with and without the last block is two lines; the full model belongs to both.
        several = sum(method == line.method for method, other in kinds if other not in ("full", None)) > 1
        name = f"{line.method}, {kind}" if several and kind not in ("full", None) else line.method
        points.append(
            Point(
                name,
                _layer(line, lines) if kind is not None else None,
                "full" if line.full else line.where,
                totals.accuracy,
                interval.low,
                interval.high,
                line.accept_rate,
                line.tokens / totals.n if line.tokens else None,
            )
        )
    return points


def _kind(line: Line) -> str | None:
    """Whether the first blocks run with or without the last one; None for other depths."""
    if line.kept is None:
        return "with the last block" if line.layer is not None else None
    name = depth_slug(line.kept)
    if name == "full":
        return "full"
    if name.startswith("drop-"):
        return None
    return "with the last block" if name.endswith("+last") else "first blocks only"


def _layer(line: Line, lines: Sequence[Line]) -> int | None:
    """The layer; one that stands for the full model of unknown depth comes right after the others."""
    layer = line.layer
    if line.kept is None and layer is not None and layer >= 100:
        others = [other.layer for other in lines if other.layer is not None and other.layer < 100]
        return max(others, default=layer - 1) + 1
    return layer


def _deepest(lines: Sequence[Line]) -> list[Line]:
    """The lines of the depth with the most methods; of several, the one where the most blocks run."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(line.kept_blocks if line.kept else line.where, []).append(line)
    return max(groups.values(), key=lambda g: (len({line.method for line in g}), g[0].layer or -1))


def _of_model(curves: Sequence[KLCurve], model: str, models: int) -> list[KLCurve]:
    """The curves of a model; names are compared as folders are called, and by their last part."""
    own = [c for c in curves if slug(c.model) == slug(model)]
    if not own:
        own = [c for c in curves if slug(Path(c.model).name) == slug(Path(model).name)]
    one = len({c.model for c in curves}) == 1
    same_end = one and models == 1 and curves and slug(model).endswith(slug(Path(curves[0].model).name))
    return own or (list(curves) if same_end else [])
