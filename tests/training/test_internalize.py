"""`internalize`: settings, loss, curriculum and evaluation, against plain computations."""

from __future__ import annotations

import json
import math
from functools import partial
from typing import Any

import pytest
import torch
from internalize_help import CHAINS, MIXED, work_of
from rows_help import word_lm
from torch import nn

from unspoken.config import to_dict
from unspoken.errors import ConfigError
from unspoken.tasks._chains import Chain
from unspoken.training._base import Data
from unspoken.training._edit import IGNORE
from unspoken.training._options import Options
from unspoken.training._schedule import draw_offsets
from unspoken.training.internalize import PRESETS, Internalize


def generator(t: int) -> torch.Generator:
    return torch.Generator().manual_seed(t)


# Settings


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_resolve_and_round_trip(preset: Any) -> None:
    method = Internalize(preset=preset)
    values = to_dict(method)
    assert all(values[name] == value for name, value in PRESETS[preset].items())
    assert Internalize(**values) == method
    json.dumps(values)


def test_what_is_given_goes_before_the_preset() -> None:
    method = Internalize(preset="icot_si", removal_smoothing_lambda=math.inf, remove_per_epoch=16)
    assert math.isinf(method.removal_smoothing_lambda or 0) and method.reset_optimizer
    assert method.remove_per_epoch == 16
    assert Internalize().removal_smoothing_lambda == math.inf and not Internalize().reset_optimizer


def test_names_of_the_switching_commands() -> None:
    method = Internalize(
        switch_tokens=True, switch_from_n_steps=10, switch_from_n_rate=0.1, switch_token_ratio=0.5,
        switch_mode="sequential",
    )  # fmt: skip
    assert (method.preset, method.schedule, method.fill_pattern) == ("seed_switch", "switch", "prefix")
    assert (method.remove_from_n_steps, method.switch_from_n_rate, method.fill_ratio) == (10, 0.1, 0.5)
    removing = Internalize(
        remove_tokens=True, remove_from_n_steps=5, remove_from_n_tokens=2, remove_every_n_step=3
    )
    assert (removing.remove_start_from, removing.remove_every_n_step) == (2, 3)


def test_contradictions_come_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Internalize(
            mode="fixed", keep_position=True, fill_target="cot", switch_tokens=True, remove_tokens=True,
            preset="icot_si", schedule="fraction", fill_ratio=0.5, remove_per_epoch=-1, reset_optimizer=True,
        )  # fmt: skip
    text = str(caught.value)
    for part in (
        "keep_position with mode fixed", "needs n_fillers", "fill_target cot", "switch_tokens and remove_tokens",
        "preset is 'icot_si'", "reset_optimizer acts", "fill_ratio 0.5 would do nothing", "remove_per_epoch must be",
    ):  # fmt: skip
        assert part in text, part


@pytest.mark.parametrize(
    "fields",
    [
        {"fill_pattern": "random", "mode": "fixed", "n_fillers": 2},
        {"fill_pattern": "random", "keep_position": True},
        {"unit": "step", "schedule": "switch"},
        {"sep_mode": "custom", "sep1": "="},
        {"sample_fillers": True, "mode": "replace"},
        {"fill_loss_weight": 0.5, "mode": "replace"},
        {"ramp_end": 0.0},
        {"remove_start_from": 1.5},
        {"max_len_train": 0},
        {"preset": "nope"},
        {"n_fillers": 3},
    ],
)
def test_single_contradictions(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Internalize(**fields)


# Loss


def full_loss(model: nn.Module, ids: torch.Tensor, labels: torch.Tensor, **inputs: Any) -> torch.Tensor:
    logits = model(input_ids=ids, **inputs).logits[:, :-1].float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)


@pytest.mark.parametrize("kind", ["tiny", "tiny-llama"])
@pytest.mark.parametrize(
    "fields",
    [
        {"preset": "icot_si", "remove_start_from": 2},
        {"preset": "filler_fixed", "fill_kind": "distinct", "remove_start_from": 1},
        {"mode": "replace", "fill_target": "cot", "remove_start_from": 3, "infer_num_fillers": 3},
        {"keep_position": True, "remove_start_from": 2},
        {"preset": "seed_switch", "switch_from_n_rate": 0.5, "remove_from_n_steps": 0},
    ],
)
def test_the_loss_is_that_of_all_logits(kind: str, fields: dict[str, Any]) -> None:
    work, lm = work_of(MIXED, kind, **fields)
    rows = torch.arange(8)
    batch = work.batch(4, rows, generator(4))
    edited = work.edited(work.stage(4), work.rows, rows, generator(4))
    ours = work.loss(lm.model, batch, detailed=True)
    mean = ours.total / work.items(batch)
    positions = {}
    if edited.position_ids is not None:
        positions = {"position_ids": edited.position_ids, "attention_mask": torch.ones_like(edited.ids)}
    theirs = full_loss(lm.model, edited.ids, edited.labels, **positions)
    assert batch["input_ids"].shape[1] == edited.ids.shape[1] - 1  # the end of the longest row is not read
    assert mean.item() == pytest.approx(theirs.item(), abs=1e-6)
    grads = []
    for loss in (mean, theirs):
        lm.model.zero_grad()
        loss.backward(retain_graph=True)
        grads.append([p.grad.clone() for p in lm.model.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))
    assert 0 <= ours.metrics["token_accuracy/items"] <= work.items(batch)


def test_positions_with_a_hole_are_not_taken_for_packed_rows() -> None:
    work, lm = work_of(keep_position=True, remove_start_from=2)
    batch = work.batch(0, torch.arange(4), generator(0))
    assert batch["position_ids"][0].diff().max() == 3
    ids, positions = batch["input_ids"][:1], batch["position_ids"][:1]
    mask = torch.full((1, 1, ids.shape[1], ids.shape[1]), -1e9).triu(1)
    expected = lm.model(input_ids=ids, position_ids=positions, attention_mask=mask).logits
    given = lm.model(input_ids=ids, position_ids=positions, attention_mask=batch["attention_mask"][:1]).logits
    assert torch.allclose(given, expected, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_weighted_fillers(weight: float) -> None:
    fields: dict[str, Any] = {"mode": "replace", "fill_target": "fill", "remove_start_from": 2}
    work, lm = work_of(**fields, fill_loss_weight=weight)
    rows = torch.arange(8)
    batch = work.batch(0, rows, generator(0))
    edited = work.edited(work.stage(0), work.rows, rows, None)
    logits = lm.model(input_ids=edited.ids).logits[:, :-1]
    each = nn.functional.cross_entropy(logits.transpose(1, 2), edited.labels[:, 1:], reduction="none")
    weights = torch.where(edited.filler[:, 1:], weight, 1.0) * (edited.labels[:, 1:] != IGNORE)
    total = work.loss(lm.model, batch, detailed=False).total
    assert total.item() == pytest.approx((each * weights).sum().item(), rel=1e-5)
    assert float(work.items(batch)) == float(weights.sum())


def plain_row(chain: Chain, removed: int, lm: Any) -> tuple[list[int], list[int]]:
    ids = lm.tokenizer(f" {chain.question} <eos> {chain.cot} <eos> #### {chain.answer} <eos>")["input_ids"]
    first, second, _ = (i for i, token in enumerate(ids) if token == lm.tokenizer.eos_token_id)
    cut = min(removed, second - first - 1)
    ids = ids[: first + 1] + ids[first + 1 + cut :]
    return ids, [IGNORE] * (first + 1) + ids[first + 1 :]


def test_twenty_steps_equal_a_plain_loop_with_a_reset() -> None:
    fields: dict[str, Any] = {"remove_per_epoch": 1, "removal_smoothing_lambda": 1.0, "reset_optimizer": True}
    options = Options(batch_size=4, epochs=2)
    work, ours = work_of(CHAINS[:48], options=options, **fields)
    plain = word_lm(CHAINS + MIXED)
    order = [rows for epoch in (0, 1) for rows in work.plan(epoch, 4, seed=3)]
    # Keys' bias has no gradient but rounding, of which Adam's usual epsilon would make whole steps.
    adam = partial(torch.optim.AdamW, lr=1e-3, eps=1e-4)
    optimizers = [adam(lm.model.parameters()) for lm in (ours, plain)]
    resets = 0
    for t in range(20):
        if work.resets_optimizer(t, {}):
            optimizers[0].state.clear()
            optimizers[1] = adam(plain.model.parameters())
            resets += 1
        batch = work.batch(t, order[t], generator(t))
        loss = work.loss(ours.model, batch, detailed=False).total / work.items(batch)
        s, offsets = t // 12, draw_offsets(4, 1.0, generator(t)).tolist()
        rows = [plain_row(CHAINS[int(i)], s + o, plain) for i, o in zip(order[t], offsets, strict=True)]
        width = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
        labels = torch.tensor([labels + [IGNORE] * (width - len(labels)) for _, labels in rows])
        for lm, optimizer, value in (
            (ours, optimizers[0], loss),
            (plain, optimizers[1], full_loss(plain.model, ids, labels)),
        ):
            lm.model.zero_grad()
            value.backward()
            optimizer.step()
    assert resets == 1
    for a, b in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


# Curriculum


def test_resets_need_a_finite_rise_and_a_chain_that_is_left() -> None:
    fields: dict[str, Any] = {"remove_per_epoch": 4, "reset_optimizer": True, "removal_side": "right"}
    work, _ = work_of(CHAINS[:40], options=Options(batch_size=4, epochs=3), **fields)
    seen = []
    for t in range(30):
        if work.resets_optimizer(t, {}):
            seen.append(t)
        work.batch(t, torch.arange(4), generator(t))
        if t == 3:
            again, _ = work_of(CHAINS[:40], options=Options(batch_size=4, epochs=3), **fields)
            again.restore(json.loads(json.dumps(work.state())))
            assert again.resets_optimizer(4, {})
    # S = 2; the chains have 4 tokens, so that the batch before micro-batch 10 had none left.
    assert seen == [2, 4, 6, 8]
    assert work.curriculum(3)["scheduled_removal"] == 1 and work.curriculum(8)["all_removed"] == 1


def test_scores_compare_within_a_stage() -> None:
    work, _ = work_of(remove_per_epoch=2, options=Options(batch_size=8, epochs=3))
    longest = int(work.rows.source.c.max())
    found = [work.scores({"teacher_forced_exact": 0.5}, t) for t in (1, 8, work.total_steps)]
    assert found[0] == {"best_by_removed/0": 0.5}
    assert found[1] == {f"best_by_removed/{work.stage(7).count:g}": 0.5} and work.stage(7).count > 0
    assert "best" in found[2]
    emptied, _ = work_of(remove_start_from=longest)
    assert emptied.scores({"exact_match": 0.25}, 1) == {"best_by_removed/all": 0.25, "best": 0.25}
    ramp, _ = work_of(schedule="fraction")
    assert set(ramp.scores({"exact_match": 0.25}, ramp.total_steps)) == {"best"}


def test_a_gated_count_waits_for_accuracy() -> None:
    work, lm = work_of(schedule="accuracy_gated", gate_max_steps=3, options=Options(batch_size=8, epochs=10))
    previous: dict[str, float] = {}
    removed = []
    for t in range(14):
        work.resets_optimizer(t, previous)
        batch = work.batch(t, torch.arange(8), generator(t))
        metrics = work.loss(lm.model, batch, detailed=False).metrics
        previous = {name: float(metrics[name]) for name in work.sticky}
        removed.append(int(batch["removed"][0]))
    # Patience ends after 3 micro-batches of a stage; a decision takes effect 2 later.
    assert removed == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 2
    assert work.state()["gate"]["raises"] == [4, 8, 12]


def test_a_gate_judges_rows_without_an_offset() -> None:
    work, lm = work_of(schedule="accuracy_gated", remove_start_from=1, removal_smoothing_lambda=0.7)
    batch = work.batch(0, torch.arange(40), generator(0))
    at_stage = batch["removed"] == 1
    assert 0 < int(at_stage.sum()) < 40 and torch.equal(batch["judged"], at_stage)
    metrics = work.loss(lm.model, batch, detailed=False).metrics
    alone = {k: v[at_stage] if v.ndim and len(v) == 40 else v for k, v in batch.items()}
    expected = work.loss(lm.model, alone, detailed=False).metrics
    assert int(metrics["scored"]) == int((alone["targets"] != -100).sum())
    assert int(metrics["correct"]) == int(expected["correct"])


def test_long_rows_come_back_when_they_are_short_enough() -> None:
    fields: dict[str, Any] = {"remove_per_epoch": 1, "max_len_train": 11}
    long = [Chain("1 2", "3 " * 8, "1"), Chain("1 2", "3 4", "1")]
    work, lm = work_of(long, options=Options(batch_size=2, epochs=9), **fields)
    start = work.batch(0, torch.arange(2), generator(0))
    assert start["skipped"].tolist() == [True, False] and start["input_ids"].shape[1] == 8
    assert int(work.items(start)) == 6
    loss = work.loss(lm.model, start, detailed=True)
    assert float(loss.metrics["skipped"]) == 1
    assert not work.batch(8, torch.arange(2), generator(0))["skipped"].any()
    dropping, lm = work_of(
        long, options=Options(batch_size=2, epochs=9), max_len_action="drop_batch", **fields
    )
    none = dropping.batch(0, torch.arange(2), generator(0))
    assert none["skipped"].all() and int(dropping.items(none)) == 0
    empty = dropping.loss(lm.model, none, detailed=True).total
    empty.backward()
    assert empty.item() == 0


def test_rows_of_like_length_go_together() -> None:
    work, _ = work_of(MIXED)
    plan = work.plan(0, 6, seed=2)
    assert [len(rows) for rows in plan] == [6] * 6 + [4]
    assert sorted(torch.cat(plan).tolist()) == list(range(40))
    assert all(torch.equal(a, b) for a, b in zip(plan, work.plan(0, 6, seed=2), strict=True))
    n = work.rows.source.n
    assert sum(int(n[rows].max() - n[rows].min()) for rows in plan) < 12
    other, _ = work_of(MIXED, length_buckets=False)
    assert [r.tolist() for r in other.plan(0, 6, 2)] != [r.tolist() for r in plan]


@pytest.mark.parametrize(
    ("side", "count", "removed"),
    [
        ("left", 0, [0, 0, 0]),
        ("left", 1, [1, 3, 2]),
        ("left", 2, [4, 3, 2]),
        ("right", 0, [0, 0, 0]),
        ("right", 1, [3, 3, 2]),
    ],
)
def test_the_separators_go_with_a_token_of_the_chain(side: Any, count: int, removed: list[int]) -> None:
    chains = [Chain("1 2", "3 4", "1"), Chain("1 2", "3", "1"), Chain("1 2", "", "1")]
    work, _ = work_of(
        chains, remove_separator=True, removal_side=side, remove_start_from=count, remove_per_epoch=0
    )
    batch = work.batch(0, torch.arange(3), generator(0))
    assert batch["removed"].tolist() == removed
    assert work.curriculum(0) == {"scheduled_removal": count, "all_removed": float(count == 2)}


@pytest.mark.parametrize("side", ["left", "right"])
def test_whole_steps(side: Any) -> None:
    chains = [Chain("1 2", "3 4 + 1 2 + 3", "1"), Chain("1", "1 2", "0")]
    work, lm = work_of(chains, unit="step", removal_side=side, remove_start_from=1, remove_per_epoch=0)
    batch = work.batch(0, torch.arange(2), generator(0))
    assert batch["removed"].tolist() == ([3, 2] if side == "left" else [1, 2])


# Model and data


def test_rows_beyond_the_positions() -> None:
    lm = word_lm(CHAINS, max_positions=12)
    with pytest.raises(ConfigError, match="15 tokens, but the model has 12 positions") as caught:
        Internalize().prepare(lm, Data(CHAINS), Options())
    assert "--truncation 15" in str(caught.value)
    work = Internalize(truncation=15).prepare(lm, Data(CHAINS), Options())
    assert lm.max_positions == 15 and work.n_rows == 60
    Internalize(preset="no_cot").prepare(word_lm(CHAINS, max_positions=12), Data(CHAINS), Options())


def test_replacing_chains_of_many_lengths_needs_a_number() -> None:
    with pytest.raises(ConfigError, match="unknown when decoding"):
        work_of(MIXED, mode="replace")
    work, _ = work_of(MIXED, mode="replace", infer_num_fillers=2, remove_start_from=math.inf)
    assert work.strategy(1).n_fillers == 2


def test_odd_rows_are_noted() -> None:
    lm = word_lm([*CHAINS, Chain("1 <eos> 2", "3", "1")])
    work = Internalize().prepare(lm, Data([*CHAINS, Chain("1 <eos> 2", "3", "1")]), Options())
    assert work.n_rows == 60 and work.notes == [
        "1 rows of train were left out, with a stray or missing separator."
    ]
