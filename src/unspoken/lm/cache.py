"""A ragged, right-aligned key-value cache.

Every row's newest position sits in the last used column, so that one decode step writes one column for
all rows; shorter rows have masked columns on their left. Positions are explicit, and keys are stored
after rotation (or positions are added at the input), so moving a row sideways changes nothing: rows can
be added, forked, dropped and cropped at any time. Buffers are allocated in buckets of `BUCKET` columns.

    column:   start ........................... end        (start, end) is the window attention reads
    row 0         . . . . p p p p p t t t t t           p prompt, t generated, . masked
    row 1         p p p p p p p t t t t t t t
    row 2         . . . . . . . . . p p p t t
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BUCKET = 64  # columns; large buckets show in the peak memory of short rows


@dataclass(frozen=True)
class Prefix:
    """Keys and values of one row, cut out of the cache: one [H, T, D] pair a layer."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def length(self) -> int:
        return self.keys[0].shape[1]

    def first(self, length: int) -> Prefix:
        """Its first `length` positions, without a copy."""
        return Prefix(tuple(k[:, :length] for k in self.keys), tuple(v[:, :length] for v in self.values))


class RaggedCache:
    """Keys and values of the live rows.

    Attributes:
        lengths: Positions held by each row.
        end: One past the last used column.

    transformers calls `update` from inside its attention layers, as for its own caches. What it means
    depends on the pass under way: `begin_prefill` starts one that fills new rows, `begin_step` one that
    appends a position to every row.
    """

    is_compileable = False

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self.lengths: list[int] = []
        self.end = 0
        self._keys: dict[int, Tensor] = {}  # layer -> [max_rows, H, capacity, D]
        self._values: dict[int, Tensor] = {}
        self._capacity = 0
        self._prefill: tuple[slice, Tensor | None] | None = None
        self._width = 0
        self._mask: Tensor | None = None

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def start(self) -> int:
        """First column that any row uses."""
        return self.end - max(self.lengths, default=0)

    # -- passes ---------------------------------------------------------------------------------

    def begin_prefill(self, lengths: Sequence[int], device: torch.device) -> Tensor:
        """Add rows at the end; the next forward must hold their prompts, left-padded to the longest.

        Returns:
            [n, T] boolean attention mask of the prompts.
        """
        width = max(lengths)
        if self.rows + len(lengths) > self.max_rows:
            raise ValueError(f"{self.rows} + {len(lengths)} rows exceed the cache's {self.max_rows}")
        first = self.rows
        self._make_room(width)
        self.lengths += list(lengths)
        columns = torch.arange(width, device=device)
        mask = columns[None, :] >= width - torch.tensor(lengths, device=device)[:, None]
        self._prefill = (slice(first, self.rows), None if min(lengths) == width else mask)
        self._width = width
        self._mask = None
        return mask

    def begin_step(self, device: torch.device, dtype: torch.dtype) -> Tensor | None:
        """Open one more column for every row; the next forward must hold one position a row.

        Returns:
            [n, 1, 1, W] additive attention mask over the window, zero where a row may look; None where
            all rows are equally long and nothing is masked.
        """
        self._prefill = None
        self._make_room(0)
        self.end += 1
        self.lengths = [n + 1 for n in self.lengths]
        width = self.end - self.start
        if min(self.lengths) == width:
            return None
        if self._mask is None or self._mask.shape[0] != self.rows or self._mask.shape[-1] < width:
            # Masked columns stay masked as the window grows to the right, so the mask is made once for a
            # bucket, right-aligned, and sliced until rows come or go.
            wide = width + BUCKET
            firsts = torch.tensor([width - n for n in self.lengths], device=device)
            columns = torch.arange(wide, device=device)
            mask = torch.zeros(self.rows, 1, 1, wide, dtype=dtype, device=device)
            mask.masked_fill_((columns[None, :] < firsts[:, None])[:, None, None, :], float("-inf"))
            self._mask = mask
        return self._mask[..., :width]

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values; return what attention reads.

        Args:
            keys: [n, H, T, D], T = 1 in a step.
            values: The same shape (its D may differ).
            layer_idx: The layer.
        """
        if self._prefill is not None:
            rows, mask = self._prefill
            stored_k, stored_v = keys, values
            if mask is not None:
                # Masked columns must hold finite numbers: 0 x NaN would spoil a weighted sum.
                stored_k = keys.masked_fill(~mask[:, None, :, None], 0.0)
                stored_v = values.masked_fill(~mask[:, None, :, None], 0.0)
            first = self.end - self._width
            for buffers, stored in ((self._keys, stored_k), (self._values, stored_v)):
                buffer = self._buffer(buffers, layer_idx, stored)
                buffer[rows, :, first : self.end] = stored
                buffer[rows, :, :first] = 0  # what an earlier row left here may not be finite
            return keys, values
        all_keys, all_values = self._keys[layer_idx], self._values[layer_idx]
        n = self.rows
        all_keys[:n, :, self.end - 1] = keys[:, :, 0]
        all_values[:n, :, self.end - 1] = values[:, :, 0]
        window = slice(self.start, self.end)
        return all_keys[:n, :, window], all_values[:n, :, window]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions already held, as transformers asks for it during a prefill of new rows: none."""
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0

    # -- rows -----------------------------------------------------------------------------------

    def fork(self, row: int, length: int | None = None) -> int:
        """Add a copy of the first `length` positions of a row (default: all); returns its index."""
        return self.append(self.prefix(row, self.lengths[row] if length is None else length))

    def prefix(self, row: int, length: int) -> Prefix:
        """Copy the first `length` positions of a row out of the cache."""
        if not 0 < length <= self.lengths[row]:
            raise ValueError(f"length must be in 1..{self.lengths[row]}, not {length}")
        first = self.end - self.lengths[row]
        cut = slice(first, first + length)
        layers = sorted(self._keys)
        return Prefix(
            tuple(self._keys[i][row, :, cut].clone() for i in layers),
            tuple(self._values[i][row, :, cut].clone() for i in layers),
        )

    def append(self, prefix: Prefix) -> int:
        """Add a row that holds a copied prefix; returns its index."""
        if self.rows == self.max_rows:
            raise ValueError(f"the cache's {self.max_rows} rows are taken")
        self._make_room(prefix.length)
        row = self.rows
        for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
            columns = slice(self.end - prefix.length, self.end)
            self._buffer(self._keys, layer, keys[None])[row, :, columns] = keys
            self._buffer(self._values, layer, values[None])[row, :, columns] = values
            self._clear(layer, row, self.end - prefix.length)
        self.lengths.append(prefix.length)
        self._mask = None
        return row

    def drop(self, row: int) -> None:
        """Remove a row; the last row takes its index."""
        last = self.rows - 1
        if row != last:
            first = self.end - self.lengths[last]
            for layer in self._keys:
                for buffer in (self._keys[layer], self._values[layer]):
                    buffer[row, :, first : self.end] = buffer[last, :, first : self.end]
                self._clear(layer, row, first)
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        self._mask = None
        if not self.lengths:
            self.end = 0

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order (a row may not be named twice)."""
        if len(set(rows)) != len(rows):
            raise ValueError("a row is named twice; use fork")
        index = list(rows)
        for buffers in (self._keys, self._values):
            for layer, buffer in buffers.items():
                buffer[: len(index)] = buffer[index]
                buffers[layer] = buffer
        self.lengths = [self.lengths[i] for i in index]
        self._mask = None
        if not self.lengths:
            self.end = 0

    def crop(self, row: int, length: int) -> None:
        """Keep only the first `length` positions of a row, rolling it right so that it stays aligned."""
        removed = self.lengths[row] - length
        if length < 1 or removed < 0:
            raise ValueError(f"length must be in 1..{self.lengths[row]}, not {length}")
        if not removed:
            return
        first = self.end - self.lengths[row]
        for layer in self._keys:
            for buffer in (self._keys[layer], self._values[layer]):
                buffer[row, :, first + removed : self.end] = buffer[row, :, first : first + length].clone()
                buffer[row, :, first : first + removed] = 0
        self.lengths[row] = length
        self._mask = None

    # -- buffers --------------------------------------------------------------------------------

    def _clear(self, layer: int, row: int, before: int) -> None:
        """Zero a row's masked columns."""
        self._keys[layer][row, :, :before] = 0
        self._values[layer][row, :, :before] = 0

    def _buffer(self, buffers: dict[int, Tensor], layer: int, like: Tensor) -> Tensor:
        """The buffer of a layer, made on first use in the shape of what is stored."""
        if layer not in buffers:
            _, heads, _, width = like.shape
            buffers[layer] = like.new_zeros(self.max_rows, heads, self._capacity, width)
        return buffers[layer]

    def _make_room(self, width: int) -> None:
        """Make `end` at least `width`, with one free column after it.

        Columns that no row uses any more are dropped whenever the buffers are rebuilt, so that endless
        refill does not let them grow.
        """
        if width <= self.end < self._capacity:
            return
        used = max(self.lengths, default=0)
        end = max(used, width)
        capacity = -(-(end + 1) // BUCKET) * BUCKET
        if used or capacity > self._capacity:
            for buffers in (self._keys, self._values):
                for layer, old in buffers.items():
                    new = old.new_zeros(old.shape[0], old.shape[1], capacity, old.shape[3])
                    new[:, :, end - used : end] = old[:, :, self.end - used : self.end]
                    buffers[layer] = new
            self._capacity = capacity
        self.end = end
        self._mask = None
