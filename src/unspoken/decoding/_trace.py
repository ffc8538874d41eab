"""From tensors to events: numbers gather on the device and cross to the host in blocks."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unspoken.decoding._base import Feed, Request, Row
from unspoken.types import FORCED_KINDS, Done, Event, Kind, Note, Phase, Step, Top, Usage

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM
    from unspoken.lm.tokens import Detokenizer

_SCALARS = ("logprob", "sampled_logprob", "entropy", "end_prob", "norm_ratio")
_SUMMARY = _SCALARS[2:]
NOT_FINITE = "error: the model gave logits that are not finite"
CONTEXT_PIECES = 4
"""Pieces of text that fix how the next token is decoded: byte-level and sentence-piece decoders look back less."""
_TOPS = ("top_ids", "top_probs", "top_weights")


@dataclass
class _Block:
    """The steps of one feed: what the host knows, and a packed tensor of numbers still on the device."""

    rows: list[Row]
    steps: list[Step]
    scalars: list[str]
    candidates: int
    numbers: Tensor | None  # [n, len(scalars) + 3 * candidates] float32


class Recorder:
    """Collects steps, texts and notes, and turns them into events when they are drained."""

    def __init__(self, lm: CausalLM) -> None:
        self._lm = lm
        self._pending: list[_Block | tuple[Request, Event]] = []
        self._streams: dict[Row, tuple[bool, Detokenizer]] = {}
        self._failed: set[Row] = set()

    def open(self, row: Row, kept: Sequence[Step] = ()) -> None:
        """A row begins, after `kept` steps of ordinary tokens; its notes so far are reported."""
        self._notes(row)
        if kept:
            # The decoder of text is brought to where it was by the last few pieces that it gave out.
            first, pieces = len(kept), 0
            while first and pieces < CONTEXT_PIECES:
                first -= 1
                pieces += bool(kept[first].text)
            stream = self._lm.tokens.detokenizer()
            for step in kept[first:]:
                assert step.token_id is not None
                stream.push(step.token_id)
            self._streams[row] = (False, stream)

    def failed(self, row: Row) -> bool:
        """Whether a drained step of the row had numbers that are not finite."""
        return row in self._failed

    def text(self, row: Row, token: int, kind: Kind) -> str:
        """The text a token adds; forced and sampled tokens are decoded as separate streams."""
        forced = kind in FORCED_KINDS
        before = ""
        stream = self._streams.get(row)
        if stream is None or stream[0] != forced:
            before = self.flush(row)
            stream = self._streams[row] = (forced, self._lm.tokens.detokenizer())
        return before + stream[1].push(token)

    def flush(self, row: Row) -> str:
        """End the row's present stream of text; returns what was still incomplete."""
        stream = self._streams.pop(row, None)
        return "" if stream is None else stream[1].flush()

    def steps(
        self, feed: Feed, rows: list[Row], phases: list[Phase], ids: Sequence[int | None], texts: list[str]
    ) -> None:
        """Record one step of each of the feed's rows."""
        steps = [
            Step(row.request.id, row.steps - 1, phase, feed.kind, token, text)
            for row, phase, token, text in zip(rows, phases, ids, texts, strict=True)
        ]
        given = {"logprob": feed.logprob, "sampled_logprob": feed.sampled_logprob, **feed.trace}
        scalars = [name for name in _SCALARS if given.get(name) is not None]
        parts = [given[name].float()[:, None] for name in scalars]  # type: ignore[union-attr]
        candidates = 0
        if "top_ids" in feed.trace:
            candidates = feed.trace["top_ids"].shape[1]
            # float32 holds every id below 2^24 exactly.
            parts += [feed.trace[name].float() for name in _TOPS]
        numbers = torch.cat(parts, dim=-1) if parts else None
        self._pending.append(_Block(rows, steps, scalars, candidates, numbers))
        for row in rows:
            self._notes(row)

    def close(self, row: Row, reason: str, usage: Usage, records: Mapping[str, Any]) -> None:
        """The row is over."""
        self._streams.pop(row, None)
        self._notes(row)
        usage = replace(usage, seconds=time.perf_counter() - row.started)
        self.done(row.request, Done(row.request.id, reason, usage, records))

    def done(self, request: Request, event: Done) -> None:
        """Report the end of a request, also of one that never became a row."""
        self._pending.append((request, event))

    def drain(self) -> list[tuple[Request, Event]]:
        """All events so far, in order, each with the request that it is about."""
        pending, self._pending = self._pending, []
        packed = [b.numbers.flatten() for b in pending if isinstance(b, _Block) and b.numbers is not None]
        flat = torch.cat(packed).cpu() if packed else torch.empty(0)
        events: list[tuple[Request, Event]] = []
        offset = 0
        for item in pending:
            if isinstance(item, _Block):
                size = 0 if item.numbers is None else item.numbers.numel()
                values = flat[offset : offset + size].view(len(item.rows), -1).tolist() if size else None
                offset += size
                for i, row in enumerate(item.rows):
                    step = item.steps[i] if values is None else self._complete(item, i, values[i])
                    events.append((row.request, step))
            else:
                request, event = item
                events.append((request, self._judged(request, event) if isinstance(event, Done) else event))
        return events

    def _judged(self, request: Request, done: Done) -> Done:
        """The end of a row, an error if its numbers were not finite: a short row may end before they are seen."""
        failed = [row for row in self._failed if row.request is request]
        self._failed.difference_update(failed)
        return replace(done, reason=NOT_FINITE) if failed else done

    def _complete(self, block: _Block, i: int, values: list[float]) -> Step:
        """A step with the numbers its row asked for."""
        row = block.rows[i]
        level = row.request.trace
        known = dict(zip(block.scalars, values, strict=False))
        if any(math.isnan(known.get(name, 0.0)) for name in ("logprob", "sampled_logprob", "entropy")):
            self._failed.add(row)
        if level == "none":
            known = {name: value for name, value in known.items() if name not in _SUMMARY}
        top = None
        if block.candidates and level == "full":
            first, k = len(block.scalars), block.candidates
            ids, probs, weights = (values[first + j * k : first + (j + 1) * k] for j in range(3))
            top = self._top([int(x) for x in ids], probs, weights)
        step = block.steps[i]
        return Step(
            step.row,
            step.index,
            step.phase,
            step.kind,
            step.token_id,
            step.text,
            top=top,
            **known,  # type: ignore[arg-type]
        )

    def _top(self, ids: list[int], probs: list[float], weights: list[float]) -> Top:
        shown = [j for j in range(len(ids)) if probs[j] > 0 or weights[j] > 0]
        return Top(
            tuple(ids[j] for j in shown),
            tuple(probs[j] for j in shown),
            tuple(weights[j] for j in shown),
            tuple(self._lm.tokens.token_text(ids[j]) for j in shown),
        )

    def _notes(self, row: Row) -> None:
        for name, value in row.notes:
            self._pending.append((row.request, Note(row.request.id, name, value)))
        row.notes.clear()
