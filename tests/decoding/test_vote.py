"""Votes: how answers are read and compared, who wins, and what is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from unspoken.decoding import Answers, Request, run
from unspoken.decoding._base import derive_seed
from unspoken.decoding._sequence import Branch
from unspoken.decoding.best_of_n import BestOfN
from unspoken.decoding.cot import ChainOfThought
from unspoken.decoding.vote import PLAIN, Vote, read_plainly
from unspoken.errors import ConfigError
from unspoken.lm.model import CausalLM
from unspoken.types import Step, fold

Tiny = Callable[[str], CausalLM]
QUESTION = "What is 12 + 30?"


def branch(text: str, *logprobs: float, reason: str = "eos") -> Branch:
    steps = [Step(0, i, "answer", "token", 1, text if i == 0 else "", p) for i, p in enumerate(logprobs)]
    return Branch(steps, reason)


def decide(
    strategy: Vote, branches: list[Branch], answers: Answers | None = None
) -> tuple[int, dict[str, Any]]:
    """What the vote keeps of these candidates, and its note."""
    from torch import Generator

    from unspoken.decoding import Row

    request = Request([0], strategy, answers=answers)
    row, lm = Row(request, [0], 9, Generator()), None
    work = strategy.run(lm, row)  # type: ignore[arg-type]
    assert len(next(work)) == strategy.n == len(branches)
    try:
        work.send(branches)
    except StopIteration as stop:
        return branches.index(stop.value), dict(row.notes)["vote"]
    raise AssertionError("a vote is one round")


def test_the_majority_wins_and_its_likeliest_is_kept() -> None:
    kept, note = decide(
        Vote(n=4),
        [branch("so 7", -0.1), branch("It is 42.", -5.0), branch("x = 42.0", -3.0), branch("1,042", -0.2)],
    )
    assert kept == note["chosen"] == 2 and note["answer"] == "42"
    assert note["classes"][0] == {"answer": "42", "size": 2, "weight": 2.0, "members": [1, 2]}
    assert [c["answer"] for c in note["classes"][1:]] == ["7", "1042"]


def test_a_tie_goes_to_the_likelier_class() -> None:
    some = [branch("1", -4.0), branch("2", -1.0), branch("1", -1.0), branch("2", -2.0)]
    assert decide(Vote(n=4), some)[0] == 1
    assert decide(Vote(n=2), [branch("1", -1.0), branch("2", -1.0)])[0] == 0


def test_candidates_without_an_answer_do_not_vote() -> None:
    cut = [branch("It is 9", -0.1, reason=reason) for reason in ("length", "context")]
    kept, note = decide(Vote(n=4), [*cut, branch(" \n", -0.1), branch("5", -8.0)])
    assert kept == 3 and note["without_answer"] == 3
    kept, note = decide(Vote(n=2), [branch("", -3.0), branch("", -2.0)])
    assert kept == 1 and note["answer"] is None and note["classes"] == []


def test_failed_candidates_do_not_vote() -> None:
    some = [branch("1", -0.1, reason="error: oh"), branch("1", -0.1, reason="error: oh"), branch("2", -3.0)]
    kept, note = decide(Vote(n=3), some)
    assert kept == 2 and note["without_answer"] == 0 and len(note["classes"]) == 1
    # Of those without an answer, too, a failed one is not kept.
    kept, note = decide(Vote(n=2), [branch("", -0.1, reason="error: oh"), branch("", -9.0)])
    assert kept == 1 and note["without_answer"] == 1


def test_probability_weighs_votes_by_the_mean_over_tokens() -> None:
    # Two unlikely candidates against one likely, longer one: e^-2 + e^-2 against e^-0.5.
    some = [branch("1", -2.0), branch("1", -1.0, -3.0), branch("2", -0.5, -0.5)]
    assert decide(Vote(n=3), some)[0] in (0, 1)
    kept, note = decide(Vote(n=3, weights="probability"), some)
    assert kept == 2
    assert [c["weight"] for c in note["classes"]] == pytest.approx([math.exp(-0.5), 2 * math.exp(-2.0)])


def test_the_task_says_what_is_the_same() -> None:
    asked = []

    def same(a: str, b: str) -> bool:
        asked.append((a, b))
        return int(a) % 10 == int(b) % 10

    def read(text: str, truncated: bool) -> str | None:
        return text if text.isdigit() else None

    some = [branch("3", -1.0), branch("12", -3.0), branch("no 3", -1.0), branch("22", -2.0)]
    kept, note = decide(Vote(n=4), some, Answers(read, same))
    assert kept == 3 and note["without_answer"] == 1
    assert asked == [("3", "12"), ("3", "22"), ("12", "22")]


def test_a_task_that_fails_ends_only_its_own_row(tiny_lm: Tiny) -> None:
    def broken(text: str, truncated: bool) -> str | None:
        raise ZeroDivisionError("oh")

    asked = [
        Request("Hi", Vote(n=2), id=0, max_new_tokens=4, answers=Answers(broken, str.__eq__)),
        Request("Hi", Vote(n=2), id=1, max_new_tokens=4),
    ]
    out = fold(run(tiny_lm("llama"), asked))
    assert out[0].reason == "error: The answers could not be compared: ZeroDivisionError: oh"
    assert out[1].reason in ("eos", "length")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("First 3.\nThe answer is 42.", "42"),
        ("10-3 = 7", "7"),
        ("x=-3.50", "-3.5"),
        ("It costs $1,200.00!", "1200"),
        ("100", "100"),
        ("007.50", "7.5"),
        ("x = -0.00", "0"),
        ("12345678901234567890123456789012345678.10", "12345678901234567890123456789012345678.1"),
        ("So:\n**Blue  Whale.**\n\n", "blue whale"),
        ("...", None),
        ("", None),
    ],
)
def test_reading_without_a_task(text: str, answer: str | None) -> None:
    assert read_plainly(text, False) == answer
    assert PLAIN.read(text, True) is None


def test_long_numbers_that_differ_are_different_answers() -> None:
    long = "1" * 40
    kept, note = decide(
        Vote(n=3), [branch(long + "2", -1.0), branch(long + "3", -2.0), branch(long + "3", -3.0)]
    )
    assert kept == 1 and [c["size"] for c in note["classes"]] == [2, 1]
    assert read_plainly("0." + long + "2", False) != read_plainly("0." + long, False)


def test_candidates_are_those_of_independent_runs(tiny_lm: Tiny) -> None:
    """On a model: the vote of the texts that each seed gives alone."""
    lm, inner = tiny_lm("llama"), ChainOfThought(temperature=1.0)
    first = Answers(lambda text, _: text[:1] or None, str.__eq__)
    texts = []
    for i in range(12):
        request = Request(QUESTION, inner, seed=derive_seed(4, "candidate", i), max_new_tokens=6)
        texts.append(fold(run(lm, [request]))[0].answer_text)
    vote = Request(QUESTION, Vote(inner, 12), seed=4, max_new_tokens=6, answers=first)
    (out,) = fold(run(lm, [vote], batch_size=5)).values()
    note = out.notes["vote"]
    assert [c["text"] for c in note["candidates"]] == texts
    letters = [text[:1] for text in texts if text[:1]]
    assert note["classes"][0]["size"] == max(letters.count(letter) for letter in letters)
    assert out.answer_text == texts[note["chosen"]]
    assert out.answer_text[:1] == note["answer"]
    assert out.usage.tokens == sum(c["tokens"] for c in note["candidates"])


def test_a_vote_inside_asks_the_same_task(tiny_lm: Tiny) -> None:
    read: list[str] = []

    def reader(text: str, truncated: bool) -> str | None:
        read.append(text)
        return "same"

    request = Request(QUESTION, BestOfN(Vote(n=3), 2), max_new_tokens=4, answers=Answers(reader, str.__eq__))
    fold(run(tiny_lm("llama"), [request]))
    assert len(read) == 6


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match="weights must be one of"):
        Vote(weights="many")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="n must be at least 1"):
        Vote(n=0)
