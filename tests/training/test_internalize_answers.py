"""`internalize`: how its models decode, and how they are evaluated."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from internalize_help import work_of
from torch import nn

from unspoken.errors import ConfigError
from unspoken.tasks._chains import Chain
from unspoken.training._base import Data
from unspoken.training._edit import IGNORE
from unspoken.training._options import Options
from unspoken.training.internalize import Internalize

# Decoding and evaluation


@pytest.mark.parametrize(
    ("fields", "t", "expected"),
    [
        ({"preset": "explicit_cot"}, 9, {"n_fillers": 0, "separators": 2, "force_sep2": False}),
        ({"preset": "no_cot"}, 9, {"n_fillers": 0, "separators": 1, "force_sep2": True}),
        ({"preset": "no_cot", "force_sep2": False}, 9, {"n_fillers": 0, "separators": 2}),
        ({"preset": "no_cot", "remove_separator": True}, 9, {"separators": 1, "force_sep2": False}),
        ({"preset": "explicit_cot", "remove_separator": True}, 9, {"separators": 2, "force_sep2": False}),
        ({"remove_start_from": 1, "mode": "replace"}, 1, {"n_fillers": 1, "kind": "single", "separators": 2}),
        (
            {"remove_start_from": 99, "mode": "replace", "fill_kind": "distinct"},
            1,
            {"n_fillers": 4, "kind": "distinct"},
        ),
        ({"preset": "filler_fixed"}, 1, {"n_fillers": 8, "separators": 2}),
        (
            {"mode": "fixed", "n_fillers": 3, "fill_kind": "text"},
            1,
            {"n_fillers": 3, "kind": "text", "token": " ."},
        ),
        ({"remove_start_from": 3, "keep_position": True}, 1, {"position_gap": 3}),
        ({"sep_mode": "distinct"}, 1, {"sep2": "<sep2>", "separators": 1}),
        (
            {"preset": "seed_switch"},
            1,
            {"n_fillers": 0, "emit": True, "sep2": "<|ready|>", "force_sep2": False},
        ),
    ],
)
def test_the_strategy_of_a_stage(fields: dict[str, Any], t: int, expected: dict[str, Any]) -> None:
    work, lm = work_of(**fields)
    strategy = work.strategy(t)
    assert {name: getattr(strategy, name) for name in expected} == expected
    assert strategy.check(lm) == []


def test_teacher_forced_numbers() -> None:
    work, lm = work_of(remove_start_from=1)
    metrics = work.evaluate(lm, "valid", 1, limit=7, generate=False)
    edited = work.edited(work.stage(0), work.split_rows["valid"], torch.arange(7), None)
    logits = lm.model(input_ids=edited.ids).logits[:, :-1]
    labels = edited.labels[:, 1:]
    right = (logits.argmax(-1) == labels)[labels != IGNORE]
    loss = nn.functional.cross_entropy(logits.transpose(1, 2), labels).detach()
    assert metrics["loss"] == pytest.approx(float(loss), abs=1e-5)
    assert metrics["ppl"] == pytest.approx(math.exp(float(loss)), rel=1e-5)
    assert metrics["token_accuracy"] == pytest.approx(float(right.float().mean()))
    assert set(name for name in metrics if "/" in name) == {"answer_accuracy/0"}
    by_place = (logits.argmax(-1) == labels)[:, -3:].float().mean(0)  # ####, the answer, the end
    assert metrics["answer_accuracy/0"] == pytest.approx(float(by_place[1]))
    assert "answer_accuracy/0" not in work.evaluate(lm, "test", 1, limit=None, generate=False)


def test_likely_mistakes_are_noted() -> None:
    never, _ = work_of(remove_from_n_steps=10**6)
    assert any("Nothing is removed in this run" in note for note in never.notes)
    whole, _ = work_of(unit="step", step_delimiters=("!",))
    assert any("Every chain is a single step" in note for note in whole.notes)
    assert work_of(preset="explicit_cot")[0].notes == []


def test_settings_that_a_schedule_would_ignore_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"remove_start_from \(preset: no_cot\) belongs to the schedules count"
    ):
        Internalize(preset="no_cot", schedule="joint", mode="replace")


def spaced_lm() -> Any:
    """A tiny model whose tokenizer writes each space between words as a token of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from unspoken.lm.model import CausalLM
    from unspoken.lm.tiny import tiny_model

    words = ["<pad>", "<eos>", "\u2581", "####", *map(str, range(10))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    steps = [pre_tokenizers.Metaspace(prepend_scheme="never", split=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.Split("\u2581", "isolated")])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
    model = tiny_model("tiny", fast, layers=1, width=16, heads=2, max_positions=64, seed=0)
    return CausalLM(model, fast, source="test")


def test_accuracy_of_the_answer_is_of_its_own_tokens() -> None:
    lm = spaced_lm()
    chains = [Chain("1 2", "3", "4 5 6"), Chain("2 2", "4", "7 8")] * 4
    work = Internalize().prepare(lm, Data(chains, chains), Options(batch_size=4))
    edited = work.edited(work.stage(0), work.split_rows["valid"], torch.arange(8), None)
    with torch.no_grad():
        right = lm.model(input_ids=edited.ids).logits[:, :-1].argmax(-1) == edited.ids[:, 1:]
    seen: dict[int, list[bool]] = {}
    for row, chain in enumerate(chains):
        tokens = lm.tokenizer.convert_ids_to_tokens(edited.ids[row, : edited.lengths[row]].tolist())
        assert "\u2581" in tokens[tokens.index("####") :]
        at = [j for j in range(tokens.index("####") + 1, len(tokens) - 1) if tokens[j] != "\u2581"]
        assert [tokens[j] for j in at] == chain.answer.split()
        for place, j in enumerate(at):
            seen.setdefault(place, []).append(bool(right[row, j - 1]))
    metrics = work.evaluate(lm, "valid", 1, limit=None, generate=False)
    told = {int(name.partition("/")[2]): value for name, value in metrics.items() if "/" in name}
    assert told == {place: pytest.approx(sum(hits) / len(hits)) for place, hits in seen.items()}
