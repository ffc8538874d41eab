"""Every refusal in one form: a message, a hint, and sentences by field."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
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


_WRONG_KIND = re.compile(r"(_type|_parsing|_unicode|_attributes_type)$|^(json_invalid|missing_body)$")
_WORDS = {"extra_forbidden": "is not known here", "missing": "is required"}


_KIND_OF_FIELD = re.compile(r"(str|int|float|bool|constrained-\w+|(list|dict|function-[\w-]+)\[.*\])$")
"""How a place names the kinds of values that a field with several of them was tried as."""


def of_validation(error: RequestValidationError) -> ApiError:
    """What FastAPI found wrong: 400 for what has the wrong type, 422 for values that are not allowed."""
    fields: dict[str, list[str]] = {}
    status = 422
    for item in _best_readings(error.errors()):
        kind, place = str(item["type"]), [str(part) for part in item["loc"]]
        if kind == "json_invalid":
            return ApiError(400, "The body is not JSON.", 'Send a JSON object, such as {"prompt": "..."}.')
        if _WRONG_KIND.search(kind):
            status = 400
        inner = [part for part in place[2:] if not _KIND_OF_FIELD.match(part)]
        name = ".".join([*place[1:2], *inner]) or place[0]
        text = _WORDS.get(kind) or str(item["msg"])
        sentence = printable(f"{name}: {text[:1].lower()}{text[1:]}.")
        known = fields.setdefault(printable(name), [])
        if sentence not in known:
            known.append(sentence)
    return wrong(fields, status)


def _best_readings(items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of a field that may be of several kinds, what is wrong with it as the kind that it is, or is most nearly.

    Every kind was tried: a list that is too long is also no string, and none of its items is a number.
    """
    tried: dict[tuple[Any, ...], dict[str, list[Mapping[str, Any]]]] = {}
    for item in items:
        place = tuple(item["loc"])
        at = next(
            (i for i, part in enumerate(place) if i > 1 and _KIND_OF_FIELD.match(str(part))), len(place)
        )
        reading = str(place[at]) if at < len(place) else ""
        tried.setdefault(place[:at], {}).setdefault(reading, []).append(item)
    found: list[Mapping[str, Any]] = []
    for readings in tried.values():
        # A reading whose only fault is that the value as a whole is of another kind says nothing.
        fitting = [some for some in readings.values() if not (len(some) == 1 and _of_another_kind(some[0]))]
        if fitting:
            closest: list[Mapping[str, Any]] = min(fitting, key=_distance)
            found += closest
        else:
            first = next(iter(readings.values()))[0]
            kinds = [str(some[0]["msg"]).removeprefix("Input should be ") for some in readings.values()]
            found.append({**first, "msg": "Input should be " + ", or ".join(dict.fromkeys(kinds))})
    return found


def _distance(items: list[Mapping[str, Any]]) -> tuple[int, int]:
    """How far a value is from a kind: by the number of its faults, and by how deep inside they are."""
    return len(items), -max(len(item["loc"]) for item in items)


def _of_another_kind(item: Mapping[str, Any]) -> bool:
    last = str(item["loc"][-1])
    return str(item["type"]).endswith("_type") and len(item["loc"]) > 2 and bool(_KIND_OF_FIELD.match(last))


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
