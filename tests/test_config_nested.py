"""Strategies inside strategies, as configurations: from names and mappings, recorded, and read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import unspoken as un
from unspoken.config import describe, fingerprint, from_dict, to_dict
from unspoken.decoding import Strategy
from unspoken.errors import ConfigError

NESTED = un.BestOfN(un.Vote(un.SoftThinking(k=5), n=2), n=3)


def test_an_inner_strategy_may_be_an_object_a_name_or_a_mapping() -> None:
    soft: Any = {"name": "soft", "k": 5, "T-e": 9}
    assert un.Vote(soft) == un.Vote(un.SoftThinking(k=5, T_e=9))
    assert from_dict(un.Vote, {"inner": "cot", "n": 3}) == un.Vote(un.ChainOfThought(), n=3)
    assert un.Vote().inner == un.ChainOfThought(temperature=1.0)


def test_a_recorded_configuration_is_read_again() -> None:
    recorded = json.loads(json.dumps(to_dict(NESTED)))
    assert recorded["inner"]["name"] == "vote" and recorded["inner"]["inner"]["name"] == "soft"
    assert recorded["inner"]["inner"]["k"] == 5 and recorded["n"] == 3
    assert from_dict(un.BestOfN, recorded) == NESTED
    assert hash(from_dict(un.BestOfN, recorded)) == hash(NESTED)


def test_the_fingerprint_sees_the_inner_strategy() -> None:
    prints = {
        fingerprint(to_dict(un.Vote(inner)))
        for inner in (
            un.ChainOfThought(),
            un.ChainOfThought(temperature=0.7),
            un.BeamSearch(),
            un.BeamSearch(2),
        )
    }
    assert len(prints) == 4


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        ("sof", "Unknown strategy 'sof'. Did you mean 'soft'?"),
        ({"k": 5}, "must give the strategy's name"),
        ({"name": "soft", "kk": 5}, "Unknown field 'kk' of SoftThinking. Did you mean 'k'?"),
        ({"name": "soft", "k": 0}, "k must be at least 1"),
        ({"name": "soft", "k": "x"}, "SoftThinking.k: must be an integer, not 'x'"),
        (7, "must be a strategy, its name, or a mapping of its name and fields, not 7"),
    ],
)
def test_mistakes_inside_are_said_with_the_others(inner: Any, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_dict(un.BestOfN, {"inner": inner, "by": "sun"})
    assert words in str(error.value) and "by: must be one of 'sum', 'mean'" in str(error.value)
    with pytest.raises(ConfigError) as error:
        un.BestOfN(inner)
    assert words in str(error.value)


def test_the_type_in_words() -> None:
    assert describe(Strategy) == "a strategy, its name, or a mapping of its name and fields"


def test_a_checkpoint_remembers_a_nested_strategy(
    tiny_lm: Callable[[str], un.CausalLM], tmp_path: Path
) -> None:
    from unspoken.lm import checkpoint

    checkpoint.remember(tmp_path, strategy=NESTED, provenance={})
    assert checkpoint.recall(tmp_path) == (NESTED, {})


def test_an_evaluation_records_it_and_goes_on(tiny_lm: Callable[[str], un.CausalLM], tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    options: dict[str, Any] = {"output": tmp_path / "run", "max_new_tokens": 4, "limit": 2}
    first = un.evaluate(lm, "arithmetic", un.Vote(un.BeamSearch(2), n=1), **options)
    recorded = first.config["strategy"]
    assert (
        recorded["name"] == "vote" and recorded["inner"]["name"] == "beam" and recorded["inner"]["width"] == 2
    )
    again = un.evaluate(lm, "arithmetic", un.Vote(un.BeamSearch(2), n=1), **options)
    assert again.rows == first.rows
    with pytest.raises(ConfigError, match=r"inner\.width"):
        un.evaluate(lm, "arithmetic", un.Vote(un.BeamSearch(3), n=1), **options)
