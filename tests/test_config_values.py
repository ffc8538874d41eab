"""Plain values: to JSON and back, and what a wrong one is told."""

from __future__ import annotations

import json
import math
from typing import Literal

import pytest

from unspoken.config import coerce, json_ready


def test_json_knows_no_infinity() -> None:
    values = {"a": [math.inf, -math.inf, 1.5], "b": {"c": (math.nan, "x", None, True)}}
    ready = json_ready(values)
    assert ready == {"a": ["inf", "-inf", 1.5], "b": {"c": [None, "x", None, True]}}
    json.dumps(ready, allow_nan=False)
    assert [coerce(value, float) for value in ready["a"]] == values["a"]
    with pytest.raises(ValueError, match="a number"):
        coerce("infinite", float)


def test_a_choice_that_may_be_left_out_is_explained() -> None:
    with pytest.raises(
        ValueError, match=r"must be one of 'left', 'right', not 'lefft' \(did you mean 'left'\?\)"
    ):
        coerce("lefft", Literal["left", "right"] | None)
    assert coerce(None, Literal["left", "right"] | None) is None
