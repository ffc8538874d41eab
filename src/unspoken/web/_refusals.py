"""How whatever goes wrong in a route is answered: every exception as a refusal."""

from __future__ import annotations

import re
import typing

from fastapi import FastAPI, HTTPException
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException as StarletteError
from starlette.routing import Match

from unspoken.errors import UnspokenError
from unspoken.lm.model import CausalLM
from unspoken.web._bodies import Body
from unspoken.web._errors import ApiError, JsonResponse, answer, meant, merged, of_library, printable
from unspoken.web._prepare import limit_refusal
from unspoken.web._settings import Settings
from unspoken.web._strategies import strategy_refusal
from unspoken.web._validation import not_json, of_validation


def add_refusals(app: FastAPI, lm: CausalLM, settings: Settings) -> None:
    """Have the application answer every exception in the form of its routes."""

    def told(request: HttpRequest, error: ApiError) -> JsonResponse:
        return answer(error.hiding(settings.api_key), request.url.path.startswith("/v1/"))

    @app.exception_handler(ApiError)
    async def api(request: HttpRequest, error: ApiError) -> JsonResponse:
        return told(request, error)

    @app.exception_handler(UnspokenError)
    async def library(request: HttpRequest, error: UnspokenError) -> JsonResponse:
        return told(request, of_library(error))

    @app.exception_handler(RequestValidationError)
    def validation(request: HttpRequest, error: RequestValidationError) -> JsonResponse:
        model = _body_of(request)
        found = [of_validation(error, model, lm, settings.api_key)]
        if found[0].fields and model is not None:
            also = (strategy_refusal(error.body, lm), limit_refusal(error.body, model, settings))
            found += [more for more in also if more is not None]
        return told(request, merged(found) if len(found) > 1 else found[0])

    @app.exception_handler(StarletteError)
    @app.exception_handler(HTTPException)
    async def http(request: HttpRequest, error: StarletteError) -> JsonResponse:
        if error.status_code == 404:
            return told(request, _nothing(request, app))
        if error.status_code == 405:
            return told(request, _other_method(request, app))
        if error.status_code == 400:
            return told(request, not_json(_body_of(request)))
        return told(request, ApiError(error.status_code, str(error.detail), headers=error.headers))


def _body_of(request: HttpRequest) -> type[Body] | None:
    """What the route of a request reads."""
    found: type[Body] | None = typing.get_type_hints(request.scope["endpoint"]).get("body")
    return found


def _nothing(request: HttpRequest, app: FastAPI) -> ApiError:
    """The refusal of a path that leads nowhere, with those that there are."""
    path = request.url.path
    routes = (route for route in app.routes if isinstance(route, APIRoute) and route.include_in_schema)
    known = dict.fromkeys(re.sub(r":\w+}", "}", route.path) for route in routes)  # each once, in their order
    message = f"There is nothing at {printable(path, 80)}.{meant(path, known)}"
    return ApiError(404, message, f"There are {', '.join(known)}.")


def _other_method(request: HttpRequest, app: FastAPI) -> ApiError:
    """The refusal of a method, with those that the path knows."""
    allowed = sorted(
        {
            method
            for route in app.routes
            if route.matches(request.scope)[0] is not Match.NONE
            for method in getattr(route, "methods", ())
        }
    )
    message = f"{printable(request.method, 20)} is not allowed at {printable(request.url.path, 80)}."
    return ApiError(405, message, f"Use {' or '.join(allowed)}.", headers={"Allow": ", ".join(allowed)})
