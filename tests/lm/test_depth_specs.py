"""Depths by themselves: what is read, and what they are called."""

from __future__ import annotations

from typing import Any

import pytest

from unspoken.lm.depth import FULL, Depth

# Depths by themselves


@pytest.mark.parametrize(
    ("spec", "fields"),
    [
        ("24", {"keep_first": 24}),
        ("24+last", {"keep_first": 24, "keep_last": True}),
        ("0+last", {"keep_first": 0, "keep_last": True}),
        ("drop:3", {"drop": (3,)}),
        ("drop:3, 5", {"drop": (3, 5)}),
        ("window:10:4", {"drop_window": (10, 4)}),
    ],
)
def test_specs(spec: str, fields: dict[str, Any]) -> None:
    assert Depth.read(spec) == Depth(**fields)


def test_keep_last_completes_a_number() -> None:
    assert Depth.read("24", keep_last=True) == Depth.read("24+last") == Depth.read("24+last", keep_last=True)
    assert Depth.read("24", keep_last=False).resolve(28) == Depth.read("24").resolve(28)


@pytest.mark.parametrize(
    ("layer", "dropped", "name"),
    [
        (100, 0, FULL),
        (28, 0, FULL),
        (27, 0, FULL),
        (26, 0, FULL),
        (25, 1, "first 26 and last of 28 blocks"),
        (24, 2, "first 25 and last of 28 blocks"),
        (23, 3, "first 24 and last of 28 blocks"),
        (21, 5, "first 22 and last of 28 blocks"),
        (0, 26, "first 1 and last of 28 blocks"),
    ],
)
def test_layer_idx_keeps_the_last_block_as_the_original_does(layer: int, dropped: int, name: str) -> None:
    kept = Depth(layer_idx=layer).resolve(28)
    assert (kept.n_dropped, kept.name) == (dropped, name)
    assert kept.blocks == tuple(sorted({*range(min(layer + 1, 28)), 27}))


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("28", FULL),
        ("window:5:0", FULL),
        ("24", "first 24 of 28 blocks"),
        ("window:24:4", "first 24 of 28 blocks"),
        ("0+last", "last of 28 blocks"),
        ("drop:0", "28 blocks without 0"),
        ("drop:3,9,4,5", "28 blocks without 3-5, 9"),
    ],
)
def test_names_are_of_what_is_kept(spec: str, name: str) -> None:
    assert Depth.read(spec).resolve(28).name == name
