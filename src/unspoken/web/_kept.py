"""What a kept run must hold before it is shown or read again: its file may have been damaged, or written by others."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from unspoken.types import Kind, Phase
from unspoken.web._errors import ApiError, printable

KeptRun = dict[str, Any]
"""`start`, `events` and `done`."""
Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    # Other fields than those named here are let through: later versions may have more.
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _Prompt(_Part):
    user: str
    system: str | None = None


class _Strategy(_Part):
    name: str


class _Start(_Part):
    prompt: _Prompt
    prompt_tokens: Count
    strategy: _Strategy
    seed: int
    depth: str | None = None


class _Top(_Part):
    ids: list[Count]
    probs: list[float]
    weights: list[float]
    texts: list[str] = []


class _Step(_Part):
    event: Literal["step"]
    row: str | int
    index: Count
    phase: Phase
    kind: Kind
    token_id: Count | None = None
    text: str = ""
    logprob: float | None = None
    sampled_logprob: float | None = None
    top: _Top | None = None
    entropy: float | None = None
    end_prob: float | None = None
    norm_ratio: float | None = None
    notes: dict[str, Any] = {}


class _Rewind(_Part):
    event: Literal["rewind"]
    row: str | int
    to: Count


class _Note(_Part):
    event: Literal["note"]
    row: str | int
    name: str
    value: Any


class _Done(_Part):
    reason: str
    text: str
    usage: dict[str, float | int]


class _Run(_Part):
    start: _Start
    events: list[Annotated[_Step | _Rewind | _Note, Field(discriminator="event")]]
    done: _Done


_RUN = TypeAdapter(_Run)


def checked(run: KeptRun) -> KeptRun:
    """The run itself, if it is one.

    Raises:
        ApiError: 422, if something of it is missing or of another kind.
    """
    try:
        _RUN.validate_python(run)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise damaged(f"{place}: {first['msg']}") from None
    return run


def damaged(what: str) -> ApiError:
    """The refusal of a run whose file cannot be used."""
    message = f"The file of this run is damaged ({printable(what, 200)})."
    return ApiError(422, message, "Delete the run, or restore its file.", {"run": [message]})
