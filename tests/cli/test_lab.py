"""`unspoken lab` and `unspoken serve`: as processes, and what is refused before a model is loaded."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from unspoken.cli.main import main
from unspoken.web import server

Folder = Callable[[str], Path]


@contextmanager
def started(words: list[str], data: Path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The process, the address it gives, and what it said before."""
    process = subprocess.Popen(
        [sys.executable, "-m", "unspoken", *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_DATA_HOME": str(data), "BROWSER": "true"},
    )
    assert process.stderr is not None
    said = ""
    try:
        while "Ctrl-C ends it" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        found = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert found, said
        yield process, found[0], said
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_the_lab_from_start_to_ctrl_c(tiny_folder: Folder, tmp_path: Path) -> None:
    words = ["lab", "-m", str(tiny_folder("llama")), "--port", "0", "--no-browser", "--name", "tiny"]
    with started(words, tmp_path) as (process, url, said):
        assert f"{url}/v1" in said
        body = {"prompt": "hi", "strategy": {"name": "soft", "T_e": 3}, "max_new_tokens": 8}
        answer = httpx.post(f"{url}/api/generate", json=body, timeout=60).json()
        assert answer["reason"] in ("eos", "length")
        assert (tmp_path / "unspoken" / "lab" / f"{answer['run']}.jsonl").exists()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr is not None and "Traceback" not in process.stderr.read()


def test_serve_keeps_nothing_and_asks_for_its_key(tiny_folder: Folder, tmp_path: Path) -> None:
    words = [
        "serve",
        "-m",
        str(tiny_folder("llama")),
        "--port",
        "0",
        "--api-key",
        "open-sesame",
        "--name",
        "tiny",
    ]
    with started(words, tmp_path) as (process, url, _):
        assert httpx.get(f"{url}/v1/models").status_code == 401
        headers = {"Authorization": "Bearer open-sesame"}
        body = {"model": "tiny", "prompt": "hi", "max_tokens": 4, "seed": 0}
        answer = httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=60)
        assert answer.status_code == 200 and answer.json()["choices"][0]["text"]
        assert not (tmp_path / "unspoken").exists()
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.poll() is not None


def test_a_taken_port_offers_the_next_free_one(
    tiny_folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for command in ("lab", "serve"):
            assert main([command, "-m", str(tiny_folder("llama")), "--port", str(port)]) == 2
            said = capsys.readouterr().err
            assert f"Port {port} is in use" in said
            offered = re.search(r"--port (\d+)", said)
            assert offered and int(offered[1]) > port


def test_a_taken_port_is_told_before_torch_is_imported() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = ["lab", "-m", "no/such-model-anywhere", "--port", str(taken.getsockname()[1])]
        code = "import sys; from unspoken.cli.main import main\n"
        code += f"assert main({words}) == 2 and 'torch' not in sys.modules"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "is in use" in done.stderr, done.stderr


def test_the_usual_port_moves_on_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(server, "PORT", taken.getsockname()[1])
        with server.bind("127.0.0.1", None, "unspoken lab") as found:
            assert found.getsockname()[1] > server.PORT


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "0.0.0.0"], "--insecure"),
        (["--port", "70000"], "port must be from 0 to 65535"),
        (["--batch-size", "0", "--max-waiting", "0"], "2 problems"),
        (["--host", "203.0.113.7", "--insecure"], "cannot be used"),
        (["--api-key", "short"], "at least 8 characters"),
        (["--browse"], "browse"),
    ],
)
def test_what_is_wrong_is_said_before_the_model_is_loaded(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lab", "-m", "no/such-model-anywhere", *words]) == 2
    assert message in capsys.readouterr().err


def test_without_the_packages_the_line_that_installs_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "-m", "smollm2"]) == 1
    assert "pip install 'unspoken[lab]'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["lab", "serve"])
def test_mistakes_of_every_kind_are_listed_at_once(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--api-key", "short", "--port", "70000", "--max-waiting", "0", "--max-new-tokens", "0"]
    assert main([command, "-m", "no/such-model-anywhere", *words]) == 2
    said = capsys.readouterr().err
    assert "4 problems" in said, said
    for message in ("at least 8 characters", "port must be", "max_waiting must", "max_new_tokens must"):
        assert said.count(message) == 1, said


def test_a_folder_that_cannot_keep_runs_is_found_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    words = ["--history", str(tmp_path / "file" / "runs"), "--port", "0", "--no-browser"]
    assert main(["lab", "-m", "no/such-model-anywhere", *words]) == 2
    assert "Runs cannot be kept" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--allow-host"], ["--allow-host", "--port", "0"]])
def test_a_host_that_is_allowed_has_a_name(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "-m", "no/such-model-anywhere", *words]) == 2
    assert "--allow-host needs a name" in capsys.readouterr().err


def test_help_says_what_no_browser_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "--help"]) == 0
    said = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    assert "--no-browser" in said and "Do not open the page in a browser." in said
    assert "default: True" not in said[said.index("--no-browser") :][:120]
