"""A model without weights but with blocks, and sweeps over it with the loop without a model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_loop

from unspoken.evaluation._grid import Asked
from unspoken.evaluation.sweep import CellResult, Extent, ask, sweep
from unspoken.lm.depth import Depth, Kept

BLOCKS = 6


class DeepLM(fake_loop.FakeLM):
    """As much of a model as a sweep asks for; remembers every view that was made of it."""

    source = "org/deep"

    def __init__(
        self, blocks: int = BLOCKS, depth: Kept | None = None, views: list[Any] | None = None
    ) -> None:
        super().__init__(source=self.source, **({"depth": depth.to_dict()} if depth else {}))
        self.anatomy = SimpleNamespace(blocks=[None] * blocks)
        self.depth = depth
        self.views: list[Any] = [] if views is None else views

    def truncated(self, *, drop: list[int]) -> DeepLM:
        kept = Depth(drop=tuple(drop)).resolve(len(self.anatomy.blocks))
        self.views.append(kept.blocks)
        return DeepLM(len(kept.blocks), kept, self.views)


METHODS = {"power": fake_loop.Fake(skill=0.8, k=3), "baseline": fake_loop.Fake(skill=0.4)}
LOOP = "over and over " * 10


def swept(
    folder: Path, *, size: int = 12, depths: list[Asked] | None = None, lm: Any = None, **options: Any
) -> list[CellResult]:
    """A sweep of the toy task; fields of `Extent` and options of `sweep` by name."""
    extent = {k: options.pop(k) for k in list(options) if k in Extent.__dataclass_fields__}
    return sweep(
        lm or DeepLM(),
        fake_loop.Toy(size=size),
        options.pop("methods", METHODS),
        ask([2, 4, 100]) if depths is None else depths,
        folder,
        extent=Extent(**{"batch_size": 3, **extent}),
        **options,
    )


def rows_in(folder: Path) -> dict[str, dict[str, str]]:
    """For each run folder, its rows' ids and texts."""
    from unspoken.evaluation import load_run

    folders = sorted({p.parent for p in folder.rglob("run*.json")})
    return {p.name: {row.id: row.text for row in load_run(p).rows} for p in folders}
