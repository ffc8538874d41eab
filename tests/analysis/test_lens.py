"""The lens against its definition in float64, on four families, over tokens and over soft thoughts."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from lens_help import FAMILIES, IDS, lens_lm, plain_logits, plain_metrics, plain_states
from torch import Tensor

from unspoken import ChainOfThought, Generation, LogitLens, SoftThinking
from unspoken.analysis._lens_metrics import GROUPS, Ask, Kept, measure
from unspoken.analysis._lens_states import last_kl, read_states
from unspoken.analysis.lens import LastBlockLens, Lens
from unspoken.errors import ConfigError, ModelError, RunError
from unspoken.lm.model import CausalLM

ALL = tuple(GROUPS)
ANSWERS = [33, 200]


def embed(lm: CausalLM, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return lm.embed(torch.tensor(ids))


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


class TestGenerations:
    """A generation is read again as it was decoded."""

    @pytest.mark.parametrize("mixture", ["non_uniform", "element_wise_max", "uniform", "inverse_p"])
    @pytest.mark.parametrize("mix_norm", ["none", "match"])
    @pytest.mark.parametrize("recorded", [True, False])
    def test_soft_thoughts_are_the_mixtures_that_were_read(
        self, mixture: str, mix_norm: str, recorded: bool
    ) -> None:
        lm = lens_lm("qwen3")
        strategy = SoftThinking(
            mixture=mixture,
            mix_norm=mix_norm,
            k=3,
            T_e=6,
            min_end_prob=1.0,
            temperature=1.0,  # type: ignore[arg-type]
        )
        out = lm.generate("hi", strategy, max_new_tokens=16, trace="full", record=("inputs",))
        assert isinstance(out, Generation)
        truth = out.records["inputs"]
        if not recorded:
            out.records = {}
        assert sum(step.kind == "soft" for step in out.steps) == 6
        grid = LogitLens(lm)(out, prompt="hi", strategy=strategy)
        prompt = strategy.prompt_ids(lm, "hi")
        states = plain_states(lm, torch.cat([embed(lm, prompt), truth]))
        logits = plain_logits(lm, states)
        gold = [*prompt[1:], *(step.token_id or 0 for step in out.steps), 0]
        expected = plain_metrics(logits, states, gold, ANSWERS, 5)
        np.testing.assert_allclose(grid.kl, expected["kl"].numpy(), rtol=1e-3, atol=2e-4)
        assert grid.replay is not None and grid.replay < 1e-3
        assert grid.kinds.count("soft") == 6
        soft = grid.kinds.index("soft")
        assert grid.ids[soft] == -1 and grid.tokens[soft].startswith("‹")
        assert np.isnan(grid.gold_rank[:, soft - 1]).all()  # a thought follows, which has no token

    def test_element_wise_max_is_told_from_a_mean_by_its_norm(self) -> None:
        lm = lens_lm("llama")
        strategy = SoftThinking(mixture="element_wise_max", k=3, T_e=4, min_end_prob=1.0, temperature=1.0)
        out = lm.generate("hi", strategy, max_new_tokens=10, trace="full")
        assert isinstance(out, Generation)
        grid = LogitLens(lm)(out, prompt=strategy.prompt_ids(lm, "hi"))
        assert grid.replay is not None and grid.replay < 1e-3

    def test_tokens_are_read_as_their_ids(self) -> None:
        lm = lens_lm("gpt2")
        out = lm.generate("hi", ChainOfThought(temperature=1.0), max_new_tokens=9, seed=3)
        assert isinstance(out, Generation)
        prompt = lm.tokens.encode_prompt("hi")
        whole = LogitLens(lm)([*prompt, *out.token_ids])
        grid = LogitLens(lm)(out, prompt="hi")
        for name, array in whole.values.items():
            np.testing.assert_array_equal(grid[name], array, err_msg=name)
        given = LogitLens(lm)("hi", chat=True, response=out.token_ids, positions="response")
        np.testing.assert_allclose(given.kl, whole.kl[:, len(prompt) :], rtol=1e-4, atol=1e-5)
        assert set(given.kinds) == {"forced"}

    def test_the_wrong_prompt_is_noticed(self) -> None:
        lm = lens_lm("llama")
        out = lm.generate([20, 30, 40], ChainOfThought(temperature=1.0), max_new_tokens=8)
        assert isinstance(out, Generation)
        with pytest.raises(ConfigError, match="read 3 prompt tokens, but this prompt has 2"):
            LogitLens(lm)(out, prompt=[20, 30])
        with pytest.raises(RunError, match="not what the generation read"):
            LogitLens(lm)(out, prompt=[99, 98, 97])
        np.testing.assert_array_equal(LogitLens(lm)(out).kl, LogitLens(lm)(out, prompt=[20, 30, 40]).kl)
        with pytest.raises(ConfigError, match="prompt=question"):
            LogitLens(lm)(Generation.from_dict(out.to_dict()))

    def test_thoughts_that_were_not_kept(self) -> None:
        lm = lens_lm("llama")
        strategy = SoftThinking(k=3, T_e=4, min_end_prob=1.0)
        out = lm.generate("hi", strategy, max_new_tokens=8)
        with pytest.raises(ConfigError, match="trace='full'"):
            LogitLens(lm)(out, prompt="hi", strategy=strategy)


class TestInputs:
    """What a lens can be called with."""

    def test_vectors_and_their_ids_read_alike(self) -> None:
        lm = lens_lm("gemma2")
        grid = LogitLens(lm)(embed(lm, IDS))
        np.testing.assert_array_equal(grid.kl, LogitLens(lm)(IDS).kl)
        assert set(grid.kinds) == {"latent"}
        assert np.isnan(grid.gold_rank).all()

    def test_text_is_plain_or_a_chat(self) -> None:
        lm = lens_lm("llama")
        plain = LogitLens(lm)("What is 12?")
        chat = LogitLens(lm)("What is 12?", chat=True)
        assert list(plain.ids) == lm.tokens.encode("What is 12?")
        assert list(chat.ids) == lm.tokens.encode_prompt("What is 12?")
        messages = LogitLens(lm)([{"role": "user", "content": "What is 12?"}])
        np.testing.assert_array_equal(messages.ids, chat.ids)

    def test_positions(self) -> None:
        lm, lens = lens_lm("llama"), LogitLens(lens_lm("llama"))
        whole = lens(IDS, response=[60, 61])
        size = len(IDS)
        for name, places in {
            "last": [size - 1],
            "prompt": list(range(size)),
            "response": [size, size + 1],
        }.items():
            part = lens(IDS, response=[60, 61], positions=name)  # type: ignore[arg-type]
            assert part.positions.tolist() == places
            np.testing.assert_allclose(part.kl, whole.kl[:, places], rtol=1e-4, atol=1e-5)
        assert lens(IDS, positions=[0, -1]).positions.tolist() == [0, size - 1]
        assert int(lens(IDS, response=[60, 61], positions="last").gold_rank[0, 0]) >= 1  # 60 follows
        assert lm.tokens.token_text(60) in whole.tokens

    def test_answers_as_text(self) -> None:
        lm = lens_lm("llama")
        grid = LogitLens(lm)(IDS, answers="answer")
        first = {lm.tokens.encode("answer")[0], lm.tokens.encode(" answer")[0]}
        assert first >= set(grid.answers) and len(grid.answers) >= 1
        np.testing.assert_array_equal(
            LogitLens(lm)(IDS, answers=list(grid.answers)).answer_rank, grid.answer_rank
        )

    def test_position_ids_move_the_rest(self) -> None:
        lm = lens_lm("gpt2")
        gap = [0, 1, 2, 3, *range(9, 9 + len(IDS) - 4)]
        with torch.no_grad():
            logits = lm.model(torch.tensor([IDS]), position_ids=torch.tensor([gap])).logits[0, -1]
        grid = LogitLens(lm)(IDS, position_ids=gap)
        assert grid.top_ids[-1, -1, 0] == int(logits.argmax())
        assert grid.final_logprob[-1, -1] == pytest.approx(float(logits.log_softmax(-1).max()), abs=1e-4)
        assert abs(grid.kl - LogitLens(lm)(IDS).kl).max() > 1e-3

    def test_views_of_fewer_blocks(self) -> None:
        lm = lens_lm("llama")
        view = lm.truncated(keep_first=2, keep_last=True)
        grid = LogitLens(view)(IDS)
        assert len(grid.layers) == 4
        assert "first 2 and last" in grid.model
        through = LastBlockLens(lm)(IDS)
        # What the view says is what the last-block lens says after block 1.
        np.testing.assert_array_equal(grid.top_ids[-1, :, 0], through.top_ids[2, :, 0])

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"positions": "middle"}, "positions must be last, prompt, response, all"),
            ({"positions": [99]}, "indices from -11 to 10"),
            ({"positions": "response"}, "no response"),
            ({"answers": 10_000}, "outside the vocabulary"),
            ({"answers": " "}, "must not be empty"),
            ({"position_ids": [0, 1]}, "2 position_ids"),
            ({"prompt": "hi"}, "a text is its own prompt"),
            ({"response": []}, "response is empty"),
        ],
    )
    def test_mistakes(self, options: dict[str, object], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            LogitLens(lens_lm("llama"))(IDS, **options)  # type: ignore[arg-type]

    def test_mistakes_in_what_is_read(self) -> None:
        lens = LogitLens(lens_lm("llama"))
        with pytest.raises(ConfigError, match=r"must be \[T, 32\]"):
            lens(torch.zeros(3, 5))
        with pytest.raises(ConfigError, match="context holds 256"):
            lens([20] * 257)
        with pytest.raises(ConfigError, match="empty"):
            lens("  ")

    def test_mistakes_in_the_options(self) -> None:
        lm = lens_lm("llama")
        with pytest.raises(ConfigError, match="metrics must be of kl.*not 'kll'"):
            LogitLens(lm, metrics=("kll",))
        with pytest.raises(ConfigError, match="2 problems"):
            LogitLens(lm, top_k=-1, memory=0)
