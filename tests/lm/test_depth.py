"""Views of some of a model's blocks: the same numbers as two independent ways to leave blocks out, and nothing shared
but the weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from depth_help import (
    BLOCKS,
    FAMILIES,
    MAIN,
    REQUESTS,
    attention,
    build,
    deep,
    ids,
    logits,
    passed_over,
)
from transformers import AutoConfig, AutoModelForCausalLM

from unspoken.decoding.cot import ChainOfThought
from unspoken.errors import ConfigError, ModelError
from unspoken.lm import checkpoint
from unspoken.lm.decode import Decoder
from unspoken.lm.depth import FULL, Depth, Kept
from unspoken.lm.model import CausalLM, load
from unspoken.types import fold


@pytest.fixture
def lm_of(tiny_model: Any) -> Callable[[str], CausalLM]:
    """Function from a family's name to a model of six blocks, shared by all tests."""
    tokenizer = tiny_model("llama")[1]
    return lambda family: deep(family, tokenizer)


@pytest.fixture
def llama(lm_of: Callable[[str], CausalLM]) -> CausalLM:
    return lm_of("llama")


# What a view computes


def check(lm: CausalLM, view: CausalLM, kept: tuple[int, ...]) -> None:
    assert view.depth == Kept(kept, BLOCKS)
    with passed_over(lm, sorted(set(range(BLOCKS)) - set(kept))):
        expected = logits(lm, ids())
    assert torch.equal(logits(view, ids()), expected)
    assert not torch.allclose(expected, logits(lm, ids()), atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_view_computes_what_the_full_model_does_when_blocks_are_passed_over(
    lm_of: Any, family: str
) -> None:
    lm = lm_of(family)
    for spec, kept in (("3", (0, 1, 2)), ("2+last", (0, 1, 5)), ("drop:0,2,4", (1, 3, 5))):
        check(lm, lm.truncated(spec), kept)


@pytest.mark.parametrize(("request_", "kept"), REQUESTS)
def test_each_way_to_ask_keeps_its_blocks(
    lm_of: Any, request_: dict[str, Any], kept: tuple[int, ...]
) -> None:
    lm = lm_of("qwen3")
    check(lm, lm.truncated(**request_), kept)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("qwen2", {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}),
        ("gpt2", {}),
        ("gemma2", {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}),
        (
            "smollm3",
            {
                "no_rope_layers": [1, 0, 1],
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            },
        ),
        ("gpt_neo", {"attention_types": [[["global", "local", "local"], 1]]}),
    ],
)  # fmt: skip
def test_a_view_computes_what_a_smaller_model_with_these_weights_does(
    lm_of: Any, family: str, changes: dict[str, Any]
) -> None:
    kept = {"smollm3": (2, 3, 4), "gpt_neo": (0, 1, 3)}.get(family, (0, 3, 5))
    lm = lm_of(family)
    small = build(family, num_hidden_layers=3, **changes)
    prefix = lm.anatomy.names["blocks"]
    weights = {}
    for name, value in lm.model.state_dict().items():
        block, _, rest = name.removeprefix(f"{prefix}.").partition(".")
        if not name.startswith(f"{prefix}."):
            weights[name] = value
        elif int(block) in kept:
            weights[f"{prefix}.{kept.index(int(block))}.{rest}"] = value
    small.load_state_dict(weights)
    view = lm.truncated(drop=[i for i in range(BLOCKS) if i not in kept])
    with torch.no_grad():
        assert torch.equal(logits(view, ids()), small(ids(), use_cache=False).logits)


@pytest.mark.parametrize("family", MAIN)
def test_a_view_that_keeps_all_is_the_original(lm_of: Any, family: str) -> None:
    lm = lm_of(family)
    for view in (lm.truncated(keep_first=BLOCKS), lm.truncated(layer_idx=100), lm.truncated(drop=[])):
        assert view.depth.name == FULL and view.depth.n_dropped == 0
        assert torch.equal(logits(view, ids(2)), logits(lm, ids(2)))
        assert view.weights_hash == lm.weights_hash
        assert view.model.config.to_dict() == lm.model.config.to_dict()


@pytest.mark.parametrize("family", MAIN)
def test_ragged_rows_in_the_cache_are_as_without_one(lm_of: Any, family: str) -> None:
    view = lm_of(family).truncated(drop=[1, 2])
    rows = [ids(1, width)[0].tolist() for width in (9, 3, 14)]
    after = ids(3, 6)
    decoder = Decoder(view, 3)
    seen = [decoder.prefill(rows)[0]]
    for column in range(after.shape[1]):
        seen.append(decoder.step(view.embed(after[:, column]))[0])
    cached = torch.stack(seen, dim=1)
    for row, prompt in enumerate(rows):
        whole = logits(view, torch.tensor([prompt + after[row].tolist()]))[0, len(prompt) - 1 :]
        torch.testing.assert_close(cached[row], whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", MAIN)
def test_transformers_own_cache_fits_a_view(lm_of: Any, family: str) -> None:
    view = lm_of(family).truncated("2+last")
    whole = logits(view, ids())
    with torch.no_grad():
        out = view.model(ids()[:, :9], use_cache=True)
        seen = [out.logits]
        for column in range(9, 20):
            out = view.model(ids()[:, column : column + 1], past_key_values=out.past_key_values)
            seen.append(out.logits)
    assert len(out.past_key_values.layers) == 3
    torch.testing.assert_close(torch.cat(seen, dim=1), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", MAIN)
def test_a_batch_of_ragged_prompts_gives_what_they_give_one_by_one(lm_of: Any, family: str) -> None:
    view = lm_of(family).truncated(keep_first=2, keep_last=True)
    prompts = [ids(1, width)[0].tolist() for width in (4, 11, 7)]
    options = {"max_new_tokens": 12, "seed": 3}
    together = view.generate(prompts, ChainOfThought(temperature=0.0), **options)
    for prompt, many in zip(prompts, together, strict=True):
        one = view.generate([prompt], ChainOfThought(temperature=0.0), **options)[0]
        assert [s.token_id for s in one.steps] == [s.token_id for s in many.steps]
        with torch.no_grad():
            text = torch.tensor([prompt + [s.token_id for s in one.steps]])
            rule = logits(view, text)[0, len(prompt) - 1 : -1].argmax(-1).tolist()
        assert [s.token_id for s in one.steps] == rule


# What it leaves as it was


@pytest.mark.parametrize("family", MAIN)
def test_streams_of_both_by_turns_are_those_of_each_alone(lm_of: Any, family: str) -> None:
    lm = lm_of(family)
    view = lm.truncated(drop=[1, 4])
    before, config = logits(lm, ids()), copy.deepcopy(lm.model.config.to_dict())
    numbers = {n: getattr(m, "layer_idx", None) for n, m in lm.model.named_modules()}
    prompts = [ids(1, width)[0].tolist() for width in (5, 9)]

    def stream(which: CausalLM) -> Iterator[Any]:
        return which.stream(prompts, ChainOfThought(temperature=0.8), max_new_tokens=16, seed=5)

    def chosen(events: Any) -> dict[Any, list[tuple[Any, Any]]]:
        return {row: [(s.token_id, s.logprob) for s in g.steps] for row, g in fold(events).items()}

    alone = [chosen(stream(lm)), chosen(stream(view))]
    turns: tuple[list[Any], list[Any]] = ([], [])
    for mine, other in zip_longest(stream(lm), stream(view)):
        turns[0].append(mine)
        turns[1].append(other)
        if len(turns[0]) == 8:
            assert torch.equal(logits(lm, ids()), before)
    mixed = [chosen([event for event in events if event is not None]) for events in turns]
    assert mixed == alone and mixed[0] != mixed[1]
    assert torch.equal(logits(lm, ids()), before)
    assert lm.model.config.to_dict() == config and lm.depth is None
    assert {n: getattr(m, "layer_idx", None) for n, m in lm.model.named_modules()} == numbers


@pytest.mark.parametrize("family", MAIN)
def test_weights_are_shared_and_nothing_else_is(lm_of: Any, family: str) -> None:
    lm = lm_of(family)
    view = lm.truncated(drop=[2])
    blocks = lm.anatomy.names["blocks"]
    theirs = dict(lm.model.named_parameters())
    for name, parameter in view.model.named_parameters():
        block = name[len(blocks) + 1 :].partition(".")[0] if name.startswith(f"{blocks}.") else ""
        if block and int(block) >= 2:
            name = name.replace(f"{blocks}.{block}.", f"{blocks}.{int(block) + 1}.")
        assert parameter is theirs[name]
        assert parameter.data_ptr() == theirs[name].data_ptr()
    pointers = {b.data_ptr() for b in lm.model.buffers()}
    assert all(b.data_ptr() in pointers for b in view.model.buffers())
    assert not {id(m) for m in view.model.modules()} & {id(m) for m in lm.model.modules()}
    configs = {id(m.config) for m in view.model.modules() if hasattr(m, "config")}
    assert configs == {id(view.model.config)} != {id(lm.model.config)}
    # Every block's cache is found under its own place.
    for module in view.anatomy.blocks.modules():
        if hasattr(module, "layer_idx"):
            assert any(module in set(b.modules()) for b in [view.anatomy.blocks[module.layer_idx]])


def test_making_a_view_draws_no_random_numbers(llama: CausalLM) -> None:
    before = torch.get_rng_state()
    llama.truncated(drop=[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_hooks_stay_with_their_model_and_hidden_states_are_those_of_the_view(llama: CausalLM) -> None:
    with torch.no_grad():
        llama.model(ids(), output_hidden_states=True)  # transformers puts its own hooks on
    called: list[int] = []
    handle = llama.anatomy.blocks[0].register_forward_hook(lambda *_: called.append(1))
    try:
        view = llama.truncated(drop=[1])
        with torch.no_grad():
            out = view.model(ids(), output_hidden_states=True)
    finally:
        handle.remove()
    assert not called
    assert len(out.hidden_states) == BLOCKS
    torch.testing.assert_close(view.unembed(out.hidden_states[-1]), out.logits)


def test_attention_dtype_and_mode_are_those_of_the_model(tiny_model: Any) -> None:
    model = build("qwen3").to(torch.bfloat16)
    model.set_attn_implementation("eager")
    lm = CausalLM(model, tiny_model("llama")[1])
    view = lm.truncated("3+last")
    assert view.info()["attn"] == "eager" and view.dtype == torch.bfloat16
    assert not view.model.training
    view.model.set_attn_implementation("sdpa")
    assert lm.info()["attn"] == "eager"


# What is recorded


def test_info_tells_depths_apart(llama: CausalLM) -> None:
    assert "depth" not in llama.info()
    view = llama.truncated(keep_first=3, keep_last=True)
    info = view.info()
    assert info["depth"] == {
        "name": "first 3 and last of 6 blocks",
        "kept_blocks": [0, 1, 2, 5],
        "n_dropped": 2,
    }
    assert json.loads(json.dumps(info)) == info
    assert info["parameters"] < llama.info()["parameters"] and info["source"] == "llama"
    assert "first 3 and last of 6 blocks" in repr(view)
    asked = ("3", "3+last", "4", "drop:1", "drop:2", "window:1:2", "window:2:2")
    hashes = {llama.weights_hash, *(llama.truncated(spec).weights_hash for spec in asked)}
    assert len(hashes) == len(asked) + 1
    # However it is asked for, it is the same depth.
    same = [llama.truncated(d) for d in ("3+last", "drop:3,4", "window:3:2", Depth(layer_idx=2))]
    assert {v.weights_hash for v in same} == {view.weights_hash} and {v.depth for v in same} == {view.depth}


def test_a_strategy_is_kept_and_provenance_says_the_depth(tiny_model: Any) -> None:
    lm = CausalLM(*tiny_model("llama"), strategy=ChainOfThought(temperature=0.3))
    lm.provenance = {"recipe": "mine"}
    view = lm.truncated("1")
    assert view.strategy == lm.strategy
    assert view.provenance["recipe"] == "mine" and view.provenance["depth"]["kept_blocks"] == [0]
    assert lm.provenance == {"recipe": "mine"} == lm.truncated("2").provenance


@pytest.mark.parametrize("family", [*MAIN, "gemma3", "smollm3", "gpt_neo", "qwen2_moe"])
@pytest.mark.parametrize("spec", ["2", "drop:0,2,4"])
def test_a_saved_view_is_loaded_as_it_was(lm_of: Any, family: str, spec: str, tmp_path: Path) -> None:
    view = lm_of(family).truncated(spec)
    checkpoint.save(view, tmp_path / "view")
    again = load(tmp_path / "view", dtype="float32", device="cpu", attn=attention(family))
    assert torch.equal(logits(again, ids()), logits(view, ids()))
    assert again.weights_hash == view.weights_hash
    assert again.provenance["depth"] == view.depth.to_dict()


def test_a_view_of_a_view_counts_its_own_blocks_and_records_those_of_the_model(llama: CausalLM) -> None:
    inner = llama.truncated(drop=[0]).truncated(drop_window=(1, 2))
    assert inner.depth == Kept((1, 4, 5), BLOCKS) == llama.truncated("drop:0,2,3").depth
    assert torch.equal(logits(inner, ids()), logits(llama.truncated("drop:0,2,3"), ids()))
    whole = llama.truncated("3").truncated("3")
    assert whole.depth == Kept((0, 1, 2), BLOCKS)
    with pytest.raises(ConfigError, match="5 blocks"):
        llama.truncated("drop:0").truncated("drop:5")


# What is refused


def test_scales_by_the_blocks_place_are_refused_unless_places_are_kept(tiny_model: Any) -> None:
    lm = CausalLM(build("gpt2", scale_attn_by_inverse_layer_idx=True), tiny_model("llama")[1])
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel computes attn\.scaling of block 5"):
        lm.truncated("2+last")
    with passed_over(lm, [4, 5]):
        expected = logits(lm, ids())
    assert torch.equal(logits(lm.truncated("4"), ids()), expected)


def test_models_whose_blocks_share_keys_or_have_settings_of_their_own_are_refused(tiny_model: Any) -> None:
    lm = CausalLM(build("llama"), tiny_model("llama")[1])
    for name, value in (("num_kv_shared_layers", 2), ("kv_source_layers", [0, 1, 2, 3, 3, 3])):
        setattr(lm.model.config, name, value)
        with pytest.raises(ModelError, match=f"LlamaForCausalLM shares keys and values.*{name}"):
            lm.truncated("3")
        assert lm.truncated("6").depth == Kept(tuple(range(6)), 6)
        delattr(lm.model.config, name)
    config = AutoConfig.for_model(
        "gemma4_text", vocab_size=398, hidden_size=32, intermediate_size=64, num_hidden_layers=4, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, num_kv_shared_layers=0, hidden_size_per_layer_input=0,
        layer_types=["sliding_attention", "full_attention"] * 2, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with pytest.raises(ModelError, match="Gemma4ForCausalLM has settings for single blocks"):
        CausalLM(model, tiny_model("llama")[1]).truncated("2")


@pytest.mark.parametrize(
    ("fields", "messages"),
    [
        ({}, ["No blocks are chosen"]),
        ({"keep_last": True}, ["No blocks are chosen"]),
        ({"keep_first": 2, "layer_idx": 1}, ["keep_first and layer_idx contradict"]),
        ({"drop": [1], "keep_last": True}, ["keep_last goes with keep_first or layer_idx, not with drop"]),
        (
            {"keep_first": -1, "drop": [1, 1, -2], "drop_window": (-1, 2)},
            ["contradict", "keep_first must be", "drop must hold", "names a block twice", "drop_window must hold"],
        ),
        ({"keep_first": 0}, ["keeps no block"]),
        ({"keep_first": 2.5, "layer_idx": "x"}, ["keep_first must be", "layer_idx must be"]),
        ({"drop_window": (1, 2, 3)}, ["drop_window must be"]),
        ({"keep_first": 7}, ["depth 7 asks for the first 7 blocks", "has 6", "1 to 6"]),
        ({"drop": [5, 6, 9]}, ["drop names 6, 9"]),
        ({"drop": range(6)}, ["all of the model's 6 blocks"]),
        ({"drop_window": (4, 3)}, ["drops 3 blocks from 4"]),
        ({"depth": "4", "layer_idx": 2}, ["depth='4' and layer_idx contradict"]),
        ({"depth": "4+last", "keep_last": False}, ["contradict"]),
        ({"depth": "drop:3", "keep_last": True}, ["keep_last goes with"]),
        ({"depth": Depth(keep_first=3), "drop": [1]}, ["contradict"]),
    ],
)  # fmt: skip
def test_all_that_is_wrong_is_said_at_once(
    llama: CausalLM, fields: dict[str, Any], messages: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        llama.truncated(**fields)
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize(
    "spec", ["", "many", "3+", "3+first", "drop:", "drop:1,,2", "drop:a", "window:3", "window:1:2:3"]
)
def test_a_spec_that_is_none_says_what_one_is(spec: str) -> None:  # fmt: skip
    with pytest.raises(ConfigError, match=r"N\+last, drop:I,J,\.\.\. or window:START:LENGTH") as caught:
        Depth.read(spec)
    assert repr(spec) in str(caught.value)
