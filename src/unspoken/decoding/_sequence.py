"""Strategies that decide about whole sequences, and the conductor that runs many of them in one batch.

A `SequenceStrategy` is a generator. It yields `Spawn`s (go on from a kept part of something, or from the
prompt) and is given the finished `Branch`es; votes, particles and Markov chains are all of this form. The
loop decodes the branches of all such generators together, each as soon as there is a free row.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from unspoken.decoding._base import Feed, Request, Row, State, Strategy
from unspoken.errors import UnspokenError
from unspoken.types import Done, Event, Note, Rewind, Step, Usage

if TYPE_CHECKING:
    from unspoken.lm.cache import Prefix
    from unspoken.lm.model import CausalLM

REJECTED = "rejected"
"""Why a branch ended that its strategy gave up on; its keys and values are not kept."""


@dataclass(frozen=True)
class Decided:
    """A token that is known before any forward: where two sequences part, say."""

    token_id: int
    logprob: float
    sampled_logprob: float


@dataclass(frozen=True, eq=False)
class Spawn:
    """Decode one branch.

    Attributes:
        inner: How.
        max_new_tokens: Most new steps, `decided` included.
        seed: Of the branch's generator.
        parent: What it continues; None continues the prompt.
        keep: How many of the parent's first steps it keeps. A branch that keeps some must be of ordinary tokens.
        decided: Its first new token, if that is known.
        generator: Used instead of one made from `seed`.
        memory: For the inner strategy: put into the row's memory.
        shown: Whether its steps are reported as they come, as those of the request's row.
        held: Whether its keys and values are kept when it ends, so that it can be continued.
    """

    inner: Strategy
    max_new_tokens: int
    seed: int
    parent: Branch | None = None
    keep: int = 0
    decided: Decided | None = None
    generator: torch.Generator | None = None
    memory: dict[str, Any] = field(default_factory=dict)
    shown: bool = True
    held: bool = True


@dataclass(eq=False)
class Branch:
    """What became of a `Spawn`.

    Attributes:
        steps: Those kept of the parent, then the new ones.
        reason: Why it ended, as in `Done`; or `rejected`.
        usage: Work done for it.
        notes: The last value of each note.
        memory: What the inner strategy kept.
        prefix: Keys and values of all that was read: the prompt and the steps, as a rule without the last one.
    """

    steps: list[Step]
    reason: str = ""
    usage: Usage = field(default_factory=Usage)
    notes: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    prefix: Prefix | None = None

    @property
    def token_ids(self) -> list[int]:
        return [step.token_id for step in self.steps if step.token_id is not None]

    @property
    def text(self) -> str:
        return "".join(step.text for step in self.steps)

    @property
    def answer_text(self) -> str:
        """The text of the answer phase, the only one that is compared."""
        return "".join(step.text for step in self.steps if step.phase == "answer")

    @property
    def failed(self) -> bool:
        """Whether it could not be decoded to an end; its reason says why."""
        return self.reason.startswith("error")

    @property
    def complete(self) -> bool:
        """Whether it ended by itself: with an end token or a stop string."""
        return self.reason in ("eos", "stop")

    @property
    def logprobs(self) -> list[float]:
        """The model's own log-probabilities of the tokens it chose; forced text was not chosen."""
        return [step.logprob for step in self.steps if step.kind == "token" and step.logprob is not None]

    @property
    def logprob(self) -> float:
        """Their sum."""
        return math.fsum(self.logprobs)


Work = Generator[list[Spawn], list[Branch], Branch]


def room(lm: CausalLM, row: Row) -> int:
    """Most steps that a sequence can have: the budget, or what the prompt leaves of the context."""
    limit = lm.max_positions
    return row.budget if limit is None else min(row.budget, limit - len(row.prompt_ids))


def finished(branch: Branch, row: Row, total: int) -> Branch:
    """An answer that grew in blocks, with the reason why it is over as a whole.

    What fills its last block without an end has that block's reason.

    Args:
        branch: The answer.
        row: Its request.
        total: Most steps it could have; see `room`.
    """
    if branch.complete:
        return branch
    return Branch(branch.steps, "context" if len(branch.steps) == total < row.budget else "length")


@dataclass(frozen=True)
class SequenceStrategy(Strategy):
    """A strategy that decides about whole sequences rather than about steps."""

    tolerant: ClassVar[bool] = False
    """Whether it is given branches that failed, and goes on with the others; otherwise one of them ends the row."""

    @abstractmethod
    def run(self, lm: CausalLM, row: Row) -> Work:
        """Decide which sequence is kept.

        Args:
            lm: The model.
            row: The request, its prompt as ids, its budget (most steps of one sequence), a generator and notes.

        Yields:
            Branches to decode next; at most one of them is shown. The generator goes on when all have ended, and
            is given them in the same order.

        Returns:
            The branch that is the answer.
        """

    def next_input(self, logits: torch.Tensor, hidden: torch.Tensor, state: State) -> list[Feed]:
        """Never asked: the rows of the batch belong to the inner strategies."""
        raise TypeError(f"{type(self).__name__} decides about sequences; its branches decide about steps.")


@dataclass(eq=False)
class Open:
    """A request under way whose strategy decides about sequences.

    Attributes:
        row: Its request, prompt and notes.
        work: The strategy's generator.
        branches: Those of the present yield.
        waiting: How many of them have not ended.
        shown: The steps that whoever folds the events has now.
        closed: Whether it is over; what its branches still do is not reported.
        job: The branch that it is, if it is one itself (a vote over power samples, say).
    """

    row: Row
    work: Work
    job: Job | None = None
    branches: list[Branch] = field(default_factory=list)
    waiting: int = 0
    shown: list[Step] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    closed: bool = False


@dataclass(eq=False)
class Job:
    """A branch that waits for a row, or has one."""

    owner: Open
    spawn: Spawn
    branch: Branch

    @property
    def dropped(self) -> bool:
        """Whether nobody wants it any more."""
        owner = self.owner
        return owner.closed or owner.row.request.cancelled or (owner.job is not None and owner.job.dropped)

    def make_row(self, lm: CausalLM) -> Row:
        """The row that decodes the branch; what its strategy knew after the kept steps is restored."""
        outer, spawn = self.owner.row, self.spawn
        request = Request(
            outer.prompt_ids,
            spawn.inner,
            id=outer.request.id,
            max_new_tokens=spawn.max_new_tokens,
            seed=spawn.seed,
            stop=outer.request.stop,
            trace=outer.request.trace,
            answers=outer.request.answers,
        )
        generator = spawn.generator or torch.Generator().manual_seed(spawn.seed)
        row = Row(request, outer.prompt_ids, spawn.inner.budget(request), generator, memory=spawn.memory)
        if isinstance(spawn.inner, SequenceStrategy):
            return row
        spawn.inner.begin(lm, row)
        for step in self.branch.steps:
            assert step.token_id is not None and step.kind == "token", "only ordinary tokens can be kept"
            row.steps += 1
            row.phase_steps += 1
            spawn.inner.observe(row, step.token_id, step.text)
        if request.stop:
            tail = "".join(s.text for s in self.branch.steps if s.phase == "answer")
            row.memory["stop_tail"] = tail[-max(map(len, request.stop)) :]
        return row


Report = tuple[Request, Event]


class Conductor:
    """Runs the generators of all open requests.

    Args:
        lm: The model.
        closed: Called when a request is over.
    """

    def __init__(self, lm: CausalLM, closed: Callable[[Open], None]) -> None:
        self._lm = lm
        self._closed = closed
        self.open: list[Open] = []
        self.jobs: deque[Job] = deque()
        self._by_request: dict[int, Job] = {}  # of the branch's own request

    def begin(self, row: Row, job: Job | None = None) -> Iterator[Report]:
        """Start a request, or a branch that decides about sequences itself."""
        strategy = row.request.strategy
        assert isinstance(strategy, SequenceStrategy)
        owner = Open(row, strategy.run(self._lm, row), job)
        self.open.append(owner)
        yield from self.route(self._resume(owner, None))

    def joined(self, job: Job, row: Row) -> None:
        """A branch has got its row."""
        self._by_request[id(row.request)] = job

    def route(self, reports: Iterable[Report]) -> Iterator[Report]:
        """Reports in terms of the requests that came from outside."""
        for request, event in reports:
            if self.owns(request):
                yield from self.route(self._take(request, event))
            else:
                yield request, event

    def owns(self, request: Request) -> bool:
        """Whether this is the request of a branch."""
        return id(request) in self._by_request

    def job(self, request: Request) -> Job:
        """The branch that a request of the batch decodes."""
        return self._by_request[id(request)]

    def _take(self, request: Request, event: Event) -> Iterator[Report]:
        """An event of a branch: what it makes of its request."""
        job = self._by_request[id(request)]
        owner, branch = job.owner, job.branch
        if isinstance(event, Step):
            branch.steps.append(event)
            if job.spawn.shown and not owner.closed:
                owner.shown.append(event)
                yield owner.row.request, event
        elif isinstance(event, Rewind):
            del branch.steps[event.to :]
            if job.spawn.shown and not owner.closed:
                del owner.shown[event.to :]
                yield owner.row.request, event
        elif isinstance(event, Note):
            branch.notes[event.name] = event.value
        else:
            del self._by_request[id(request)]
            yield from self._ended(job, event.reason, event.usage)

    def ended(self, job: Job, reason: str) -> Iterator[Report]:
        """A branch has ended before it got a row."""
        yield from self.route(self._ended(job, reason, Usage()))

    def _ended(self, job: Job, reason: str, usage: Usage) -> Iterator[Report]:
        """A branch has ended; with the last of them its request goes on."""
        owner, branch = job.owner, job.branch
        branch.reason, branch.usage = reason, usage
        if owner.closed:
            return
        owner.usage += replace(usage, prompt_tokens=0, seconds=0.0)
        owner.waiting -= 1
        strategy = owner.row.request.strategy
        assert isinstance(strategy, SequenceStrategy)
        if reason == "cancelled" or (branch.failed and not strategy.tolerant):
            yield from self._close(owner, reason)
        elif not owner.waiting:
            yield from self._resume(owner, owner.branches)

    def _resume(self, owner: Open, branches: list[Branch] | None) -> Iterator[Report]:
        request = owner.row.request
        try:
            spawns = next(owner.work) if branches is None else owner.work.send(branches)
        except StopIteration as stop:
            answer: Branch = stop.value
            yield from self._show(owner, answer.steps)
            for name, value in answer.notes.items():
                yield request, Note(request.id, name, value)
            yield from self._notes(
                owner
            )  # last, for a strategy within one of its own kind has notes of the same name
            yield from self._close(owner, answer.reason)
            return
        except UnspokenError as error:
            yield from self._close(owner, f"error: {error}")
            return
        assert spawns, "a sequence strategy must yield a branch or return one"
        yield from self._notes(owner)
        owner.branches = [
            Branch(spawn.parent.steps[: spawn.keep] if spawn.parent else []) for spawn in spawns
        ]
        owner.waiting = len(spawns)
        for spawn, branch in zip(spawns, owner.branches, strict=True):
            if spawn.shown:
                yield from self._show(owner, branch.steps)
        # Ahead of those that wait: chains under way end before others begin, and few are held at once.
        self.jobs.extendleft(
            Job(owner, spawn, branch)
            for spawn, branch in reversed(list(zip(spawns, owner.branches, strict=True)))
        )

    def _show(self, owner: Open, steps: list[Step]) -> Iterator[Report]:
        """Bring whoever folds the events from the steps shown to these."""
        request, shown = owner.row.request, owner.shown
        common = 0
        for mine, theirs in zip(shown, steps, strict=False):
            if mine is not theirs:
                break
            common += 1
        if common < len(shown):
            del shown[common:]
            yield request, Rewind(request.id, common)
        for step in steps[common:]:
            shown.append(step)
            yield request, step

    def _notes(self, owner: Open) -> Iterator[Report]:
        request = owner.row.request
        for name, value in owner.row.notes:
            yield request, Note(request.id, name, value)
        owner.row.notes.clear()

    def _close(self, owner: Open, reason: str) -> Iterator[Report]:
        owner.closed = True
        owner.work.close()
        self.open.remove(owner)
        # In place: the loop may be taking jobs from this very queue.
        kept = [job for job in self.jobs if job.owner is not owner]
        self.jobs.clear()
        self.jobs.extend(kept)
        self._closed(owner)
        row = owner.row
        seconds = time.perf_counter() - row.started
        usage = replace(owner.usage, prompt_tokens=len(row.prompt_ids), seconds=seconds)
        yield row.request, Done(row.request.id, reason, usage, {"prompt_ids": row.prompt_ids})
