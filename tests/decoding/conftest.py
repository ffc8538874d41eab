from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from scripted import Script, ScriptedDecoder, ScriptedLM

from unspoken.lm.tokens import Tokens

MakeLM = Callable[..., ScriptedLM]


@pytest.fixture
def ids(tiny_model: Any) -> Callable[[str], list[int]]:
    """Function from a text to its ids."""
    return Tokens(tiny_model("llama")[1]).encode


@pytest.fixture
def scripted_lm(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> MakeLM:
    """Function from a script (and end tokens) to a `ScriptedLM`, over which the loop then runs."""
    monkeypatch.setattr("unspoken.decoding._rows.Decoder", ScriptedDecoder)

    def make(script: Script, eos: Iterable[int] | None = None) -> ScriptedLM:
        return ScriptedLM(tiny_model("llama")[1], script, eos)

    return make
