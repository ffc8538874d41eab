"""What a strategy is as a configuration, and what its settings come down to, on every family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from unspoken.config import field_docs, from_dict, to_dict
from unspoken.decoding import Request, Strategy
from unspoken.decoding.cot import ChainOfThought
from unspoken.decoding.soft import SoftThinking
from unspoken.discovery import STRATEGIES
from unspoken.lm.model import CausalLM

from .battery import (
    CASES,
    FAMILIES,
    PAIRS,
    PROMPTS,
    TURNS,
    Case,
    assert_same,
    decode,
    requests,
    unending,
)

Tiny = Callable[[str], tuple[Any, Any]]
every_pair = pytest.mark.parametrize(("case", "family"), PAIRS, ids=str)
in_turns = pytest.mark.parametrize(("case", "family"), TURNS, ids=str)
every_family = pytest.mark.parametrize("family", FAMILIES)


# What strategies are as configurations


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_strategy_is_its_configuration(case: Case) -> None:
    strategy = case.strategy()
    assert from_dict(type(strategy), to_dict(strategy)) == strategy
    assert hash(strategy) == hash(case.strategy()) and strategy.name == case.name
    documented = field_docs(type(strategy))
    assert [f.name for f in fields(strategy) if not documented.get(f.name)] == []
    # An alias means a field of the strategy, or the budget that every command has.
    assert set(type(strategy).aliases.values()) <= {f.name for f in fields(strategy)} | {"max_new_tokens"}
    assert STRATEGIES.summary(case.name) and type(strategy).__doc__
    with pytest.raises(AttributeError):
        strategy.anything = 1  # type: ignore[attr-defined]


MINE = '''
"""Say the second likeliest token, every second step."""
from dataclasses import dataclass
from unspoken.decoding import Feed, Strategy


@dataclass(frozen=True)
class Mine(Strategy):
    """Every other step, the runner-up."""

    every: int = 2
    """How often."""

    def next_input(self, logits, hidden, state):
        best = logits.topk(2).indices
        turn = [int(row.steps % self.every == 0) for row in state.rows]
        ids = best[range(len(turn)), turn]
        return [Feed(list(range(len(turn))), "token", ids, logprob=logits.log_softmax(-1)[range(len(turn)), ids])]
'''


@every_family
def test_a_strategy_of_one_s_own_is_a_file(lm: CausalLM, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    cls = STRATEGIES.find(str(file))
    assert field_docs(cls)["every"] == "How often."
    strategy: Strategy = from_dict(cls, {"every": 3})
    out = decode(lm, requests(strategy), batch_size=2)
    for row, request in enumerate(requests(strategy)):
        assert_same(decode(lm, [request], 1)[row], out[row])
    # Against the plain model, token by token.
    ids = torch.tensor([strategy.prompt_ids(lm, PROMPTS[0])])
    for step in out[0].steps:
        with torch.no_grad():
            best = lm.model(ids, use_cache=False).logits[0, -1].topk(2).indices
        assert step.token_id == best[int(step.index % 3 == 0)]
        ids = torch.cat([ids, torch.tensor([[step.token_id]])], dim=-1)


# What the settings come down to


@every_family
def test_greedy_chain_of_thought_is_the_model_s_own_greedy_search(lm: CausalLM) -> None:
    strategy = ChainOfThought(temperature=0.0)
    asked = requests(strategy, max_new_tokens=40)
    out = decode(lm, asked, batch_size=3)
    for i, request in enumerate(asked):
        ids = torch.tensor([strategy.prompt_ids(lm, request.prompt)])
        want = lm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=40,
            eos_token_id=sorted(lm.eos_ids),
            pad_token_id=0,
        )
        assert out[i].token_ids == want[0, ids.shape[1] :].tolist()


@every_family
def test_one_candidate_is_greedy_decoding(lm: CausalLM) -> None:
    greedy = alone_greedy(lm)
    for settings in (
        {"mixture": "non_uniform", "k": 1},
        {"mixture": "uniform", "k": 1},
        {"mixture": "element_wise_max", "k": 1},
        {"mixture": "dirichlet", "k": 1},
        {"mixture": "nucleus", "nucleus_p": 1e-6},
        {"mixture": "hard_argmax"},
        {"mixture": "hard_sample", "k": 1},
        {"mixture": "non_uniform", "temperature": 0.0},
    ):
        strategy = SoftThinking(**{"T_e": 12, "T_total": 14, "min_end_prob": 1.0, **settings})  # type: ignore[arg-type]
        out = decode(unending(lm), _ask(greedy, strategy), 3)
        for i, want in enumerate(greedy.values()):
            read = []
            for step in out[i].steps[:12]:
                assert step.top is not None and step.phase == "think"
                read += [token for token, w in zip(step.top.ids, step.top.weights, strict=True) if w > 0.5]
            assert read == want, settings


def _ask(prompts: Any, strategy: Strategy) -> list[Request]:
    return [Request(p, strategy, id=i, max_new_tokens=12, trace="full") for i, p in enumerate(prompts)]


def alone_greedy(lm: CausalLM) -> dict[tuple[int, ...], list[int]]:
    prompts = [
        tuple(lm.tokens.encode_prompt(text)) for text in ("Hi", "What is 12 + 30?", "Tom has 3 apples.")
    ]
    strategy = ChainOfThought(temperature=0.0)
    out = decode(unending(lm), _ask(prompts, strategy))
    return {prompt: out[i].token_ids for i, prompt in enumerate(prompts)}


@pytest.mark.parametrize("settings", [{}, {"temperature2": 1.3, "top_k2": 30, "top_p2": 0.8, "min_p2": 0.01}])
@every_family
def test_no_thinking_steps_are_ordinary_sampling_after_the_transition(lm: CausalLM, settings: Any) -> None:
    soft = SoftThinking(**{"T_e": 0, "temperature": 1.0, **settings})
    ordinary = ChainOfThought(
        temperature=soft.temperature if soft.temperature2 is None else soft.temperature2,
        top_k=soft.top_k2,
        top_p=soft.top_p2,
        min_p=soft.min_p2,
    )
    transition = lm.tokens.encode("</think>") + lm.tokens.encode("<think>")
    asked = requests(soft)
    longer = [
        Request(
            [*soft.prompt_ids(lm, r.prompt), *transition],
            ordinary,
            id=r.id,
            max_new_tokens=r.max_new_tokens,
            seed=r.seed,
        )
        for r in asked
    ]
    mine, theirs = decode(lm, asked, 2), decode(lm, longer, 3)
    for row in mine:
        assert mine[row].token_ids == transition + theirs[row].token_ids
        assert mine[row].reason == theirs[row].reason


@every_family
def test_thinking_begins_where_the_prompt_ends(lm: CausalLM) -> None:
    """With an opener in the prompt, chain of thought and soft thinking read the same prompt."""
    for prompt in PROMPTS:
        cot = ChainOfThought(think_open="assistant_prefix").prompt_ids(lm, prompt)
        assert SoftThinking().prompt_ids(lm, prompt) == cot
