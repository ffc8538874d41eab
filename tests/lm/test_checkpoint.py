"""Checkpoints: what they remember, that a failed save spoils nothing, prompts as in training, foreign formats."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_tokens import gpt2, sentencepiece_like
from tokenizers import Tokenizer, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

import unspoken as un
from unspoken.decoding.filler import Filler
from unspoken.errors import ConfigError, ModelError, RunError
from unspoken.lm import checkpoint
from unspoken.lm.compact import compact_tokenizer
from unspoken.lm.model import CausalLM
from unspoken.lm.tiny import tiny_model
from unspoken.lm.tokens import Tokens


def make(seed: int = 0) -> CausalLM:
    tokenizer = compact_tokenizer(["1 2 3 * +"], ["<fill_0>"])
    return CausalLM(
        tiny_model("tiny", tokenizer, layers=1, width=16, heads=2, max_positions=32, seed=seed), tokenizer
    )


def test_a_checkpoint_gives_back_model_strategy_and_provenance(tmp_path: Path) -> None:
    lm, strategy = make(), Filler(n_fillers=3, kind="single", force_sep2=True)
    checkpoint.set_question_template(lm.tokenizer, "<eos>")
    checkpoint.save(lm, tmp_path / "a" / "b", strategy=strategy, provenance={"step": 7})
    again = un.load(tmp_path / "a" / "b")
    assert (again.strategy, again.provenance) == (strategy, {"step": 7})
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]
    want = CausalLM(lm.model, lm.tokenizer).generate("1 * 2", strategy, max_new_tokens=5)
    got = again.generate("1 * 2", max_new_tokens=5)
    assert got.token_ids == want.token_ids and got.notes["fillers"] == 3  # type: ignore[union-attr]
    # Saved again, it remembers the same.
    checkpoint.save(again, tmp_path / "c")
    assert un.load(tmp_path / "c").strategy == strategy


def test_other_files_stay_and_a_failed_save_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    checkpoint.save(make(), folder, strategy=Filler(n_fillers=1))
    (folder / "metrics.jsonl").write_text("{}")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    lm = make(seed=1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(lm.tokenizer, "save_pretrained", full)
        with pytest.raises(RunError, match="No space left"):
            checkpoint.save(lm, folder, strategy=Filler(n_fillers=2))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    checkpoint.save(lm, folder, strategy=Filler(n_fillers=2))
    assert un.load(folder).strategy == Filler(n_fillers=2) and (folder / "metrics.jsonl").exists()
    assert (folder / "model.safetensors").read_bytes() != before["model.safetensors"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ('{"schema": 99, "unspoken": "9.0"}', "later version"),
        ('{"schema": 1, "strategy": {"name": "fillr", "fields": {}}}', "Did you mean 'filler'"),
        (
            '{"schema": 1, "strategy": {"name": "filler", "fields": {"n_fillers": "x", "m": 1}}}',
            "Unknown field 'm'",
        ),
        ('{"schema": 1, "strategy": "filler"}', "cannot be used"),
    ],
)
def test_damaged_memories_are_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / checkpoint.FILE).write_text(text)
    with pytest.raises(ModelError, match=said) as caught:
        checkpoint.recall(tmp_path)
    assert "remove" in str(caught.value)


def test_foreign_and_absent_memories_are_left_alone(tmp_path: Path) -> None:
    assert checkpoint.recall(tmp_path) == (None, {})
    (tmp_path / checkpoint.FILE).write_text('{"name": "somebody else\'s"}')
    with pytest.warns(UserWarning, match="not written by Unspoken"):
        assert checkpoint.recall(tmp_path) == (None, {})
    checkpoint.remember(tmp_path, strategy=None, provenance={"a": 1})
    assert checkpoint.recall(tmp_path) == (None, {"a": 1})


# Prompts


@pytest.mark.parametrize("kind", ["compact", "gpt2", "bos", "sentencepiece"])
def test_a_question_becomes_the_beginning_of_its_row(kind: str) -> None:
    made = {"compact": lambda: compact_tokenizer(["1 2 3 * +"]), "sentencepiece": sentencepiece_like}
    tokenizer = copy.deepcopy(made.get(kind, gpt2)())
    eos = tokenizer.eos_token
    if kind == "bos":
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{eos} $A", special_tokens=[(eos, tokenizer.eos_token_id)]
        )
    checkpoint.set_question_template(tokenizer, eos)
    lm_tokens = Tokens(tokenizer)
    question = "1 * 2" if kind == "compact" else "Tom has 3 apples. How many?"
    row = tokenizer(f" {question} {eos} 1 + 2 {eos} #### 3 {eos}")["input_ids"]
    starts = [i for i, token in enumerate(row) if token == tokenizer.eos_token_id]
    first = starts[1 if kind == "bos" else 0]
    assert lm_tokens.encode_prompt(f" {question}\n") == row[: first + 1]
    with pytest.raises(ConfigError, match="one question"):
        lm_tokens.encode_prompt([{"role": "user", "content": "1"}, {"role": "user", "content": "2"}])


def test_a_separator_that_merges_with_what_follows_is_refused() -> None:
    pieces = ["<unk>", "▁", "=", "1", "2", "▁1", "=▁1"]
    merging = Tokenizer(
        models.BPE({p: i for i, p in enumerate(pieces)}, [("▁", "1"), ("=", "▁1")], unk_token="<unk>")
    )
    merging.normalizer = normalizers.Replace(" ", "▁")
    with pytest.raises(ConfigError, match="special token"):
        checkpoint.question_template(PreTrainedTokenizerFast(tokenizer_object=merging), "=")
    checkpoint.question_template(gpt2(), "=")


# Reference checkpoints


@pytest.fixture
def reference(tmp_path: Path) -> tuple[Path, Path, CausalLM]:
    """A checkpoint as the reference code writes it, its base model, and the model it holds."""
    lm = make()
    base, folder = tmp_path / "base", tmp_path / "reference"
    checkpoint.save(lm, base)
    # Trained with a longer position table than the base model has.
    longer = tiny_model("tiny", lm.tokenizer, layers=1, width=16, heads=2, max_positions=48, seed=3)
    folder.mkdir()
    names = {"base_model": str(base), "tokenizer_name": str(base)}
    (folder / "config.json").write_text(json.dumps(names))
    state = {f"base_model.{name}": value for name, value in longer.state_dict().items()}
    state["base_model.transformer.h.0.attn.bias"] = torch.ones(1, 1, 4, 4)  # as older versions kept it
    torch.save(state, folder / "state_dict.bin")
    return folder, base, CausalLM(longer, lm.tokenizer)


def test_reference_checkpoints_are_converted(reference: tuple[Path, Path, CausalLM], tmp_path: Path) -> None:
    folder, base, want = reference
    assert checkpoint.is_reference(folder) and not checkpoint.is_reference(base)
    lm = un.load(checkpoint.import_reference(folder, tmp_path / "ours"))
    assert lm.strategy == Filler(n_fillers=0, separators=2) and lm.max_positions == 48
    ids = torch.tensor([[3, 4, 5, 1]])
    with torch.no_grad():
        assert torch.equal(lm.model(ids).logits, want.model(ids).logits)
    assert lm.tokens.encode_prompt("1 * 2") == lm.tokenizer(" 1 * 2 <eos>")["input_ids"]
    assert checkpoint.import_reference(folder, tmp_path / "again", base=str(base)).is_dir()


def test_reference_checkpoints_that_do_not_fit_are_refused(
    reference: tuple[Path, Path, CausalLM], tmp_path: Path
) -> None:
    folder, base, _ = reference
    with pytest.raises(ModelError, match="no checkpoint of the implicit-CoT"):
        checkpoint.import_reference(base, tmp_path / "x")
    state = torch.load(folder / "state_dict.bin", weights_only=True)
    del state["base_model.transformer.ln_f.weight"]
    torch.save(state, folder / "state_dict.bin")
    with pytest.raises(ModelError, match=r"1 differ \(transformer.ln_f.weight"):
        checkpoint.import_reference(folder, tmp_path / "x")

    class Evil:
        def __reduce__(self) -> Any:
            return (print, ("run",))

    torch.save({"base_model.a": Evil()}, folder / "state_dict.bin")
    with pytest.raises(ModelError, match="more than tensors"):
        checkpoint.import_reference(folder, tmp_path / "x")
    assert not (tmp_path / "x").exists()
