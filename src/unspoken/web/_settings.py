"""What a server allows: addresses, keys and limits."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from unspoken.errors import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of one server.

    Attributes:
        host: The address it binds.
        api_key: What clients must send as `Authorization: Bearer KEY`; None asks for nothing.
        insecure: Whether an address that other computers reach may be bound without a key.
        allowed_hosts: Further names by which the server may be called.
        history: Folder of the kept runs; None keeps none.
        name: What the model is called (default: its source).
        max_body: Bytes of a request's body.
        max_prompt: Characters of a prompt, system message included.
        max_new_tokens: Most steps that a request may ask for.
        max_rows: Most rows that one request may use at once: candidates, particles, choices.
        max_connections: Connections at once.
        max_per_peer: Connections at once from one address.
        head_seconds: How long the head of a request may take to arrive.
        body_seconds: How long a body may take to arrive.
        heartbeat: Seconds of silence after which a stream sends a comment.

    Raises:
        ConfigError: With everything that is wrong.
    """

    host: str = "127.0.0.1"
    api_key: str | None = field(default=None, repr=False)
    insecure: bool = False
    allowed_hosts: tuple[str, ...] = ()
    history: Path | None = None
    name: str | None = None
    max_body: int = 2**20
    max_prompt: int = 200_000
    max_new_tokens: int = 8192
    max_rows: int = 64
    max_connections: int = 512
    max_per_peer: int = 128
    head_seconds: float = 10.0
    body_seconds: float = 20.0
    heartbeat: float = 10.0

    def __post_init__(self) -> None:
        problems = []
        if not self.local and self.api_key is None and not self.insecure:
            problems.append(
                f"Binding {self.host} lets other computers in, which needs a key: --api-key KEY (or the "
                "environment variable UNSPOKEN_API_KEY), or --insecure to let everybody in."
            )
        if self.api_key is not None and (len(self.api_key) < 8 or not self.api_key.isascii()):
            problems.append("The API key must have at least 8 characters, all of them ASCII.")
        for name in (
            "max_body",
            "max_prompt",
            "max_new_tokens",
            "max_rows",
            "max_connections",
            "max_per_peer",
        ):
            if getattr(self, name) < 1:
                problems.append(f"{name} must be at least 1, not {getattr(self, name)}.")
        if problems:
            raise ConfigError(problems)

    @property
    def local(self) -> bool:
        """Whether only this computer can reach it."""
        if self.host.lower() in LOOPBACK:
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @cached_property
    def own_names(self) -> frozenset[str]:
        """Names of the server. The first look may ask other computers, so it is taken at the start."""
        names = {self.host, *self.allowed_hosts}
        if not self.local:
            names |= {socket.gethostname(), socket.getfqdn()}
        return frozenset(name.lower().rstrip(".") for name in names)

    def allows_host(self, name: str) -> bool:
        """Whether a browser may call the server by this name (the `Host` header without its port).

        A page of another site can have its own name point here (DNS rebinding), but it cannot have the name of
        this computer, nor a bare address.
        """
        name = name.lower().rstrip(".")
        if name in LOOPBACK or (name and name in self.own_names):
            return True
        if self.local:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
