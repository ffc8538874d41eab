"""Outcomes become messages and exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unspoken import __version__
from unspoken.cli import catalogue
from unspoken.cli.main import COMMANDS, main
from unspoken.errors import RunError


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["-h"], ["--help"]):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"usage: unspoken {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["generate", "eval"])
def test_help_lists_the_strategies(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert "soft" in out
    assert "cot" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"unspoken {__version__}\n"


def test_python_dash_m() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "unspoken", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == f"unspoken {__version__}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["genrate"], "Unknown command 'genrate'. Did you mean 'generate'?"),
        (["list", "taks"], "Did you mean 'tasks'?"),
        (["list", "--kidn"], "Unknown option '--kidn'"),
        (["generate", "sof", "hi"], "Unknown strategy 'sof'. Did you mean 'soft'?"),
        (["generate", "hi"], "No strategy given, and the model 'smollm2' remembers none. Known: "),
        (["generate", "hi", "-m", "smolm2"], "Did you mean 'smollm2'?"),
        (["eval", "gsm8", "soft"], "Unknown task 'gsm8'. Did you mean 'gsm8k'?"),
        (["eval", "gsm8k"], "Write: unspoken eval gsm8k STRATEGY -m MODEL"),
        (["generate", "soft", "hi", "--T_e", "9", "--T_total", "3"], "T_total"),
        (["generate", "soft", "hi", "--mixture", "nonuniform"], "did you mean 'non_uniform'?"),
        (["generate", "cot", " "], "The prompt is empty"),
        (["generate", "cot", "hi", "--threads", "0"], "threads must be at least 1"),
        (["generate", "./nowhere.py", "hi"], "No file 'nowhere.py'"),
        (["pull", "smollm"], "Did you mean 'smollm2'?"),
        (["compare", "somewhere"], "at least two folders"),
        (["show", "nowhere"], "nowhere"),
        (["demo", "--limit", "0"], "limit must be at least 1"),
        (["demo", "--level", "9"], "level must be"),
        (["-c", "no-such.yaml"], "Cannot read"),
        (["sweep", "-c", "no-such.yaml"], "-c names a YAML file of options"),
        (["sweep", "arithmetic", "--layers", "-5", "3"], "--layers must be 0 or more, not -5: a layer is"),
        (["sweep", "arithmetic", "--layer_idx", "-5"], "--layer-idx must be 0 or more, not -5: a layer is"),
        (
            ["generate", "cot", "hi", "--depth", "-5"],
            "window:START:LENGTH, with blocks counted from 0, not '-5'",
        ),
        (
            ["generate", "power", "hi", "--alpha", "0.5"],
            "not 0.5: 1 is plain sampling at temperature 1; --max-swap",
        ),
        (
            ["generate", "power", "hi", "--temperature", "2"],
            "alpha = 0.5, below 1; give a temperature of 1 or less",
        ),
        (["doctor", "powr"], "Unknown check 'powr'. Did you mean 'power'? Known: power, train."),
        (["lab", "-m", "no/such-model", "--port", "abc"], "--port must be an integer, not 'abc'."),
        (
            ["grade", "somewhere", "--grader", "foo"],
            "error: --grader must be one of 'default', 'strict', 'both', not",
        ),
    ],
)
def test_mistakes_are_one_message_and_exit_with_two(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("error: ")
    assert "Traceback" not in err


def test_a_command_may_come_from_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "list.yaml"
    file.write_text("command: list\nkind: models\n", encoding="utf-8")
    assert main(["-c", str(file)]) == 0
    assert capsys.readouterr().out.startswith("Models:")
    file.write_text("kind: models\n", encoding="utf-8")
    assert main(["-c", str(file)]) == 2


def raising(error: BaseException) -> object:
    def command(words: list[str]) -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RunError("It broke.", "Try again."), 1, "error: It broke.\n  Try again."),
        (KeyboardInterrupt(), 130, "Stopped."),
        (ZeroDivisionError("oops"), 1, "This is a bug"),
    ],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("UNSPOKEN_DEBUG", raising=False)
    monkeypatch.setattr(catalogue, "list_command", raising(error))
    assert main(["list"]) == code
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


def test_debugging_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNSPOKEN_DEBUG", "1")
    monkeypatch.setattr(catalogue, "list_command", raising(ZeroDivisionError("oops")))
    assert main(["list"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="pipes close otherwise on Windows")
def test_a_closed_pipe_is_no_error() -> None:
    # The reader is closed before the command writes anything.
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "unspoken", "list"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 141
