"""What a lens found: numbers for each layer and position, and how they are written down."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unspoken.errors import ConfigError

if TYPE_CHECKING:
    from unspoken.analysis._lens_inputs import Reading
    from unspoken.analysis._lens_metrics import Numbers
    from unspoken.lm.model import CausalLM

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(eq=False)
class LensGrid:
    """L layers times T positions of one row.

    Every array of `values` is also an attribute: `grid.kl`.

    Attributes:
        model: The model's name.
        lens: The lens's name.
        problem_id: The row's name.
        layers: [L] numbers of the blocks; -1 is what the first block reads.
        positions: [T] places in the row.
        tokens: [T] what was read there, for display: tokens as text, other vectors as `‹...›`.
        ids: [T] tokens read, -1 where the vector was none.
        kinds: [T] `prompt`, or the kind of the generated step.
        values: Arrays [L, T] float32: `kl` of the final law to the layer's, `reverse_kl`, `js` and `entropy` in nats;
            `agreement` 1 where the likeliest token is the final one; `overlap`, the share of the final top k among the
            layer's; `final_rank`, `final_logprob`, `final_prob` of the final top token; `gold_*` of the next token and
            `cross_entropy` to it, NaN where there is none; `answer_*` of the answer; `cosine` and `norm_ratio` of the
            state to the final one, before the final norm.
        top_ids: [L, T, k] likeliest tokens, best first.
        top_probs: [L, T, k] their probabilities.
        answers: Tokens of the answer.
        texts: Every token of `top_ids` as text.
        last_kl: The self-check: KL of the model's own logits to the lens at the last block, in nats.
        replay: Mean difference to the log-probabilities that the generation recorded, in nats; None without one.
    """

    model: str
    lens: str
    problem_id: str
    layers: Array
    positions: Array
    tokens: tuple[str, ...]
    ids: Array
    kinds: tuple[str, ...]
    values: dict[str, Array]
    top_ids: Array
    top_probs: Array
    answers: tuple[int, ...] = ()
    texts: dict[int, str] = field(default_factory=dict)
    last_kl: float = 0.0
    replay: float | None = None

    def __getattr__(self, name: str) -> Array:
        # Only asked for what is no field; `values` itself is missing while the object is being made or copied.
        values = self.__dict__.get("values", {})
        if name in values:
            return np.asarray(values[name])
        raise AttributeError(f"This grid has no {name!r}; it has {', '.join(values)}.")

    def __getitem__(self, name: str) -> Array:
        """[L, T] the array of this name.

        Raises:
            ConfigError: If the lens was not asked for it.
        """
        if name not in self.values:
            raise ConfigError(f"The grid has no {name!r}; it has {', '.join(self.values)}.")
        return self.values[name]

    def __repr__(self) -> str:
        size = f"{len(self.layers)} layers x {len(self.positions)} positions"
        return f"LensGrid({self.model!r}, {self.lens}, {size}: {', '.join(self.values)})"

    @property
    def depth(self) -> Array:
        """[L] share of the blocks that have run, from 0 (the embeddings) to 1."""
        return np.asarray((self.layers + 1) / (self.layers[-1] + 1))

    @property
    def settled(self) -> Array:
        """[T] first layer from which on the likeliest token is the final one."""
        agrees = self["agreement"] > 0
        unsettled = np.where(~agrees, np.arange(len(self.layers))[:, None], -1).max(0)
        return np.asarray(self.layers[unsettled + 1])

    def top(self, layer: int, position: int) -> list[tuple[str, float]]:
        """The likeliest tokens with their probabilities.

        Args:
            layer: Number of the block, -1 for the embeddings.
            position: Index among the grid's positions.
        """
        row = int(np.flatnonzero(self.layers == layer)[0])
        pairs = zip(self.top_ids[row, position].tolist(), self.top_probs[row, position].tolist(), strict=True)
        return [(self.texts[i], p) for i, p in pairs]

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the long form, one line for each layer and position."""
        write_csv(path, [self])

    def to_npz(self, path: str | os.PathLike[str]) -> None:
        """Write all arrays; `numpy.load` reads them, without pickle."""
        write_npz(path, [self])

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write one self-contained page: a table of tokens and layers, with the candidates of each cell."""
        from unspoken.analysis._lens_html import page

        write_aside(path, page([self]).encode("utf-8"))

    def to_png(self, path: str | os.PathLike[str], metric: str = "kl") -> None:
        """Draw the heat map of one metric.

        Raises:
            MissingExtraError: If matplotlib is not installed.
        """
        from unspoken.analysis import lens_plots
        from unspoken.analysis.plots import render

        write_aside(path, render(lens_plots.heat_map(self, metric), "png"))


def make_grid(
    lm: CausalLM,
    lens: str,
    reading: Reading,
    chosen: Sequence[int],
    numbers: Numbers,
    *,
    answers: Sequence[int],
    problem_id: str,
    last_kl: float,
    replay: float | None,
) -> LensGrid:
    """The numbers of a reading, on the host, with probabilities and names."""
    values = {name: value.cpu().numpy() for name, value in numbers.values.items()}
    missing = (numbers.ask.gold < 0).cpu().numpy()
    if "gold_rank" in values:
        values["gold_rank"][:, missing] = np.nan
        values["gold_logprob"][:, missing] = np.nan
        values["cross_entropy"] = -values["gold_logprob"]
    for name in ("final", "gold", "answer"):
        if f"{name}_logprob" in values:
            values[f"{name}_prob"] = np.exp(values[f"{name}_logprob"])
    # Rounding can bring what is 0 to a little below it.
    for name in ("kl", "reverse_kl", "js", "entropy"):
        if name in values:
            values[name] = np.maximum(values[name], 0.0)
    top_ids = numbers.top_ids.cpu().numpy()
    depth = getattr(lm, "depth", None)
    return LensGrid(
        model=lm.source + (f" ({depth.name})" if depth is not None else ""),
        lens=lens,
        problem_id=problem_id,
        layers=np.arange(-1, len(lm.anatomy.blocks)),
        positions=np.asarray(chosen),
        tokens=tuple(reading.labels[i] for i in chosen),
        ids=np.asarray([-1 if (token := reading.ids[i]) is None else token for i in chosen]),
        kinds=tuple(reading.kinds[i] for i in chosen),
        values=values,
        top_ids=top_ids,
        top_probs=numbers.top_logprobs.exp().cpu().numpy(),
        answers=tuple(answers),
        texts={i: lm.tokens.token_text(i) for i in {*np.unique(top_ids).tolist(), *answers}},
        last_kl=last_kl,
        replay=replay,
    )


def write_csv(path: str | os.PathLike[str], grids: Sequence[LensGrid]) -> None:
    """Write grids in long form: model, lens, layer, depth, problem_id, position, token, kind, then every number."""
    names = list(dict.fromkeys(name for grid in grids for name in grid.values))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    fixed = ["model", "lens", "layer", "depth", "problem_id", "position", "token", "kind"]
    writer.writerow([*fixed, *names, "top"])
    for grid in grids:
        depth = grid.depth
        for row, layer in enumerate(grid.layers.tolist()):
            for place, position in enumerate(grid.positions.tolist()):
                token, kind = visible(grid.tokens[place]), grid.kinds[place]
                cells = [_cell(grid.values[n][row, place]) if n in grid.values else "" for n in names]
                best = visible(grid.texts[int(grid.top_ids[row, place, 0])]) if grid.top_ids.shape[2] else ""
                where = [grid.model, grid.lens, layer, f"{depth[row]:.6g}", grid.problem_id, position]
                writer.writerow([*where, token, kind, *cells, best])
    write_aside(path, out.getvalue().encode("utf-8"))


def write_npz(path: str | os.PathLike[str], grids: Sequence[LensGrid]) -> None:
    """Write the arrays of grids; the names of the n-th begin with `n/` where there are several."""
    arrays: dict[str, Any] = {}
    for number, grid in enumerate(grids):
        before = f"{number}/" if len(grids) > 1 else ""
        own = {
            "model": np.array(grid.model),
            "lens": np.array(grid.lens),
            "problem_id": np.array(grid.problem_id),
            "layers": grid.layers,
            "depth": grid.depth,
            "positions": grid.positions,
            "tokens": np.array(grid.tokens),
            "ids": grid.ids,
            "kinds": np.array(grid.kinds),
            "answers": np.array(grid.answers, dtype=np.int64),
            "top_ids": grid.top_ids,
            "top_probs": grid.top_probs,
            **grid.values,
        }
        arrays |= {before + name: value for name, value in own.items()}
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    write_aside(path, out.getvalue())


def write_aside(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file beside its place, then put it there."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.part")
    aside.write_bytes(content)
    os.replace(aside, target)


def visible(text: str) -> str:
    r"""A token with its white space and control characters shown: `·` for a space, `\n` for a line break."""
    shown = []
    for char in text:
        if char == " ":
            shown.append("·")
        elif char.isprintable():
            shown.append(char)
        else:
            shown.append(char.encode("unicode_escape").decode("ascii"))
    return "".join(shown)


def _cell(value: Any) -> str:
    number = float(value)
    return "" if number != number else f"{number:.7g}"
