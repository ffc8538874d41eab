"""What the three viewers show."""

from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console

from unspoken.cli._live import SCALE, JsonViewer, LiveViewer, PlainViewer, style, visible
from unspoken.types import Done, Event, Generation, Note, Rewind, Step, Top, Usage, event_from_dict

TOP = Top(ids=(1, 2, 3, 4, 5), probs=(0.5, 0.2, 0.1, 0.1, 0.1), weights=(0.5, 0.3, 0.1, 0.1, 0.0))
EVENTS: list[Event] = [
    Step(0, 0, "think", "soft", top=TOP),
    Step(0, 1, "think", "latent"),
    Note(0, "think_end", "budget"),
    Step(0, 2, "transition", "forced", 9, "</think>"),
    Step(0, 3, "answer", "token", 5, "Yes", logprob=math.log(0.95)),
    Step(0, 4, "answer", "token", 6, " sir", logprob=math.log(0.05)),
    Done(0, "eos", Usage()),
]


def shown_by(viewer_events: list[Event], *, colour: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=colour, color_system="256" if colour else None, width=200)
    viewer = LiveViewer(console, lambda token: f"t{token}")
    feed(viewer, viewer_events)
    return out.getvalue()


def feed(viewer: LiveViewer | PlainViewer | JsonViewer, events: list[Event]) -> Generation:
    generation = Generation(0)
    for event in events:
        generation.apply(event)
        viewer.event(event)
    viewer.end(generation)
    return generation


def test_soft_steps_show_what_was_fed_and_only_that() -> None:
    shown = shown_by(EVENTS)
    assert "‹t1 50% · t2 30% · t3 10% · …›" in shown  # four were fed, three are shown
    assert "t5" not in shown  # a candidate of weight 0 was not fed
    assert "‹…›" in shown  # a latent step without candidates
    assert "[think_end: budget]" in shown
    assert shown.splitlines()[1:] == ["[think_end: budget]", "</think>Yes sir"]


def test_tokens_are_coloured_by_probability_in_a_terminal() -> None:
    shown = shown_by(EVENTS, colour=True)
    assert "\x1b[0mYes\x1b[1;38;5;202m sir\x1b[0m" in shown  # 95 %: plain, 5 %: bright
    assert "\x1b" not in shown_by(EVENTS)


def test_rewinds_are_visible() -> None:
    assert "back to step 1" in shown_by([Rewind(0, 1)])


@pytest.mark.parametrize(
    ("note", "shown"),
    [
        (
            Note(0, "mcmc", {"block": 0, "move": 2, "accepted": True, "log_ratio": 0.4231, "cut": 3}),
            "block 1, move 3: accepted, log ratio 0.42",
        ),
        (
            Note(0, "mcmc", {"block": 1, "move": 0, "accepted": False, "log_ratio": -math.inf}),
            "block 2, move 1: rejected, log ratio -inf",
        ),
        (
            Note(0, "power", {"moves": 12, "acceptance": 0.583, "logprob": -41.31}),
            "12 moves, 58 % accepted, log p -41.3",
        ),
        (Note(0, "power", {"moves": 0, "acceptance": 0.0, "logprob": -1.0}), "0 moves, log p -1.0"),
        (Note(0, "power", {"mine": 0.123456}), "power: mine 0.123"),
        (
            Note(0, "vote", {"chosen": 2, "shares": [0.25, 0.75], "by": None}),
            "vote: chosen 2, shares [0.25, 0.75], by None",
        ),
        (Note(0, "fillers", 3), "fillers: 3"),
    ],
)
def test_notes_are_short_lines(note: Note, shown: str) -> None:
    assert shown_by([note]) == f"[{shown}]\n"


def test_a_long_note_is_cut() -> None:
    shown = shown_by([Note(0, "smc", {f"key{i}": i for i in range(50)})])
    assert shown.startswith("[smc: key0 0, key1 1, ") and shown.endswith("…]\n") and len(shown) == 103


def test_plain_text_is_final_text_without_soft_steps() -> None:
    out = io.StringIO()
    feed(PlainViewer(out), [*EVENTS[:-1], Rewind(0, 4), Step(0, 4, "answer", "token", 7, "!"), EVENTS[-1]])
    assert out.getvalue() == "</think>Yes!\n"


def test_json_lines_are_the_events() -> None:
    out = io.StringIO()
    feed(JsonViewer(out), EVENTS)
    assert [event_from_dict(json.loads(line)) for line in out.getvalue().splitlines()] == EVENTS


@pytest.mark.parametrize("probability", [1.0, 0.9, 0.5, 0.2, 0.01, 0.0])
def test_style_follows_the_scale(probability: float) -> None:
    logprob = math.log(probability) if probability else -math.inf
    assert style(logprob) == next(name for bound, name in SCALE if math.exp(logprob) >= bound)


def test_style_of_no_and_of_rounded_probability() -> None:
    assert style(None) == ""
    assert style(1e-7) == ""  # rounding above 1


def test_white_space_is_visible() -> None:
    assert (visible("\n"), visible(" "), visible(" a"), visible("\t")) == ("↵", "␣", "a", "⇥")


def test_a_model_cannot_command_the_terminal() -> None:
    shown = shown_by([Step(0, 0, "answer", "token", 5, "a\x1b[2Jb\x03c\n")])
    assert shown == "a\\x1b[2Jb\\x03c\n"
