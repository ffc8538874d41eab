"""The seam between a way of thinking and the loop that runs it.

The loop asks one question at each step: *what does each row read next?* A `Strategy` answers with
`Feed`s: sampled tokens, mixtures of embeddings, or vectors. Everything else (batching, caching, stops,
budgets, forced text, events) is the loop's.
"""

from __future__ import annotations

import hashlib
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from unspoken.config import Configured
from unspoken.errors import ConfigError
from unspoken.types import Event, Kind, Message, Phase, RowId, Trace

if TYPE_CHECKING:
    from unspoken.lm.decode import Gap
    from unspoken.lm.model import CausalLM

Prompt = str | Sequence[Message] | Sequence[int]
RECORDS = ("inputs", "hidden")


@dataclass(frozen=True)
class Answers:
    """How a task reads and compares answers, for strategies that decide by what is answered.

    Attributes:
        read: From the text of an answer phase, and whether its budget cut it off, to the answer; None if the text
            gives none.
        same: Whether two answers are the same answer.
    """

    read: Callable[[str, bool], str | None]
    same: Callable[[str, str], bool]


@dataclass
class Request:
    """One row of work.

    Attributes:
        prompt: A question (asked through the chat template), chat messages, or token ids (used as they are).
        strategy: How to decode it.
        id: Name of the row in every event; unique among live rows.
        max_new_tokens: Most steps this row may take, thinking included. A strategy that sets its own
            budget (`T_total`) overrides it. Forced text does not count.
        seed: Of the row's own generator; the row's result depends on nothing else.
        stop: Strings that end the row when its answer text contains one.
        trace: `none` keeps ids, texts and log-probabilities; `summary` adds entropy, end probability and
            norms; `full` adds the candidates of every step.
        record: Tensors to attach to the row's `Done` and so to its `Generation`, one entry a step: `inputs`
            [T, D], the vectors read; `hidden` [T, D], the final hidden states (after the last norm) from which
            each step was decided.
        sink: Called with each event of the row, as well as the stream that `run` returns.
        answers: How answers are read and compared; None leaves it to the strategy.
    """

    prompt: Prompt
    strategy: Strategy
    id: RowId = 0
    max_new_tokens: int = 512
    seed: int = 0
    stop: tuple[str, ...] = ()
    trace: Trace = "summary"
    record: tuple[str, ...] = ()
    sink: Callable[[Event], None] | None = None
    answers: Answers | None = None
    cancelled: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        problems = []
        if not isinstance(self.max_new_tokens, Integral):
            problems.append(f"max_new_tokens must be a whole number, not {self.max_new_tokens!r}.")
        elif self.max_new_tokens < 1:
            problems.append(f"max_new_tokens must be at least 1, not {self.max_new_tokens}.")
        if self.trace not in ("none", "summary", "full"):
            problems.append(f"trace must be none, summary or full, not {self.trace!r}.")
        if any(not s for s in self.stop):
            problems.append("A stop string must not be empty.")
        unknown = [name for name in self.record if name not in RECORDS]
        if unknown:
            problems.append(f"record must be of {', '.join(RECORDS)}, not {', '.join(map(repr, unknown))}.")
        if problems:
            raise ConfigError(problems)

    def cancel(self) -> None:
        """End the row at the next step, with reason `cancelled`. May be called from another thread."""
        self.cancelled = True


@dataclass(eq=False)
class Row:
    """A live request: the host-side state that the loop and its strategy share.

    Attributes:
        request: What was asked.
        prompt_ids: The prompt as ids.
        budget: Steps it may take; forced ones do not count.
        generator: Its own source of randomness, on the CPU so that results do not depend on the device.
        phase: The present phase; a strategy sets it.
        steps: Steps of all kinds so far (the next step's index).
        counted: Steps that count against the budget.
        phase_steps: Steps in the present phase.
        forced: Ids to feed before the strategy is asked again.
        after_forced: The phase that follows the forced text.
        ending: Why the strategy wants the row to end with the present step; None while it does not.
        gap: Positions left out, for models trained with a hole in their positions: the first position
            that moves, and by how many it and all later ones do.
        memory: For the strategy.
    """

    request: Request
    prompt_ids: list[int]
    budget: int
    generator: torch.Generator
    phase: Phase = "answer"
    steps: int = 0
    counted: int = 0
    phase_steps: int = 0
    forced: deque[int] = field(default_factory=deque)
    after_forced: Phase = "answer"
    ending: str | None = None
    gap: Gap = (0, 0)
    memory: dict[str, Any] = field(default_factory=dict)
    notes: list[tuple[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def enter(self, phase: Phase) -> None:
        """Go to a phase."""
        self.phase, self.phase_steps = phase, 0

    def force(self, ids: Sequence[int], *, phase: Phase = "transition", then: Phase = "answer") -> None:
        """Feed these ids next, as steps of `phase`, and go on in phase `then`."""
        if ids:
            self.enter(phase)
            self.forced.extend(ids)
            self.after_forced = then
        else:
            self.enter(then)

    def note(self, name: str, value: Any) -> None:
        """Report something about the row; it becomes a `Note` event after the present step."""
        self.notes.append((name, value))


@dataclass
class Feed:
    """What some rows read next; every tensor has one entry a row, in the order of `rows`.

    Exactly one of `token_ids` and `vectors` is set. A token that ends its row (EOS, a stop string, the
    budget) is recorded and not fed.

    Attributes:
        rows: Which rows, as positions in the group that the strategy was given.
        kind: The kind of step.
        token_ids: [n] int64, tokens to feed.
        vectors: [n, D] vectors to feed.
        logprob: [n] the model's own log-probability of the token (temperature 1, unfiltered).
        sampled_logprob: [n] under the law sampled from.
        trace: Further tensors: `entropy`, `end_prob`, `norm_ratio` [n]; `top_ids`, `top_probs`,
            `top_weights` [n, K]; a weight of 0 marks a candidate that was not fed.
        ends: Whether an end token among `token_ids` ends its row.
    """

    rows: list[int]
    kind: Kind
    token_ids: Tensor | None = None
    vectors: Tensor | None = None
    logprob: Tensor | None = None
    sampled_logprob: Tensor | None = None
    trace: dict[str, Tensor] = field(default_factory=dict)
    ends: bool = True


@dataclass
class State:
    """What a strategy sees at a step besides logits: the model and the rows of its group."""

    lm: CausalLM
    rows: list[Row]

    def trace(self, rows: Sequence[int], level: Trace) -> bool:
        """Whether any of these rows asked for at least this much trace."""
        wanted = ("summary", "full") if level == "summary" else ("full",)
        return any(self.rows[i].request.trace in wanted for i in rows)

    def uniform(self, rows: Sequence[int]) -> Tensor:
        """One number in [0, 1) from each row's own generator: [n] float64, on the model's device."""
        draws = [torch.rand((), generator=self.rows[i].generator, dtype=torch.float64) for i in rows]
        return torch.stack(draws).to(self.lm.device)


@dataclass(frozen=True)
class Strategy(Configured):
    """A way to think and answer. A frozen dataclass in a file of its own; the file name is its name.

    The fields are the Python arguments, the command's flags, the web form and the recorded
    configuration. Each field's docstring (the string under it) becomes its help text.
    """

    formula: ClassVar[str] = ""
    """What the strategy does in one line of symbols, for menus."""
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    """Settings with names, such as those of the publication: fields by name of the preset."""

    def check(self, lm: CausalLM) -> list[str]:
        """All that does not fit this model, each as one sentence (`k` above the vocabulary, say)."""
        return []

    def budget(self, request: Request) -> int:
        """Most counted steps the row may take.

        Raises:
            ConfigError: If the strategy cannot work within it.
        """
        return request.max_new_tokens

    @property
    def width(self) -> int:
        """How many rows of a batch one request can use at once."""
        return 1

    @property
    def deterministic(self) -> bool:
        """Whether every seed gives the same result."""
        return False

    def prompt_ids(self, lm: CausalLM, prompt: Prompt) -> list[int]:
        """The ids of the prompt."""
        return lm.tokens.encode_prompt(prompt)

    def begin(self, lm: CausalLM, row: Row) -> None:
        """Set the row's first phase, before its first step."""
        row.enter("answer")

    @abstractmethod
    def next_input(self, logits: Tensor, hidden: Tensor, state: State) -> list[Feed]:
        """What the rows of the group read next.

        Args:
            logits: [n, V] float32, at each row's last position.
            hidden: [n, D] the final hidden states there (after the last norm).
            state: The model and the rows.

        Returns:
            Feeds that together cover every row exactly once, except rows that were given forced text
            (`row.force`), which the loop feeds itself, and rows whose budget the strategy has just
            declared used up (`row.counted`), which the loop ends.
        """

    def observe(self, row: Row, token_id: int, text: str) -> None:  # noqa: B027 - most have nothing to do
        """Called after each token of the row with the text it added, to change phase on what was said."""

    def stream(
        self,
        lm: CausalLM,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 512,
        seed: int = 0,
        batch_size: int = 8,
        trace: Trace = "summary",
        stop: Sequence[str] = (),
        record: Sequence[str] = (),
        live: bool = True,
    ) -> Iterator[Event]:
        """Run this strategy on some prompts; rows are numbered from 0 and come interleaved.

        Args:
            lm: The model.
            prompts: The prompts.
            max_new_tokens: Most steps a row may take.
            seed: Prompt i gets its own seed, derived from this one and i.
            batch_size: Rows decoded at once.
            trace: How much each step reports.
            stop: Strings that end a row.
            record: Tensors to attach to each row's `Done`.
            live: Report each step as soon as it is done, rather than in blocks.

        Raises:
            ConfigError: If the strategy does not fit the model or the budget.
        """
        from unspoken.decoding._loop import run

        if not isinstance(seed, Integral):
            raise ConfigError(f"seed must be a whole number, not {seed!r}.")
        requests = [
            Request(
                prompt,
                self,
                id=i,
                max_new_tokens=max_new_tokens,
                seed=derive_seed(int(seed), i),
                stop=tuple(stop),
                trace=trace,
                record=tuple(record),
            )
            for i, prompt in enumerate(prompts)
        ]
        problems = self.check(lm)
        if problems:
            raise ConfigError(problems)
        for request in requests[:1]:
            self.budget(request)
        return run(lm, requests, batch_size=min(batch_size, max(1, len(requests) * self.width)), live=live)


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any parts, the same on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
