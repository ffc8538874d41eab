"""The vectorised edit against golden values and a plain per-row implementation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unspoken.training._edit import IGNORE, Edited, Knobs, Source, edit, supervised

E, F = 0, 99
A = [11, 12, 13, E, 21, 22, 23, 24, E, 31, 32, E]
B = [14, 15, E, 25, 26, E, 33, E]


def source(*rows: tuple[list[int], int, int]) -> Source:
    flat = torch.tensor([token for row, _, _ in rows for token in row], dtype=torch.uint8)
    n = torch.tensor([len(row) for row, _, _ in rows])
    q, c = torch.tensor([q for _, q, _ in rows]), torch.tensor([c for _, _, c in rows])
    return Source(flat, n.cumsum(0) - n, q, c, n)


PAIR = source((A, 4, 4), (B, 3, 2))


def run(removed: list[int], **knobs: Any) -> Edited:
    return edit(PAIR, torch.tensor(removed), Knobs(**knobs))


def rows(tensor: torch.Tensor, lengths: torch.Tensor) -> list[list[int]]:
    return [row[: int(n)].tolist() for row, n in zip(tensor, lengths, strict=True)]


X = IGNORE


def test_left() -> None:
    out = run([2, 1], keep_position=True)
    assert out.ids.tolist() == [[11, 12, 13, E, 23, 24, E, 31, 32, E], [14, 15, E, 26, E, 33, E, E, E, E]]
    assert out.labels.tolist() == [[X] * 4 + [23, 24, E, 31, 32, E], [X] * 3 + [26, E, 33, E, X, X, X]]
    assert out.position_ids is not None
    assert rows(out.position_ids, out.lengths) == [[0, 1, 2, 5, 6, 7, 8, 9, 10, 11], [0, 1, 3, 4, 5, 6, 7]]
    assert out.emptied.tolist() == [False, False]


def test_right() -> None:
    out = run([2, 1], side="right", keep_position=True)
    assert rows(out.ids, out.lengths) == [[11, 12, 13, E, 21, 22, E, 31, 32, E], [14, 15, E, 25, E, 33, E]]
    assert out.position_ids is not None
    assert rows(out.position_ids, out.lengths) == [[0, 1, 2, 3, 4, 7, 8, 9, 10, 11], [0, 1, 2, 4, 5, 6, 7]]
    assert out.emptied.tolist() == [False, False]


@pytest.mark.parametrize("side", ["left", "right"])
def test_everything_nothing_and_too_much(side: str) -> None:
    out = run([99, 99], side=side)
    assert rows(out.ids, out.lengths) == [[11, 12, 13, E, E, 31, 32, E], [14, 15, E, E, 33, E]]
    assert out.emptied.all()
    out = run([0, 0], side=side)
    assert rows(out.ids, out.lengths) == [A, B] and not out.emptied.any()
    out = run([3, 5], side=side)
    assert out.emptied.tolist() == [False, True] and out.removed.tolist() == [3, 2]
    assert out.ids[0].tolist() == [11, 12, 13, E, 24 if side == "left" else 21, E, 31, 32, E]


def test_fillers() -> None:
    out = run([2, 1], mode="replace", fill_ids=(F,))
    assert out.ids[0].tolist() == [11, 12, 13, E, F, F, 23, 24, E, 31, 32, E]
    assert out.labels[0].tolist() == [X] * 6 + [23, 24, E, 31, 32, E]
    out = run([2, 1], mode="fixed", n_fillers=3, fill_ids=(F,))
    assert out.ids[0].tolist() == [11, 12, 13, E, F, F, F, 23, 24, E, 31, 32, E]
    assert rows(out.ids, out.lengths)[1] == [14, 15, E, F, F, F, 26, E, 33, E]
    out = run([2, 1], mode="replace", target="cot", fill_ids=(F,))
    assert out.labels[0].tolist() == [X] * 4 + [21, 22, 23, 24, E, 31, 32, E]
    assert out.ids[0, 4:6].tolist() == [F, F]
    out = run([3, 1], mode="capped", n_fillers=2, target="fill", fill_ids=(97, 98))
    assert rows(out.ids, out.lengths) == [
        [11, 12, 13, E, 97, 98, 24, E, 31, 32, E],
        [14, 15, E, 97, 26, E, 33, E],
    ]
    assert rows(out.labels, out.lengths)[0] == [X] * 4 + [97, 98, 24, E, 31, 32, E]
    out = run([3, 2], mode="ratio", ratio=0.5, side="right", fill_ids=(F,))
    assert rows(out.ids, out.lengths) == [[11, 12, 13, E, 21, F, F, E, 31, 32, E], [14, 15, E, F, E, 33, E]]


def test_fillers_that_fill_all_places_leave_positions_alone() -> None:
    out = run([2, 1], mode="replace", keep_position=True, fill_ids=(F,))
    assert out.position_ids is not None
    assert out.position_ids[0].tolist() == list(range(12))


def test_random_pattern_by_runs() -> None:
    mask = torch.tensor([[True, False, True, True], [True, True, True, True]])
    out = edit(
        PAIR, PAIR.c, Knobs(mode="ratio", ratio=0.5, pattern="random", target="fill", fill_ids=(F,)), mask
    )
    assert rows(out.ids, out.lengths) == [[11, 12, 13, E, F, 22, F, E, 31, 32, E], [14, 15, E, F, E, 33, E]]
    assert out.emptied.tolist() == [False, True] and out.removed.tolist() == [3, 2]
    out = edit(
        PAIR, PAIR.c, Knobs(mode="replace", pattern="random", target="cot", fill_ids=(97, 98, 99)), mask
    )
    assert out.ids[0].tolist() == [11, 12, 13, E, 97, 22, 98, 99, E, 31, 32, E]
    assert out.labels[0].tolist() == [X] * 4 + A[4:]


def test_scored_places() -> None:
    index, targets = supervised(run([2, 1], mode="replace", fill_ids=(F,)))
    assert index.tolist() == [[5, 6, 7, 8, 9, 10], [3, 4, 5, 6, 0, 0]]
    assert targets.tolist() == [[23, 24, E, 31, 32, E], [26, E, 33, E, X, X]]


def plain(
    row: list[int], q: int, c: int, gone: list[bool], knobs: Knobs
) -> tuple[list[int], list[int], list[int]]:
    """Ids, labels and position ids of one row, written as one would explain it."""
    chain, out, labels, r = row[q : q + c], [], [], sum(gone)
    block = knobs.pattern == "prefix"
    if knobs.mode == "fixed":
        m = knobs.n_fillers
    elif knobs.mode == "capped":
        m = min(r, knobs.n_fillers)
    else:
        m = 0
    placed = 0

    def fill(count: int, originals: list[int]) -> None:
        nonlocal placed
        for k in range(count):
            word = knobs.fill_ids[placed if len(knobs.fill_ids) > 1 else 0]
            placed += 1
            out.append(word)
            labels.append(
                {"ignore": X, "fill": word}.get(knobs.target, originals[k] if k < len(originals) else X)
            )

    if block and knobs.side == "left":
        gone = [True] * r + [False] * (c - r)
    elif block:
        gone = [False] * (c - r) + [True] * r
    if knobs.mode in ("fixed", "capped"):
        kept = [token for token, away in zip(chain, gone, strict=True) if not away]
        if knobs.side == "left":
            fill(m, [])
        out += kept
        labels += kept
        if knobs.side == "right":
            fill(m, [])
    else:
        i = 0
        while i < c:
            if not gone[i]:
                out.append(chain[i])
                labels.append(chain[i])
                i += 1
                continue
            end = next((k for k in range(i, c) if not gone[k]), c)
            exact = {"drop": 0, "replace": end - i}.get(knobs.mode)
            number = math.ceil(round(knobs.ratio * (end - i), 6)) if exact is None else exact
            fill(number, chain[i:end])
            i = end
    ids = row[:q] + out + row[q + c :]
    hole = c - len(out)
    cut = q if knobs.side == "left" else q + c - r
    positions = [j + hole * (j >= cut - 1) for j in range(len(ids))]
    return ids, [X] * q + labels + row[q + c :], positions


@settings(max_examples=150)
@given(st.data())
def test_as_the_plain_edit_does(data: st.DataObject) -> None:
    parts = data.draw(st.lists(st.tuples(*[st.integers(0, 6)] * 3), min_size=1, max_size=5))
    made, token = [], 10
    for question, c, answer in parts:
        total = question + c + answer
        words = list(range(token, token + total))
        token += total
        row = [*words[:question], E, *words[question : question + c], E, *words[question + c :], E]
        made.append((row, question + 1, c))
    pattern = data.draw(st.sampled_from(["prefix", "random"]))
    modes = ["drop", "replace", "ratio"] + (["fixed", "capped"] if pattern == "prefix" else [])
    mode = data.draw(st.sampled_from(modes))
    knobs = Knobs(
        side=data.draw(st.sampled_from(["left", "right"])) if pattern == "prefix" else "left",
        mode=mode,
        pattern=pattern,
        target=data.draw(
            st.sampled_from(["ignore", "fill", "cot"] if mode == "replace" else ["ignore", "fill"])
        ),
        ratio=data.draw(st.sampled_from([0.1, 0.3, 0.5, 0.7, 1.0])),
        n_fillers=data.draw(st.integers(1, 4)),
        fill_ids=tuple(range(200, 200 + data.draw(st.sampled_from([1, 8])))),
        keep_position=pattern == "prefix" and mode != "fixed",
        pad_id=E,
    )
    src = source(*made)
    if pattern == "prefix":
        removed = [data.draw(st.integers(0, 8)) for _ in made]
        gone = [[i < r for i in range(c)] for (_, _, c), r in zip(made, removed, strict=True)]
        out = edit(src, torch.tensor(removed), knobs)
    else:
        gone = [[data.draw(st.booleans()) for _ in range(c)] for _, _, c in made]
        mask = torch.zeros(len(made), int(src.c.max()), dtype=torch.bool)
        for i, row_gone in enumerate(gone):
            mask[i, : len(row_gone)] = torch.tensor(row_gone, dtype=torch.bool)
        out = edit(src, src.c, knobs, mask)
    expected = [plain(row, q, c, away, knobs) for (row, q, c), away in zip(made, gone, strict=True)]
    assert rows(out.ids, out.lengths) == [ids for ids, _, _ in expected]
    assert rows(out.labels, out.lengths) == [labels for _, labels, _ in expected]
    assert out.ids.shape[1] == max(len(ids) for ids, _, _ in expected)
    assert out.emptied.tolist() == [sum(away) == c for (_, _, c), away in zip(made, gone, strict=True)]
    if out.position_ids is not None:
        assert rows(out.position_ids, out.lengths) == [positions for _, _, positions in expected]
