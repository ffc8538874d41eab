"""Connections before they are requests: how long the head of a request may take, and how many a peer may hold.

The framework sees a request only when its head is complete, so what never completes one is dealt with here.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from unspoken.web._errors import ApiError, answer
from unspoken.web._security import HEADERS
from unspoken.web._settings import Settings
from unspoken.web.jobs import RETRY_SECONDS

TOLD = 64
"""Connections beyond a limit that are told of it once they ask for something; further ones are closed at once."""


def make_protocol(settings: Settings) -> type[H11Protocol]:
    """The protocol of one server's connections.

    A connection whose request head is not complete after `settings.head_seconds` is closed. Requests on connections
    beyond `settings.max_per_peer` of one address get 429, beyond `settings.max_connections` of all 503: through the
    same guard as any other request, so host, origin and key are looked at first.

    Args:
        settings: The server's limits.
    """
    peers: Counter[str] = Counter()

    class Connection(H11Protocol):
        peer = ""
        head: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.peer = self.client[0] if self.client else ""
            peers[self.peer] += 1
            refusal = _refusal(peers[self.peer], peers.total(), settings)
            if refusal is not None:
                # The guard answers with it; see there.
                self.app_state = {**self.app_state, "refusal": refusal}
            if max(peers[self.peer] - settings.max_per_peer, peers.total() - settings.max_connections) > TOLD:
                transport.abort()
            else:
                self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            peers[self.peer] -= 1
            if not peers[self.peer]:
                del peers[self.peer]
            self._stop_waiting()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:
                self._stop_waiting()
            elif self.head is None and not self.transport.is_closing():
                self._await_head()  # the next request of a connection has begun

        def send_400_response(self, msg: str) -> None:
            self._refuse(ApiError(400, "What was sent is not HTTP."))

        def _await_head(self) -> None:
            self.head = self.loop.call_later(settings.head_seconds, self._too_late)

        def _stop_waiting(self) -> None:
            if self.head is not None:
                self.head.cancel()
                self.head = None

        def _too_late(self) -> None:
            self.head = None
            begun = bool(self.conn.trailing_data[0])
            if begun:
                message = f"The head of the request took more than {settings.head_seconds:g} seconds."
                self._refuse(ApiError(408, message))
            else:  # browsers open connections ahead of need: an answer would be taken for that of a later request
                self.transport.close()

        def _refuse(self, error: ApiError) -> None:
            """Answer in place of the application, and close."""
            self._stop_waiting()
            reply = answer(error)
            headers: list[tuple[str, str]] = [
                *reply.headers.items(),
                *HEADERS.items(),
                ("connection", "close"),
            ]
            messages: list[Any] = [
                h11.Response(
                    status_code=error.status, headers=headers, reason=HTTPStatus(error.status).phrase
                ),
                h11.Data(data=bytes(reply.body)),
                h11.EndOfMessage(),
            ]
            for message in messages:
                self.transport.write(self.conn.send(message) or b"")
            self.transport.close()

    return Connection


def _refusal(mine: int, everyone: int, settings: Settings) -> ApiError | None:
    """Why the newest connection is one too many, if it is."""
    headers = {"Retry-After": str(RETRY_SECONDS), "Connection": "close"}
    if mine > settings.max_per_peer:
        message = f"{mine - 1} connections from your address are open; {settings.max_per_peer} are allowed."
        return ApiError(429, message, "Close some, or use them again.", headers=headers)
    if everyone > settings.max_connections:
        return ApiError(503, "Too many connections are open.", "Try again in a moment.", headers=headers)
    return None
