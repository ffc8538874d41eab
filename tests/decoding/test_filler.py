"""Fillers: read in one forward, exact against reading them one by one, and the ends of rows around them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unspoken.decoding import Request, run
from unspoken.decoding.filler import Filler
from unspoken.errors import ConfigError
from unspoken.lm.compact import compact_tokenizer
from unspoken.lm.decode import Decoder
from unspoken.lm.model import CausalLM
from unspoken.lm.tiny import tiny_model
from unspoken.types import Generation, fold

FILLERS = [f"<fill_{i}>" for i in range(4)]
PROMPTS = [[20, 21, 22, 1], [23, 24, 1], [20, 25, 22, 21, 24, 1]]


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return make("tiny")


def make(kind: Any) -> CausalLM:
    tokenizer = compact_tokenizer([" ".join("0123456789*+()="), "the end ."], [*FILLERS, "<sep2>"])
    model = tiny_model(kind, tokenizer, layers=2, width=32, heads=4, max_positions=64)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight *= 6  # away from near-ties
    return CausalLM(model, tokenizer)


def generate(
    lm: CausalLM, strategy: Filler, prompts: Any = PROMPTS, batch_size: int = 8
) -> dict[Any, Generation]:
    asked = [Request(p, strategy, id=i, max_new_tokens=8, seed=i) for i, p in enumerate(prompts)]
    return fold(run(lm, asked, batch_size=batch_size))


@pytest.mark.parametrize("kind", ["tiny", "tiny-llama"])
def test_reading_fillers_at_once_is_reading_them_one_by_one(kind: str) -> None:
    lm = make(kind)
    fillers = Filler(n_fillers=4, kind="distinct").suffix(lm.tokens)
    assert fillers == lm.tokenizer.convert_tokens_to_ids(FILLERS)
    at_once, _ = Decoder(lm, 3).prefill([p + fillers for p in PROMPTS])
    decoder = Decoder(lm, 3)
    decoder.prefill(PROMPTS)
    for filler in fillers:
        one_by_one, _ = decoder.step(lm.embed(torch.full((3,), filler)))
    assert torch.allclose(at_once, one_by_one, atol=1e-4)


@pytest.mark.parametrize("kind", ["tiny", "tiny-llama"])
@pytest.mark.parametrize("gap", [0, 5])
def test_greedy_is_the_naive_way_with_explicit_positions(kind: str, gap: int) -> None:
    lm = make(kind)
    strategy = Filler(n_fillers=3, kind="single", force_sep2=True, position_gap=gap)
    rows = generate(lm, strategy)
    for i, prompt in enumerate(PROMPTS):
        ids = strategy.prompt_ids(lm, prompt)
        assert ids == [
            *prompt,
            *[lm.tokenizer.convert_tokens_to_ids("<fill_0>")] * 3,
            lm.tokenizer.eos_token_id,
        ]
        for step in rows[i].steps:
            # Positions move from the prompt's last token on, which is where training leaves the hole.
            positions = [j + gap * (j >= len(prompt) - 1) for j in range(len(ids))]
            with torch.no_grad():
                logits = lm.model(
                    torch.tensor([ids]),
                    attention_mask=torch.ones(1, len(ids)),
                    position_ids=torch.tensor([positions]),
                ).logits[0, -1]
            assert step.logprob == pytest.approx(logits.log_softmax(-1)[step.token_id].item(), abs=1e-4)
            logits[lm.tokenizer.convert_tokens_to_ids(FILLERS)] = float("-inf")
            assert step.token_id == int(logits.argmax())
            ids.append(step.token_id)


def test_batches_change_nothing_whatever_the_gaps(lm: CausalLM) -> None:
    strategies = [Filler(n_fillers=2, position_gap=gap) for gap in (0, 3, 9)]
    asked = [
        Request(p, s, id=(i, j), max_new_tokens=6)  # type: ignore[arg-type]
        for i, p in enumerate([*PROMPTS, PROMPTS[0]])
        for j, s in enumerate(strategies)
    ]
    together = fold(run(lm, asked, batch_size=5))
    for request in asked:
        alone = fold(run(lm, [request], batch_size=1))[request.id]
        assert alone.token_ids == together[request.id].token_ids
        for a, b in zip(alone.steps, together[request.id].steps, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
    assert together[0, 0].token_ids != together[0, 2].token_ids  # type: ignore[index]


def test_fillers_cost_no_step_and_are_reported(lm: CausalLM) -> None:
    with_fillers, without = generate(lm, Filler(n_fillers=4))[0], generate(lm, Filler(n_fillers=0))[0]
    assert (with_fillers.notes["fillers"], without.notes["fillers"]) == (4, 0)
    assert with_fillers.usage.prompt_tokens == without.usage.prompt_tokens + 4 * len(lm.tokens.encode(" ."))
    for generation in (with_fillers, without):
        assert generation.usage.forward_passes == len(generation.steps)


def test_the_context_counts_the_gap(lm: CausalLM) -> None:
    prompt = [20] * 40
    out = generate(lm, Filler(n_fillers=2, position_gap=20), [prompt])[0]
    assert (out.reason, len(out.steps)) == ("context", 2)  # 40 + 2 fillers + 20 of 64
    assert "leaves out 30 positions" in generate(lm, Filler(n_fillers=2, position_gap=30), [prompt])[0].reason


# Where rows end, on a scripted model


def says(words: str) -> Any:
    """A script that says these words one after another, whatever it reads."""

    def script(lm: Any, prompt: Any, read: int) -> torch.Tensor:
        return lm.law({lm.tokens.tokenizer.convert_tokens_to_ids(words.split()[read]): 1.0})

    return script


@pytest.fixture
def speak(monkeypatch: pytest.MonkeyPatch) -> Any:
    from scripted import ScriptedDecoder, ScriptedLM

    monkeypatch.setattr("unspoken.decoding._rows.Decoder", ScriptedDecoder)
    tokenizer = compact_tokenizer(["1 2 3 4 5 6"], [*FILLERS, "<sep2>"])

    def speak(words: str, **fields: Any) -> Generation:
        lm: Any = ScriptedLM(tokenizer, says(words))
        return fold(
            run(lm, [Request([5, 1], Filler(n_fillers=1, kind="single", **fields), max_new_tokens=20)])
        )[0]

    return speak


def test_a_row_ends_at_its_last_separator(speak: Any) -> None:
    words = "1 2 <eos> #### 3 4 <eos> 5"
    both = speak(words, separators=2)
    assert (both.reason, both.thinking_text.split(), both.answer_text.split()) == (
        "eos",
        ["1", "2"],
        ["####", "3", "4"],
    )
    assert [s.phase for s in both.steps] == ["think"] * 3 + ["answer"] * 4
    first = speak(words)
    assert (first.reason, first.answer_text.split(), len(first.steps)) == ("eos", ["1", "2"], 3)


def test_a_separator_of_its_own_closes_the_thought(speak: Any) -> None:
    out = speak("1 <sep2> #### 3 <eos> 5", sep2="<sep2>")
    assert (out.reason, out.thinking_text, out.answer_text.split()) == ("eos", "1", ["####", "3"])
    cut = speak("1 <eos> #### 3 <eos> 5", sep2="<sep2>")  # an end token is not the separator here
    assert (cut.reason, len(cut.steps)) == ("eos", 2)
    forced = speak("#### 3 <eos>", sep2="<sep2>", force_sep2=True)
    assert forced.thinking_text == "" and forced.usage.prompt_tokens == 4


def test_fillers_are_never_said_unless_asked_for(lm: CausalLM) -> None:
    lm = make("tiny")
    fillers = lm.tokenizer.convert_tokens_to_ids(FILLERS)
    with torch.no_grad():  # tied: a large row of the head makes its token likely
        lm.model.get_input_embeddings().weight[fillers] *= 30
    hot = {"n_fillers": 2, "kind": "single", "temperature": 3.0}
    assert any(t in fillers for g in generate(lm, Filler(**hot, emit=True)).values() for t in g.token_ids)  # type: ignore[arg-type]
    assert not any(t in fillers for g in generate(lm, Filler(**hot)).values() for t in g.token_ids)  # type: ignore[arg-type]


def test_bad_settings() -> None:
    with pytest.raises(ConfigError) as caught:
        Filler(n_fillers=-1, separators=2, force_sep2=True, position_gap=-1, token="")
    assert len(caught.value.problems) == 4


def test_fillers_that_the_model_lacks_are_refused(lm: CausalLM) -> None:
    for fields, said in (
        ({"n_fillers": 5, "kind": "distinct"}, "5 filler tokens .* the model has 4"),
        ({"token": "zebra"}, "does not know the filler 'zebra'"),
        ({"sep2": "<nothing>"}, "sep2 must be one token"),
    ):
        with pytest.raises(ConfigError, match=said):
            lm.generate([5, 6], Filler(**fields))  # type: ignore[arg-type]


def test_an_unknown_filler_is_answered_with_those_that_there_are(lm: CausalLM) -> None:
    (said,) = Filler(token="zebra").check(lm)
    for flag in ("<fill_0> (--kind single)", "<fill_0> to <fill_3> (--kind distinct, at most 4 fillers)"):
        assert flag in said
    assert "' .' (--token=' .')" in said and "<sep2>" not in said
    tokenizer = compact_tokenizer(["1 2 3"], ["<|pause|>"])
    model = tiny_model("tiny", tokenizer, layers=1, width=16, heads=2, max_positions=16)
    (said,) = Filler().check(CausalLM(model, tokenizer))
    assert said.endswith("It knows '<|pause|>' (--token='<|pause|>').")
    tokenizer = compact_tokenizer(["1 2 3"])
    model = tiny_model("tiny", tokenizer, layers=1, width=16, heads=2, max_positions=16)
    (said,) = Filler().check(CausalLM(model, tokenizer))
    assert said.endswith("It knows any word of its vocabulary (--token=WORD).")
