"""The live rows: their places in the cache, their logits, and the prompts they share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unspoken.decoding._base import Row
from unspoken.decoding._sequence import Decided, Job
from unspoken.lm.cache import Prefix
from unspoken.lm.decode import Decoder, Gap
from unspoken.types import Usage

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM

PADDING_ALLOWED = 1.2
"""Prompts are prefilled together while padding adds at most this factor."""
PREFILL_TOKENS = 8192

Key = tuple[tuple[int, ...], Gap]
"""What rows must have in common to share a prompt that was read once: its ids, and the gap in its positions."""


@dataclass(eq=False)
class Live:
    """A row, its place among the others being its index in the cache.

    Attributes:
        row: The row.
        job: The branch that it decodes, if it is one.
        resume: A token of the kept steps that is still to be read.
        decided: Its first token, given.
        tokens: Tokens chosen so far; the other counts are of latent and forced steps, and of forwards.
        inputs: The vectors read, if they are recorded.
        hidden: The final hidden states, if they are recorded.
    """

    row: Row
    job: Job | None = None
    resume: int | None = None
    decided: Decided | None = None
    tokens: int = 0
    latent: int = 0
    forced: int = 0
    forwards: int = 0
    inputs: list[Tensor] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)

    @property
    def key(self) -> Key:
        return key_of(self.row)

    @property
    def cancelled(self) -> bool:
        return self.row.request.cancelled if self.job is None else self.job.dropped

    @property
    def asked(self) -> bool:
        """Whether its strategy decides about the next step."""
        return not self.row.forced and self.resume is None and self.decided is None

    @property
    def usage(self) -> Usage:
        return Usage(len(self.row.prompt_ids), self.tokens, self.latent, self.forced, self.forwards)


class Rows:
    """The rows of one batch.

    Args:
        lm: The model.
        size: Most rows at once.

    Attributes:
        live: The rows, in the order of the cache.
        logits: [n, V] at each one's last position; None if there is none.
        hidden: [n, D] the final hidden states there.
    """

    def __init__(self, lm: CausalLM, size: int) -> None:
        self.lm = lm
        self.live: list[Live] = []
        self.logits: Tensor | None = None
        self.hidden: Tensor | None = None
        self._decoder = Decoder(lm, size)
        self._prompts: dict[Key, tuple[Tensor, Tensor]] = {}  # read by a live row, or held
        self._held: dict[Key, Prefix] = {}  # prompts that branches may begin at again

    def __len__(self) -> int:
        return len(self.live)

    def admit(self, new: Sequence[Live], wanted: Callable[[Key], bool]) -> None:
        """Let new rows read their prompts: each distinct prompt once, of like lengths together.

        Args:
            new: The rows.
            wanted: Whether a prompt may be begun at again, so that its keys and values are held.
        """
        first: dict[Key, list[Live]] = {}
        for live in new:
            first.setdefault(live.key, []).append(live)
        waiting = sorted(first.keys() - self._prompts.keys(), key=lambda key: len(key[0]))
        while waiting:
            count = _group([prompt for prompt, _ in waiting])
            group, waiting = waiting[:count], waiting[count:]
            logits, hidden = self._decoder.prefill(
                [prompt for prompt, _ in group], gaps(gap for _, gap in group)
            )
            for i, key in enumerate(group):
                state = (logits[i : i + 1], hidden[i : i + 1])
                self._prompts[key] = state
                self._join(first[key].pop(0), state)
                if wanted(key):
                    self._held[key] = self._decoder.cache.prefix(len(self.live) - 1, len(key[0]))
        for key, lives in first.items():
            for live in lives:
                if key in self._held:
                    self._decoder.cache.append(self._held[key])
                else:
                    source = next(i for i, other in enumerate(self.live) if other.key == key)
                    self._decoder.cache.fork(source, len(key[0]))
                self._join(live, self._prompts[key])

    def resume(self, live: Live, prefix: Prefix) -> None:
        """Add a row that has read a prefix already; the token that it reads next is known."""
        self._decoder.cache.append(prefix)
        logits = torch.zeros(1, self.lm.vocab_size, device=self.lm.device)
        hidden = torch.zeros(1, self.lm.hidden_size, device=self.lm.device, dtype=self.lm.dtype)
        self._join(live, (logits, hidden), forwards=0)

    def _join(self, live: Live, state: tuple[Tensor, Tensor], forwards: int = 1) -> None:
        logits, hidden = state
        live.forwards += forwards
        self.live.append(live)
        self.logits = logits if self.logits is None else torch.cat([self.logits, logits])
        self.hidden = hidden if self.hidden is None else torch.cat([self.hidden, hidden])

    def step(self, inputs: Tensor) -> None:
        """Every row reads one vector: [n, D]."""
        for live in self.live:
            live.forwards += 1
            live.resume = None
        self.logits, self.hidden = self._decoder.step(inputs, gaps(live.row.gap for live in self.live))

    def prefix(self, place: int) -> Prefix:
        """What a row that ends now has read: not its last step, unless its strategy looked past that and took none."""
        return self._decoder.cache.prefix(place, self._decoder.cache.lengths[place])

    def drop(self, place: int) -> None:
        """Remove a row; the last one takes its place."""
        key = self.live[place].key
        self._decoder.cache.drop(place)
        self.live[place] = self.live[-1]
        self.live.pop()
        if not self.live:
            self.logits = self.hidden = None
        self._forget(key)

    def release(self, ids: Sequence[int]) -> None:
        """No branch will begin at this prompt again."""
        for key in [key for key in self._held if key[0] == tuple(ids)]:
            del self._held[key]
            self._forget(key)

    def _forget(self, key: Key) -> None:
        if key not in self._held and not any(live.key == key for live in self.live):
            self._prompts.pop(key, None)


def kept_places(n: int, ended: Iterable[int]) -> list[int]:
    """Old places of the remaining rows: a dropped row's place is taken by the last one."""
    places = list(range(n))
    for i in sorted(ended, reverse=True):
        places[i] = places[-1]
        places.pop()
    return places


def key_of(row: Row) -> Key:
    """What rows that share a prompt have in common."""
    return tuple(row.prompt_ids), row.gap


def gaps(values: Iterable[Gap]) -> list[Gap] | None:
    """The gaps of some rows; None where no row has one."""
    listed = list(values)
    return listed if any(width for _, width in listed) else None


def _group(prompts: list[tuple[int, ...]]) -> int:
    """How many of the prompts (shortest first) to prefill together."""
    total = 0
    for i, prompt in enumerate(prompts):
        total += len(prompt)
        padded = (i + 1) * len(prompt)
        if i and (padded > PADDING_ALLOWED * total or padded > PREFILL_TOKENS):
            return i
    return len(prompts)
