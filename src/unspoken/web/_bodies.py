"""What the lab's routes read: bodies with every field named, and nothing else accepted."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_SEED = 2**63 - 1
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,64}$")]
Count = Annotated[int, Field(ge=1)]
"""Of tokens; the server's own limit is the only other bound."""
Short = Annotated[str, Field(max_length=64)]
Stop = Annotated[str, Field(min_length=1, max_length=200)]


class Body(BaseModel):
    """A body of JSON in which nothing is unknown and nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    example: ClassVar[dict[str, Any]] = {}
    """What is shown to those who sent something else."""


class Ask(Body):
    """One run: a prompt, a strategy and its budget.

    `system_prompt`, `user_prompt`, `k`, `T_e`, `T_total`, `temperature` and a mixture's name as `strategy` are the
    names of the original lab.
    """

    example = {"prompt": "..."}
    id: Name | None = None
    prompt: str | None = None
    system: str | None = None
    strategy: str | dict[str, Any] | None = None
    max_new_tokens: Count | None = None
    seed: Annotated[int, Field(ge=0, le=MOST_SEED)] = 0
    stop: Annotated[list[Stop], Field(max_length=16)] = []
    trace: Literal["none", "summary", "full"] = "full"
    gold: Annotated[str, Field(max_length=1000)] | None = None
    session: Short | None = None
    depth: Short | None = None
    system_prompt: str | None = None
    user_prompt: str | None = None
    k: int | None = None
    T_e: int | None = None
    T_total: int | None = None
    temperature: float | None = None
    experiment_name: Annotated[str, Field(max_length=200)] | None = None


class Cancel(Body):
    """Which request is to end."""

    example = {"id": "..."}
    id: Name


class LensAsk(Body):
    """Which steps of a kept run are read at every layer."""

    example = {"run": "..."}
    run: Short
    first: Annotated[int, Field(ge=0, le=10**6)] = 0
    last: Annotated[int, Field(ge=0, le=10**6)] | None = None
    metric: Literal["kl", "entropy", "prob", "rank"] = "kl"
    lens: Literal["logit", "last_block"] = "logit"
