"""The records every part of the project exchanges: steps, events, generations, examples, grades.

No torch here: these are plain values that go to JSON and back. A run of any strategy is a stream of
`Event`s; `fold` turns the stream into `Generation`s, and whoever shows, saves or grades a run reads
one of the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Phase = Literal["think", "transition", "answer"]
Kind = Literal["prompt", "token", "soft", "latent", "filler", "forced"]
Trace = Literal["none", "summary", "full"]
RowId = int | str
Message = dict[str, str]
Status = Literal["correct", "wrong", "unparsed", "truncated", "ungraded"]


class RawText(str):
    """A prompt that is read as it stands: no chat template, and only the tokenizer's own opening token.

    A plain `str` is a question instead, asked through the chat template of a model that has one.
    """

    __slots__ = ()


LATENT_KINDS = ("soft", "latent")
FORCED_KINDS = ("forced", "filler")


@dataclass(frozen=True, slots=True)
class Top:
    """The candidates of one step, best first.

    `probs` are the model's probabilities at the step's temperature, unfiltered; `weights` are what was
    fed: the mixture of a soft step, one-hot for a token. All tuples have the same length.
    """

    ids: tuple[int, ...]
    probs: tuple[float, ...]
    weights: tuple[float, ...]
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One position of one row.

    Attributes:
        row: The request's id (never a slot of the batch).
        index: Position among the generated steps of the row, from 0.
        phase: `think`, `transition` (forced text between the phases) or `answer`.
        kind: What was read at this position: a sampled `token`, a `soft` mixture of embeddings, a
            `latent` hidden state, a `filler` token or a `forced` one.
        token_id: The token, or None for a soft or latent step, which has none.
        text: The text this step adds; empty for soft and latent steps, and while a character that
            spans several tokens is incomplete.
        logprob: The model's own log-probability of the token: temperature 1, no filter, natural log.
        sampled_logprob: Log-probability under the law that was sampled from (0 for greedy choices and
            None for forced tokens).
        top: The candidates, with `trace="full"`.
        entropy: Of the tempered, unfiltered next-token law, in nats (at temperature 1 for a greedy token).
        end_prob: Probability that thinking ends here.
        norm_ratio: Norm of the fed vector over the weighted mean norm of its parts; 1 for a token.
        notes: Anything else a strategy reports about the step.
    """

    row: RowId
    index: int
    phase: Phase
    kind: Kind
    token_id: int | None = None
    text: str = ""
    logprob: float | None = None
    sampled_logprob: float | None = None
    top: Top | None = None
    entropy: float | None = None
    end_prob: float | None = None
    norm_ratio: float | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """Work done for a row (not steps kept: rewound work counts too).

    Attributes:
        prompt_tokens: Tokens of the prompt.
        tokens: Tokens chosen from the model's law, an end token included.
        latent_steps: Soft and latent steps.
        forced_tokens: Forced and filler tokens.
        forward_passes: Forwards in which the row took part, its prefill included.
        seconds: From admission to the end of the row; rows of one batch share this time.
    """

    prompt_tokens: int = 0
    tokens: int = 0
    latent_steps: int = 0
    forced_tokens: int = 0
    forward_passes: int = 0
    seconds: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        mine, theirs = asdict(self), asdict(other)
        return Usage(**{name: mine[name] + theirs[name] for name in mine})


@dataclass(frozen=True, slots=True)
class Rewind:
    """The row goes back: only its first `to` generated steps are kept."""

    row: RowId
    to: int


@dataclass(frozen=True, slots=True)
class Note:
    """A named value about a row, such as the reason why thinking ended."""

    row: RowId
    name: str
    value: Any


@dataclass(frozen=True, slots=True)
class Done:
    """The row is finished.

    `reason` is one of `eos`, `stop` (a stop string), `length` (budget), `context` (no positions left),
    `cancelled`, or `error: ...`. `records` holds `prompt_ids` and the tensors that were asked for
    (`Request.record`); they are no part of its JSON.
    """

    row: RowId
    reason: str
    usage: Usage
    records: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


Event = Step | Rewind | Note | Done
_EVENTS: dict[str, type] = {"step": Step, "rewind": Rewind, "note": Note, "done": Done}


def event_to_dict(event: Event) -> dict[str, Any]:
    """A JSON-ready dict; fields at their defaults are left out."""
    values = asdict(replace(event, records={}) if isinstance(event, Done) else event)
    values.pop("records", None)
    if isinstance(event, Step):
        values = {k: v for k, v in values.items() if v is not None and v != {} and (k != "text" or v)}
    return {"event": type(event).__name__.lower(), **values}


def event_from_dict(values: Mapping[str, Any]) -> Event:
    """The inverse of `event_to_dict`."""
    fields = dict(values)
    kind = _EVENTS[fields.pop("event")]
    if kind is Step and fields.get("top") is not None:
        fields["top"] = Top(**{name: tuple(items) for name, items in fields["top"].items()})
    if kind is Done:
        fields["usage"] = Usage(**fields["usage"])
    return kind(**fields)  # type: ignore[no-any-return]


@dataclass(slots=True)
class Generation:
    """A finished (or cancelled) row: what folding its events gives.

    Attributes:
        row: The request's id.
        steps: The steps kept.
        reason: Why it ended, as in `Done`; empty while it runs.
        usage: Work done.
        notes: The last value of each `Note`.
        records: The prompt as ids under `prompt_ids`, and the tensors that were asked for, by name: [T, D], one
            entry a step. No part of its JSON.
    """

    row: RowId
    steps: list[Step] = field(default_factory=list)
    reason: str = ""
    usage: Usage = field(default_factory=Usage)
    notes: dict[str, Any] = field(default_factory=dict)
    records: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def text(self) -> str:
        """All text, in order. Soft and latent steps have none."""
        return "".join(step.text for step in self.steps)

    @property
    def thinking_text(self) -> str:
        """The text of the thinking phase; empty where thinking had no words."""
        return "".join(step.text for step in self.steps if step.phase == "think")

    @property
    def answer_text(self) -> str:
        """The text of the answer phase: the only text that is ever graded."""
        return "".join(step.text for step in self.steps if step.phase == "answer")

    @property
    def token_ids(self) -> list[int]:
        """Ids of the steps that have one."""
        return [step.token_id for step in self.steps if step.token_id is not None]

    @property
    def prompt_ids(self) -> list[int] | None:
        """The prompt as ids; None if that is not known, as for one read from a file."""
        return self.records.get("prompt_ids")

    @property
    def truncated(self) -> bool:
        """Whether the row ran out of budget or positions before it ended by itself."""
        return self.reason in ("length", "context")

    def apply(self, event: Event) -> None:
        """Take one more event of this row."""
        if isinstance(event, Step):
            self.steps.append(event)
        elif isinstance(event, Rewind):
            del self.steps[event.to :]
        elif isinstance(event, Note):
            self.notes[event.name] = event.value
        else:
            self.reason, self.usage, self.records = event.reason, event.usage, dict(event.records)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        steps = [{k: v for k, v in event_to_dict(s).items() if k not in ("event", "row")} for s in self.steps]
        return {
            "row": self.row,
            "reason": self.reason,
            "usage": asdict(self.usage),
            "notes": dict(self.notes),
            "steps": steps,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Generation:
        """The inverse of `to_dict`."""
        row = values["row"]
        steps = [event_from_dict({"event": "step", "row": row, **s}) for s in values["steps"]]
        return cls(
            row=row,
            steps=[s for s in steps if isinstance(s, Step)],
            reason=values["reason"],
            usage=Usage(**values["usage"]),
            notes=dict(values["notes"]),
        )


def fold(events: Iterable[Event]) -> dict[RowId, Generation]:
    """Fold a stream of events into one `Generation` a row, in order of first appearance."""
    rows: dict[RowId, Generation] = {}
    for event in events:
        rows.setdefault(event.row, Generation(event.row)).apply(event)
    return rows


@dataclass(frozen=True, slots=True)
class Example:
    """One problem of a task.

    Attributes:
        id: Stable across runs and machines.
        question: The problem as text.
        answer: The gold answer, or None where it could not be read (such items are skipped and counted).
        meta: Anything else the task keeps, such as the worked solution.
    """

    id: str
    question: str
    answer: str | None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Grade:
    """What became of one answer.

    Attributes:
        status: `correct`, `wrong`, `unparsed` (no answer could be read) or `truncated` (the budget ended
            before an answer could be read); `ungraded` where the task has nothing to grade by.
        answer: The answer that was read.
        rule: Which rule read it, such as `boxed` or `last_number`.
        others: What other graders say of the same text, by name.
    """

    status: Status
    answer: str | None = None
    rule: str | None = None
    others: Mapping[str, Grade] = field(default_factory=dict)

    @property
    def correct(self) -> bool:
        return self.status == "correct"
