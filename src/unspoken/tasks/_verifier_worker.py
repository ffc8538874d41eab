"""The process behind `_verifier`: reads pairs of answers, one JSON list a line, writes one verdict a line.

Run as a script, never imported by the package itself. It can be killed at any moment.
"""

import os
import sys

# As a script, this folder comes first on the path; its files must not hide anyone's modules.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE]

import contextlib  # noqa: E402
import importlib  # noqa: E402
import json  # noqa: E402
import signal  # noqa: E402
from collections.abc import Callable  # noqa: E402

_MEMORY = 2 << 30  # bytes of address space; a tower of powers ends in an error instead of filling the machine
Comparer = Callable[[str, str], bool]


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def _alarm(seconds: int) -> None:
    # With the default action the system ends the process, even inside a long C call and without a parent.
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)


def serve(load: Callable[[], Comparer]) -> None:
    """Answer requests until the input ends.

    Args:
        load: Imports what is needed, and gives the function that compares a gold answer with another.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not be read as a verdict
    _limit_memory()
    same = load()
    replies.write("ready\n")
    replies.flush()
    for line in sys.stdin:
        gold, answer, seconds = json.loads(line)
        _alarm(int(seconds) + 2)
        try:
            verdict = "equal" if same(gold, answer) else "different"
        except (Exception, RecursionError, MemoryError):
            verdict = "failed"
        _alarm(0)
        replies.write(verdict + "\n")
        replies.flush()


def _math_verify() -> Comparer:
    library = importlib.import_module("math_verify")
    # Everything is wrapped as LaTeX, so only the grammar-based reader is used: the reader of plain
    # expressions goes through `eval`. The library's own time limits need signals and are switched off.
    reader = [library.LatexExtractionConfig()]

    def read(answer: str) -> list[object]:
        parsed: list[object] = library.parse(f"${answer}$", reader, parsing_timeout=None)
        return parsed

    def same(gold: str, answer: str) -> bool:
        # Gold first: the comparison is not symmetric.
        return bool(library.verify(read(gold), read(answer), timeout_seconds=None))

    return same


if __name__ == "__main__":
    serve(_math_verify)
