"""Prefill and steps over the ragged cache against the same model run without any cache."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Gemma2Config, GPTNeoXConfig, MistralConfig

from unspoken.lm import cache as cache_module
from unspoken.lm.decode import (
    SWAPPED_ROWS,
    SWAPPED_ROWS_OF_HEAD,
    Decoder,
    StepMode,
    _linear_forward,
    _norm_forward,
    ragged_attention,
    without_cudnn_attention,
)
from unspoken.lm.model import CausalLM

ROWS = 4
WINDOW = 8
ROTARY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
EXTRA: dict[str, Callable[[dict[str, Any]], Any]] = {
    "mistral, sliding window": lambda shared: MistralConfig(**shared, **ROTARY, sliding_window=WINDOW),
    # One layer sees a window, the other everything; both cap their scores, and the head its logits.
    "gemma2, windows and caps": lambda shared: Gemma2Config(
        **shared,
        **ROTARY,
        sliding_window=WINDOW,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
        query_pre_attn_scalar=16,
    ),
    "gpt_neox, partial rotary": lambda shared: GPTNeoXConfig(
        **shared,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        rotary_pct=0.5,
    ),
}
ATTENTION = {"gemma2, windows and caps": "eager"}  # all that transformers has for caps
MODELS = ("llama", "qwen3", "gpt2", *EXTRA)


@pytest.fixture(scope="module")
def models(tiny_lm: Callable[[str], CausalLM], tiny_model: Any) -> Callable[[str], CausalLM]:
    made: dict[str, CausalLM] = {}

    def model(name: str) -> CausalLM:
        if name not in EXTRA:
            return tiny_lm(name)
        if name not in made:
            tokenizer = tiny_model("llama")[1]
            shared = {
                "vocab_size": len(tokenizer),
                "bos_token_id": None,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
                "initializer_range": 0.3,
            }
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                network = AutoModelForCausalLM.from_config(
                    EXTRA[name](shared), dtype=torch.float32, attn_implementation=ATTENTION.get(name, "sdpa")
                )
            made[name] = CausalLM(network.eval(), tokenizer)
        return made[name]

    return model


class Twin:
    """A decoder beside a list of all the vectors that each row has read."""

    def __init__(self, lm: CausalLM, seed: int) -> None:
        self.lm, self.decoder = lm, Decoder(lm, ROWS)
        self.rows: list[Tensor] = []  # [T, D]
        self.dice = random.Random(seed)
        self.noise = torch.Generator().manual_seed(seed)

    def prompt(self) -> list[int]:
        return [self.dice.randrange(self.lm.vocab_size) for _ in range(self.dice.randint(1, 3 * WINDOW))]

    def prefill(self) -> None:
        prompts = [self.prompt() for _ in range(self.dice.randint(1, ROWS - len(self.rows)))]
        logits, hidden = self.decoder.prefill(prompts)
        first = len(self.rows)
        self.rows += [self.lm.embed(torch.tensor(prompt)).detach() for prompt in prompts]
        self.compare(logits, hidden, range(first, len(self.rows)))

    def step(self) -> None:
        # Tokens for some rows, mixtures for others.
        ids = torch.randint(self.lm.vocab_size, (len(self.rows), 2), generator=self.noise)
        share = torch.rand(len(self.rows), 1, generator=self.noise).round(decimals=1)
        vectors = self.lm.mix(ids, torch.cat([share, 1 - share], -1)).detach()
        logits, hidden = self.decoder.step(vectors)
        self.rows = [torch.cat([row, vector[None]]) for row, vector in zip(self.rows, vectors, strict=True)]
        self.compare(logits, hidden, range(len(self.rows)))

    def fork(self) -> None:
        row = self.dice.randrange(len(self.rows))
        length = self.dice.randint(1, len(self.rows[row]))
        self.decoder.cache.fork(row, length)
        self.rows.append(self.rows[row][:length])

    def drop(self) -> None:
        row = self.dice.randrange(len(self.rows))
        self.decoder.cache.drop(row)
        last = self.rows.pop()
        if row < len(self.rows):
            self.rows[row] = last

    def crop(self) -> None:
        row = self.dice.randrange(len(self.rows))
        length = self.dice.randint(1, len(self.rows[row]))
        self.decoder.cache.crop(row, length)
        self.rows[row] = self.rows[row][:length]

    def select(self) -> None:
        order = self.dice.sample(range(len(self.rows)), self.dice.randint(1, len(self.rows)))
        self.decoder.cache.select(order)
        self.rows = [self.rows[i] for i in order]

    @torch.no_grad()
    def compare(self, logits: Tensor, hidden: Tensor, rows: range) -> None:
        for i, row in enumerate(rows):
            vectors = self.rows[row][None]
            out = self.lm.model(inputs_embeds=vectors, use_cache=False)
            assert torch.allclose(logits[i], out.logits[0, -1], atol=1e-4, rtol=1e-4)
            assert torch.allclose(self.lm.unembed(hidden[i]), logits[i], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "ragged"),
    [*((name, True) for name in MODELS), ("llama", False), ("qwen3", False), ("gpt2", False)],
)
def test_cached_is_recomputed_whatever_is_done_to_the_rows(
    models: Callable[[str], CausalLM], name: str, ragged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "BUCKET", 16)
    twin = Twin(models(name), seed=len(name))
    assert twin.decoder._step_mode.ragged
    twin.decoder._step_mode.ragged = ragged  # without it, steps go through the model's own attention
    twin.prefill()
    for _ in range(40):
        able: list[Callable[[], None]] = [twin.step] * 5
        able += [twin.drop, twin.crop, twin.select] if len(twin.rows) > 1 else []
        able += [twin.prefill, twin.fork] if len(twin.rows) < ROWS else []
        twin.dice.choice(able)()
        if not twin.rows:
            twin.prefill()
    twin.step()


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_the_model_s_own_attention_does_not_matter(tiny_folder: Any, attn: str) -> None:
    from unspoken.lm.model import load

    twin = Twin(load(tiny_folder("llama"), attn=attn), seed=3)
    twin.prefill()
    for _ in range(3):
        twin.step()
    assert twin.lm.info()["attn"] == attn


def test_left_padding_changes_nothing(models: Callable[[str], CausalLM]) -> None:
    """Three unequal prompts together, against three runs of one."""
    for name in MODELS:
        lm = models(name)
        prompts = [[5, 6, 7], [8] * 11, [9, 10]]
        together, _ = Decoder(lm, 3).prefill(prompts)
        for i, prompt in enumerate(prompts):
            alone, _ = Decoder(lm, 1).prefill([prompt])
            assert torch.allclose(together[i], alone[0], atol=1e-4), name


# Attention and linear layers of a step


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("window", [None, 3, 50])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
def test_attention_against_a_loop(softcap: float | None, window: int | None, heads: tuple[int, int]) -> None:
    n, width, depth, depth_v = 3, 7, 5, 4
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(n, heads[0], 1, depth, generator=generator)
    key = torch.randn(n, heads[1], width, depth, generator=generator)
    value = torch.randn(n, heads[1], width, depth_v, generator=generator)
    lengths = [7, 2, 4]
    mask = torch.zeros(n, 1, 1, width)
    for i, length in enumerate(lengths):
        mask[i, ..., : width - length] = float("-inf")
    for scaling in (None, 0.3):
        out, weights = ragged_attention(
            nn.Identity(), query, key, value, mask, scaling=scaling, sliding_window=window, softcap=softcap
        )
        assert out.shape == (n, 1, heads[0], depth_v) and weights is None
        for i, length in enumerate(lengths):
            seen = min(length, window or width)
            for head in range(heads[0]):
                group = head // (heads[0] // heads[1])
                scores = key[i, group, width - seen :] @ query[i, head, 0] * (scaling or depth**-0.5)
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                want = scores.softmax(-1) @ value[i, group, width - seen :]
                assert torch.allclose(out[i, 0, head], want, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [9, 60])
@pytest.mark.parametrize(
    ("dtype", "shape"), [("float32", (2, 1, 6)), ("float32", (5, 6)), ("bfloat16", (1, 1, 6))]
)
def test_linear_layers_in_another_order_give_the_same(
    dtype: str, shape: tuple[int, ...], outputs: int, bias: bool
) -> None:
    linear = nn.Linear(6, outputs, bias=bias, dtype=getattr(torch, dtype))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(linear.weight.dtype)
    found = _linear_forward(linear)
    assert found is not None
    forward, when = found
    heads = SWAPPED_ROWS_OF_HEAD if outputs == 60 else SWAPPED_ROWS
    assert when == (heads if dtype == "float32" else range(1, 2))
    out = forward(x)
    assert out.is_contiguous() and out.shape == (*shape[:-1], outputs)
    assert torch.allclose(out, linear(x), atol=1e-6 if dtype == "float32" else 2e-2)


def state_of(model: Any) -> tuple[Any, ...]:
    changed = [name for name, module in model.named_modules() if "forward" in module.__dict__]
    hooks = sum(len(module._forward_pre_hooks) for module in model.modules())
    return model.config._attn_implementation, changed, hooks, model.training


@pytest.mark.parametrize(
    "rows", [1, SWAPPED_ROWS[0] - 1, SWAPPED_ROWS[0], SWAPPED_ROWS[-1], SWAPPED_ROWS[-1] + 1]
)
def test_step_mode_is_on_for_one_forward_only(tiny_lm: Callable[[str], CausalLM], rows: int) -> None:
    model = tiny_lm("llama").model
    norms = [name for name, _ in model.named_modules() if name.endswith("norm")]
    linears = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    before = state_of(model)
    with StepMode(model)(rows):
        attention, changed, _, _ = state_of(model)
        assert attention == "unspoken_ragged"
        assert len(norms) == 5  # two in each of two layers, and the last
        faster = [n for n in linears if rows in (SWAPPED_ROWS_OF_HEAD if n == "lm_head" else SWAPPED_ROWS)]
        assert sorted(changed) == sorted(norms + faster)
    assert state_of(model) == before == ("sdpa", [], 0, False)


@pytest.mark.parametrize("enabled", [True, False])
def test_cudnn_attention_is_left_out_inside_only(enabled: bool) -> None:
    flags: Any = torch.backends.cuda
    before = flags.cudnn_sdp_enabled()
    flags.enable_cudnn_sdp(enabled)
    try:
        with without_cudnn_attention(torch.device("cpu")):
            assert flags.cudnn_sdp_enabled() is enabled
        with pytest.raises(KeyError), without_cudnn_attention(torch.device("cuda", 1)):
            assert not flags.cudnn_sdp_enabled()
            raise KeyError
        assert flags.cudnn_sdp_enabled() is enabled
    finally:
        flags.enable_cudnn_sdp(before)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_before_even_when_the_forward_fails(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch, fails: bool, training: bool
) -> None:
    lm = CausalLM(*tiny_model("llama"))
    decoder = Decoder(lm, 2)
    lm.model.train(training)
    try:
        before = state_of(lm.model)
        decoder.prefill([[5, 6], [7]])
        assert state_of(lm.model) == before == ("sdpa", [], 0, training)
        norm = lm.anatomy.norm
        seen = []

        def look(hidden: Tensor) -> Tensor:
            seen.append(state_of(lm.model))
            if fails:
                raise RuntimeError("out of memory")
            return type(norm).forward(norm, hidden)

        with monkeypatch.context() as patch:
            patch.setattr(norm, "forward", look)
            if fails:
                with pytest.raises(RuntimeError, match="out of memory"):
                    decoder.step(lm.embed(torch.tensor([1, 2])))
            else:
                decoder.step(lm.embed(torch.tensor([1, 2])))
        assert seen[0][0] == "unspoken_ragged" and len(seen[0][1]) > 1 and seen[0][3] is False
        assert state_of(lm.model) == before
    finally:
        lm.model.eval()


def test_a_layer_that_someone_else_has_patched_keeps_its_patch(tiny_model: Any) -> None:
    """Libraries that place layers on devices replace `forward` of a module; it must stay, and be called."""
    model, tokenizer = tiny_model("llama")
    lm = CausalLM(model, tokenizer)
    linear = lm.anatomy.blocks[0].mlp.up_proj  # type: ignore[union-attr]
    calls = []

    def patched(x: Tensor) -> Tensor:
        calls.append(x.shape)
        return nn.functional.linear(x, linear.weight)

    linear.forward = patched
    try:
        decoder = Decoder(lm, 2)
        decoder.prefill([[5, 6], [7]])
        decoder.step(lm.embed(torch.tensor([1, 2])))
        assert linear.__dict__.get("forward") is patched and len(calls) == 2
    finally:
        linear.__dict__.pop("forward", None)


def test_no_gradients_and_no_dropout(tiny_model: Any) -> None:
    lm = CausalLM(*tiny_model("gpt2"))  # its configuration has dropout
    assert lm.model.config.resid_pdrop > 0
    lm.model.train()
    try:
        runs = []
        for _ in range(2):
            decoder = Decoder(lm, 1)
            decoder.prefill([[5, 6, 7]])
            runs.append(decoder.step(lm.embed(torch.tensor([8])))[0])
    finally:
        lm.model.eval()
    assert torch.equal(*runs) and not runs[0].requires_grad
    assert not torch.is_inference(runs[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_in_two_calls_give_the_same(dtype: torch.dtype) -> None:
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    norm = LlamaRMSNorm(48).to(dtype)
    norm.weight.data.uniform_(0.5, 1.5)
    fast = _norm_forward(norm)
    assert fast is not None
    x = torch.randn(3, 1, 48).to(dtype) * 7
    torch.testing.assert_close(fast(x), norm(x), rtol=torch.finfo(dtype).eps * 2, atol=0)
    other = GemmaRMSNorm(48)  # its weight is an offset from one: not the same function, so it is left alone
    other.variance_epsilon = other.eps
    assert _norm_forward(other) is None and _norm_forward(nn.LayerNorm(48)) is None
