"""The description of strategies is what their own checks enforce."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from unspoken.discovery import STRATEGIES
from unspoken.errors import ConfigError
from unspoken.lm.model import CausalLM
from unspoken.web._schema import describe, describe_all

NUMBERS = ("integer", "number")


def properties(name: str, lm: CausalLM) -> dict[str, Any]:
    return describe(name, lm)["schema"]["properties"]


def kinds(entry: dict[str, Any]) -> list[str]:
    return [entry["type"]] if isinstance(entry["type"], str) else entry["type"]


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_fields_defaults_and_help(name: str, lm: CausalLM) -> None:
    cls = STRATEGIES.find(name)
    described = describe(name, lm)
    fields = [f.name for f in dataclasses.fields(cls)]
    assert list(described["schema"]["properties"]) == fields
    assert described["summary"] and described["formula"] and "\n" not in described["formula"]
    made = cls()
    for key, entry in described["schema"]["properties"].items():
        assert entry["description"], key
        if key not in ("alpha", "inner"):  # alpha may follow from the temperature
            assert entry["default"] == getattr(made, key), key
    for preset in described["presets"].values():
        cls(**preset)


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_ranges_are_those_that_are_enforced(name: str, lm: CausalLM) -> None:
    cls = STRATEGIES.find(name)

    def fits(key: str, value: float) -> bool:
        try:
            return not any(s.startswith(f"{key} ") for s in cls(**{key: value}).check(lm))
        except ConfigError as error:
            return not any(s.startswith(f"{key} must") for s in error.problems)

    for key, entry in properties(name, lm).items():
        if not set(kinds(entry)) & set(NUMBERS):
            continue
        step = 1 if "integer" in kinds(entry) else 1e-6
        if (least := entry.get("minimum")) is not None:
            assert fits(key, least) and not fits(key, least - step), key
        if (above := entry.get("exclusiveMinimum")) is not None:
            assert fits(key, above + step) and not fits(key, above), key
        if (most := entry.get("maximum")) is not None:
            assert fits(key, most) and not fits(key, most + step), key
        if (below := entry.get("exclusiveMaximum")) is not None:
            assert fits(key, below - step) and not fits(key, below), key


def test_some_ranges_by_hand(lm: CausalLM) -> None:
    soft = properties("soft", lm)
    assert (soft["k"]["minimum"], soft["k"]["maximum"]) == (1, lm.vocab_size)
    assert (soft["min_end_prob"]["exclusiveMinimum"], soft["min_end_prob"]["maximum"]) == (0, 1)
    assert "minimum" not in soft["min_end_prob"]
    assert soft["T_total"]["type"] == ["integer", "null"] and soft["T_total"]["minimum"] == 1
    assert soft["budget_mode"] == soft["budget_mode"] | {"type": "string", "enum": ["fixed", "refund"]}
    assert properties("cot", lm)["min_p"]["exclusiveMaximum"] == 1
    inner = properties("vote", lm)["inner"]
    assert inner["default"]["name"] == "cot" and "soft" in inner["strategies"]


def test_all_are_listed(lm: CausalLM) -> None:
    listed = describe_all(lm)
    assert [entry["name"] for entry in listed] == STRATEGIES.names()
    assert {entry["name"] for entry in listed if entry["sequence"]} >= {"vote", "power", "smc"}
    assert next(e for e in listed if e["name"] == "soft")["title"] == "Soft Thinking"
