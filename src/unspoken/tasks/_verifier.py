"""Compare two formulas with math-verify in a process of its own, under a hard deadline.

Symbolic comparison of what a model wrote may take for ever or all memory (`9^{9^{9^9}}`), and
math-verify's own time limits work in a main thread only. So it runs in a small process that is
started at the first question, killed when it is late, and started again at the next one. It ends
with its parent: its input closes, and an alarm ends it in the middle of a comparison.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Literal

Outcome = Literal["equal", "different", "timeout", "failed", "absent"]

DEADLINE = 5.0  # seconds for one comparison
START_DEADLINE = 120.0  # seconds until the process is ready; it imports sympy
MAX_CHARS = 1000  # longer answers are not sent
_WORKER = Path(__file__).with_name("_verifier_worker.py")


class Verifier:
    """One worker process, started when first needed. Any thread may use it; questions queue up.

    Args:
        deadline: Seconds for one comparison.
        command: The worker's command line, for tests.
    """

    def __init__(self, deadline: float = DEADLINE, command: list[str] | None = None) -> None:
        self.deadline = deadline
        self.command = command or [sys.executable, str(_WORKER)]
        self.starts = 0
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._broken = False

    def compare(self, gold: str, answer: str) -> Outcome:
        """Compare two LaTeX formulas.

        Returns:
            `equal` or `different`; `timeout` when the deadline passed (the worker is gone, the next call
            starts another), `failed` when the comparison or the worker broke down.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._close()
                if self._broken or not self._start():
                    return "failed"
            assert self._process is not None and self._process.stdin is not None
            with contextlib.suppress(OSError):
                self._process.stdin.write(json.dumps([gold, answer, self.deadline]) + "\n")
                self._process.stdin.flush()
            reply, late = self._reply(self.deadline)
            if reply == "equal":
                return "equal"
            if reply == "different":
                return "different"
            if reply != "failed":
                self._close()  # it hung, or it died on this question
            return "timeout" if late else "failed"

    @property
    def pid(self) -> int | None:
        """The worker's process id while there is one."""
        return self._process.pid if self._process is not None else None

    @property
    def broken(self) -> bool:
        """Whether the worker could not be started."""
        return self._broken

    def close(self) -> None:
        """End the worker; the next comparison starts another."""
        with self._lock:
            self._close()

    def _start(self) -> bool:
        # The parent's own path, so that the worker finds the same packages.
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.starts += 1
        try:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                env=env,
                start_new_session=True,  # Ctrl-C is for the parent, which may still have answers to grade
            )
        except OSError:
            self._broken = True
            return False
        reply, _ = self._reply(START_DEADLINE)
        if reply != "ready":
            self._close()
            self._broken = True
            return False
        return True

    def _reply(self, seconds: float) -> tuple[str, bool]:
        """One line of the worker, and whether it was killed for being late."""
        process = self._process
        assert process is not None and process.stdout is not None
        late = threading.Event()

        def kill() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        line = process.stdout.readline()
        timer.cancel()
        timer.join()
        if late.is_set():
            process.wait()  # so that the next `poll` cannot take it for alive
        return line.strip(), late.is_set()

    def _close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        pipes: list[IO[str] | None] = [process.stdin, process.stdout]
        for pipe in pipes:
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


_workers: dict[Path, Verifier] = {}
_making = threading.Lock()


def shared(script: Path = _WORKER) -> Verifier:
    """The one worker of this process that runs a script."""
    with _making:
        if script not in _workers:
            _workers[script] = Verifier(command=[sys.executable, str(script)])
        return _workers[script]


def _close_all() -> None:
    for worker in _workers.values():
        worker.close()


def _forget() -> None:
    # A forked child must not talk through its parent's pipes, nor wait for a lock held at the fork.
    global _workers, _making
    _workers, _making = {}, threading.Lock()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("math_verify") is not None


def verifier_available() -> bool:
    """Whether formulas are compared by math-verify; if not, only by exact numbers and normal forms."""
    return _installed() and not shared().broken


@functools.lru_cache(maxsize=16384)
def compare(gold: str, answer: str) -> Outcome:
    """Compare two formulas in the shared worker; `absent` when math-verify is not installed."""
    if not verifier_available():
        return "absent"
    return shared().compare(gold, answer)
