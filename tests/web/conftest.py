"""Servers on the tiny model, and a browser that looks at them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_lab import FakeLab
from serving import serving

from unspoken.lm.model import CausalLM
from unspoken.web._settings import Settings
from unspoken.web.jobs import Engine

READY = "html[data-ready]"


@pytest.fixture(scope="session")
def lm(tiny_lm: Callable[[str], CausalLM]) -> CausalLM:
    return tiny_lm("llama")


@pytest.fixture(scope="module")
def base(lm: CausalLM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that keeps its runs, shared by the tests of a file."""
    settings = Settings(name="tiny", history=tmp_path_factory.mktemp("runs"), max_new_tokens=500)
    with serving(Engine(lm, batch_size=4), settings) as address:
        yield address


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs"


# Not for the session: the driver keeps an event loop running in this thread, which other tests could not have then.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium with a new, empty profile; tests that need it are skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    flags = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=program,
            headless=True,
            args=[f"--{flag}" for flag in [*flags.split(), "disable-sync"]],
        )
        yield browser
        browser.close()


@pytest.fixture
def browse(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Function from an address to its page, ready for use, or at what `ready` selects.

    The test fails if a page asks any other address for anything, or if it reports an error.
    """
    faults: list[str] = []
    contexts = []

    def open_page(base: str, path: str = "/", allowed: str = "", ready: str = READY, **options: Any) -> Any:
        context = chromium.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
        contexts.append(context)
        context.set_default_timeout(20_000)
        context.on(
            "request",
            lambda r: (
                None
                if r.url.startswith((base, "data:", f"blob:{base}"))
                else faults.append(f"off origin: {r.url}")
            ),
        )
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on(
            "console",
            lambda m: (
                faults.append(m.text) if m.type == "error" and not (allowed and allowed in m.text) else None
            ),
        )
        page.goto(base + path)
        page.wait_for_selector(ready)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults, faults


@pytest.fixture
def lab() -> Iterator[FakeLab]:
    """A server of recorded streams."""
    server = FakeLab().start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def page(browse: Callable[..., Any], lab: FakeLab) -> Any:
    """The page of that server."""
    return browse(lab.address)


@pytest.fixture(scope="session")
def pictures() -> Path:
    """Where screenshots are kept: the folder that `UNSPOKEN_RESULTS` names, or one beside other temporary files."""
    folder = (
        Path(os.environ.get("UNSPOKEN_RESULTS") or Path(tempfile.gettempdir()) / "unspoken-results") / "lab"
    )
    folder.mkdir(parents=True, exist_ok=True)
    return folder
