"""Every refusal in one form: a message, a hint, and sentences by field."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi.responses import Response

from unspoken.errors import ConfigError, UnspokenError
from unspoken.web.jobs import QueueFull, RepeatedId, ShuttingDown

Fields = Mapping[str, Sequence[str]]


class ApiError(Exception):
    """A request that is refused.

    Args:
        status: The HTTP status.
        message: What is wrong.
        hint: What to do instead.
        fields: Sentences by the field that they are about.
        headers: Further headers of the answer.
        code: A word for programs, in the OpenAI form.
    """

    def __init__(
        self,
        status: int,
        message: str,
        hint: str | None = None,
        fields: Fields | None = None,
        headers: Mapping[str, str] | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.hint = status, message, hint
        self.fields = {name: list(sentences) for name, sentences in (fields or {}).items()}
        self.headers = dict(headers or {})
        self.code = code

    def hiding(self, secret: str | None) -> ApiError:
        """The same refusal without the server's key, which may stand anywhere in a request and so in its echo."""
        if not secret:
            return self

        def hidden(text: str) -> str:
            return text.replace(secret, "(the API key)")

        fields = {hidden(name): list(map(hidden, sentences)) for name, sentences in self.fields.items()}
        hint = self.hint and hidden(self.hint)
        return ApiError(self.status, hidden(self.message), hint, fields, self.headers, self.code)


class JsonResponse(Response):
    """JSON in ASCII, so that nothing that came in can break what goes out."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def wrong(fields: Fields, status: int = 422, hint: str | None = None) -> ApiError:
    """The refusal of some fields."""
    sentences = [sentence for some in fields.values() for sentence in some]
    message = sentences[0] if len(sentences) == 1 else f"{len(sentences)} problems: {' '.join(sentences)}"
    return ApiError(status, message, hint, fields)


def merged(errors: Sequence[ApiError]) -> ApiError:
    """Several refusals of fields as one, each sentence once; 400 if any of them is."""
    fields: dict[str, list[str]] = {}
    for error in errors:
        for name, sentences in error.fields.items():
            known = fields.setdefault(name, [])
            known += [sentence for sentence in sentences if sentence not in known]
    status = min(error.status for error in errors)
    return wrong(fields, status, next((error.hint for error in errors if error.hint), None))


def server_fault() -> ApiError:
    """What a client is told of an error that is not its own."""
    return ApiError(500, "Something went wrong in the server; its own output says what.")


def of_library(error: UnspokenError) -> ApiError:
    """What the library refuses, as a refusal of the request."""
    if isinstance(error, QueueFull):
        return ApiError(429, error.message, error.hint, headers={"Retry-After": str(error.retry_after)})
    if isinstance(error, ShuttingDown):
        return ApiError(503, error.message, error.hint)
    if isinstance(error, RepeatedId):
        return ApiError(409, error.message, error.hint, {"id": [error.message]})
    return ApiError(422 if isinstance(error, ConfigError) else 500, error.message, error.hint)


def meant(name: str, known: Iterable[str]) -> str:
    """The question after the known name that this one resembles closely, or nothing."""
    near = difflib.get_close_matches(name[:200], list(known), n=1, cutoff=0.75)
    return f" Did you mean {near[0]}?" if near else ""


def printable(text: str, longest: int = 500) -> str:
    """Text of a request as it may be given back: without halves of surrogate pairs, and not endlessly long."""
    clean = text.encode("utf-8", "replace").decode("utf-8")
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"


def answer(error: ApiError, openai: bool = False) -> JsonResponse:
    """The error as a response, in the form that the OpenAI clients know or in that of the lab."""
    body: dict[str, Any]
    message, status = printable(error.message, 4000), error.status
    if openai:
        status = 400 if status == 422 else status  # the only status that its clients know for this
        if error.hint:
            message = f"{message} {printable(error.hint)}"
        kinds = {
            401: "authentication_error",
            429: "rate_limit_error",
            500: "server_error",
            503: "server_error",
        }
        body = {
            "message": message,
            "type": kinds.get(error.status, "invalid_request_error"),
            "param": next(iter(error.fields), None),
            "code": error.code,
        }
    else:
        body = {"message": message, "hint": error.hint and printable(error.hint), "fields": error.fields}
    return JsonResponse({"error": body}, status, headers=error.headers)
