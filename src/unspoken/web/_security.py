"""The guard in front of every route: who may call, how much they may send, and what browsers may do with the answer."""

from __future__ import annotations

import asyncio
import hmac
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unspoken.web import _json, _log
from unspoken.web._errors import ApiError, answer, server_fault
from unspoken.web._settings import Settings

POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
OPEN = ("/", "/healthz")
"""Paths that need no key, beside the page's files: a browser cannot send one with the first request of a page."""
LARGE = 2**15
"""Bytes of a body from which on it is looked at in a thread of its own."""


WRITING = ("POST", "PUT", "PATCH")


class Guard:
    """Refuses what must not reach a route, and turns every failure behind it into an answer without its inside.

    Args:
        app: The application.
        settings: What is allowed.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        begun = False

        async def guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                known = {name for name, _ in message.setdefault("headers", [])}
                message["headers"] += [
                    (name.encode(), value.encode())
                    for name, value in HEADERS.items()
                    if name.encode() not in known
                ]
            await send(message)

        openai = scope["path"].startswith("/v1/")
        try:
            try:
                self._check(scope)
                receive = await self._read(scope, receive)
                await self.app(scope, receive, guarded)
            except ApiError as error:
                await answer(error.hiding(self.settings.api_key), openai)(scope, receive, guarded)
        except _Gone:
            pass
        except Exception as error:
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            _log.failure(f"{scope['method']} {scope['path']!r}", error)
            if not begun:
                await answer(server_fault(), openai)(scope, receive, guarded)

    def _check(self, scope: Scope) -> None:
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        host = _only(headers, b"host")
        if not host or not self.settings.allows_host(_host_name(host)):
            raise ApiError(
                403, "This server is not called by that name.", "Use http://127.0.0.1 and its port."
            )
        origin = _only(headers, b"origin")
        if origin is not None and not _same_origin(origin, host):
            raise ApiError(403, "Pages of other sites may not use this server.")
        path = scope["path"]
        public = path in OPEN or path.startswith("/static/")
        if not public and _only(headers, b"sec-fetch-site") in ("cross-site", "same-site"):
            raise ApiError(403, "Pages of other sites may not use this server.")
        key = self.settings.api_key
        if key is not None and not public:
            given = _only(headers, b"authorization") or ""
            scheme, _, token = given.partition(" ")
            right = hmac.compare_digest(token.strip().encode("utf-8", "replace"), key.encode())
            if scheme.lower() != "bearer" or not right:
                raise ApiError(
                    401,
                    "This server needs its API key.",
                    "Send the header Authorization: Bearer KEY.",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        if (refusal := scope.get("state", {}).get("refusal")) is not None:
            raise refusal
        if scope["method"] in WRITING:
            kind = (_only(headers, b"content-type") or "").partition(";")[0].strip().lower()
            length = _only(headers, b"content-length")
            if kind != "application/json" and (length != "0" or kind):
                raise ApiError(
                    400, "The body must be JSON.", "Send the header Content-Type: application/json."
                )
            if length is not None and length.isascii() and length.isdigit() and len(length) < 20:
                self._check_size(int(length))

    def _check_size(self, size: int) -> None:
        if size > self.settings.max_body:
            raise ApiError(413, f"The body is larger than {self.settings.max_body} bytes.")

    async def _read(self, scope: Scope, receive: Receive) -> Receive:
        """The whole body, within its limits; then whatever comes after it."""
        parts: list[bytes] = []
        size = 0
        more = True
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    self._check_size(size)
                    more = message.get("more_body", False)
        except TimeoutError:
            raise ApiError(408, f"The body took more than {self.settings.body_seconds:g} seconds.") from None
        whole = b"".join(parts)
        if scope["method"] in WRITING:
            await asyncio.to_thread(_json.check, whole) if size > LARGE else _json.check(whole)
        body: Message | None = {"type": "http.request", "body": whole, "more_body": False}

        async def again() -> Message:
            nonlocal body
            if body is not None:
                first, body = body, None
                return first
            return await receive()

        return again


class _Gone(Exception):
    """The client has left before it had sent everything."""


def _only(headers: dict[bytes, list[bytes]], name: bytes) -> str | None:
    """The value of a header; one that comes twice is as good as a wrong one."""
    values = headers.get(name)
    if values is None:
        return None
    return values[0].decode("latin-1") if len(values) == 1 else ""


def _host_name(host: str) -> str:
    """The `Host` header without its port."""
    if host.startswith("["):
        return host[1 : host.find("]")]
    return host.rpartition(":")[0] if ":" in host else host


def _same_origin(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower() and not parts.path
