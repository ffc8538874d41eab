"""Training a tuned lens: its loss and gradients, its texts, resumption, and what it reaches."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import unspoken as un
from unspoken.analysis._lens_states import batch_states, read_states
from unspoken.analysis._translators import Translators
from unspoken.analysis.tuned_lens import read_tensors
from unspoken.cli.main import main
from unspoken.errors import ConfigError, DataError
from unspoken.tasks._chains import Chain
from unspoken.training import _tuned_lens
from unspoken.training._base import Data
from unspoken.training._lens_loss import lens_loss
from unspoken.training._options import Options
from unspoken.training._texts import Document, encode, pack, read_texts, sample
from unspoken.training.tuned_lens import TuneLens

KINDS: list[dict[str, Any]] = [{}, {"rank": 3}, {"bias_only": True}]
QUIET: dict[str, Any] = {"quiet": True, "row_tokens": 16, "save_every": 0, "eval_every": 0}


@cache
def deep_lm() -> un.CausalLM:
    """A random model of 4 blocks whose last law is far from those of the blocks before."""
    from tiny_models import make_tokenizer
    from transformers import AutoModelForCausalLM, LlamaConfig

    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), initializer_range=0.3, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return un.CausalLM(model.eval(), tokenizer)


def sums(n: int) -> Data:
    """Rows that differ, with chains and answers."""
    return Data(
        [
            Chain(f"What is {i} + {i * 7 % 31}?", f"{i} + {i * 7 % 31} =", str(i + i * 7 % 31))
            for i in range(n)
        ]
    )


def unembed(lm: un.CausalLM) -> Callable[[Tensor], Tensor]:
    return lambda hidden: lm.unembed(lm.anatomy.norm(hidden))


def shaken(translators: Translators) -> Translators:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in translators.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return translators


def plain_loss(lm: un.CausalLM, translators: Translators, hidden: Tensor, targets: Tensor | None) -> Tensor:
    """The whole loss as one graph, by the definition."""
    final = unembed(lm)(hidden[-1]).detach().log_softmax(-1)
    total = torch.zeros(())
    for i, translator in enumerate(translators):
        lens = unembed(lm)(translator(hidden[i])).log_softmax(-1)
        if targets is None:
            total = total + (final.exp() * (final - lens)).sum()
        else:
            total = total - lens.gather(-1, targets[:, None]).sum()
    return total


@pytest.mark.parametrize("loss", ["kl", "ce"])
@pytest.mark.parametrize("options", KINDS, ids=["full", "rank", "bias"])
def test_gradient_is_that_of_the_whole_graph(options: dict[str, Any], loss: str) -> None:
    lm = deep_lm()
    translators = shaken(Translators(4, 32, **options))
    ids = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    at = torch.tensor([[0, 2, 3, 7], [1, 4, 5, 6]])
    hidden = batch_states(lm, ids, at)
    targets = ids.gather(1, at + 1).flatten() if loss == "ce" else None
    wanted = plain_loss(lm, translators, hidden, targets)
    wanted_slopes = torch.autograd.grad(wanted, list(translators.parameters()))
    for rows in (3, 100):  # chunks that do not divide the 8 positions, and all at once
        total, by_layer = lens_loss(translators, hidden, unembed(lm), rows=rows, targets=targets)
        torch.testing.assert_close(total, wanted, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(by_layer.sum(), total.detach())
        translators.zero_grad()
        (total * 0.25).backward()
        for parameter, slope in zip(translators.parameters(), wanted_slopes, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, slope * 0.25, rtol=1e-3, atol=1e-4)
    assert all(p.grad is None for p in lm.model.parameters())


def test_states_of_a_batch_are_those_of_its_rows() -> None:
    lm = deep_lm()
    ids = torch.randint(0, 300, (3, 10), generator=torch.Generator().manual_seed(1))
    at = torch.tensor([[0, 9], [4, 4], [7, 2]])
    found = batch_states(lm, ids, at).view(5, 3, 2, 32)
    for row in range(3):
        alone = read_states(lm, lm.embed(ids[row]).detach()).hidden[:, at[row]]
        torch.testing.assert_close(found[:, row], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_one_step_is_that_of_the_optimizer(optimizer: str, tmp_path: Path) -> None:
    lm, data = deep_lm(), sums(6)
    given = {
        "lr": 0.01,
        "weight_decay": 0.1,
        "max_grad_norm": 0.0,
        "lr_schedule": "constant",
        "warmup_ratio": 0.0,
    }
    un.train(
        "tuned_lens", model=lm, data=data, output=tmp_path / "run", optimizer=optimizer, steps=1, batch_size=2,
        seed=5, rank=3, **given, **QUIET,
    )  # fmt: skip
    found = read_tensors(tmp_path / "run")
    work = TuneLens(rank=3, row_tokens=16).prepare(lm, data, Options(seed=5))
    translators = Translators(4, 32, rank=3, seed=5)
    ids = work.packs["train"].rows[work.plan(0, 2, 5)[0]]
    hidden = batch_states(lm, ids, torch.arange(16).expand(2, -1))
    loss = plain_loss(lm, translators, hidden, None) / (2 * 16)
    loss.backward()
    named = dict(translators.named_parameters())
    groups = [
        {"params": [p for n, p in named.items() if "bias" not in n], "weight_decay": 0.1},
        {"params": [p for n, p in named.items() if "bias" in n], "weight_decay": 0.0},
    ]
    made: Any = torch.optim.AdamW if optimizer == "adamw" else torch.optim.SGD
    extra = {} if optimizer == "adamw" else {"momentum": 0.9, "nesterov": True}
    made(groups, lr=0.01, **extra).step()
    for name, parameter in named.items():
        torch.testing.assert_close(found[name], parameter.detach(), rtol=1e-3, atol=2e-4, msg=name)
        assert (found[name] != Translators(4, 32, rank=3, seed=5).state_dict()[name]).any()


def test_positions_are_drawn_evenly() -> None:
    lm = deep_lm()
    for loss, usable in (("kl", 16), ("ce", 15)):
        work = TuneLens(loss=loss, positions=3, row_tokens=16).prepare(lm, sums(20), Options())  # type: ignore[arg-type]
        counts = torch.zeros(16)
        for t in range(400):
            batch = work.batch(t, torch.arange(4), torch.Generator().manual_seed(t))
            assert batch["at"].shape == (4, 3)
            assert all(len(set(row)) == 3 for row in batch["at"].tolist())
            counts += batch["at"].flatten().bincount(minlength=16)
        expected = 400 * 4 * 3 / usable
        assert (counts[usable:] == 0).all()
        assert ((counts[:usable] - expected).abs() < 5 * expected**0.5).all()
        assert work.items(batch) == 12


def test_tuned_is_below_logit_on_held_out_text(tmp_path: Path) -> None:
    lm = deep_lm()
    before = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    run = un.train(
        "tuned_lens",
        model=lm,
        data=sums(200),
        output=tmp_path / "lens",
        epochs=4,
        lr=0.01,
        held_out=0.1,
        **QUIET,
    )
    assert run.metrics["layers_below_logit"] == run.metrics["layers"] == 4
    assert run.metrics["kl"] < 0.8 * run.metrics["logit_kl"]
    scores = json.loads((tmp_path / "lens" / "aggregate_metrics.json").read_text())
    for layer, tuned in scores["tuned"]["kl"].items():
        if layer == "layer_3":
            assert tuned == scores["logit"]["kl"][layer] == pytest.approx(0, abs=1e-5)
        else:
            error = scores["kl_standard_error"]["tuned"][layer]
            assert tuned < scores["logit"]["kl"][layer] - error
    # The model is what it was, and may still be trained.
    for name, parameter in lm.model.named_parameters():
        assert parameter.requires_grad and torch.equal(parameter, before[name])
    # The lens that was left is the one that was measured.
    lens, text = un.TunedLens.load(tmp_path / "lens", lm), "What is 999 + 7? 999 + 7 = #### 1006"
    assert lens(text).kl[:-1].mean() < 0.9 * un.LogitLens(lm)(text).kl[:-1].mean()
    again = un.train(
        "tuned_lens",
        model=lm,
        data=sums(200),
        output=tmp_path / "lens",
        epochs=4,
        lr=0.01,
        held_out=0.1,
        **QUIET,
    )
    assert again.already_finished and again.metrics == run.metrics


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = deep_lm()
    given: dict[str, Any] = {**QUIET, "save_every": 2, "positions": 5, "steps": 6, "rank": 4, "batch_size": 4}

    def go(name: str) -> None:
        un.train("tuned_lens", model=lm, data=sums(30), output=tmp_path / name, **given)

    go("whole")
    batch = _tuned_lens.LensWork.batch

    def stops(self: Any, t: int, *rest: Any) -> Any:
        if t == 5:
            raise KeyboardInterrupt
        return batch(self, t, *rest)

    monkeypatch.setattr(_tuned_lens.LensWork, "batch", stops)
    with pytest.raises(KeyboardInterrupt):
        go("parts")
    monkeypatch.undo()
    assert not (tmp_path / "parts" / "lens.json").exists()
    go("parts")
    whole, parts = read_tensors(tmp_path / "whole"), read_tensors(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_rate_warms_up_over_a_share_of_the_run(tmp_path: Path) -> None:
    un.train(
        "tuned_lens", model=deep_lm(), data=sums(30), output=tmp_path / "run", steps=8, warmup_ratio=0.25, lr=1.0,
        bias_only=True, log_every=1, batch_size=2, **QUIET,
    )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [row["lr"] for row in rows if row["event"] == "train"]
    wanted = [1 / 3, 2 / 3, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]  # two steps up, then down along a line
    assert rates == pytest.approx(wanted)


class TestTexts:
    """Where rows come from."""

    def test_files(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"question": "q", "answer": "a #### 1"}\n')
        assert [row.question for row in read_texts(tmp_path / "a.jsonl")] == ["one", "q\na #### 1"]
        (tmp_path / "a.txt").write_text("some\n\nwords\n")
        assert [row.question for row in read_texts(tmp_path / "a.txt")] == ["some\n\nwords"]
        (tmp_path / "none.txt").write_text(" \n")
        with pytest.raises(DataError, match="is empty"):
            read_texts(tmp_path / "none.txt")
        with pytest.raises(DataError, match="Cannot read"):
            read_texts(tmp_path / "missing.txt")

    def test_packing(self) -> None:
        lm = deep_lm()
        eos = lm.tokenizer.eos_token_id
        packed = pack(lm, [Document((20, 21, 22), 6), Document((23, 24), 4), Document((25, eos), 1)], 4)
        assert packed.rows.tolist() == [[20, 21, 22, eos], [23, 24, eos, 25]]
        assert packed.nats_to_bpb == pytest.approx(7 / 11 / 0.693147, rel=1e-5)
        assert pack(lm, [Document((20, 21, 22), 6)], 100).rows.shape == (1, 4)
        (document,) = encode(lm, ["two µ"])
        assert document.size == 6 and lm.tokenizer.decode(document.ids) == "two µ"

    def test_samples_are_the_models_own(self) -> None:
        lm = deep_lm()
        first, again, other = (sample(lm, 3, 12, seed=seed, prompt="What") for seed in (0, 0, 1))
        assert first == again != other
        start = lm.tokens.encode("What")
        assert all(list(d.ids[: len(start)]) == start and len(d.ids) <= len(start) + 12 for d in first)
        assert (
            sample(lm, 2, 5, seed=0)[0].ids[0] == lm.tokenizer.eos_token_id
        )  # it has no token that begins texts

    def test_last_texts_are_held_out(self) -> None:
        lm = deep_lm()
        work = TuneLens(held_out=0.25, row_tokens=8).prepare(lm, sums(8), Options())
        whole = pack(lm, work._documents(sums(8).train), 8)
        assert len(work.packs["train"]) + len(work.packs["valid"]) == pytest.approx(len(whole), abs=1)
        assert "6" in lm.tokenizer.decode(work.packs["valid"].rows[0])
        given = Data(sums(8).train, sums(3).train)
        assert TuneLens(row_tokens=8).prepare(lm, given, Options()).packs["valid"].rows.tolist() == (
            pack(lm, work._documents(sums(3).train), 8).rows.tolist()
        )
        one = Data([Chain("What is this? " * 20, "", "")])
        assert len(TuneLens(held_out=0.5, row_tokens=4).prepare(lm, one, Options()).packs["valid"]) > 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rank": -1, "held_out": 0.0}, "2 problems"),
        ({"rank": 4, "bias_only": True}, "so it has no rank"),
        ({"texts": "x", "samples": 3}, "not both"),
        ({"positions": 16}, "below row_tokens"),
        ({"rank": 33}, "at most 32"),
        ({"lora_r": 4}, "leave out lora_r"),
        ({"row_tokens": 300}, "context holds 256"),
        ({"samples": 2}, "brings its own rows"),
        ({"optimiser": "sgd"}, "Did you mean 'optimizer'"),
    ],
)
def test_mistakes(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        un.train("tuned_lens", model=deep_lm(), data=sums(20), output=tmp_path / "run", **{**QUIET, **given})


def test_commands(
    tiny_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, folder, model = tmp_path / "texts.jsonl", tmp_path / "lens", str(tiny_folder("llama"))
    texts.write_text(
        "\n".join(json.dumps({"text": f"What is {i} + 30? {i} + 30 = {i + 30}."}) for i in range(60))
    )
    words = [
        "train",
        "tuned_lens",
        "-m",
        model,
        "--texts",
        str(texts),
        "-o",
        str(folder),
        "--row_tokens",
        "16",
    ]
    assert main([*words, "--epochs", "3", "--lr", "0.01"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and f'unspoken lens "TEXT" -m {model} --lens logit {folder}' in out and "logit_kl" in out
    recorded = json.loads((folder / "training.json").read_text())["configuration"]["options"]
    assert (recorded["lr"], recorded["warmup_ratio"], recorded["batch_size"]) == (
        0.01,
        0.1,
        8,
    )  # typed, and the method's

    lens = [
        "lens",
        "What is 5 + 30?",
        "-m",
        model,
        "--lens",
        "logit",
        str(folder),
        "last_block",
        "-o",
        str(tmp_path),
    ]
    assert main(lens) == 0
    out = capsys.readouterr().out
    assert all(f"{name} lens" in " ".join(out.split()) for name in ("logit", "tuned", "last block"))

    evaluated = [
        "lens-eval",
        str(folder),
        "-m",
        model,
        "--texts",
        str(texts),
        "--row_tokens",
        "16",
        "--rows",
        "4",
    ]
    assert main([*evaluated, "--transfer", "-o", str(tmp_path / "eval")]) == 0
    assert "best one at 2 of 2 layers" in capsys.readouterr().out
    scores = json.loads((tmp_path / "eval" / "aggregate_metrics.json").read_text())
    assert scores["positions"] == 4 * 15 and len(scores["layer_transfer_kl"]) == 2
    assert main([*evaluated[:4], "--samples", "2", "--sample-tokens", "9", "-o", str(tmp_path / "own")]) == 0

    capsys.readouterr()
    for command in (lens, evaluated):
        other = [str(tiny_folder("gpt2")) if word == model else word for word in command]
        assert main(other) == 1
        assert "final norm and head are not those" in capsys.readouterr().err
    for wrong, said in (
        (["lens-eval", str(folder), "-m", model], "either as a file with --texts"),
        (["lens-eval", str(tmp_path / "x"), "-m", model, "--samples", "1"], "no tuned lens"),
        (["lens", "hi", "-m", model, "--lens", "tuend"], "folder of a tuned lens"),
        ([*words, "--task", "modsum"], "the method's own flags"),
        (["train", "tuned_lens", "-m", model, "-o", "x"], "No rows to train on"),
        (["doctor", "train", *words[1:]], "trains none"),
    ):
        assert main(wrong) == 2
        assert said in capsys.readouterr().err
