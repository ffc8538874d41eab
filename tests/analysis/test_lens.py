"""The lens against its definition in float64, on four families."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from lens_help import FAMILIES, IDS, embed, lens_lm, plain_logits, plain_metrics, plain_states
from torch import Tensor

from unspoken import LogitLens
from unspoken.analysis._lens_metrics import GROUPS, Ask, Kept, measure
from unspoken.analysis._lens_states import last_kl, read_states
from unspoken.analysis.lens import LastBlockLens, Lens
from unspoken.errors import ConfigError, ModelError, RunError
from unspoken.lm.model import CausalLM

ALL = tuple(GROUPS)
ANSWERS = [33, 200]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_metric_is_its_definition(family: str) -> None:
    lm = lens_lm(family)
    grid = LogitLens(lm, metrics=ALL, top_k=3)(IDS, answers=ANSWERS)
    states = plain_states(lm, embed(lm, IDS))
    expected = plain_metrics(plain_logits(lm, states), states, [*IDS[1:], 0], ANSWERS, 3)
    assert set(grid.values) == set(expected) - {"top_ids", "top_probs"}
    for name, array in grid.values.items():
        wanted = expected[name].double().numpy().copy()
        if name.startswith("gold") or name == "cross_entropy":
            wanted[:, -1] = np.nan  # nothing follows the last position
        np.testing.assert_allclose(array, wanted, rtol=2e-4, atol=2e-5, err_msg=name)
        assert array.shape == (5, len(IDS))
    np.testing.assert_array_equal(grid.top_ids, expected["top_ids"].numpy())
    np.testing.assert_allclose(grid.top_probs, expected["top_probs"].numpy(), rtol=1e-3, atol=1e-6)
    assert grid.layers.tolist() == [-1, 0, 1, 2, 3]
    assert grid.depth.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert (grid.kl[-1] == 0).all()
    assert grid.last_kl < 1e-5


def test_settled_is_the_first_layer_of_lasting_agreement() -> None:
    grid = LogitLens(lens_lm("llama"))(IDS)
    agrees = grid.agreement.astype(bool)
    for position, layer in enumerate(grid.settled.tolist()):
        row = layer + 1
        assert agrees[row:, position].all()
        assert row == 0 or not agrees[row - 1, position]


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_chunks_change_nothing(rows: int) -> None:
    lm = lens_lm("gemma2")
    whole = LogitLens(lm, metrics=ALL)(IDS, answers=ANSWERS)
    parts = LogitLens(lm, metrics=ALL, memory=rows * 3 * 4 * lm.vocab_size)(IDS, answers=ANSWERS)
    for name, array in whole.values.items():
        np.testing.assert_allclose(parts[name], array, rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(parts.top_ids, whole.top_ids)


def test_memory_bounds_the_rows_that_the_head_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, rows = lens_lm("llama"), []
    handle = lm.anatomy.head.register_forward_hook(lambda _m, args, _o: rows.append(args[0].shape[-2]))
    try:
        LogitLens(lm, memory=2 * 3 * 4 * lm.vocab_size)(IDS)
        assert max(rows[1:]) <= 4  # the first call is the model's own, the second the check
        rows.clear()
        LogitLens(lm)(IDS, positions="last")
    finally:
        handle.remove()
    assert 4 in rows[2:]  # one position of all four earlier layers at once


def test_a_metric_that_is_not_asked_for_is_not_there() -> None:
    grid = LogitLens(lens_lm("llama"), metrics=("kl",), top_k=0)(IDS)
    assert set(grid.values) == {"kl"}
    assert grid.top_ids.shape == (5, len(IDS), 0)
    with pytest.raises(ConfigError, match="no 'entropy'; it has kl"):
        _ = grid["entropy"]
    with pytest.raises(AttributeError, match="entropy"):
        _ = grid.entropy


def test_known_ids_only_leaves_padding_out_of_both_laws() -> None:
    lm = lens_lm("qwen3")
    known = len(lm.tokenizer)
    assert known < lm.vocab_size
    grid = LogitLens(lm, metrics=ALL, known_ids_only=True)(IDS, answers=ANSWERS)
    states = plain_states(lm, embed(lm, IDS))
    expected = plain_metrics(plain_logits(lm, states)[..., :known], states, [*IDS[1:], 0], ANSWERS, 5)
    for name in ("kl", "js", "entropy", "final_rank", "answer_prob"):
        np.testing.assert_allclose(grid[name], expected[name].numpy(), rtol=2e-4, atol=2e-5, err_msg=name)


def test_tokens_that_a_model_rules_out_count_nothing() -> None:
    """Logits of minus infinity: the numbers are those of the law over the other tokens, and none is NaN."""
    lm = lens_lm("llama")
    known = len(lm.tokenizer)
    model = copy.deepcopy(lm.model)
    bias = torch.zeros(lm.vocab_size)
    bias[known:] = -torch.inf
    model.lm_head.bias = torch.nn.Parameter(bias)  # type: ignore[union-attr]
    masked = CausalLM(model, lm.tokenizer)
    logits = plain_logits(lm, plain_states(lm, embed(lm, IDS)))[..., :known]
    expected = plain_metrics(logits, plain_states(lm, embed(lm, IDS)), [*IDS[1:], 0], ANSWERS, 5)
    for lens in (LogitLens, LastBlockLens):
        grid = lens(masked, metrics=ALL, top_k=5)(IDS, answers=ANSWERS)
        other = lens(lm, metrics=ALL, top_k=5, known_ids_only=True)(IDS, answers=ANSWERS)
        assert grid.last_kl < 1e-5
        for name, array in grid.values.items():
            np.testing.assert_allclose(array, other[name], rtol=2e-4, atol=2e-5, err_msg=name)
            if lens is LogitLens and name in ("kl", "reverse_kl", "js", "entropy"):
                np.testing.assert_allclose(array, expected[name].numpy(), rtol=2e-4, atol=2e-5, err_msg=name)


def test_a_token_that_only_a_layer_rules_out_makes_the_divergence_infinite() -> None:
    p, q = torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    ask = Ask(
        ("kl", "reverse_kl", "js", "entropy"), 0, torch.tensor([-1]), torch.zeros(0, dtype=torch.long), 3, 1
    )
    states = torch.stack([q, p])
    found = measure(
        states,
        states,
        ask,
        transform=lambda h, _: h,
        norm=lambda h: h,
        unembed=lambda h, _: h,
        weight=None,
        kept=Kept(),
    ).values
    assert found["kl"][:, 0].tolist() == [torch.inf, 0.0]
    assert found["reverse_kl"][:, 0].tolist() == pytest.approx([np.log(2), 0.0])
    assert found["js"][:, 0].tolist() == pytest.approx([1.5 * np.log(2) - 0.75 * np.log(3), 0.0], abs=1e-6)
    assert found["entropy"][:, 0].tolist() == pytest.approx([0.0, np.log(2)])


@pytest.mark.parametrize("metrics", [("kl",), ("kl", "js"), ALL])
def test_the_mean_row_of_the_head_is_the_sum_over_the_vocabulary(metrics: tuple[str, ...]) -> None:
    """KL by a product of two vectors is KL by the logits, also of a part of the vocabulary."""
    torch.manual_seed(0)
    weight, states = torch.randn(300, 16), 2 * torch.randn(5, 7, 16)
    ask = Ask(metrics, 0, torch.zeros(7, dtype=torch.long), torch.tensor([3]), 280, 3)
    found = [
        measure(
            states,
            states,
            ask,
            transform=lambda h, _: h,
            norm=lambda h: h / 2,
            unembed=lambda h, _: h @ weight.T,
            weight=given,
            kept=Kept(),
        ).values
        for given in (weight, None)
    ]
    logits = (states.double() / 2 @ weight.double().T)[..., :280].log_softmax(-1)
    exact = (logits[-1].exp() * (logits[-1] - logits)).sum(-1)
    for values in found:
        torch.testing.assert_close(values["kl"].double(), exact, rtol=1e-5, atol=2e-5)
    assert not torch.equal(found[0]["kl"], found[1]["kl"])  # two ways, not one
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_read_from_their_own_logits(dtype: torch.dtype) -> None:
    lm = lens_lm("llama")
    other = CausalLM(copy.deepcopy(lm.model).to(dtype), lm.tokenizer)
    grid = LogitLens(other, metrics=("kl", "entropy"), top_k=0)(IDS)
    with torch.no_grad():
        states = read_states(other, other.embed(torch.tensor(IDS))).hidden
        law = other.unembed(other.anatomy.norm(states)).double().log_softmax(-1)
    expected = (law[-1].exp() * (law[-1] - law)).sum(-1)
    np.testing.assert_allclose(grid.kl, expected.numpy(), rtol=1e-4, atol=2e-5)
    assert (grid.kl[-1] == 0).all()


def test_a_lens_that_has_read_other_rows_reads_as_a_new_one() -> None:
    lm = lens_lm("llama")
    used = LogitLens(lm, metrics=ALL)
    for ids in (IDS * 3, IDS[:2], IDS):
        again, fresh = used(ids, answers=ANSWERS), LogitLens(lm, metrics=ALL)(ids, answers=ANSWERS)
        for name, array in fresh.values.items():
            np.testing.assert_array_equal(again[name], array, err_msg=name)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_no_law_are_named(value: float) -> None:
    lm = CausalLM(copy.deepcopy(lens_lm("llama").model), lens_lm("llama").tokenizer)
    bias = torch.zeros(lm.vocab_size)
    bias[3] = value
    lm.model.lm_head.bias = torch.nn.Parameter(bias)  # type: ignore[union-attr]
    with pytest.raises(RunError, match="not finite"):
        LogitLens(lm)(IDS)


@pytest.mark.parametrize("family", FAMILIES)
def test_last_block_lens_is_the_model_without_the_blocks_between(family: str) -> None:
    lm = lens_lm(family)
    grid = LastBlockLens(lm)(IDS)
    full = LogitLens(lm)(IDS)
    logp = plain_logits(lm, plain_states(lm, embed(lm, IDS)))[-1].log_softmax(-1)
    blocks = lm.anatomy.blocks
    for layer in (0, 1, 2):
        # The stream after `layer` goes into the last block, by a hook on the model itself.
        state = read_states(lm, embed(lm, IDS)).hidden[layer + 1]
        handle = blocks[-1].register_forward_pre_hook(lambda _m, args, s=state: (s[None], *args[1:]))
        try:
            with torch.no_grad():
                logits = lm.model(torch.tensor([IDS])).logits[0].double()
        finally:
            handle.remove()
        expected = (logp.exp() * (logp - logits.log_softmax(-1))).sum(-1)
        np.testing.assert_allclose(grid.kl[layer + 1], expected.numpy(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(grid.kl[-2], 0, atol=1e-5)
    assert (grid.kl[-1] == 0).all()
    np.testing.assert_allclose(grid.cosine, full.cosine)  # of the states as they are


class Shifted(Lens):
    """A lens that moves every state but the last."""

    name = "shifted"

    def transform(self, hidden: Tensor, layer: int) -> Tensor:
        assert layer < 3
        return hidden + (layer + 2)


def test_a_lens_of_ones_own_is_one_method() -> None:
    lm = lens_lm("llama")
    grid = Shifted(lm)(IDS)
    states = plain_states(lm, embed(lm, IDS))
    moved = [state + (i + 1) for i, state in enumerate(states[:-1])] + [states[-1]]
    expected = plain_metrics(plain_logits(lm, moved), states, [*IDS[1:], 0], ANSWERS, 5)
    np.testing.assert_allclose(grid.kl, expected["kl"].numpy(), rtol=2e-4, atol=2e-5)
    assert grid.lens == "shifted"


class TestSelfCheck:
    """The lens at the last block is the model, or there is no lens."""

    @pytest.mark.parametrize("family", FAMILIES)
    def test_last_block_is_the_model(self, family: str) -> None:
        lm = lens_lm(family)
        states = read_states(lm, embed(lm, IDS))
        assert last_kl(lm, states) < 1e-5
        with torch.no_grad():
            own = lm.model(torch.tensor([IDS])).logits[0]
            seen = lm.unembed(lm.anatomy.norm(states.hidden[-1]))
        torch.testing.assert_close(seen, own, rtol=1e-4, atol=1e-4)

    def test_another_norm_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lm = lens_lm("llama")
        monkeypatch.setattr(lm, "anatomy", replace(lm.anatomy, norm=torch.nn.Identity()))
        with pytest.raises(ModelError, match="not the model: KL"):
            LogitLens(lm)(IDS)

    def test_another_cap_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lm = lens_lm("gemma2")
        monkeypatch.setattr(lm, "anatomy", replace(lm.anatomy, softcap=None))
        with pytest.raises(ModelError, match="not the model: KL"):
            LogitLens(lm)(IDS)

    def test_logits_that_are_not_finite(self) -> None:
        lm = lens_lm("llama")
        vectors = embed(lm, IDS)
        vectors[3] = float("nan")
        with pytest.raises(RunError, match="not finite"):
            LogitLens(lm)(vectors)
