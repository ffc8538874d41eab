"""The bodies of the OpenAI-compatible routes: what has an effect here, what may be sent without one, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from unspoken.web._bodies import MOST_SEED, Body, Count, Short, Stop

Zero = Annotated[float, Field(ge=0, le=0)]
Empty = Field(max_length=0)
NO_TOOLS = "no tools can be called here; leave it out"
NO_FORMAT = (
    "answers are free text here, JSON mode and schemas are not supported; leave it out, and ask for the form in the "
    "prompt"
)
NO_PENALTY = "this has no effect here, so only 0 may be sent; leave it out"
NO_BIAS = "single tokens cannot be favoured here; leave it out"


def refused(sentence: str, passes: Callable[[Any], bool]) -> BeforeValidator:
    """Refuses, in these words, every value but those that pass and None."""

    def check(value: Any) -> Any:
        if value is not None and not passes(value):
            raise PydanticCustomError("refused", sentence)
        return value

    return BeforeValidator(check)


def _nothing(value: Any) -> bool:
    return not value


def _text_format(value: Any) -> bool:
    return isinstance(value, TextFormat) or (isinstance(value, dict) and value.get("type", "text") == "text")


def _no_choice(value: Any) -> bool:
    return value in ("none", "auto")


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
    frequency_penalty: Annotated[Zero | None, refused(NO_PENALTY, _nothing)] = None
    presence_penalty: Annotated[Zero | None, refused(NO_PENALTY, _nothing)] = None
    logit_bias: Annotated[Annotated[dict[str, float], Empty] | None, refused(NO_BIAS, _nothing)] = None

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class ChatBody(Common):
    """`/v1/chat/completions`."""

    example = {"model": "...", "messages": [{"role": "user", "content": "..."}]}
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: Annotated[TextFormat | None, refused(NO_FORMAT, _text_format)] = None
    tools: Annotated[Annotated[list[Any], Empty] | None, refused(NO_TOOLS, _nothing)] = None
    tool_choice: Annotated[Literal["none", "auto"] | None, refused(NO_TOOLS, _no_choice)] = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None


class CompletionBody(Common):
    """`/v1/completions`."""

    example = {"model": "...", "prompt": "..."}
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
