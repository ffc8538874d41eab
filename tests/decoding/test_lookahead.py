"""Look-ahead: the law of each piece against all answers, the correction of its bias, and what is decoded."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from markov import Markov, distance, powered
from power_help import chains, model, oracle

from unspoken.decoding.lookahead import LookAhead, chances
from unspoken.errors import ConfigError
from unspoken.lm.model import CausalLM
from unspoken.types import fold

ALPHA = 3.0


# Token by token, through the engine


def test_with_many_rollouts_the_next_token_law_is_that_of_p_to_the_alpha() -> None:
    """Every token a candidate: `p(v)^alpha zeta(v)` against the sum over all listed answers."""
    lm, limit = model(), 3
    listed = oracle(lm, limit, alpha=2.0)
    target = listed.target()
    looked = low = 0.0
    for out in chains(lm, LookAhead(2.0, 1, candidates=4, rollouts=300), limit, 1):
        for piece in out.notes["lookahead"]["pieces"]:
            prefix = tuple(out.token_ids[: piece["position"]])
            p = listed.p(prefix)
            order = sorted(range(len(p)), key=lambda v: -p[v])
            mass = [sum(q for x, q in target.items() if x[: len(prefix) + 1] == (*prefix, v)) for v in order]
            exact = [m / sum(mass) for m in mass]
            assert piece["probabilities"] == pytest.approx(exact, abs=0.03)
            norm = sum(listed.whole(x) ** 2 for x in listed.states(limit))
            for v, m, log_zeta in zip(order, mass, piece["log_futures"], strict=True):
                zeta = m * norm / listed.whole((*prefix, v)) ** 2
                assert math.exp(log_zeta) == pytest.approx(zeta, rel=0.1)
            assert out.token_ids[piece["position"]] == order[piece["chosen"]]
            if not prefix:
                cold = p[order] ** 2 / (p**2).sum()
                looked = max(abs(a - b) for a, b in zip(piece["probabilities"], exact, strict=True))
                low = max(abs(a - b) for a, b in zip(cold, exact, strict=True))
    assert looked < low / 3  # low temperature, which does not look ahead, would not pass


@pytest.mark.parametrize("block_size", [1, 2])
def test_what_is_decoded_is_what_one_forward_reads(
    tiny_lm: Callable[[str], CausalLM], block_size: int
) -> None:
    """The answer's numbers again from one forward over it, whatever was tried in between."""
    lm = tiny_lm("qwen3")
    lm = CausalLM(lm.model, lm.tokenizer)
    lm.__dict__["eos_ids"] = frozenset()
    strategy = LookAhead(1.5, block_size, candidates=3, rollouts=2, horizon=2)
    out = fold(lm.stream("Hi", strategy, max_new_tokens=5, seed=3))[0]
    prompt = strategy.prompt_ids(lm, "Hi")
    with torch.no_grad():
        logits = lm.model(torch.tensor([prompt + out.token_ids]), use_cache=False).logits[
            0, len(prompt) - 1 : -1
        ]
    logits = logits.double()
    want = logits.log_softmax(-1)[range(5), out.token_ids].tolist()
    assert [step.logprob for step in out.steps] == pytest.approx(want, abs=1e-4)
    pieces = out.notes["lookahead"]["pieces"]
    assert [p["position"] for p in pieces] == list(range(0, 5, block_size)) and out.reason == "length"
    if block_size == 1:  # of the candidates only, renormalised
        best = (1.5 * logits).topk(3).values.log_softmax(-1)
        drawn = [best[i, piece["chosen"]].item() for i, piece in enumerate(pieces)]
        # Peeked at, tried, and followed by up to two tokens of two rollouts.
        tokens = sum(1 + 3 + 3 * 2 * min(2, 4 - i) for i in range(5))
    else:
        drawn = (1.5 * logits).log_softmax(-1)[range(5), out.token_ids].tolist()
        tokens = sum(3 * min(2, 5 - i) + 3 * 2 * max(0, min(2, 3 - i)) for i in (0, 2, 4))
    assert [step.sampled_logprob for step in out.steps] == pytest.approx(drawn, abs=1e-4)
    assert out.usage.tokens == tokens


def test_the_context_ends_an_answer(tiny_lm: Callable[[str], CausalLM]) -> None:
    lm = CausalLM(tiny_lm("llama").model, tiny_lm("llama").tokenizer)
    lm.__dict__["eos_ids"] = frozenset()
    assert lm.max_positions is not None
    for block_size in (1, 2):
        strategy = LookAhead(2.0, block_size, candidates=2, rollouts=2)
        out: Any = lm.generate([5] * (lm.max_positions - 3), strategy, max_new_tokens=20)
        assert (out.reason, len(out.steps)) == ("context", 3)


# Longer pieces, in a language whose answers can be listed


def law(strategy: LookAhead, runs: int) -> dict[str, float]:
    toy = Markov(4, seed=7)
    counts = Counter(toy.drive(strategy, seed)[0].text for seed in range(runs))
    return {text: n / runs for text, n in counts.items()}


@pytest.mark.slow
def test_the_law_of_the_answer_tends_to_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    want, _ = powered(Markov(4, seed=7).answers(), ALPHA)
    few, many = LookAhead(ALPHA, 2, 1, 2), LookAhead(ALPHA, 2, 30, 2)
    found, low = distance(law(many, 150), want), distance(law(few, 150), want)
    # A sampler that forgets the future misses the target.
    monkeypatch.setattr(
        LookAhead, "futures", lambda self, pieces, total, seed: (yield from _blind(len(pieces)))
    )
    blind = distance(law(many, 150), want)
    assert found < 0.75 * low and found < 0.75 * blind, (found, low, blind)


def _blind(count: int) -> Any:
    yield from ()
    return [[0.0] for _ in range(count)]


def test_alpha_one_weighs_all_alike() -> None:
    _, notes = Markov(5).drive(LookAhead(1.0, 2, 4, 3), 0)
    for piece in notes["lookahead"]["pieces"]:
        assert piece["probabilities"] == pytest.approx([0.25] * 4)
        assert piece["log_futures"] == pytest.approx([0.0] * 4, abs=1e-9)


# The ratio


def test_the_jackknife_takes_most_of_the_bias_away() -> None:
    """The mean over every outcome of M rollouts of two candidates, of which one has an uncertain future."""
    pieces, certain, risky = [math.log(0.4), math.log(0.6)], 0.5, (0.1, 0.9)
    exact = 0.4 * 0.5 / (0.4 * 0.5 + 0.6 * certain)
    bias: dict[tuple[int, bool], float] = {}
    for count, jackknife in itertools.product((4, 8), (False, True)):
        outcomes = itertools.product(risky, repeat=count)
        futures = ([[math.log(x) for x in drawn], [math.log(certain)] * count] for drawn in outcomes)
        values = [chances(pieces, logs, jackknife)[0] for logs in futures]
        bias[count, jackknife] = abs(math.fsum(values) / len(values) - exact)
    assert bias[4, True] < bias[4, False] / 3 and bias[8, True] < bias[8, False] / 5
    assert bias[8, False] == pytest.approx(bias[4, False] / 2, rel=0.2)  # order 1/M
    assert bias[8, True] < bias[4, True] / 3  # order 1/M^2


def test_chances_are_a_law() -> None:
    # Futures so different that the correction makes one negative.
    found = chances([0.0, 0.0, -1000.0], [[0.0, -9.0], [-9.0, 0.0], [0.0, 0.0]], True)
    assert math.fsum(found) == pytest.approx(1.0) and min(found) >= 0 and found[2] == 0.0
    assert chances([math.log(3.0), 0.0], [[5.0], [5.0]], False) == pytest.approx([0.75, 0.25])
    assert chances([-2000.0, -2000.0], [[-9e3] * 2, [-9e3] * 2], True) == pytest.approx([0.5, 0.5])


def test_mistakes_come_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        LookAhead(alpha=0.5, block_size=0, candidates=0, rollouts=1, horizon=0)
    assert len(error.value.problems) == 5
    LookAhead(rollouts=1, jackknife=False)
