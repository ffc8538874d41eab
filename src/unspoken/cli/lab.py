"""`unspoken lab` and `unspoken serve`: the page to watch a model think, and the interface for other programs."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unspoken.cli._arguments import Part, first_stage, second_stage
from unspoken.cli._options import ModelOptions, load_model
from unspoken.errors import ConfigError

if TYPE_CHECKING:
    from unspoken.web._settings import Settings

KEY_VARIABLE = "UNSPOKEN_API_KEY"
LAB = (
    "Open a page in the browser: edit a prompt, run up to four ways of thinking side by side, watch every step. "
    "The same server answers OpenAI clients under /v1."
)
SERVE = (
    "Answer OpenAI clients under /v1: the model name NAME:soft, or extra_body={'unspoken': {'strategy': {...}}}, "
    "chooses the way of thinking. The lab's page is at / as well."
)


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ModelOptions):
    """Options of `serve`."""

    host: str = "127.0.0.1"
    """Address to bind; one that other computers reach needs --api-key or --insecure."""
    port: int | None = None
    """Port; 0 is any free one (default: 5000, and for the lab the next one if that is taken)."""
    api_key: str | None = None
    """What clients must send as a bearer token; better in the environment variable UNSPOKEN_API_KEY."""
    insecure: bool = False
    """Let everybody who reaches the address in without a key."""
    allow_host: tuple[str, ...] = ()
    """Further names by which browsers may call the server."""
    name: str | None = None
    """What the model is called (default: its source)."""
    history: str | None = None
    """Folder of the kept runs; none keeps none (default for the lab: ~/.local/share/unspoken/lab, for serve: none)."""
    batch_size: int = 32
    """Most rows decoded at once."""
    max_waiting: int = 64
    """Most requests that wait for a row; further ones are told to come again."""
    max_new_tokens: int = 8192
    """Most steps that one request may ask for."""

    def __post_init__(self) -> None:
        problems = []
        for check in (super().__post_init__, self.settings):
            try:
                check()
            except ConfigError as error:
                problems += error.problems
        if self.port is not None and not 0 <= self.port < 65536:
            problems.append(f"port must be from 0 to 65535, not {self.port}.")
        for name in ("batch_size", "max_waiting"):
            if getattr(self, name) < 1:
                problems.append(f"{name} must be at least 1, not {getattr(self, name)}.")
        if problems:
            raise ConfigError(problems)

    def settings(self, history: Path | None = None) -> Settings:
        """What the server is to allow.

        Args:
            history: Folder of the kept runs.

        Raises:
            ConfigError: With everything that is wrong.
        """
        from unspoken.web._settings import Settings

        return Settings(
            host=self.host,
            api_key=self.api_key or os.environ.get(KEY_VARIABLE) or None,
            insecure=self.insecure,
            allowed_hosts=self.allow_host,
            history=history,
            name=self.name,
            max_new_tokens=self.max_new_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class LabOptions(ServeOptions):
    """Options of `lab`."""

    no_browser: bool = False
    """Do not open the page in a browser."""


def lab_command(words: list[str]) -> int:
    """Run `unspoken lab`."""
    _need_hosts(words)
    (options,) = second_stage(first_stage("lab", words), [Part(LabOptions)], LAB)
    return _serve(options, "unspoken lab", page=True, browser=not options.no_browser)


def serve_command(words: list[str]) -> int:
    """Run `unspoken serve`."""
    _need_hosts(words)
    (options,) = second_stage(first_stage("serve", words), [Part(ServeOptions)], SERVE)
    return _serve(options, "unspoken serve", page=False, browser=False)


def _need_hosts(words: list[str]) -> None:
    """Refuse `--allow-host` without a name, which would allow nothing."""
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if word in ("--allow-host", "--allow_host") and following.startswith("-"):
            raise ConfigError("--allow-host needs a name.", "Write: --allow-host lab.example")


def _serve(options: ServeOptions, command: str, *, page: bool, browser: bool) -> int:
    from unspoken.web import server

    server.require_extra()
    from unspoken.web._history import check_folder, default_folder

    folder = default_folder() if page and options.history is None else options.history
    settings = options.settings(None if folder in (None, "none") else Path(folder))
    # Everything that can be wrong is found before torch is imported and the model loaded, which may take long.
    if settings.history is not None:
        check_folder(settings.history)
    port = options.port if page or options.port is not None else server.PORT
    sock = server.bind(options.host, port, f"{command} -m {options.model}")
    with sock:
        from unspoken.web.app import create_app
        from unspoken.web.jobs import Engine

        lm = load_model(options)
        engine = Engine(lm, batch_size=options.batch_size, max_waiting=options.max_waiting)
        app = create_app(engine, settings)
        url = server.address(sock)
        _say(f"{lm.source} on {url}" + (f"  (OpenAI clients: {url}/v1)" if page else "/v1"))
        if port is None and not url.endswith(f":{server.PORT}"):
            _say(f"Port {server.PORT} is in use, so this is the next free one.")
        _say("Ctrl-C ends it; what runs is given a moment, a second Ctrl-C ends it at once.")
        if browser:
            _open(url)
        with suppress(KeyboardInterrupt):
            server.make_server(app, engine, settings).run(sockets=[sock])
    return 0


def _open(url: str) -> None:
    """Show the page; connections wait until the server takes them."""
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
