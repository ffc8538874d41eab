"""The bodies of the OpenAI-compatible routes: what has an effect here, what may be sent without one, nothing else."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from unspoken.web._bodies import MOST_SEED, Body, Short, Stop

Count = Annotated[int, Field(ge=1, le=10**6)]


class Part(Body):
    """A part of a message's content; only text can be read."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None


class Own(Body):
    """The project's own part of a body: `extra_body={"unspoken": {...}}` of the OpenAI client."""

    strategy: str | dict[str, Any] | None = None
    depth: Short | None = None


class StreamOptions(Body):
    """Whether a stream ends with the usage."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class TextFormat(Body):
    """The only format of an answer."""

    type: Literal["text"]


class Common(Body):
    """What both kinds of requests have."""

    model: str
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=MOST_SEED)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    unspoken: Own | None = None
    user: str | None = None
    # Without an effect here; values that would need one are refused.
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class ChatBody(Common):
    """`/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: TextFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None


class CompletionBody(Common):
    """`/v1/completions`."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=64)]
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[list[list[int]], Field(min_length=1, max_length=64)]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None
