"""What a lens can be given: generations with soft thoughts, texts, ids, vectors; and mistakes in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lens_help import IDS, embed, lens_lm, plain_logits, plain_metrics, plain_states

from unspoken import ChainOfThought, Generation, LogitLens, SoftThinking
from unspoken.analysis.lens import LastBlockLens
from unspoken.errors import ConfigError, RunError

ANSWERS = [33, 200]


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
