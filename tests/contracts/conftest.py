"""What the contract tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from unspoken.lm.model import CausalLM

from .battery import ending_lm


@pytest.fixture
def lm(tiny_model: Callable[[str], tuple[Any, Any]], family: str) -> CausalLM:
    return ending_lm(*tiny_model(family))
