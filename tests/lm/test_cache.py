"""The ragged cache against a plain list of tensors, under any sequence of operations."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from unspoken.lm import cache as cache_module
from unspoken.lm.cache import Prefix, RaggedCache

CPU = torch.device("cpu")
LAYERS, HEADS, KEY_WIDTH, VALUE_WIDTH = 2, 2, 3, 5
ROWS = 5
BUCKET = 6  # small, so that growing and shrinking happen all the time
LENGTHS = st.integers(1, 20)

Pair = tuple[Tensor, Tensor]  # keys [H, T, Dk] and values [H, T, Dv]
Row = list[Pair]  # one pair a layer


class Source:
    """Numbers that never repeat, so that nothing can be in the wrong place unnoticed."""

    def __init__(self) -> None:
        self._next = 1.0

    def numbers(self, *shape: int) -> Tensor:
        count = int(torch.tensor(shape).prod())
        start, self._next = self._next, self._next + count
        return torch.arange(start, start + count, dtype=torch.float64).view(shape)

    def row(self, length: int) -> Row:
        return [
            (self.numbers(HEADS, length, KEY_WIDTH), self.numbers(HEADS, length, VALUE_WIDTH))
            for _ in range(LAYERS)
        ]


def cut(row: Row, length: int) -> Row:
    return [(keys[:, :length], values[:, :length]) for keys, values in row]


def prefill(cache: RaggedCache, rows: list[Row]) -> None:
    """As a forward over left-padded prompts does it; what comes of the padding is not a number."""
    lengths = [row[0][0].shape[1] for row in rows]
    width = max(lengths)
    mask = cache.begin_prefill(lengths, CPU)
    assert mask.tolist() == [[False] * (width - n) + [True] * n for n in lengths]
    for layer in range(LAYERS):
        keys = torch.full((len(rows), HEADS, width, KEY_WIDTH), float("nan"), dtype=torch.float64)
        values = torch.full((len(rows), HEADS, width, VALUE_WIDTH), float("nan"), dtype=torch.float64)
        for i, row in enumerate(rows):
            keys[i, :, width - lengths[i] :], values[i, :, width - lengths[i] :] = row[layer]
        read = cache.update(keys, values, layer)
        # The prompts attend to themselves only.
        assert read[0] is keys and read[1] is values


def step(cache: RaggedCache, rows: list[Row], new: list[Row]) -> list[Row]:
    """One more position for every row; checks what attention gets to see. Returns the longer rows."""
    longer = [
        [(torch.cat([k, nk], 1), torch.cat([v, nv], 1)) for (k, v), (nk, nv) in zip(row, add, strict=True)]
        for row, add in zip(rows, new, strict=True)
    ]
    mask = cache.begin_step(CPU, torch.float64)
    lengths = [row[0][0].shape[1] for row in longer]
    width = max(lengths)
    if mask is None:
        assert set(lengths) == {width}
    else:
        inf = float("-inf")
        assert mask.shape == (len(rows), 1, 1, width)
        assert mask[:, 0, 0].tolist() == [[inf] * (width - n) + [0.0] * n for n in lengths]
    for layer in range(LAYERS):
        added = [torch.stack([row[layer][part][:, -1:] for row in longer]) for part in (0, 1)]
        window = cache.update(added[0], added[1], layer)
        for part in (0, 1):
            assert window[part].shape[2] == width
            for i, row in enumerate(longer):
                assert torch.equal(window[part][i, :, width - lengths[i] :], row[layer][part])
                assert torch.isfinite(window[part][i, :, : width - lengths[i]]).all()
    return longer


class Machine(RuleBasedStateMachine):
    """The cache and the list do the same things, and hold the same at every moment."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = patch.object(cache_module, "BUCKET", BUCKET)
        self.patch.start()
        self.source = Source()
        self.cache = RaggedCache(ROWS)
        self.rows: list[Row] = []

    def teardown(self) -> None:
        self.patch.stop()

    @initialize(lengths=st.lists(LENGTHS, min_size=1, max_size=ROWS))
    def begin(self, lengths: list[int]) -> None:
        self.prefill(lengths)

    @precondition(lambda self: len(self.rows) < ROWS)
    @rule(lengths=st.lists(LENGTHS, min_size=1, max_size=3))
    def prefill(self, lengths: list[int]) -> None:
        new = [self.source.row(n) for n in lengths[: ROWS - len(self.rows)]]
        prefill(self.cache, new)
        self.rows += new

    @precondition(lambda self: self.rows)
    @rule(times=st.integers(1, 2 * BUCKET))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.rows = step(self.cache, self.rows, [self.source.row(1) for _ in self.rows])

    @precondition(lambda self: 0 < len(self.rows) < ROWS)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        row = data.draw(st.integers(0, len(self.rows) - 1))
        length = data.draw(st.one_of(st.none(), st.integers(1, self.length(row))))
        assert self.cache.fork(row, length) == len(self.rows)
        self.rows.append(cut(self.rows[row], self.length(row) if length is None else length))

    @precondition(lambda self: len(self.rows) < ROWS)
    @rule(length=LENGTHS)
    def append_a_prefix_from_elsewhere(self, length: int) -> None:
        row = self.source.row(length)
        prefix = Prefix(tuple(k for k, _ in row), tuple(v for _, v in row))
        assert prefix.length == length
        assert self.cache.append(prefix) == len(self.rows)
        self.rows.append(row)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def cut_out_a_prefix(self, data: st.DataObject) -> None:
        row = data.draw(st.integers(0, len(self.rows) - 1))
        length = data.draw(st.integers(1, self.length(row)))
        prefix = self.cache.prefix(row, length)
        for layer, (keys, values) in enumerate(cut(self.rows[row], length)):
            assert torch.equal(prefix.keys[layer], keys) and torch.equal(prefix.values[layer], values)
        for tensor in (*prefix.keys, *prefix.values):
            tensor.fill_(-1.0)  # it is a copy

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        row = data.draw(st.integers(0, len(self.rows) - 1))
        self.cache.drop(row)
        last = self.rows.pop()
        if row < len(self.rows):
            self.rows[row] = last

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def drop_a_row_that_broke(self, data: st.DataObject) -> None:
        """What a row with no finite numbers leaves behind must reach no other row."""
        row = data.draw(st.integers(0, len(self.rows) - 1))
        for buffers in (self.cache._keys, self.cache._values):
            for buffer in buffers.values():
                buffer[row, :, self.cache.end - self.length(row) : self.cache.end] = float("nan")
        self.cache.drop(row)
        last = self.rows.pop()
        if row < len(self.rows):
            self.rows[row] = last

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def select(self, data: st.DataObject) -> None:
        order = data.draw(st.permutations(range(len(self.rows))))
        kept = order[: data.draw(st.integers(0, len(order)))]
        self.cache.select(kept)
        self.rows = [self.rows[i] for i in kept]

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def crop(self, data: st.DataObject) -> None:
        row = data.draw(st.integers(0, len(self.rows) - 1))
        length = data.draw(st.integers(1, self.length(row)))
        self.cache.crop(row, length)
        self.rows[row] = cut(self.rows[row], length)

    def length(self, row: int) -> int:
        return self.rows[row][0][0].shape[1]

    @invariant()
    def the_same_is_held(self) -> None:
        cache = self.cache
        assert cache.rows == len(self.rows)
        assert cache.lengths == [self.length(i) for i in range(len(self.rows))]
        assert cache.start == cache.end - max(cache.lengths, default=0) >= 0
        for i, row in enumerate(self.rows):
            first = cache.end - self.length(i)
            for layer, pair in enumerate(row):
                for buffers, want in zip((cache._keys, cache._values), pair, strict=True):
                    assert torch.equal(buffers[layer][i, :, first : cache.end], want)
                    # Masked columns are multiplied by a weight of zero, which NaN and infinity survive.
                    assert torch.isfinite(buffers[layer][i, :, :first]).all()

    @invariant()
    def buffers_come_in_buckets(self) -> None:
        for buffers in (self.cache._keys, self.cache._values):
            for buffer in buffers.values():
                assert buffer.shape[0] == ROWS
                assert buffer.shape[2] % BUCKET == 0 and self.cache.end <= buffer.shape[2]


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=120, stateful_step_count=25)


@pytest.fixture
def small_buckets() -> Iterator[None]:
    with patch.object(cache_module, "BUCKET", 16):
        yield


def capacity(cache: RaggedCache) -> int:
    return cache._keys[0].shape[2]


def test_endless_refill_does_not_grow_the_cache(small_buckets: None) -> None:
    source, cache = Source(), RaggedCache(2)
    rows = [source.row(4), source.row(7)]
    prefill(cache, rows)
    widest = 0
    for turn in range(400):
        rows = step(cache, rows, [source.row(1) for _ in rows])
        widest = max(widest, capacity(cache))
        if turn % 5 == 4:  # the older row goes, a new one comes; neither is ever longer than 20
            cache.drop(0)
            rows[0] = rows.pop()
            rows.append(source.row(3 + turn % 8))
            prefill(cache, rows[-1:])
    assert max(cache.lengths) <= 20 and widest <= 32


def test_a_long_row_does_not_hold_its_columns_when_it_is_gone(small_buckets: None) -> None:
    source, cache = Source(), RaggedCache(2)
    rows = [source.row(100), source.row(5)]
    prefill(cache, rows)
    assert capacity(cache) == 112
    cache.drop(0)
    rows = rows[1:]
    for _ in range(20):
        rows = step(cache, rows, [source.row(1) for _ in rows])
    assert capacity(cache) == 32


def test_buffers_are_not_copied_every_step(small_buckets: None) -> None:
    source, cache = Source(), RaggedCache(1)
    rows = [source.row(1)]
    prefill(cache, rows)
    places = set()
    for _ in range(63):
        rows = step(cache, rows, [source.row(1)])
        places.add((capacity(cache), cache._keys[0].data_ptr()))
    assert len(places) <= 4  # one for each bucket


def test_an_empty_cache_starts_over_at_column_zero() -> None:
    source, cache = Source(), RaggedCache(1)
    for length in (9, 3, 300, 2):
        rows = [source.row(length)]
        prefill(cache, rows)
        assert cache.end == length
        step(cache, rows, [source.row(1)])
        cache.drop(0)
        assert (cache.rows, cache.end, cache.start) == (0, 0, 0)


def test_what_cannot_be_is_refused() -> None:
    source, cache = Source(), RaggedCache(2)
    prefill(cache, [source.row(4), source.row(2)])
    with pytest.raises(ValueError, match=r"2 \+ 1 rows exceed the cache's 2"):
        cache.begin_prefill([1], CPU)
    with pytest.raises(ValueError, match="2 rows are taken"):
        cache.fork(0)
    for length in (0, 5):
        with pytest.raises(ValueError, match=f"length must be in 1..4, not {length}"):
            cache.crop(0, length)
        with pytest.raises(ValueError, match=f"length must be in 1..4, not {length}"):
            cache.prefix(0, length)
    with pytest.raises(ValueError, match="use fork"):
        cache.select([0, 0])
    assert cache.lengths == [4, 2]


# Cases that a random sequence meets seldom


@pytest.mark.parametrize("operation", ["select", "crop", "fork", "append", "drop", "replace", "prefill"])
def test_the_mask_follows_the_rows(operation: str) -> None:
    """The mask is kept from step to step; whatever changes a row's length or place must renew it."""
    source, cache = Source(), RaggedCache(4)
    rows = [source.row(5), source.row(2), source.row(3)]
    prefill(cache, rows)
    for _ in range(2):
        rows = step(cache, rows, [source.row(1) for _ in rows])  # checks the mask that it is given
    if operation == "select":
        cache.select([1, 2, 0])
        rows = [rows[1], rows[2], rows[0]]
    elif operation == "crop":
        cache.crop(2, 1)
        rows[2] = cut(rows[2], 1)
    elif operation == "fork":
        cache.fork(0, 4)
        rows.append(cut(rows[0], 4))
    elif operation in ("drop", "replace"):
        cache.drop(1)
        rows[1] = rows.pop()
    if operation in ("append", "replace"):
        new = source.row(6)
        cache.append(Prefix(tuple(k for k, _ in new), tuple(v for _, v in new)))
        rows.append(new)
    elif operation == "prefill":
        rows.append(source.row(1))
        prefill(cache, rows[-1:])
    for _ in range(2):
        rows = step(cache, rows, [source.row(1) for _ in rows])


@pytest.mark.parametrize("operation", ["prefill", "ragged prefill", "append", "move"])
def test_a_broken_row_leaves_nothing_behind(operation: str) -> None:
    source, cache = Source(), RaggedCache(4)
    broken = [(torch.full_like(k, float("nan")), torch.full_like(v, float("nan"))) for k, v in source.row(9)]
    rows = [source.row(9), broken]
    prefill(cache, rows)
    if operation == "move":
        rows.append(source.row(4))
        prefill(cache, rows[-1:])
    cache.drop(1)
    rows = [rows[0], *rows[2:]]
    new = [source.row(3), source.row(2)] if operation == "ragged prefill" else [source.row(3)]
    if "prefill" in operation:
        prefill(cache, new)
    elif operation == "append":
        cache.append(Prefix(tuple(k for k, _ in new[0]), tuple(v for _, v in new[0])))
    step(cache, [*rows, *new][: cache.rows], [source.row(1) for _ in range(cache.rows)])
