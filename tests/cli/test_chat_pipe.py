"""`unspoken chat` as a process that is written to: every mistake is told, and none of them ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Folder = Callable[[str], Path]

LATE = '''
"""Takes its time, and says so."""
import sys
import time
from dataclasses import dataclass

from unspoken.decoding.cot import ChainOfThought


@dataclass(frozen=True)
class Late(ChainOfThought):
    """One token now and then."""

    def observe(self, row, token_id, text):
        sys.stderr.write("a token\\n")
        sys.stderr.flush()
        time.sleep(0.2)
'''


def chat(folder: Path, where: Path) -> subprocess.Popen[bytes]:
    words = ["chat", "cot", "-m", str(folder), "--max-new-tokens", "300"]
    return subprocess.Popen(
        [sys.executable, "-m", "unspoken", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=where,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        # Tests that run in the background inherit that interruptions are ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_no_line_ends_a_conversation(tiny_folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "raises.py").write_text("raise ValueError('not today')\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "broken.py").write_text("def\n")
    lines = {
        b"/strategy nonsense": "Unknown strategy 'nonsense'",
        b"/strategy ./raises.py": "ValueError: not today",
        b"/strategy ./leaves.py": "SystemExit: 3",
        b"/strategy ./broken.py": "SyntaxError",
        b"/strategy ./nowhere.py": "No file",
        b"/strategy soft k=": "k",
        b"/set temperature": "no field with a value",
        b"/set temperature=hot": "temperature",
        b"/set temperature=-3": "temperature must be",
        b"/set top_p=7": "top_p must be",
        b"/set max_new_tokens=0": "at least 1",
        b"/set max_new_tokens=many": "max_new_tokens",
        b"/set seed=1.5": "seed",
        b"/set =1": "no field with a value",
        b"/trace": "Unknown trace level",
        b"/trace everything": "Unknown trace level 'everything'",
        b"/trace none extra": "Unknown trace level",
        b"caf\xe9 \xff": "not readable as utf-8",
        b"/set system=\xff\xfe": "not readable as utf-8",
        b"/nothing": "Unknown command",
        b"/": "Unknown command",
    }
    process = chat(tiny_folder("llama"), tmp_path)
    last = b"/set max_new_tokens=4\n/strategy\nstill here"  # the end of the input needs no line of its own
    out, err = process.communicate(b"\n".join(lines) + b"\n" + last, timeout=120)
    said = err.decode()
    assert process.returncode == 0 and "Traceback" not in said, said
    for line, message in lines.items():
        assert message in said, line
    assert said.count("error: ") == len(lines)
    assert "\ncot\n" in said and out.strip()  # nothing was changed, and the last line was answered
    assert "forward passes" in said.splitlines()[-1]


@pytest.mark.parametrize("again", [False, True])
def test_ctrl_c_cuts_an_answer_and_the_conversation_goes_on(
    tiny_folder: Folder, tmp_path: Path, again: bool
) -> None:
    (tmp_path / "late.py").write_text(LATE)
    process = chat(tiny_folder("llama"), tmp_path)
    assert process.stdin is not None and process.stderr is not None
    process.stdin.write(b"/strategy ./late.py\n" + b"count\n" * (1 + again))
    process.stdin.flush()
    said = ""

    def until(text: str) -> None:
        nonlocal said
        begun, lines = len(said), 0
        while text not in said[begun:]:
            line = process.stderr.readline().decode()  # type: ignore[union-attr]
            assert line, said
            said, lines = said + line, lines + 1
            if lines % 10 == 0:  # Python drops an interruption that comes while an object is deleted
                process.send_signal(signal.SIGINT)

    for _ in range(1 + again):
        until("a token")
        process.send_signal(signal.SIGINT)
        until("not kept")
    out, err = process.communicate(b"/strategy cot\n/set max_new_tokens=3\ngo on\n", timeout=120)
    said += err.decode()
    assert process.returncode == 0 and "Traceback" not in said, said
    assert said.count("Stopped; this turn is not kept.") == 1 + again
    assert said.count("a token") < 100  # it was cut
    assert "forward passes" in said.splitlines()[-1] and out.strip()
