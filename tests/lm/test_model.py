"""Loading from every kind of source, what is recorded, and errors that say what to do."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from unspoken.errors import ConfigError, RunError
from unspoken.lm.model import CausalLM, load
from unspoken.lm.prompts import as_prompts
from unspoken.types import Done, Event, Generation, Step, Usage

Folder = Callable[[str], Path]
Tiny = Callable[[str], CausalLM]


# Loading


def test_a_folder_is_loaded_as_it_was_saved(tiny_folder: Folder, tiny_model: Any, family: str) -> None:
    lm = load(tiny_folder(family))
    saved, _tokenizer = tiny_model(family)
    assert not lm.model.training
    assert (lm.dtype, lm.device) == (torch.float32, torch.device("cpu"))
    for (name, mine), (_, theirs) in zip(lm.model.named_parameters(), saved.named_parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    info = lm.info()
    assert json.loads(json.dumps(info)) == info
    assert info["source"] == str(tiny_folder(family))
    assert info["parameters"] == sum(p.numel() for p in saved.parameters())
    assert (info["dtype"], info["device"], info["attn"]) == ("float32", "cpu", "sdpa")


def test_strings_and_path_objects_name_the_same_folder(tiny_folder: Folder) -> None:
    assert load(str(tiny_folder("llama"))).weights_hash == load(tiny_folder("llama")).weights_hash


def test_dtype_and_attention_are_as_asked(tiny_folder: Folder) -> None:
    lm = load(tiny_folder("llama"), dtype="bfloat16", attn="eager")
    assert lm.dtype == torch.bfloat16 and lm.info()["attn"] == "eager"


def test_auto_is_float32_on_a_cpu_whatever_was_saved(checkpoint: Path, tiny_model: Any) -> None:
    copy.deepcopy(tiny_model("llama")[0]).to(torch.bfloat16).save_pretrained(checkpoint)
    assert load(checkpoint, device="cpu").dtype == torch.float32


def test_loading_does_not_leave_progress_bars_off(tiny_folder: Folder) -> None:
    from transformers.utils import logging

    logging.enable_progress_bar()
    load(tiny_folder("llama"))
    assert logging.is_progress_bar_enabled()


# One's own model


def test_ones_own_model_is_not_moved_or_recast(tiny_model: Any) -> None:
    model, tokenizer = tiny_model("llama")
    model = copy.deepcopy(model).to(torch.float64).train()
    lm = CausalLM(model, tokenizer, source="mine")
    assert lm.model is model and lm.tokenizer is tokenizer and lm.source == "mine"
    assert lm.dtype == torch.float64 and not model.training


def test_wrapping_refuses_what_is_not_a_model_or_a_decoder(tiny_model: Any) -> None:
    model, tokenizer = tiny_model("llama")
    with pytest.raises(ConfigError, match="not a Linear"):
        CausalLM(torch.nn.Linear(2, 2), tokenizer)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="not a str"):
        CausalLM(model, "gpt2")  # type: ignore[arg-type]
    config = AutoConfig.for_model("mamba", vocab_size=50, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(ConfigError, match="MambaForCausalLM"):
        CausalLM(AutoModelForCausalLM.from_config(config), tokenizer)


# What it is


def test_sizes_and_limits(tiny_lm: Tiny) -> None:
    lm = tiny_lm("gpt2")
    assert lm.vocab_size == lm.model.config.vocab_size
    assert (lm.hidden_size, lm.max_positions) == (32, 512)


def test_end_tokens_are_those_of_settings_tokenizer_and_template(tiny_model: Any) -> None:
    model, tokenizer = copy.deepcopy(tiny_model("llama"))
    end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.eos_token = "<|endoftext|>"
    model.generation_config.eos_token_id = [7, 9]
    assert CausalLM(model, tokenizer).eos_ids == {7, 9, tokenizer.eos_token_id, end_of_turn}
    model.generation_config.eos_token_id = 7
    assert CausalLM(model, tokenizer).eos_ids == {7, tokenizer.eos_token_id, end_of_turn}
    model.generation_config.eos_token_id = None
    tokenizer.chat_template = None
    assert CausalLM(model, tokenizer).eos_ids == {tokenizer.eos_token_id}
    tokenizer.eos_token = None
    assert CausalLM(model, tokenizer).eos_ids == frozenset()


def test_the_hash_names_the_weights(tiny_model: Any, tiny_folder: Folder) -> None:
    model, tokenizer = tiny_model("llama")
    first = CausalLM(model, tokenizer).weights_hash
    assert load(tiny_folder("llama")).weights_hash == first  # wherever they were read from
    assert load(tiny_folder("llama"), dtype="bfloat16").weights_hash != first
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.model.layers[1].mlp.up_proj.weight.mul_(1.001)
    assert CausalLM(changed, tokenizer).weights_hash != first


# What it reads and says


def test_one_hot_mixtures_are_embeddings_and_mixtures_are_weighted_sums(tiny_lm: Tiny, family: str) -> None:
    lm = tiny_lm(family)
    ids = torch.tensor([[3, 8, 20], [5, 5, 9]])
    assert torch.equal(lm.mix(ids, torch.tensor([[0.0, 1, 0], [0, 0, 1]])), lm.embed(torch.tensor([8, 9])))
    weights = torch.tensor([[0.2, 0.5, 0.3], [0.25, 0.25, 0.5]])
    table = lm.model.get_input_embeddings().weight
    expected = torch.stack([weights[r] @ table[ids[r]] for r in range(2)])
    torch.testing.assert_close(lm.mix(ids, weights), expected)
    assert torch.equal(lm.element_wise_max(ids), torch.stack([table[row].max(dim=0).values for row in ids]))


def test_mixtures_of_bfloat16_are_summed_in_float32(tiny_folder: Folder) -> None:
    lm = load(tiny_folder("llama"), dtype="bfloat16")
    ids, weights = torch.arange(10, 26)[None], torch.full((1, 16), 1 / 16)
    table = lm.model.get_input_embeddings().weight
    mixed = lm.mix(ids, weights)
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, table[10:26].float().mean(dim=0, keepdim=True).to(torch.bfloat16))


def gemma(model_type: str, vocab_size: int, **changes: Any) -> Any:
    config = AutoConfig.for_model(
        model_type,
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        **changes,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def test_an_embedding_that_scales_inside_is_called(tiny_model: Any) -> None:
    tokenizer = tiny_model("llama")[1]
    lm = CausalLM(gemma("gemma3_text", len(tokenizer)), tokenizer)
    ids, one = torch.tensor([[4, 9]]), torch.tensor([[1.0, 0.0]])
    torch.testing.assert_close(lm.mix(ids, one), lm.model.get_input_embeddings().weight[[4]] * 32**0.5)


def test_unembed_gives_the_models_logits_soft_cap_included(tiny_model: Any, tiny_lm: Tiny) -> None:
    tokenizer = tiny_model("llama")[1]
    capped = gemma("gemma2", len(tokenizer), final_logit_softcapping=0.5, initializer_range=1.0)
    for lm in (tiny_lm("llama"), CausalLM(capped, tokenizer)):
        with torch.no_grad():
            output = lm.model(torch.tensor([[5, 9, 33]]), output_hidden_states=True)
            torch.testing.assert_close(lm.unembed(output.hidden_states[-1]), output.logits)
    assert output.logits.abs().max() <= 0.5


def test_unembed_uses_the_memory_it_is_given_only_where_the_head_is_a_product(
    tiny_model: Any, tiny_lm: Tiny
) -> None:
    model, tokenizer = tiny_model("llama")
    biased, hooked = copy.deepcopy(model), copy.deepcopy(model)
    biased.lm_head.bias = torch.nn.Parameter(torch.arange(float(model.config.vocab_size)))
    hooked.lm_head.register_forward_hook(lambda _m, _a, out: out + 1.0)
    for changed, taken in ((model, True), (biased, False), (hooked, False)):
        lm = CausalLM(changed, tokenizer)
        hidden = torch.randn(5, lm.model.config.hidden_size)
        out = torch.full((5, lm.vocab_size), torch.nan)
        with torch.no_grad():
            torch.testing.assert_close(lm.unembed(hidden, out), lm.unembed(hidden))
        assert out.isnan().any() != taken


# Running it


def test_a_seed_and_a_budget_are_whole_numbers(tiny_lm: Tiny) -> None:
    from unspoken import ChainOfThought

    with pytest.raises(ConfigError, match="seed must be a whole number, not 'a'"):
        tiny_lm("llama").generate("a", ChainOfThought(), seed="a")  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="max_new_tokens must be a whole number, not 2.5"):
        tiny_lm("llama").generate("a", ChainOfThought(), max_new_tokens=2.5)  # type: ignore[call-overload]


@dataclass(frozen=True)
class Echo:
    """A strategy that says its prompt, last row first."""

    fail: int | None = None

    def stream(self, lm: CausalLM, prompts: list[Any], **options: Any) -> Iterator[Event]:
        self.seen.append((lm, prompts, options))
        for row in reversed(range(len(prompts))):
            yield Step(row, 0, "answer", "token", 3, text=str(prompts[row]))
            yield Done(row, "error: too long" if row == self.fail else "eos", Usage())

    seen = []  # noqa: RUF012


def test_one_prompt_gives_a_generation_and_many_a_list_in_order(tiny_lm: Tiny) -> None:
    lm: Any = tiny_lm("llama")
    one = lm.generate("a", Echo())
    assert isinstance(one, Generation) and one.text == "a"
    assert [g.text for g in lm.generate(["a", "b", "c"], Echo())] == ["a", "b", "c"]
    assert [g.text for g in lm.generate(["a"], Echo())] == ["a"]
    assert lm.generate([], Echo()) == []


def test_options_reach_the_strategy(tiny_lm: Tiny) -> None:
    lm: Any = tiny_lm("llama")
    options = {
        "max_new_tokens": 7,
        "seed": 3,
        "batch_size": 2,
        "trace": "full",
        "stop": "x",
        "record": "inputs",
    }
    events = list(lm.stream("a", Echo(), **options))
    assert [type(e) for e in events] == [Step, Done]
    assert Echo.seen[-1] == (lm, ["a"], {**options, "stop": ("x",), "record": ("inputs",), "live": True})
    lm.generate("a", Echo(), **options)
    assert Echo.seen[-1] == (lm, ["a"], {**options, "stop": ("x",), "record": ("inputs",), "live": False})


def test_a_failed_row_raises_and_says_which(tiny_lm: Tiny) -> None:
    lm: Any = tiny_lm("llama")
    with pytest.raises(RunError, match="^too long$"):
        lm.generate("a", Echo(fail=0))
    with pytest.raises(RunError, match="1 of 2 prompts failed; prompt 1: too long"):
        lm.generate(["a", "b"], Echo(fail=1))


def test_without_a_strategy_the_models_own_is_used_or_one_is_asked_for(tiny_model: Any) -> None:
    model, tokenizer = tiny_model("llama")
    with pytest.raises(ConfigError, match=r"un\.ChainOfThought\(\)"):
        CausalLM(model, tokenizer).generate("a")
    with pytest.raises(ConfigError, match=r"un\.SoftThinking\(k=5\), not 'soft'"):
        CausalLM(model, tokenizer).generate("a", "soft")  # type: ignore[call-overload]
    own: Any = Echo()
    assert CausalLM(model, tokenizer, strategy=own).generate("a").text == "a"  # type: ignore[union-attr]


CHAT = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("x", (["x"], False)),
        (CHAT, ([CHAT], False)),
        ([1, 2], ([[1, 2]], False)),
        (torch.tensor([1, 2]), ([[1, 2]], False)),
        (["x"], (["x"], True)),
        ([CHAT, "x"], ([CHAT, "x"], True)),
        ([[1, 2], [3]], ([[1, 2], [3]], True)),
        ((p for p in "xy"), (["x", "y"], True)),
        ([], ([], True)),
    ],
)
def test_one_prompt_is_told_from_many(prompts: Any, expected: Any) -> None:
    assert as_prompts(prompts) == expected


@pytest.mark.parametrize("prompts", [5, None, {"role": "user", "content": "x"}, ["x", 5], [1, CHAT]])
def test_what_is_no_prompt_is_refused(prompts: Any) -> None:
    with pytest.raises(ConfigError):
        as_prompts(prompts)
