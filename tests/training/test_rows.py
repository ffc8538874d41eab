"""Rows as flat arrays: parts found by separators, odd rows left out, prompts as in rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rows_help import chains_of, word_lm
from tokenizers import processors

from unspoken.errors import ConfigError, DataError
from unspoken.lm.checkpoint import set_question_template
from unspoken.lm.tokens import Tokens
from unspoken.tasks._chains import Chain
from unspoken.training._resize import add_words, grow_positions
from unspoken.training._rows import Rows, Template

ROWS = [
    Chain("9 1 * 9 4", "1 7 + 0 6 ( 1 3 )", "1 3 9"),
    Chain("5 * 2", "", "0 1"),
    Chain("1 * 1", "1 +", "1000"),
]


def text(rows: Rows, lm: Any, i: int) -> list[str]:
    source = rows.source
    ids = source.flat[source.start[i] : source.start[i] + source.n[i]].tolist()
    return list(lm.tokenizer.convert_ids_to_tokens(ids))


def test_parts_of_word_rows() -> None:
    lm = word_lm(ROWS)
    rows = Rows.build(ROWS, lm.tokens, Template("<eos>", "<eos>", "<eos>"))
    assert rows.source.flat.dtype == torch.uint8
    assert rows.source.q.tolist() == [6, 4, 4] and rows.source.c.tolist() == [9, 0, 2]
    assert rows.source.n.tolist() == [6 + 9 + 1 + 4 + 1, 4 + 0 + 1 + 3 + 1, 4 + 2 + 1 + 2 + 1]
    assert text(rows, lm, 1) == ["5", "*", "2", "<eos>", "<eos>", "####", "0", "1", "<eos>"]
    assert rows.prompt(2) == lm.tokenizer("1 * 1 <eos>")["input_ids"]


def test_gpt2_style_rows_are_the_text_in_one_call(tiny_lm: Callable[[str], Any]) -> None:
    lm = tiny_lm("gpt2")
    rows = Rows.build(ROWS, lm.tokens, Template(*["<|im_end|>"] * 3))
    whole = " 5 * 2 <|im_end|>  <|im_end|> #### 0 1 <|im_end|>"
    assert (
        rows.source.flat[rows.source.start[1] : rows.source.start[2]].tolist()
        == lm.tokenizer(whole)["input_ids"]
    )
    # The blanks around an empty chain are tokens, too.
    first, c = int(rows.source.start[1] + rows.source.q[1]), int(rows.source.c[1])
    assert c > 0 and not lm.tokenizer.decode(rows.source.flat[first : first + c]).strip()


@pytest.mark.parametrize("bos", ["<pad>", "<eos>"])
def test_tokenizers_that_wrap_every_text(bos: str) -> None:
    lm = word_lm(ROWS)
    end = ("<eos>", lm.tokenizer.convert_tokens_to_ids("<eos>"))
    lm.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A <eos>", special_tokens=[(bos, lm.tokenizer.convert_tokens_to_ids(bos)), end]
    )
    template = Template("<eos>", "<eos>", "<eos>")
    rows = Rows.build(ROWS, lm.tokens, template)
    assert text(rows, lm, 1) == f"{bos} 5 * 2 <eos> <eos> #### 0 1 <eos>".split()
    set_question_template(lm.tokenizer, template.sep1)
    assert Tokens(lm.tokenizer).encode_prompt(" 5 * 2") == rows.prompt(1)


def test_a_question_becomes_the_prompt_of_its_row(tiny_lm: Callable[[str], Any]) -> None:
    for lm in (word_lm(ROWS), tiny_lm("gpt2")):
        eos = lm.tokenizer.eos_token
        template = Template(eos, eos, eos)
        rows = Rows.build(ROWS, lm.tokens, template)
        old = lm.tokenizer.chat_template
        set_question_template(lm.tokenizer, template.sep1)
        try:
            assert [lm.tokens.encode_prompt(chain.question) for chain in ROWS] == [
                rows.prompt(i) for i in range(3)
            ]
        finally:
            lm.tokenizer.chat_template = old


def test_odd_rows_are_left_out_and_counted() -> None:
    odd = [*ROWS, Chain("1 <eos> 1", "2", "2"), Chain("1 * 1", "1 " * 50, "1")]
    lm = word_lm(odd)
    rows = Rows.build(odd, lm.tokens, Template("<eos>", "<eos>", "<eos>"), longest=30)
    assert rows.kept.tolist() == [0, 1, 2]
    assert rows.dropped == {"with a stray or missing separator": 1, "of more than 30 tokens": 1}
    with pytest.raises(DataError, match="None of the 1 rows"):
        Rows.build(odd[3:4], lm.tokens, Template("<eos>", "<eos>", "<eos>"))


def test_other_separators() -> None:
    lm = word_lm(ROWS)
    add_words(lm, ["<sep1>", "<sep2>", "<|start|>"])
    rows = Rows.build(ROWS, lm.tokens, Template("<sep1>", "<sep2>", "<eos>"))
    assert text(rows, lm, 2) == ["1", "*", "1", "<sep1>", "1", "+", "<sep2>", "####", "1000", "<eos>"]
    rows = Rows.build(ROWS, lm.tokens, Template("<|start|>", "<sep2>", "<eos>", before="<eos>"))
    assert text(rows, lm, 2) == [
        "1",
        "*",
        "1",
        "<eos>",
        "<|start|>",
        "1",
        "+",
        "<sep2>",
        "####",
        "1000",
        "<eos>",
    ]
    assert rows.source.q.tolist() == [7, 5, 5] and rows.source.c.tolist() == [9, 0, 2]
    with pytest.raises(ConfigError, match="<nope>"):
        Rows.build(ROWS, lm.tokens, Template("<nope>", "<sep2>", "<eos>"))


def test_steps_end_at_delimiters() -> None:
    lm = word_lm(ROWS)
    rows = Rows.build(ROWS, lm.tokens, Template("<eos>", "<eos>", "<eos>"), delimiters=("+", ")"))
    assert rows.steps is not None
    assert rows.steps.count.tolist() == [2, 0, 1] and rows.steps.ends.tolist() == [3, 9, 2]
    which = torch.tensor([0, 0, 0, 1, 2])
    removed = torch.tensor([0, 1, 2, 0, 1])
    c = rows.source.c[which]
    assert rows.steps.tokens(which, removed, c, "left").tolist() == [0, 3, 9, 0, 2]
    assert rows.steps.tokens(which, removed, c, "right").tolist() == [0, 6, 9, 0, 2]


@pytest.mark.parametrize("kind", ["tiny", "tiny-llama"])
def test_new_words_begin_as_asked(kind: str) -> None:
    for init in ("mean_emb", "eos", "random"):
        lm = word_lm(ROWS, kind)
        old = lm.anatomy.embed.weight.detach().clone()
        state = torch.get_rng_state()
        ids = add_words(lm, ["<fill_0>", "1", "<fill_1>"], init)  # type: ignore[arg-type]
        assert torch.equal(torch.get_rng_state(), state)
        assert lm.vocab_size == len(old) + 2 and ids[1] == lm.tokenizer.convert_tokens_to_ids("1")
        new = lm.anatomy.embed.weight[ids[0]]
        assert torch.equal(lm.anatomy.embed.weight[: len(old)], old)
        expected = {"mean_emb": old.mean(0), "eos": old[lm.tokenizer.eos_token_id]}.get(init, new)
        assert torch.allclose(new, expected) and float(new.detach().norm()) > 0


def test_more_positions_survive_a_reload(tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM

    lm = word_lm(ROWS, max_positions=12)
    last = lm.model.transformer.wpe.weight[-1].detach().clone()
    grow_positions(lm, 20)
    lm.model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert lm.max_positions == 20 and again.transformer.wpe.weight.shape[0] == 20
    assert torch.equal(again.transformer.wpe.weight[12:], last.expand(8, -1))
    ids = torch.arange(20)[None] % lm.vocab_size
    assert torch.equal(again(ids).logits, lm.model(ids).logits)


def test_many_rows_are_tokenised_in_chunks() -> None:
    many = chains_of(20_000)
    lm = word_lm(many[:500])
    rows = Rows.build(many, lm.tokens, Template("<eos>", "<eos>", "<eos>"))
    assert len(rows) == 20_000 and rows.source.n.unique().tolist() == [15]
    assert int(rows.source.start[-1] + rows.source.n[-1]) == len(rows.source.flat)
