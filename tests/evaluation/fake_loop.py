"""A loop without a model: events that depend on each request's seed only, so that tests of a run are fast.

Rows finish out of order, as in the real loop, and requests are taken only when a place is free. `main` runs in
a process of its own, to be killed in the middle.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from unspoken import decoding
from unspoken.decoding import Request, Strategy
from unspoken.tasks._base import Task
from unspoken.types import Done, Event, Example, Grade, Message, Note, Step, Top, Usage


@dataclass(frozen=True)
class Toy(Task):
    """Sums; every seventh has no gold answer."""

    size: int = 12
    data: str | None = None

    def examples(self) -> list[Example]:
        return [
            Example(f"toy-{i}", f"{i} + {i}?", None if i % 7 == 6 else str(2 * i)) for i in range(self.size)
        ]

    def prompt(self, example: Example) -> list[Message]:
        return [{"role": "user", "content": example.question}]

    def grade(self, example: Example, text: str, *, truncated: bool = False) -> Grade:
        if text == "BREAK":
            raise ZeroDivisionError("broken grader")
        if not text.isdigit():
            return Grade("truncated" if truncated else "unparsed")
        return Grade("correct" if text == example.answer else "wrong", text, "digits")


@dataclass(frozen=True)
class Fake(Strategy):
    """Right with this chance."""

    mixture: str = "non_uniform"
    T_e: int = 3
    T_total: int | None = 20
    k: int = 2
    temperature: float = 0.6
    skill: float = 0.5
    impossible: bool = False

    def check(self, lm: Any) -> list[str]:
        return ["k is above the vocabulary."] if self.impossible else []

    def next_input(self, logits: Any, hidden: Any, state: Any) -> Any:
        raise NotImplementedError


class FakeLM:
    """As much of a model as an evaluation asks for."""

    device = torch.device("cpu")

    def __init__(self, **info: Any) -> None:
        self._info = {
            "source": "tiny",
            "dtype": "float32",
            "attn": "sdpa",
            "device": "cpu",
            "hash": "abc",
            **info,
        }

    def info(self) -> dict[str, Any]:
        return dict(self._info)


DELAY = 0.0
FAIL: set[str] = set()  # ids of rows that fail
INTERRUPT_AFTER: list[int] = []  # Ctrl-C after so many rows
TAKEN: list[str] = []  # ids of requests in the order they were taken
TEXTS: dict[str, str] = {}  # answers to give instead


def events_of(request: Request) -> list[Event]:
    """All events of a row, from its seed alone."""
    rng = random.Random(request.seed)
    row = request.id
    assert isinstance(row, str)
    if row in FAIL:
        return [Done(row, "error: the prompt is longer than the context", Usage())]
    assert not isinstance(request.prompt, str) and isinstance(request.prompt[0], dict)
    gold = 2 * int(request.prompt[0]["content"].split()[0])
    strategy = request.strategy
    assert isinstance(strategy, Fake)
    thinking = rng.randint(1, strategy.T_e)
    steps: list[Event] = []
    for i in range(thinking):
        top = Top((i, i + 1, 9), (0.5, 0.3, 0.2), (0.625, 0.375, 0.0)) if request.trace == "full" else None
        steps.append(Step(row, i, "think", "soft", entropy=1.0, norm_ratio=0.5, top=top))
    steps.append(Note(row, "thinking_ended", "budget" if thinking == strategy.T_e else "end_prob"))
    steps.append(Step(row, thinking, "transition", "forced", token_id=7, text="</think>"))
    fate = rng.random()
    if row in TEXTS:
        answer, reason = TEXTS[row], "eos"
    elif fate < strategy.skill:
        answer, reason = str(gold), "eos"
    else:
        wrong, cut = str(gold + rng.randint(1, 2)), "…"
        answer, reason = (wrong, "eos") if fate < 0.85 else ((cut, "length") if fate < 0.93 else ("?", "eos"))
    steps += [
        Step(row, thinking + 1 + i, "answer", "token", token_id=ord(c), text=c) for i, c in enumerate(answer)
    ]
    seconds = time.perf_counter() % 1  # differs from run to run, as real times do
    count = len(answer)
    steps.append(Done(row, reason, Usage(5, count, thinking, 1, thinking + count + 2, seconds)))
    return steps


def run(
    lm: Any, requests: Iterable[Request | None], *, batch_size: int = 8, block: Any = None
) -> Iterator[Event]:
    """As `unspoken.decoding.run`."""
    source, live, done = iter(requests), [], 0
    while True:
        while len(live) < batch_size and (request := next(source, None)) is not None:
            TAKEN.append(str(request.id))
            live.append(iter(events_of(request)))
        if not live:
            return
        for events in list(live):
            event = next(events)
            yield event
            if isinstance(event, Done):
                live.remove(events)
                done += 1
                time.sleep(DELAY)
                if INTERRUPT_AFTER and done == INTERRUPT_AFTER[0]:
                    raise KeyboardInterrupt


def main(folder: str, delay: float) -> None:
    """Run the toy evaluation in a process of its own, slowly."""
    from unspoken.evaluation import evaluate

    global DELAY
    DELAY = delay
    decoding.run = run
    model: Any = FakeLM()
    evaluate(model, Toy(), Fake(), samples=2, output=folder, batch_size=3)
