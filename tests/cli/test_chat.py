"""`unspoken chat`: a scripted conversation."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unspoken.cli.main import main
from unspoken.decoding._base import Strategy
from unspoken.lm.model import CausalLM

Talk = Callable[..., tuple[str, str]]


@pytest.fixture
def talk(
    tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Talk:
    """Function from lines (and words of the command) to what is written and what is said beside it."""

    def run(*lines: str, words: tuple[str, ...] = ("cot",)) -> tuple[str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        options = ["-m", str(tiny_folder("llama")), "--max-new-tokens", "8"]
        assert main(["chat", *words, *options]) == 0
        out, err = capsys.readouterr()
        return out, err

    return run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Strategy, dict[str, Any]]]:
    """Every prompt that the model is given, with strategy and options."""
    found: list[tuple[Any, Strategy, dict[str, Any]]] = []
    real = CausalLM.stream

    def stream(self: CausalLM, prompt: Any, strategy: Strategy, **options: Any) -> Any:
        found.append((prompt, strategy, options))
        return real(self, prompt, strategy, **options)

    monkeypatch.setattr(CausalLM, "stream", stream)
    return found


def test_turns_build_on_each_other(talk: Talk, asked: list[Any]) -> None:
    out, err = talk("first", "", "second", "/exit", "never")
    assert [prompt[-1]["content"] for prompt, *_ in asked] == ["first", "second"]
    roles = [message["role"] for message in asked[1][0]]
    assert roles == ["user", "assistant", "user"]
    assert asked[1][0][1]["content"].strip() in out
    assert err.count("forward passes") == 2
    assert asked[0][2]["seed"] != asked[1][2]["seed"]


def test_the_same_words_give_the_same_conversation(talk: Talk) -> None:
    assert talk("one", "two")[0] == talk("one", "two")[0]


def test_the_strategy_changes_between_turns(talk: Talk, asked: list[Any]) -> None:
    _, err = talk(
        "a", "/strategy soft k=3 T_e=2", "b", "/set temperature=0.9 strategy=uniform", "c", "/strategy"
    )
    names = [strategy.name for _, strategy, _ in asked]
    assert names == ["cot", "soft", "soft"]
    assert (asked[1][1].k, asked[1][1].T_e) == (3, 2)
    assert (asked[2][1].k, asked[2][1].temperature, asked[2][1].mixture) == (3, 0.9, "uniform")
    assert "Tokens in each mixture" in err and "soft steps" in err


def test_options_of_the_conversation(talk: Talk, asked: list[Any]) -> None:
    talk('/set max_new_tokens=3 seed=5 system="Be brief."', "/trace none", "a", "/set system=", "/new", "b")
    first, second = asked
    assert first[0][0] == {"role": "system", "content": "Be brief."} and len(first[0]) == 2
    assert first[2]["max_new_tokens"] == 3 and first[2]["trace"] == "none"
    assert second[0] == [{"role": "user", "content": "b"}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/strateg soft", "Did you mean '/strategy'"),
        ("/strategy sof", "Did you mean 'soft'"),
        ("/strategy soft k=0", "k must be at least 1"),
        ("/strategy soft k=99999", "vocabulary"),
        ("/set", "needs a field"),
        ("/set temperature", "Write: /set temperature=VALUE"),
        ("/set alpha 0.2", "'alpha' is no field with a value.\n  Write: /set alpha=0.2"),
        ('/set system "Be brief."', "Write: /set system='Be brief.'"),
        ("/set 3", "Write: /set temperature=0.8"),
        ("/strategy soft k 3", "Write: /strategy soft k=3"),
        ("/set temperature=-1", "temperature must be"),
        ("/set warmth=1", "Unknown field 'warmth'"),
        ("/set max_new_tokens=0", "at least 1"),
        ('/set system="half', "Quotes come in pairs"),
        ("/trace all", "Unknown trace level"),
    ],
)
def test_a_mistake_is_told_and_ends_nothing(talk: Talk, asked: list[Any], line: str, message: str) -> None:
    _, err = talk(line, "still here")
    assert message in err and "Traceback" not in err
    assert len(asked) == 1 and asked[0][1].name == "cot" and asked[0][1].temperature == 0.6


def test_an_answer_that_fails_is_not_kept(talk: Talk, asked: list[Any]) -> None:
    _, err = talk("x1?" * 2000, "short")
    assert "context holds" in err
    assert len(asked[1][0]) == 1


def test_ctrl_c_stops_an_answer_only(talk: Talk, asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from unspoken.cli import _live

    real, calls = _live.PlainViewer.event, []

    def event(self: Any, value: Any) -> None:
        calls.append(value)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(self, value)

    monkeypatch.setattr(_live.PlainViewer, "event", event)
    _, err = talk("a", "b")
    assert "not kept" in err and [len(prompt) for prompt, *_ in asked] == [1, 1]


def test_help(talk: Talk) -> None:
    assert "/strategy NAME" in talk("/help")[1]
