"""The page of a lens: one file, no network, and nothing that a model wrote is ever markup."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Sequence
from importlib import resources
from typing import Any

from unspoken.analysis.lens_grid import Array, LensGrid, visible
from unspoken.errors import ConfigError

_DIGITS = 4


def page(grids: Sequence[LensGrid]) -> str:
    """A page with a table of layers and positions for each grid; the last layer is on top.

    Raises:
        ConfigError: If there are no grids.
    """
    if not grids:
        raise ConfigError("There are no grids to write a page of.")
    folder = resources.files("unspoken.analysis")
    style, script = (folder.joinpath(f"lens.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    # Only this script runs, whatever the tokens hold.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    title = html.escape(
        f"{', '.join(dict.fromkeys(grid.model for grid in grids))}: what each layer would say"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        '<div class="controls">\n<label>Reading <select id="which"></select></label>\n'
        '<label>Colour <select id="metric"></select></label>\n<span id="scale"></span>\n</div>\n'
        '<div id="scroll"><table id="grid"></table></div>\n'
        '<div id="detail"><p>Point at a cell for its candidates.</p></div>\n'
        "<noscript><p>The table needs scripts; the same numbers are in the CSV file.</p></noscript>\n"
        f'<script type="application/json" id="data">{_json([_values(grid) for grid in grids])}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _values(grid: LensGrid) -> dict[str, Any]:
    """What the page shows of a grid; candidates are pairs of an index into the texts and a probability."""
    order = {token: i for i, token in enumerate(grid.texts)}
    top = [
        [
            [[order[i], _round(p)] for i, p in zip(ids, probs, strict=True)]
            for ids, probs in zip(row_ids, row_probs, strict=True)
        ]
        for row_ids, row_probs in zip(grid.top_ids.tolist(), grid.top_probs.tolist(), strict=True)
    ]
    return {
        "model": grid.model,
        "lens": grid.lens,
        "problem": grid.problem_id,
        "layers": grid.layers.tolist(),
        "positions": grid.positions.tolist(),
        "tokens": [visible(token) for token in grid.tokens],
        "kinds": list(grid.kinds),
        "values": {name: _rounded(value) for name, value in grid.values.items()},
        "top": top,
        "texts": [visible(text) for text in grid.texts.values()],
    }


def _rounded(values: Array) -> list[list[float | None]]:
    return [[_round(value) for value in row] for row in values.tolist()]


def _round(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None


def _json(values: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text
