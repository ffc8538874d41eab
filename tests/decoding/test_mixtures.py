"""Weights of mixtures, and the vectors they make."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from soft_help import BASES as NAMES
from torch import Tensor

from unspoken.decoding import _mixtures
from unspoken.decoding._sampling import top_k
from unspoken.lm.model import CausalLM

LAW = torch.tensor([0.6, 0.2, 0.1, 0.07, 0.03])
Tiny = Callable[[str], CausalLM]


def generators(rows: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(rows)]


def make(name: str, probs: Tensor, alpha: float = 1.0, seed: int = 0) -> Tensor:
    return _mixtures.weights(name, probs, alpha=alpha, draw=lambda: generators(len(probs), seed))


def candidates(seed: int, rows: int, width: int, k: int, scale: float = 4.0) -> tuple[Tensor, Tensor]:
    logits = scale * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return top_k(logits.softmax(-1), k)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31), k=st.integers(1, 12), zeros=st.integers(0, 11), alpha=st.floats(1e-9, 1e20)
)
def test_weights_are_a_law_over_what_is_possible(
    name: str, seed: int, k: int, zeros: int, alpha: float
) -> None:
    probs, _ = candidates(seed, 3, 40, k)
    if zeros < k:
        probs[0, k - zeros :] = 0.0  # as the end of a nucleus, or of a law at temperature 0
    w = make(name, probs, alpha, seed)
    assert torch.isfinite(w).all() and (w >= 0).all()
    assert w.sum(-1).tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    assert (w[probs == 0] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_permuting_the_rows_permutes_nothing_else(name: str) -> None:
    probs, _ = candidates(1, 6, 40, 5)
    order = torch.tensor([3, 0, 5, 4, 1, 2])
    own = generators(6)
    w = _mixtures.weights(name, probs, alpha=1.0, draw=lambda: own)
    own = [generators(6)[i] for i in order]
    assert torch.equal(_mixtures.weights(name, probs[order], alpha=1.0, draw=lambda: own), w[order])


@pytest.mark.parametrize("name", NAMES)
def test_renaming_the_tokens_changes_no_vector(name: str, tiny_lm: Tiny) -> None:
    lm = tiny_lm("llama")
    logits = 3 * torch.randn(4, lm.vocab_size, generator=torch.Generator().manual_seed(0))
    rename = torch.randperm(lm.vocab_size, generator=torch.Generator().manual_seed(1))
    table = lm.embed(torch.arange(lm.vocab_size)).detach()

    def vectors(p: Tensor, table: Tensor) -> Tensor:
        probs, ids = top_k(p, 5)
        w = make(name, probs)
        parts = table[ids]
        return parts.amax(1) if name == "element_wise_max" else (w[..., None] * parts).sum(1)

    p = logits.softmax(-1)
    assert torch.allclose(vectors(p, table), vectors(p[:, rename], table[rename]), atol=1e-6)


def test_weights_by_hand() -> None:
    probs = torch.tensor([[0.4, 0.2, 0.2, 0.0]])
    assert make("non_uniform", probs)[0].tolist() == pytest.approx([0.5, 0.25, 0.25, 0.0])
    assert make("element_wise_max", probs)[0].tolist() == pytest.approx([0.5, 0.25, 0.25, 0.0])
    assert make("inverse_p", probs)[0].tolist() == pytest.approx([0.2, 0.4, 0.4, 0.0])
    assert make("uniform", probs)[0].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0.0])
    assert make("hard_argmax", probs)[0].tolist() == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "name", ["non_uniform", "element_wise_max", "inverse_p", "nucleus", "uniform", "hard_argmax"]
)
def test_only_the_random_mixtures_draw(name: str) -> None:
    def refuse() -> list[torch.Generator]:
        raise AssertionError("this mixture is not random")

    _mixtures.weights(name, LAW[None], alpha=1.0, draw=refuse)


# Dirichlet


@pytest.mark.parametrize("alpha", [0.5, 1.0, 10.0])
def test_the_mean_dirichlet_draw_is_the_law(alpha: float) -> None:
    one = torch.Generator().manual_seed(0)
    w = _mixtures.dirichlet(LAW.expand(20_000, -1), alpha, [one] * 20_000)
    assert w.mean(0).tolist() == pytest.approx(LAW.tolist(), abs=0.01)
    # Var of a weight is q (1 - q) / (alpha + 1).
    assert w.var(0)[0].item() == pytest.approx(0.24 / (alpha + 1), rel=0.05)


def test_a_large_alpha_gives_the_law_itself() -> None:
    w = _mixtures.dirichlet(LAW[None], 1e20, generators(1))
    assert w[0].tolist() == pytest.approx(LAW.tolist(), abs=1e-6)


@pytest.mark.parametrize("alpha", [1e-3, 1e-6, 1e-30])
def test_a_tiny_alpha_gives_one_hot_draws(alpha: float) -> None:
    """Where all gamma draws underflow there is no direction left; it must not become an even mixture."""
    w = _mixtures.dirichlet(LAW.expand(300, -1), alpha, generators(300))
    assert w.amax(-1).median().item() == 1.0
    assert (w.amax(-1) > 0.5).all() and (w.amax(-1) > 0.999).float().mean() > 0.95
    assert torch.allclose(w.sum(-1), torch.ones(300))


def test_zeros_get_nothing_and_raise_nothing() -> None:
    q = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    w = _mixtures.dirichlet(q, 1.0, generators(3))
    assert (w[q == 0] == 0).all() and torch.allclose(w.sum(-1), torch.ones(3))


def test_a_draw_depends_on_its_own_row_only() -> None:
    q = torch.stack([LAW, LAW.flip(0), torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0])])
    together = _mixtures.dirichlet(q, 1.0, generators(3))
    for row in range(3):
        assert torch.equal(_mixtures.dirichlet(q[row : row + 1], 1.0, [generators(3)[row]])[0], together[row])
    assert not torch.equal(together[0], _mixtures.dirichlet(q, 1.0, generators(3, seed=7))[0])


# Hard draws


def test_hard_sample_draws_from_the_kept_law() -> None:
    kept = LAW[:3] * 0.5  # only its shares count
    one = torch.Generator().manual_seed(0)
    w = _mixtures.weights("hard_sample", kept.expand(20_000, -1), alpha=1.0, draw=lambda: [one] * 20_000)
    assert set(w.flatten().tolist()) == {0.0, 1.0}
    assert w.mean(0).tolist() == pytest.approx((LAW[:3] / LAW[:3].sum()).tolist(), abs=0.015)


@pytest.mark.parametrize("name", NAMES)
def test_broken_probabilities_raise_nothing(name: str) -> None:
    """A model gone wrong ends its own row by its log-probabilities; its neighbours must not be taken down here."""
    make(name, torch.tensor([[math.nan] * 5, LAW.tolist()]))


# Nucleus


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31), mass=st.floats(0.01, 1.0), cap=st.integers(1, 70), width=st.integers(1, 90)
)
def test_nucleus_is_the_smallest_set_with_the_mass(seed: int, mass: float, cap: int, width: int) -> None:
    p = torch.randn(3, width, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(-1)
    ids, probs = _mixtures.nucleus(p, mass, cap)
    needed = []
    for row in range(3):
        order = sorted(range(width), key=lambda i: -float(p[row, i]))
        count, total = 0, 0.0
        while count < min(cap, width) and total < mass - 1e-6:
            total += float(p[row, order[count]])
            count += 1
        kept = int((probs[row] > 0).sum())
        # Where the mass is reached to within rounding, one more or less is as right.
        assert kept == count or abs(total - mass) < 1e-4
        needed.append(kept)
        assert ids[row, :kept].tolist() == order[:kept]
        assert torch.equal(probs[row, :kept], p[row, ids[row, :kept]])
    assert ids.shape == probs.shape == (3, max(needed))


def test_nucleus_keeps_the_crossing_token_and_at_least_one() -> None:
    assert _mixtures.nucleus(LAW[None], 0.7, 64)[0].tolist() == [[0, 1]]
    assert _mixtures.nucleus(LAW[None], 0.6, 64)[0].tolist() == [[0]]
    assert _mixtures.nucleus(LAW[None], 1e-9, 64)[0].tolist() == [[0]]
    assert _mixtures.nucleus(LAW[None], 1.0, 3)[0].tolist() == [[0, 1, 2]]


# Vectors


def test_vectors_against_loops_over_the_table(tiny_lm: Tiny, family: str) -> None:
    lm = tiny_lm(family)
    probs, ids = candidates(2, 4, lm.vocab_size, 5)
    w = make("inverse_p", probs)
    mixed, largest = lm.mix(ids, w), lm.element_wise_max(ids)
    for row in range(4):
        parts = [lm.model.get_input_embeddings()(token) for token in ids[row]]
        want = sum(float(w[row, j]) * parts[j] for j in range(5))
        assert torch.allclose(mixed[row], want, atol=1e-5)  # type: ignore[arg-type]
        for dim in range(lm.hidden_size):
            assert largest[row, dim].item() == max(part[dim].item() for part in parts)


def test_inverse_p_never_leaves_the_scale_of_the_embeddings(tiny_lm: Tiny, family: str) -> None:
    lm = tiny_lm(family)
    probs, ids = candidates(3, 64, lm.vocab_size, 8, scale=12.0)
    assert probs.min() < 1e-6  # without normalising, such a law blows the vector up a million times
    longest = lm.embed(ids).norm(dim=-1).amax(-1)
    assert (lm.mix(ids, make("inverse_p", probs)).norm(dim=-1) <= longest + 1e-5).all()
