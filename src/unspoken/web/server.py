"""A server on a port: found free before the model is loaded, and shut down without cutting anybody off."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING

from unspoken.errors import ConfigError, require

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from unspoken.web._settings import Settings
    from unspoken.web.jobs import Engine

PORT = 5000
TRIED = 20
"""Ports that are tried after one that is taken."""
GRACE = 5.0
"""Seconds that running requests are given when the server is asked to end."""


def require_extra() -> None:
    """Check that the packages of the server are there.

    Raises:
        MissingExtraError: With the line that installs them.
    """
    for module in ("fastapi.sse", "uvicorn"):
        require(module, "lab", "The lab")


def bind(host: str, port: int | None, command: str) -> socket.socket:
    """A socket that listens.

    Args:
        host: The address.
        port: The port; 0 for any. None for the usual one, or the next that is free.
        command: What was typed, for the message.

    Raises:
        ConfigError: If the port is taken, with the next free one, or the address is not of this computer.
    """
    wanted = PORT if port is None else port
    for candidate in range(wanted, min(wanted + TRIED, 65536)):
        found = _listen(host, candidate)
        if found is None:
            continue
        if candidate == wanted or port is None:
            return found
        found.close()
        raise ConfigError(
            f"Port {wanted} is in use, by another lab perhaps.", f"Run: {command} --port {candidate}"
        )
    raise ConfigError(f"The ports from {wanted} on are in use.", f"Run: {command} --port 0, for any free one")


def _listen(host: str, port: int) -> socket.socket | None:
    """A socket on this port; None if it is taken."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"The address {host!r} cannot be used: {error}.") from error
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Else a port stays taken for a minute after a server on it has ended. It does not let two servers share one.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(512)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise ConfigError(
            f"The address {host!r}, port {port}, cannot be used: {error.strerror}.",
            "The usual ones are --host 127.0.0.1 --port 5000.",
        ) from error
    found.setblocking(False)
    return found


def make_server(app: FastAPI, engine: Engine, settings: Settings, grace: float = GRACE) -> uvicorn.Server:
    """The server; `run(sockets=[socket])` serves until a signal.

    The first signal refuses new requests and gives those that run `grace` seconds; then they end as `cancelled`. A
    second one ends them at once.
    """
    import uvicorn

    from unspoken.web._connections import make_protocol

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            engine.drain()
            ending = asyncio.create_task(self._end_requests())
            await super().shutdown(sockets)
            await ending

        async def _end_requests(self) -> None:
            loop = asyncio.get_running_loop()
            last = loop.time() + grace
            while engine.waiting + engine.running and loop.time() < last and not self.force_exit:
                await asyncio.sleep(0.05)
            await loop.run_in_executor(None, engine.close)

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        ws="none",
        timeout_keep_alive=15,
        http=make_protocol(settings),
        timeout_graceful_shutdown=int(grace) + 5,
        h11_max_incomplete_event_size=64 * 1024,
        proxy_headers=False,
    )
    return Server(config)


def address(sock: socket.socket) -> str:
    """The address to open."""
    host, port = sock.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
