"""Curves over layers from the grids of several problems: means with bands, and where the final law appears."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from unspoken.analysis.lens_grid import Array, LensGrid
from unspoken.errors import ConfigError

Band = Literal["std", "bootstrap", "iqr"]
Weight = Literal["problem", "token"]
BANDS: tuple[str, ...] = ("std", "bootstrap", "iqr")
WEIGHTS: tuple[str, ...] = ("problem", "token")
RESAMPLES = 2000
_HIGH, _LOW = 0.9, 0.1


@dataclass(frozen=True, eq=False)
class LensCurve:
    """One metric over the layers.

    Attributes:
        name: What the curve is called in a figure.
        metric: The array of the grids.
        layers: [L] numbers of the blocks; -1 is what the first block reads.
        mean: [L].
        low: [L] lower end of the band.
        high: [L] upper end.
        band: What the band is.
        problems: How many problems are in it.
    """

    name: str
    metric: str
    layers: Array
    mean: Array
    low: Array
    high: Array
    band: str
    problems: int

    @property
    def depth(self) -> Array:
        """[L] share of the blocks that have run."""
        return np.asarray((self.layers + 1) / (self.layers[-1] + 1))

    @property
    def steepest_drop(self) -> int:
        """The block in which the curve falls most; the first block, which reads embeddings, does not count."""
        layers, mean = self._blocks
        return int(layers[1:][np.argmin(np.diff(mean))]) if len(layers) > 1 else int(layers[0])

    @property
    def drop_width(self) -> float:
        """Blocks from where the curve last leaves 90 % of its highest value to where it last leaves 10 %.

        Between blocks the curve is a straight line, and the embeddings are left out: what a head makes of them says
        little. Small is sharp; NaN if the curve does not fall so far.
        """
        top = float(self._blocks[1].max())
        ends = [self._last_above(share * top) for share in (_HIGH, _LOW)]
        return float("nan") if None in ends else float(ends[1] - ends[0])  # type: ignore[operator]

    @property
    def relative_drop_width(self) -> float:
        """`drop_width` as a share of all blocks."""
        return self.drop_width / float(self.layers[-1] + 1)

    @property
    def _blocks(self) -> tuple[Array, Array]:
        """Layers and means without the embeddings."""
        return self.layers[self.layers >= 0], self.mean[self.layers >= 0]

    def _last_above(self, level: float) -> float | None:
        layers, mean = self._blocks
        above = np.flatnonzero(mean >= level)
        if not len(above) or above[-1] == len(mean) - 1:
            return None
        i = int(above[-1])
        here, after = float(mean[i]), float(mean[i + 1])
        return float(layers[i]) + (here - level) / (here - after)


def curve(
    grids: Sequence[LensGrid],
    metric: str = "kl",
    *,
    band: Band = "std",
    weight: Weight = "problem",
    seed: int = 0,
    name: str | None = None,
) -> LensCurve:
    """One metric of several problems as a curve over the layers.

    The mean is taken over the positions of each problem and then over problems, or with `weight="token"` over all
    positions alike. Positions without a value (the gold token of the last one) do not count, nor do problems without
    any (the answer's rank where there is no answer).

    Args:
        grids: One for each problem, of one model and lens.
        metric: Name of an array of the grids.
        band: `std`: mean +- one standard deviation (over problems, or over positions for `token`; divisor n). `iqr`:
            the middle half of the same. `bootstrap`: 95 % interval of the mean, problems drawn with replacement.
        weight: What counts alike.
        seed: Of the bootstrap.
        name: For figures (default: the model and, unless it is the logit lens, the lens).

    Raises:
        ConfigError: If the grids do not belong together, or an option is unknown.
    """
    problems = []
    if not grids:
        problems.append("There are no grids to draw a curve from.")
    if band not in BANDS:
        problems.append(f"band must be {', '.join(BANDS)}, not {band!r}.")
    if weight not in WEIGHTS:
        problems.append(f"weight must be {' or '.join(WEIGHTS)}, not {weight!r}.")
    if len({(grid.model, grid.lens, len(grid.layers)) for grid in grids}) > 1:
        problems.append("The grids are of several models or lenses; draw one curve for each.")
    if problems:
        raise ConfigError(problems)
    valued = [grid for grid in grids if metric in grid.values] or grids[:1]
    arrays = [grid[metric].astype(np.float64) for grid in valued]
    arrays = [a[:, ~np.isnan(a).any(0)] for a in arrays]
    arrays = [a for a in arrays if a.shape[1]]
    if not arrays:
        raise ConfigError(f"No position has a value of {metric!r}.")
    sums = np.stack([a.sum(1) for a in arrays])  # [N, L]
    counts = np.array([a.shape[1] for a in arrays], dtype=np.float64)
    means = sums / counts[:, None]
    points = means if weight == "problem" else np.concatenate([a.T for a in arrays])
    mean = points.mean(0)
    if band == "std":
        spread = points.std(0)
        low, high = mean - spread, mean + spread
    elif band == "iqr":
        low, high = np.quantile(points, [0.25, 0.75], axis=0)
    else:
        low, high = _bootstrap(sums, counts, weight, seed)
    first = grids[0]
    default = first.model if first.lens == "logit" else f"{first.model}, {first.lens.replace('_', ' ')}"
    return LensCurve(name or default, metric, first.layers, mean, low, high, band, len(arrays))


def _bootstrap(sums: Array, counts: Array, weight: str, seed: int) -> tuple[Array, Array]:
    """[L] 2.5 % and 97.5 % quantiles of the mean over problems drawn with replacement."""
    rng = np.random.default_rng(seed)
    drawn: Any = rng.integers(len(counts), size=(RESAMPLES, len(counts)))
    if weight == "problem":
        values = (sums / counts[:, None])[drawn].mean(1)
    else:
        values = sums[drawn].sum(1) / counts[drawn].sum(1)[:, None]
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    return low, high
