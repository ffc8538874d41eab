"""Our batches and losses against the plain port that the benchmarks compare with."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from unspoken.lm.compact import compact_tokenizer
from unspoken.lm.model import CausalLM
from unspoken.lm.tiny import tiny_model
from unspoken.tasks._chains import Chain
from unspoken.tasks.multiplication import line
from unspoken.training._base import Data
from unspoken.training._options import Options
from unspoken.training.internalize import Internalize

PORT = Path(__file__).parents[2] / "benchmarks" / "_plain_icot.py"
E = 0


@pytest.fixture(scope="module")
def port() -> ModuleType:
    spec = importlib.util.spec_from_file_location("_plain_icot", PORT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("removal", "first", "second", "empty"),
    [
        ([2, 1], [11, 12, 13, E, 23, 24, E, 31, 32, E], [14, 15, E, 26, E, 33, E], False),
        ([3, 5], [11, 12, 13, E, 24, E, 31, 32, E], [14, 15, E, E, 33, E], False),
        ([99, 99], [11, 12, 13, E, E, 31, 32, E], [14, 15, E, E, 33, E], True),
    ],
)
def test_the_port_cuts_what_it_should(
    port: ModuleType, removal: list[int], first: list[int], second: list[int], empty: bool
) -> None:
    a = [11, 12, 13, E, 21, 22, 23, 24, E, 31, 32, E]
    b = [14, 15, E, 25, 26, E, 33, E]
    ids, labels = port.collate([(a, [-100] * 4 + a[4:]), (b, [-100] * 3 + b[3:])], E)
    ids, labels, emptied = port.edit(ids, labels, removal, E)
    pad = [E] * (len(first) - len(second))
    assert ids.tolist() == [first, second + pad]
    assert labels.tolist() == [[-100] * 4 + first[4:], [-100] * 3 + second[3:] + [-100] * len(pad)]
    assert emptied is empty


@pytest.mark.parametrize("start", [0, 3, float("inf")])
def test_same_loss_and_gradients_on_the_same_rows(port: ModuleType, start: float) -> None:
    lines = [line(12 + i, 34 + i, 2, 2) for i in range(8)]
    chains = [Chain(*text.replace("||", " #### ").split(" #### ")) for text in lines]
    tokenizer = compact_tokenizer(text.replace("||", " ") for text in lines)
    model = tiny_model("tiny", tokenizer, layers=2, width=32, heads=4, max_positions=64)
    method = Internalize(removal_smoothing_lambda=0.5, remove_start_from=start, remove_per_epoch=0)
    work = method.prepare(CausalLM(model, tokenizer, source="tiny"), Data(chains), Options(batch_size=8))

    batch = work.batch(0, torch.arange(8), torch.Generator().manual_seed(1))
    ours = work.loss(model, batch, detailed=True)
    mean = ours.total / work.items(batch)
    mean.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()

    rows = port.Rows(lines, tokenizer)
    ids, labels = port.collate([rows[i] for i in range(8)], tokenizer.eos_token_id)
    removal = batch["removed"].tolist()  # the offsets that were drawn
    assert start or len(set(removal)) > 1
    ids, labels, _ = port.edit(ids, labels, removal, tokenizer.eos_token_id)
    loss, accuracy = port.loss_and_accuracy(model, ids, labels)
    loss.backward()
    assert mean.item() == pytest.approx(loss.item(), abs=1e-6)
    share = ours.metrics["token_accuracy/items"] / work.items(batch)
    assert float(share) == pytest.approx(accuracy)
    for ours_, theirs in zip(gradients, (p.grad for p in model.parameters()), strict=True):
        torch.testing.assert_close(ours_, theirs, atol=1e-6, rtol=1e-4)


def test_same_evaluation_where_nothing_is_left(port: ModuleType) -> None:
    lines = [line(12 + i, 34 + i, 2, 2) for i in range(6)]
    chains = [Chain(*text.replace("||", " #### ").split(" #### ")) for text in lines]
    tokenizer = compact_tokenizer(text.replace("||", " ") for text in lines)
    model = tiny_model("tiny", tokenizer, layers=1, width=32, heads=4, max_positions=64)
    lm = CausalLM(model, tokenizer, source="tiny")
    method = Internalize(preset="no_cot")
    work = method.prepare(lm, Data(chains[:4], chains), Options(batch_size=4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for t in range(60):  # learns the four rows by heart, and the form
        batch = work.batch(t, torch.arange(4), torch.Generator().manual_seed(t))
        (work.loss(model, batch, detailed=False).total / work.items(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    theirs = port.evaluate(model, lines, tokenizer, remove=port.ALL, batch_size=6, max_new_tokens=16)
    found = work.evaluate(lm, "valid", 60, limit=None, generate=False)
    for name, value in theirs.items():
        assert found[name] == pytest.approx(value, abs=1e-5), name
    assert theirs["exact_match"] >= 4 / 6
