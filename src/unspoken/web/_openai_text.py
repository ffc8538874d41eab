"""One choice of an OpenAI reply: its answer and its reasoning apart, cut at stop strings, with log-probabilities."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unspoken.types import Done, Event, Generation, Rewind, Step

if TYPE_CHECKING:
    from unspoken.decoding import Strategy
    from unspoken.lm.model import CausalLM

OPEN, CLOSE = "<think>", "</think>"
_GREEDY_BELOW = 1e-6
_STRAY = re.compile(rb"<0x([0-9A-F]{2})>")
FINISH = {"eos": "stop", "stop": "stop", "length": "length", "context": "length"}


@dataclass
class Splitter:
    """Text of the answer and of the thoughts; the markers around thoughts belong to neither.

    A marker may span several tokens, so text that may be its beginning is held back.
    """

    content: str = ""
    reasoning: str = ""
    _held: str = ""
    _inside: bool = False
    _begun: bool = False

    @property
    def inside(self) -> bool:
        """Whether the last step was a thought."""
        return self._inside

    @property
    def length(self) -> int:
        """Characters of the answer, those that are held back included."""
        return len(self.content) + (0 if self._inside else len(self._held))

    def push(self, step: Step) -> None:
        """Take the next step."""
        if step.phase == "transition":
            self._leave()
            return
        if step.phase == "think":
            if not self._inside:
                self._inside = True
                opened = (self._held + step.text).lstrip()
                self._held = opened.removeprefix(OPEN)
            else:
                self._held += step.text
            self._think()
            return
        if self._inside:
            self._leave()
        if self._begun:
            self.content += step.text
            return
        self._held += step.text
        if not OPEN.startswith(self._held.lstrip()):
            self.flush()

    def flush(self) -> None:
        """Nothing more comes: what was held back is text."""
        if self._inside:
            self._leave()
            return
        self.content += self._held
        self._begun, self._held = self._begun or bool(self._held), ""

    def _think(self) -> None:
        before, marker, after = self._held.partition(CLOSE)
        if marker:
            self.reasoning += before
            self._inside, self._held, self._begun = False, "", True
            self.content += after
            return
        safe = len(self._held) - _overlap(self._held, CLOSE)
        self.reasoning, self._held = self.reasoning + self._held[:safe], self._held[safe:]

    def _leave(self) -> None:
        if self._inside:
            self.reasoning += self._held
            self._held, self._inside, self._begun = "", False, True


def _overlap(text: str, marker: str) -> int:
    """Length of the longest end of the text that is a beginning of the marker."""
    return next((n for n in range(min(len(text), len(marker) - 1), 0, -1) if text.endswith(marker[:n])), 0)


@dataclass(frozen=True)
class Token:
    """A token of the answer, with the place in its text where it begins."""

    step: Step
    begin: int


class Choice:
    """One choice of a reply as it grows.

    Args:
        index: Its number.
        stop: Strings before which the answer ends.
        whole: Whether its text is given only when it is final: a strategy that decides about whole sequences may
            take text back.
    """

    def __init__(self, index: int, stop: Sequence[str], whole: bool) -> None:
        self.index, self.stop, self.whole = index, tuple(stop), whole
        self.generation = Generation(index)
        self._split = Splitter()
        self._tokens: list[Token] = []
        self._sent = [0, 0, 0]  # characters of content and reasoning, tokens

    def apply(self, event: Event) -> None:
        """Take an event."""
        self.generation.apply(event)
        if isinstance(event, Step):
            self._push(event)
        elif isinstance(event, Rewind):
            self._split, self._tokens = Splitter(), []
            for step in self.generation.steps:
                self._push(step)
        elif isinstance(event, Done):
            self._split.flush()

    def _push(self, step: Step) -> None:
        begin = self._split.length
        self._split.push(step)
        if self._split.inside:  # what looked like the answer's first tokens was the opening marker
            self._tokens = [t for t in self._tokens if t.begin < len(self._split.content)]
        # An end token is no token of the text.
        if step.phase == "answer" and step.token_id is not None and step.logprob is not None:
            self._tokens.append(Token(step, begin))

    @property
    def reason(self) -> str:
        """Why it ended; empty while it grows."""
        return self.generation.reason

    @property
    def finish(self) -> str | None:
        """The same in OpenAI's words."""
        return FINISH.get(self.reason) if self.reason else None

    @property
    def content(self) -> str:
        """The answer as far as it is final: up to a stop string, without what may be the beginning of one."""
        text = self._split.content
        ends = [place for s in self.stop if (place := text.find(s)) >= 0]
        if ends:
            return text[: min(ends)]
        if self.reason or not self.stop:
            return text
        return text[: len(text) - max(_overlap(text, s) for s in self.stop)]

    @property
    def reasoning(self) -> str:
        """The text of the thoughts."""
        return self._split.reasoning

    def tokens(self, end_ids: frozenset[int]) -> list[Token]:
        """The tokens of `content`."""
        length = len(self.content)
        ended = bool(self.reason) and length == len(self._split.content)
        return [
            t
            for t in self._tokens
            if t.step.token_id not in end_ids and (t.begin < length or (ended and t.begin <= length))
        ]

    def delta(self, end_ids: frozenset[int]) -> tuple[str, str, list[Token]]:
        """What is new of content, reasoning and tokens since the last call."""
        if self.whole and not self.reason:
            return "", "", []
        content, reasoning, tokens = self.content, self.reasoning, self.tokens(end_ids)
        first = self._sent
        self._sent = [max(first[0], len(content)), max(first[1], len(reasoning)), max(first[2], len(tokens))]
        return content[first[0] :], reasoning[first[1] :], tokens[first[2] :]

    @property
    def thinking_steps(self) -> int:
        """Steps that are not part of the answer."""
        return sum(step.phase != "answer" for step in self.generation.steps)


# -- log-probabilities ----------------------------------------------------------------------------


def law_temperature(strategy: Strategy) -> float | None:
    """The temperature of the probabilities that an answer's steps report; None if it is not known."""
    if strategy.name in ("best_of_n", "vote"):
        return law_temperature(strategy.inner)  # type: ignore[attr-defined]
    if strategy.name == "power":
        return float(strategy.target.tau)  # type: ignore[attr-defined]
    if strategy.name not in ("cot", "filler", "soft"):
        return None
    second = getattr(strategy, "temperature2", None)
    value = float(strategy.temperature if second is None else second)  # type: ignore[attr-defined]
    return 1.0 if value < _GREEDY_BELOW else value  # a greedy step is shown against the model's own law


def likeliest(step: Step, temperature: float, count: int) -> list[tuple[int, float]]:
    """The likeliest tokens of a step with the model's own log-probabilities (temperature 1, no filter).

    Steps report candidates under the tempered law, where `T ln p_T` differs from `ln p` by a constant: the chosen
    token has both numbers.
    """
    top = step.top
    if top is None or step.token_id is None or step.logprob is None or step.token_id not in top.ids:
        return []
    chosen = top.probs[top.ids.index(step.token_id)]
    if chosen <= 0.0:
        return []
    constant = step.logprob - temperature * math.log(chosen)
    found = [
        (i, temperature * math.log(p) + constant) for i, p in zip(top.ids, top.probs, strict=True) if p > 0
    ]
    return sorted(found, key=lambda pair: -pair[1])[:count]


def _bytes(text: str) -> bytes:
    """A token's bytes; those that are no text stand in it as `<0xE2>`."""
    return _STRAY.sub(lambda found: bytes([int(found[1], 16)]), text.encode("utf-8"))


def chat_logprobs(tokens: Sequence[Token], lm: CausalLM, temperature: float, count: int) -> dict[str, Any]:
    """`logprobs` of a chat choice."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text = lm.tokens.token_text(token)
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(_bytes(text))}

    content = []
    for token in tokens:
        step = token.step
        assert step.token_id is not None and step.logprob is not None
        top = [entry(i, lp) for i, lp in likeliest(step, temperature, count)] if count else []
        content.append({**entry(step.token_id, step.logprob), "top_logprobs": top})
    return {"content": content, "refusal": None}


def completion_logprobs(
    tokens: Sequence[Token], lm: CausalLM, temperature: float, count: int
) -> dict[str, Any]:
    """`logprobs` of a completion choice; the chosen token is always among the `top_logprobs`."""
    text = lm.tokens.token_text

    def top(step: Step) -> dict[str, float]:
        assert step.token_id is not None and step.logprob is not None
        best = {text(i): lp for i, lp in likeliest(step, temperature, count)}
        return {**best, text(step.token_id): step.logprob}

    def offset(token: Token) -> int:
        # Bytes that turn out to begin no letter are given out with the token after them, before its own text.
        assert token.step.token_id is not None
        own = text(token.step.token_id)
        return token.begin + (len(token.step.text) - len(own) if own and token.step.text.endswith(own) else 0)

    return {
        "tokens": [text(t.step.token_id) for t in tokens if t.step.token_id is not None],
        "token_logprobs": [t.step.logprob for t in tokens],
        "top_logprobs": [top(t.step) for t in tokens],
        "text_offset": [offset(t) for t in tokens],
    }
