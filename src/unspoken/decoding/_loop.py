"""The one batched step loop.

Requests come from an iterable; up to `batch_size` rows are live, and a finished row's place is taken by
the next request at once. In each step the rows are grouped by strategy, each strategy says what its rows
read next, and one forward serves them all. What the loop does comes out as `Event`s. Branches of sequence-level
strategies are rows like others; the conductor says which are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unspoken.decoding._base import Feed, Request, Row, State, Strategy
from unspoken.decoding._rows import Live, Rows, kept_places
from unspoken.decoding._sampling import token_logprob
from unspoken.decoding._sequence import Conductor, Job, Open, Report, SequenceStrategy
from unspoken.decoding._trace import NOT_FINITE, Recorder
from unspoken.errors import ConfigError, UnspokenError
from unspoken.types import FORCED_KINDS, LATENT_KINDS, Done, Event, RowId, Usage

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM

BLOCK_STEPS = 16
"""Steps whose numbers cross to the host together when nobody watches live."""
_CONTINUED = ("eos", "stop", "length", "context")
"""Ends of branches that may be gone on with: their keys and values are kept."""


def run(
    lm: CausalLM,
    requests: Iterable[Request | None],
    *,
    batch_size: int = 8,
    live: bool = False,
    between: Callable[[], None] | None = None,
) -> Iterator[Event]:
    """Decode requests with continuous refill.

    Args:
        lm: The model.
        requests: Where work comes from. `None` means that there is nothing at the moment: live rows go
            on, and the iterable is asked again after the next step (or at once if no row is live, so it
            should then block until it has something).
        batch_size: Most rows at once.
        live: Report each step as soon as it is done, rather than in blocks.
        between: Called before each step, while no forward is under way.

    Yields:
        Events of all rows, interleaved. A row that cannot be run ends with `Done(reason="error: ...")`
        and does not disturb the others. Closing the iterator drops all live rows.

    Raises:
        ConfigError: If `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, not {batch_size}.")
    return _Loop(lm, iter(requests), batch_size, live, between).events()


class _Loop:
    def __init__(
        self,
        lm: CausalLM,
        requests: Iterator[Request | None],
        batch_size: int,
        live: bool,
        between: Callable[[], None] | None,
    ) -> None:
        self.lm = lm
        self.requests: Iterator[Request | None] | None = requests
        self.batch_size = batch_size
        self.block = 1 if live else BLOCK_STEPS
        self.between = between
        self.recorder = Recorder(lm)
        self.rows = Rows(lm, batch_size)
        self.finished = False  # whether a row has ended since the last drain
        self.conductor = Conductor(lm, self._release)

    @property
    def live(self) -> list[Live]:
        return self.rows.live

    def events(self) -> Iterator[Event]:
        since = 0
        while self.requests is not None or self.live or self.conductor.open:
            yield from self._emit(self._admit())
            if self.between is not None:
                self.between()
            if self.live:
                self._step()
            since += 1
            if since >= self.block or self.finished or not self.live:
                # A finished row is handed over at once: whoever keeps it must not lose it to a later failure.
                since, self.finished = 0, False
                yield from self._emit(self._drained())
        yield from self._emit(self._drained())

    def _drained(self) -> Iterator[Report]:
        return self.conductor.route(self.recorder.drain())

    @staticmethod
    def _emit(reports: Iterable[Report]) -> Iterator[Event]:
        for request, event in reports:
            if request.sink is not None:
                request.sink(event)
            yield event

    # -- admission ------------------------------------------------------------------------------

    def _admit(self) -> Iterator[Report]:
        """Fill the free places: with branches that wait, then from the source."""
        reports: list[Report] = []
        new: list[Live] = []
        jobs = self.conductor.jobs

        def free() -> int:
            return self.batch_size - len(self.live) - len(new) - len(jobs)

        def take_jobs() -> None:
            while jobs and len(self.live) + len(new) < self.batch_size:
                job = jobs.popleft()
                if job.dropped:
                    reports.extend(self.conductor.ended(job, "cancelled"))
                else:
                    self._branch(job, new, reports)

        take_jobs()
        while self.requests is not None and free() > 0:
            try:
                request = next(self.requests)
            except StopIteration:
                self.requests = None
                break
            if request is None:
                break
            try:
                taken = {live.row.request.id for live in [*new, *self.live]}
                taken |= {owner.row.request.id for owner in self.conductor.open}
                row = self._make_row(request, taken)
            except UnspokenError as error:
                self.recorder.done(request, Done(request.id, f"error: {error}", Usage()))
                continue
            if isinstance(request.strategy, SequenceStrategy):
                reports.extend(self.conductor.begin(row))
                take_jobs()
            else:
                self.recorder.open(row)
                new.append(Live(row))
        if new:
            self.rows.admit(new, lambda key: self._wanted(key[0]))
        yield from reports

    def _branch(self, job: Job, new: list[Live], reports: list[Report]) -> None:
        """Give a branch its row; one that begins at its prompt is put with the new ones."""
        spawn = job.spawn
        try:
            row = job.make_row(self.lm)
        except UnspokenError as error:
            reports.extend(self.conductor.ended(job, f"error: {error}"))
            return
        self.conductor.joined(job, row)
        if isinstance(spawn.inner, SequenceStrategy):
            reports.extend(self.conductor.begin(row, job))
            return
        live = Live(row, job, decided=spawn.decided)
        self.recorder.open(row, job.branch.steps)
        if not spawn.keep and spawn.decided is None:
            new.append(live)
            return
        length = len(row.prompt_ids) + spawn.keep
        if spawn.decided is None:
            # The last kept token is read again to have logits after it; a decided token needs none.
            live.resume, length = job.branch.steps[-1].token_id, length - 1
        assert spawn.parent is not None and spawn.parent.prefix is not None, "nothing is held to continue"
        self.rows.resume(live, spawn.parent.prefix.first(length))

    def _release(self, owner: Open) -> None:
        """An open request is over: its prompt may go."""
        if not self._wanted(tuple(owner.row.prompt_ids)):
            self.rows.release(owner.row.prompt_ids)

    def _wanted(self, ids: tuple[int, ...]) -> bool:
        """Whether an open request may yet begin at this prompt again."""
        return any(tuple(owner.row.prompt_ids) == ids for owner in self.conductor.open)

    def _make_row(self, request: Request, taken: set[RowId]) -> Row:
        strategy = request.strategy
        if request.id in taken:
            raise ConfigError(f"A request with the id {request.id!r} is already live.")
        problems = strategy.check(self.lm)
        if problems:
            raise ConfigError(problems)
        ids = strategy.prompt_ids(self.lm, request.prompt)
        generator = torch.Generator().manual_seed(request.seed)
        row = Row(request, ids, strategy.budget(request), generator)
        if isinstance(strategy, SequenceStrategy):
            if request.record:
                raise ConfigError(
                    f"{strategy.name} decides about sequences; record is for strategies of steps."
                )
        else:
            strategy.begin(self.lm, row)
        limit = self.lm.max_positions
        if limit is not None and len(ids) + row.gap[1] >= limit:
            gap = f" and leaves out {row.gap[1]} positions" if row.gap[1] else ""
            raise ConfigError(
                f"The prompt has {len(ids)} tokens{gap}, but the model's context holds {limit}."
            )
        return row

    # -- one step -------------------------------------------------------------------------------

    @torch.no_grad()
    def _step(self) -> None:
        ended: dict[int, str] = {}
        for i, live in enumerate(self.live):
            if live.cancelled:
                ended[i] = "cancelled"
            elif self.recorder.failed(live.row):
                ended[i] = NOT_FINITE
        feeds = self._ask(ended)
        n, device = len(self.live), self.lm.device
        tokens = torch.zeros(n, dtype=torch.long, device=device)
        vectors: list[tuple[list[int], Tensor]] = []
        for feed in feeds:
            if feed.token_ids is not None:
                if len(feed.rows) == n and feed.rows == list(range(n)):
                    tokens = feed.token_ids
                else:
                    tokens[feed.rows] = feed.token_ids
            else:
                assert feed.vectors is not None
                vectors.append((feed.rows, feed.vectors))
            self._advance(feed, ended)
        for i, live in enumerate(self.live):
            if live.resume is not None and i not in ended:
                tokens[i] = live.resume
        for i in sorted(ended, reverse=True):
            self._finish(i, ended[i])
        if not self.live:
            return
        if len(vectors) == 1 and vectors[0][0] == list(range(n)):
            inputs = vectors[0][1]
        else:
            inputs = self.lm.embed(tokens)
            for rows, values in vectors:
                inputs[rows] = values
        if ended:
            inputs = inputs[kept_places(n, ended)]
        self.rows.step(inputs)

    def _ask(self, ended: dict[int, str]) -> list[Feed]:
        """Feeds for all rows that have not ended, in terms of their places."""
        all_logits, all_hidden = self.rows.logits, self.rows.hidden
        assert all_logits is not None and all_hidden is not None
        groups: dict[Strategy, list[int]] = {}
        for i, live in enumerate(self.live):
            if i not in ended and live.asked:
                groups.setdefault(live.row.request.strategy, []).append(i)
        feeds = []
        for strategy, places in groups.items():
            everyone = len(places) == len(self.live)
            state = State(self.lm, [self.live[i].row for i in places])
            logits = all_logits if everyone else all_logits[places]
            hidden = all_hidden if everyone else all_hidden[places]
            try:
                answers = strategy.next_input(logits, hidden, state)
            except UnspokenError as error:
                ended.update(dict.fromkeys(places, f"error: {error}"))
                continue
            for feed in answers:
                feed.rows = [places[i] for i in feed.rows]
                feeds.append(feed)
            for i in places:
                row = self.live[i].row
                if row.counted >= row.budget and not row.forced:
                    ended[i] = "length"
        decided = [i for i, live in enumerate(self.live) if i not in ended and live.decided is not None]
        if decided:
            feeds.append(self._decided(decided))
        forced = [i for i, live in enumerate(self.live) if i not in ended and live.row.forced]
        if forced:
            ids = [self.live[i].row.forced.popleft() for i in forced]
            chosen = torch.tensor(ids, device=self.lm.device)
            feeds.append(
                Feed(forced, "forced", chosen, logprob=token_logprob(all_logits[forced], chosen), ends=False)
            )
        return feeds

    def _decided(self, places: list[int]) -> Feed:
        """The first tokens of branches that were given them."""
        given = []
        for i in places:
            given.append(self.live[i].decided)
            self.live[i].decided = None
        device = self.lm.device
        return Feed(
            places,
            "token",
            torch.tensor([d.token_id for d in given if d], device=device),
            logprob=torch.tensor([d.logprob for d in given if d], device=device),
            sampled_logprob=torch.tensor([d.sampled_logprob for d in given if d], device=device),
        )

    def _advance(self, feed: Feed, ended: dict[int, str]) -> None:
        """Record one step of the feed's rows, and decide which of them it ends."""
        ids = feed.token_ids.tolist() if feed.token_ids is not None else [None] * len(feed.rows)
        phases = [self.live[i].row.phase for i in feed.rows]
        texts = []
        for j, (i, token) in enumerate(zip(feed.rows, ids, strict=True)):
            live = self.live[i]
            row, strategy = live.row, live.row.request.strategy
            text = "" if token is None else self.recorder.text(row, token, feed.kind)
            reason = self._account(live, feed, token, text)
            if reason is not None:
                ended[i] = reason
                text += self.recorder.flush(row)
            texts.append(text)
            if feed.kind in FORCED_KINDS:
                if not row.forced:
                    row.enter(row.after_forced)
            elif token is not None:
                strategy.observe(row, token, text)
                if row.phase == "think":
                    phases[j] = "think"  # the step that opens a thinking block belongs to it
        self.recorder.steps(feed, [self.live[i].row for i in feed.rows], phases, ids, texts)
        for j, i in enumerate(feed.rows):
            live = self.live[i]
            if "inputs" in live.row.request.record:
                vector = feed.vectors[j] if feed.vectors is not None else self.lm.embed(feed.token_ids[j])  # type: ignore[index]
                live.inputs.append(vector.clone())
            if "hidden" in live.row.request.record:
                assert self.rows.hidden is not None
                live.hidden.append(self.rows.hidden[i].clone())

    def _account(self, live: Live, feed: Feed, token: int | None, text: str) -> str | None:
        """Count the step; returns why the row ends with it, if it does."""
        row = live.row
        row.steps += 1
        row.phase_steps += 1
        if feed.kind in FORCED_KINDS:
            live.forced += 1
        else:
            row.counted += 1
            live.latent += feed.kind in LATENT_KINDS
            live.tokens += feed.kind not in LATENT_KINDS
        if token is not None and feed.ends and token in self.lm.eos_ids:
            return "eos" if row.ending is None else row.ending
        if row.ending is not None:
            return row.ending
        if row.phase == "answer" and row.request.stop and feed.kind == "token":
            longest = max(map(len, row.request.stop))
            tail = row.memory.get("stop_tail", "") + text
            if any(s in tail for s in row.request.stop):
                return "stop"
            row.memory["stop_tail"] = tail[-longest:]
        if row.counted >= row.budget and not row.forced:
            return "length"
        limit = self.lm.max_positions
        if limit is not None and len(row.prompt_ids) + row.gap[1] + row.steps >= limit:
            return "context"
        return None

    def _finish(self, place: int, reason: str) -> None:
        """Report the end of a row and give its place to the last one."""
        live = self.live[place]
        self.finished = True
        row = live.row
        if live.job is not None:
            live.job.branch.memory = row.memory
            if reason in _CONTINUED and live.job.spawn.held:
                live.job.branch.prefix = self.rows.prefix(place)
        self.rows.drop(place)
        records = {
            name: torch.stack(getattr(live, name)) if row.steps else torch.empty(0, self.lm.hidden_size)
            for name in row.request.record
        }
        self.recorder.close(row, reason, live.usage, {"prompt_ids": row.prompt_ids, **records})
