from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from unspoken.errors import ConfigError
from unspoken.lm.compact import compact_tokenizer
from unspoken.lm.model import CausalLM
from unspoken.lm.tiny import tiny_model
from unspoken.lm.tokens import Detokenizer
from unspoken.tasks.modsum import ModSum
from unspoken.tasks.multiplication import Multiplication


def text_of(chain: Any) -> str:
    return f" {chain.question} <eos> {chain.cot} <eos> #### {chain.answer} <eos>"


@pytest.mark.parametrize("digits", [2, 3, 4, 5])
def test_lengths_of_rows(digits: int) -> None:
    chains = Multiplication(digits=digits, n=30).chains("test")
    tokenizer = compact_tokenizer(map(text_of, chains))
    lengths = {len(tokenizer(text_of(chain))["input_ids"]) for chain in chains}
    assert lengths == {{2: 21, 3: 41, 4: 67, 5: 99}[digits]} == {4 * digits + 5 + 3 * digits**2 + digits - 6}


def test_three_separators_in_every_row() -> None:
    (chain,) = ModSum(n=2, n_test=1).chains("test")  # an empty chain
    tokenizer = compact_tokenizer([text_of(chain)])
    ids = tokenizer(text_of(chain))["input_ids"]
    assert chain.cot == "" and ids.count(tokenizer.eos_token_id) == 3 and len(ids) == 2 * 2 + 3


def test_words_come_back_with_their_spaces(tmp_path: Path) -> None:
    tokenizer = compact_tokenizer(["12 + 3 = 15", "<eos> 7"], extra=["<sep1>", "<fill>"])
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<eos>", "<unk>", "<sep1>", "<fill>", "####"]) == list(
        range(6)
    )
    assert compact_tokenizer(["7", "3 + 15 = 12"], ["<sep1>", "<fill>"]).get_vocab() == tokenizer.get_vocab()
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        ids = one("12  +3 + <sep1><fill> 15 <eos>")["input_ids"]
        assert one.decode(ids) == "12 <unk> + <sep1> <fill> 15 <eos>"
        assert one.decode(ids, skip_special_tokens=True) == "12 + 15"
        assert (one.bos_token, one.eos_token, one.pad_token, len(one)) == (None, "<eos>", "<pad>", 12)
        stream = Detokenizer(one)
        assert "".join(map(stream.push, ids)) + stream.flush() == "12 + 15"


def test_many_words_become_characters(tmp_path: Path) -> None:
    tokenizer = compact_tokenizer([f"word{i}, x" for i in range(2001)])
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert len(one) < 30
        ids = one(" word12  ,x <eos> w")["input_ids"]
        assert one.decode(ids) == " word12  ,x <eos> w" and len(ids) == 15
        assert one("\u00e9")["input_ids"] == [one.unk_token_id]
    with pytest.raises(ConfigError, match="needs texts"):
        compact_tokenizer([" "])


@pytest.mark.parametrize("kind", ["tiny", "tiny-llama"])
def test_tiny_models(kind: Any, tmp_path: Path) -> None:
    tokenizer = compact_tokenizer(["0 1 2 3 4 5"])
    before = torch.get_rng_state()
    model = tiny_model(kind, tokenizer, layers=1, width=32, heads=4, max_positions=64, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    again, other = (
        tiny_model(kind, tokenizer, layers=1, width=32, heads=4, max_positions=64, seed=s) for s in (3, 4)
    )
    ids = torch.tensor([tokenizer("0 1 2 3")["input_ids"]])
    logits = model(ids).logits
    assert torch.equal(again(ids).logits, logits) and not torch.equal(other(ids).logits, logits)
    assert torch.equal(model.train()(ids).logits, logits)  # no dropout
    lm = CausalLM(model, tokenizer)
    assert (
        lm.max_positions == 64 and lm.eos_ids == {tokenizer.eos_token_id} and lm.vocab_size == len(tokenizer)
    )
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, logits)


def test_sizes_that_do_not_fit() -> None:
    tokenizer = compact_tokenizer(["a"])
    with pytest.raises(ConfigError, match="layers must be(.|\n)*multiple of 8"):
        tiny_model("tiny-llama", tokenizer, layers=0, width=36, heads=4)
    with pytest.raises(ConfigError, match="tiny or tiny-llama, not 'big'"):
        tiny_model("big", tokenizer)  # type: ignore[arg-type]
