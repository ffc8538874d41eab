"""Shows events as they happen: coloured tokens, and soft steps that are never dressed up as text."""

from __future__ import annotations

import json
import math
import sys
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.text import Text

from unspoken.types import FORCED_KINDS, LATENT_KINDS, Event, Generation, Note, Rewind, Step, event_to_dict

# Lower bounds of probability and a style for each: from plain (sure) to bright orange (unlikely). Blue to
# orange stays apart for the colour-blind, and every style reads on dark and on light backgrounds.
SCALE = ((0.9, ""), (0.6, "color(67)"), (0.3, "color(136)"), (0.1, "color(172)"), (0.0, "bold color(202)"))
LATENT_STYLE = "dim italic magenta"
FORCED_STYLE = "dim underline"
SHOWN_CANDIDATES = 3
NOTE_WIDTH = 100


class Viewer(Protocol):
    """Something that is shown each event of one row, and then its end."""

    def event(self, event: Event) -> None:
        """Take the next event."""

    def end(self, generation: Generation) -> None:
        """Take the folded row."""


class JsonViewer:
    """Each event as one line of JSON."""

    def __init__(self, out: TextIO) -> None:
        self.out = out

    def event(self, event: Event) -> None:
        """Write the event."""
        self.out.write(json.dumps(event_to_dict(event), ensure_ascii=False) + "\n")
        self.out.flush()

    def end(self, generation: Generation) -> None:
        """Nothing more to say."""


class PlainViewer:
    """Only the text, once it is final: what a pipe gets."""

    def __init__(self, out: TextIO) -> None:
        self.out = out

    def event(self, event: Event) -> None:
        """Wait: a rewind may still take text back."""

    def end(self, generation: Generation) -> None:
        """Write the text."""
        self.out.write(generation.text.rstrip("\n") + "\n")
        self.out.flush()


class LiveViewer:
    """Tokens coloured by probability as they come, for a terminal.

    A soft or latent step has no text. It is shown as `‹its nearest tokens›` in a style of its own.
    """

    def __init__(self, console: Console, token_text: Callable[[int], str]) -> None:
        self.console = console
        self.token_text = token_text
        self._fresh_line = True
        self._in_thoughts = False

    def event(self, event: Event) -> None:
        """Show the event."""
        if isinstance(event, Step):
            latent = event.kind in LATENT_KINDS
            if latent != self._in_thoughts and (latent or event.text):
                self._new_line()
                self._in_thoughts = latent
            if latent:
                self._write(self._latent(event) + " ", LATENT_STYLE)
            else:
                self._write(event.text, FORCED_STYLE if event.kind in FORCED_KINDS else style(event.logprob))
        elif isinstance(event, Rewind):
            self._aside(f"⟲ back to step {event.to}")
        elif isinstance(event, Note):
            self._aside(f"[{told(event)}]")

    def end(self, generation: Generation) -> None:
        """Close the last line."""
        self._new_line()

    def _latent(self, step: Step) -> str:
        if step.top is None:
            return "‹…›"
        texts = step.top.texts or tuple(map(self.token_text, step.top.ids))
        fed = [(t, w) for t, w in zip(texts, step.top.weights, strict=True) if w > 0]
        fed.sort(key=lambda pair: -pair[1])
        cells = [f"{visible(text)} {100 * weight:.0f}%" for text, weight in fed[:SHOWN_CANDIDATES]]
        more = ["…"] if len(fed) > SHOWN_CANDIDATES else []
        return "‹" + " · ".join(cells + more) + "›"

    def _aside(self, text: str) -> None:
        self._new_line()
        self._write(f"{text}\n", "dim")

    def _new_line(self) -> None:
        if not self._fresh_line:
            self._write("\n")

    def _write(self, text: str, style: str = "") -> None:
        if text:
            self.console.print(Text(printable(text), style=style), end="", soft_wrap=True, highlight=False)
            self._fresh_line = text.endswith("\n")


def told(note: Note) -> str:
    """A note on one short line; all of it is in the events (`--json`)."""
    value = note.value
    if not isinstance(value, Mapping):
        return f"{note.name}: {value}"
    if note.name == "mcmc" and {"block", "move", "accepted", "log_ratio"} <= value.keys():
        verdict = "accepted" if value["accepted"] else "rejected"
        return f"block {value['block'] + 1}, move {value['move'] + 1}: {verdict}, log ratio {value['log_ratio']:.2f}"
    if note.name == "power" and {"moves", "acceptance", "logprob"} <= value.keys():
        moves = value["moves"]
        accepted = f", {100 * value['acceptance']:.0f} % accepted" if moves else ""
        return f"{moves} move{'' if moves == 1 else 's'}{accepted}, log p {value['logprob']:.1f}"
    line = f"{note.name}: " + ", ".join(f"{key} {_short(item)}" for key, item in value.items())
    return line if len(line) <= NOTE_WIDTH else line[: NOTE_WIDTH - 1] + "…"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"[{', '.join(map(_short, value))}]" if isinstance(value, (list, tuple)) else str(value)


def printable(text: str) -> str:
    """The text with control characters made visible: a model's text must not command the terminal."""
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character) != "Cc"
        else f"\\x{ord(character):02x}"
        for character in text
    )


def style(logprob: float | None) -> str:
    """The style for a token of this log-probability."""
    if logprob is None:
        return ""
    probability = math.exp(min(logprob, 0.0))
    return next(name for bound, name in SCALE if probability >= bound)


def visible(text: str) -> str:
    """A token's text on one line, with white space made visible."""
    return printable(text.strip(" ").replace("\n", "↵").replace("\t", "⇥")) or "␣"


def legend() -> Text:
    """The colour scale in one line."""
    line = Text("probability: ", style="dim")
    for bound, name in SCALE:
        line.append(f"≥{bound:g} ", style=name)
    return line.append("· ‹mixture fed, never emitted›", style=LATENT_STYLE)


def make_viewer(token_text: Callable[[int], str], *, as_json: bool) -> Viewer:
    """The viewer for this process's stdout."""
    if as_json:
        return JsonViewer(sys.stdout)
    if sys.stdout.isatty():
        return LiveViewer(Console(file=sys.stdout), token_text)
    return PlainViewer(sys.stdout)
