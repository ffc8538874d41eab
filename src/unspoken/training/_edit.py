"""Take tokens out of the chains of thought of a batch of rows, and put fillers in. No loop over rows.

A row is `Q SEP1 C SEP2 A EOS`. Removal from the left (the default) makes it `Q SEP1 F C' SEP2 A EOS`, from the right
`Q SEP1 C' F SEP2 A EOS`, where C' is what is left of C, and F are m fillers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

IGNORE = -100
_ROUNDING = 1e-9  # 0.7 * 10 is above 7 in floating point

Mode = Literal["drop", "replace", "ratio", "fixed", "capped"]


@dataclass(frozen=True)
class Source:
    """Rows before the edit.

    Attributes:
        flat: [all tokens] ids of any integer type, row after row.
        start: [n] where each row begins in `flat`.
        q: [n] index in the row just after SEP1.
        c: [n] tokens of the chain of thought.
        n: [n] tokens of the row.
    """

    flat: Tensor
    start: Tensor
    q: Tensor
    c: Tensor
    n: Tensor

    def select(self, rows: Tensor) -> Source:
        """Some of the rows, by number."""
        return Source(self.flat, self.start[rows], self.q[rows], self.c[rows], self.n[rows])


@dataclass(frozen=True)
class Knobs:
    """What the edit does, fixed for a run.

    Attributes:
        side: From which side tokens are removed.
        mode: How many fillers take the place of r removed tokens: none, r, ceil(ratio * r), always n_fillers,
            or min(r, n_fillers).
        pattern: Whether the removed tokens are a block at the side, or anywhere.
        target: Label at fillers: none, the filler itself, or the token that it replaced.
        ratio: Of mode `ratio`.
        n_fillers: Of the modes `fixed` and `capped`.
        fill_ids: The id of each filler by its place in F, or the only one.
        keep_position: Whether removed tokens leave a hole in the position ids.
        pad_id: Fills rows up to the width of the batch.
    """

    side: Literal["left", "right"] = "left"
    mode: Mode = "drop"
    pattern: Literal["prefix", "random"] = "prefix"
    target: Literal["ignore", "fill", "cot"] = "ignore"
    ratio: float = 1.0
    n_fillers: int = 0
    fill_ids: tuple[int, ...] = ()
    keep_position: bool = False
    pad_id: int = 0

    @property
    def density(self) -> float:
        """Fillers per removed token, in the modes where that is a constant."""
        return {"drop": 0.0, "replace": 1.0}.get(self.mode, self.ratio)

    def fillers(self, r: Tensor) -> Tensor:
        """How many fillers take the place of a block of r removed tokens, same shape as `r`."""
        if self.mode == "fixed":
            return torch.full_like(r, self.n_fillers)
        if self.mode == "capped":
            return r.clamp(max=self.n_fillers)
        return torch.ceil(self.density * r.double() - _ROUNDING).clamp_(min=0).to(r.dtype)


@dataclass(frozen=True)
class Edited:
    """Rows after the edit; n rows, W the longest.

    Attributes:
        ids: [n, W] int64, padded.
        labels: [n, W] int64: the ids that are predicted, `IGNORE` up to SEP1, at padding, and at unlabelled fillers.
        lengths: [n] tokens of each row.
        filler: [n, W] bool: where fillers are.
        position_ids: [n, W] int64, or None where positions just count up.
        removed: [n] tokens taken out.
        emptied: [n] bool: whether nothing is left of the chain of thought.
    """

    ids: Tensor
    labels: Tensor
    lengths: Tensor
    filler: Tensor
    position_ids: Tensor | None
    removed: Tensor
    emptied: Tensor


def edit(source: Source, removed: Tensor, knobs: Knobs, mask: Tensor | None = None) -> Edited:
    """Edit a batch of rows.

    Args:
        source: The rows.
        removed: [n] how many tokens each loses (pattern `prefix`); cut to what it has.
        knobs: What to do.
        mask: [n, widest C] bool, for pattern `random`: which tokens go, instead of `removed`.
    """
    if mask is None:
        r = torch.minimum(removed, source.c)
        src, filler, order, lengths, cut = _block(source, r, knobs)
    else:
        src, filler, order, lengths, r = _anywhere(source, mask, knobs)
    j = torch.arange(src.shape[1])
    valid = j < lengths[:, None]
    tokens = source.flat[source.start[:, None] + torch.minimum(src, source.n[:, None] - 1)].long()
    ids = tokens
    if knobs.fill_ids:
        words = torch.tensor(knobs.fill_ids)
        ids = torch.where(filler, words[order.clamp(0, len(words) - 1) if len(words) > 1 else 0], tokens)
    ids = torch.where(valid, ids, knobs.pad_id)
    supervised = valid & (j >= source.q[:, None])
    if knobs.target == "ignore":
        supervised = supervised & ~filler
    labels = torch.where(supervised, tokens if knobs.target == "cot" else ids, IGNORE)
    position_ids = None
    if knobs.keep_position:
        # The shift begins one token before the cut, so that decoding goes on by +1 from what it was given.
        hole = (r - knobs.fillers(r))[:, None]
        position_ids = j + hole * (j >= cut[:, None] - 1)
    return Edited(ids, labels, lengths, filler & valid, position_ids, r, r == source.c)


def _block(source: Source, r: Tensor, knobs: Knobs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The edit of pattern `prefix`.

    Returns:
        [n, W] the index in the row before the edit of each token (of a filler: of the token in its place);
        [n, W] whether it is a filler; [n, W] its place in F; [n] lengths; [n] where F begins.
    """
    cut = source.q if knobs.side == "left" else source.q + source.c - r
    m = knobs.fillers(r)
    lengths = source.n - r + m
    j = torch.arange(int(lengths.max()) if len(lengths) else 0)
    order = j - cut[:, None]
    filler = (order >= 0) & (order < m[:, None])
    src = torch.where(order >= m[:, None], j + (r - m)[:, None], j)
    return src, filler, order, lengths, cut


def _anywhere(source: Source, mask: Tensor, knobs: Knobs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The edit of pattern `random`: as `_block`, with the number of removed tokens [n] in the last place.

    The k-th token of a run of removed ones leaves a filler if ceil(ratio * k) > ceil(ratio * (k - 1)), so that
    a run of l leaves ceil(ratio * l).
    """
    width = int(source.n.max())
    j = torch.arange(width)
    place = j - source.q[:, None]
    in_chain = (place >= 0) & (place < source.c[:, None])
    gone = (
        in_chain & mask.gather(1, place.clamp(0, max(mask.shape[1] - 1, 0)))
        if mask.shape[1]
        else in_chain & False
    )
    count = gone.cumsum(1)
    before = torch.where(gone, 0, count).cummax(1).values
    k = (count - before).double() * knobs.density
    fills = gone & (torch.ceil(k - _ROUNDING) > torch.ceil(k - knobs.density - _ROUNDING).clamp(min=0))
    emit = (~gone | fills) & (j < source.n[:, None])
    lengths = emit.sum(1)
    out = int(lengths.max()) if len(lengths) else 0
    # Tokens that leave nothing go to a column beyond the last, which is cut off.
    to = torch.where(emit, emit.cumsum(1) - 1, out)
    src = torch.zeros(len(lengths), out + 1, dtype=torch.int64).scatter_(1, to, j.expand_as(to))[:, :out]
    filler = torch.zeros(len(lengths), out + 1, dtype=torch.bool).scatter_(1, to, fills)[:, :out]
    return src, filler, filler.cumsum(1) - 1, lengths, gone.sum(1)


def supervised(edited: Edited) -> tuple[Tensor, Tensor]:
    """Where predictions are scored: the places before labelled tokens, packed to the left of each row.

    Returns:
        [n, P] int64 indices of the predicting positions; [n, P] int64 ids to predict there. Rows with fewer
        than P are filled with index 0 and `IGNORE`.
    """
    targets = edited.labels[:, 1:]
    scored = targets != IGNORE
    most = int(scored.sum(1).max()) if len(scored) else 0
    index = (~scored).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    targets = targets.gather(1, index)
    return torch.where(targets == IGNORE, 0, index), targets
