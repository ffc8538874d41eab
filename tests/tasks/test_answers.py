from __future__ import annotations

import asyncio
import builtins
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from unspoken.tasks import _verifier
from unspoken.tasks._answers import equal, grade, normal_form, verifier_available
from unspoken.tasks._verifier import Verifier

TOWER = "9^{9^{9^9}}"
needs_math_verify = pytest.mark.skipif(not _verifier._installed(), reason="math-verify is not installed")

# gold, answer, equal: decided without math-verify.
STRICT = [
    (r"\frac{14}{3}", "14/3", True),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})", True),
    ("1,234", "1234", True),
    ("x=5", "5", True),
    (r"\frac{2}{4}", r"\frac12", True),
    (r"\{1,2\}", r"\{2,1\}", True),
    ("{1,2}", "{2,1}", True),
    ("1,-2", "-2, 1", True),
    ("1,-2", "1, 2", False),
    ("3, 5, 7", "3, 5, and 7", True),
    (r"10\text{ or }12", "12, 10", True),
    (r"\left( \frac{3}{2}, -13 \right)", "(1.5, -13)", True),
    ("(1,2)", "(2,1)", False),
    (r"50\%", "50", True),
    (r"\text{Evelyn}", "evelyn", True),
    (r"\text{east}", "north", False),
    (r"\text{(C)}", "C", True),
    ("52_8", "52_{8}", True),
    (r"11\sqrt2", r"11\sqrt{2}", True),
    (r"\dfrac{\sqrt3}{2}", r"\frac{\sqrt{3}}{2}", True),
    ("p - q", "p-q", True),
    ("(-1,6)", r"x\in(-1,6)", True),
    (r"90^\circ", "90", True),
    ("5", "five", False),
]
# gold, answer, equal: needs math-verify.
SYMBOLIC = [
    ("3", r"\sqrt{9}", True),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}", True),
    ("6 - 5i", "-5i + 6", True),
    ("p - q", "q - p", False),
    ("[0,1)", "[0,1]", False),
    (r"2k+2", "2(k+1)", True),
]


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(gold: str, answer: str) -> str:
        raise AssertionError(f"the worker was asked about {gold!r} and {answer!r}")

    monkeypatch.setattr("unspoken.tasks._answers.compare", compare)


@pytest.mark.parametrize(("gold", "answer", "same"), STRICT)
@pytest.mark.usefixtures("no_worker")
def test_equality_without_the_worker(gold: str, answer: str, same: bool) -> None:
    assert equal(gold, answer).equal == same


@needs_math_verify
@pytest.mark.parametrize(("gold", "answer", "same"), SYMBOLIC)
def test_formulas_go_to_math_verify(gold: str, answer: str, same: bool) -> None:
    assert equal(gold, answer) == (same, "math-verify")


def test_without_math_verify_the_strict_path_decides_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_verifier, "_installed", lambda: False)
    _verifier.compare.cache_clear()
    try:
        assert not verifier_available()
        assert equal("2k+2", "2(k+1)") == (False, "without math-verify")
        assert grade("2k+2", r"\boxed{2(k+1)}").rule == "boxed, without math-verify"
    finally:
        _verifier.compare.cache_clear()


def test_normal_form_ignores_layout() -> None:
    assert normal_form(r"\left(\, x + \tfrac12 \right)") == normal_form(r"(x+\frac{1}{2})")
    assert normal_form(r"\leftarrow") == r"\leftarrow"


def test_long_answers_are_not_sent(no_worker: None) -> None:
    assert not equal("5", "x+" * 1000).equal


@pytest.fixture
def verifier() -> Iterator[Verifier]:
    one = Verifier(deadline=2.0)
    yield one
    one.close()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def gone_within(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not alive(pid):
            return True
        time.sleep(0.05)
    return False


@needs_math_verify
def test_a_hanging_comparison_is_killed_and_the_next_one_works(verifier: Verifier) -> None:
    assert verifier.compare("3", r"\sqrt{9}") == "equal"
    first = verifier.pid
    assert first is not None
    start = time.monotonic()
    assert verifier.compare("9", TOWER) in ("timeout", "failed")
    assert time.monotonic() - start < 10
    assert gone_within(first, 5)
    assert verifier.compare("3", r"\sqrt{9}") == "equal"
    assert verifier.starts == 2


@needs_math_verify
def test_threads_share_one_worker(verifier: Verifier) -> None:
    outcomes: list[str] = []

    def ask(n: int) -> None:
        outcomes.append(verifier.compare(str(n), rf"\sqrt{{{n * n}}}"))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(2, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["equal"] * 6 and verifier.starts == 1


@needs_math_verify
def test_usable_from_an_event_loop() -> None:
    async def main() -> list[bool]:
        verdicts = await asyncio.gather(*(asyncio.to_thread(equal, f"{n}k", f"{n}*k*1") for n in (3, 4)))
        return [verdict.equal for verdict in verdicts]

    assert asyncio.run(main()) == [True, True]


FAKE = """
import sys, time
print("ready", flush=True)
for line in sys.stdin:
    if "hang" in line: time.sleep(60)
    if "die" in line: sys.exit(1)
    print("equal", flush=True)
"""


def test_a_worker_that_dies_or_hangs_costs_one_answer() -> None:
    verifier = Verifier(deadline=0.5, command=[sys.executable, "-c", FAKE])
    try:
        assert verifier.compare("a", "b") == "equal"
        assert verifier.compare("a", "die") == "failed"
        assert verifier.compare("a", "b") == "equal"
        assert verifier.compare("a", "hang") == "timeout"
        assert verifier.compare("a", "b") == "equal"
        assert verifier.starts == 3 and not verifier.broken
    finally:
        verifier.close()
    assert verifier.pid is None


def test_a_worker_that_cannot_start_is_given_up() -> None:
    verifier = Verifier(command=[sys.executable, "-c", "raise SystemExit(3)"])
    assert [verifier.compare("a", "b"), verifier.compare("a", "c")] == ["failed", "failed"]
    assert verifier.broken and verifier.starts == 1


def run_python(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)


@needs_math_verify
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
@pytest.mark.parametrize("answer", ["3", TOWER], ids=["idle", "hanging"])
def test_the_worker_dies_with_its_parent(answer: str) -> None:
    parent = run_python(
        f"""
        import threading, time
        from unspoken.tasks._verifier import Verifier
        verifier = Verifier(deadline=1.0)
        verifier.compare("3", "3")
        threading.Thread(target=verifier.compare, args=("9", {answer!r}), daemon=True).start()
        time.sleep(0.3)
        print(verifier.pid, flush=True)
        time.sleep(60)
        """
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    assert alive(worker)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone_within(worker, 15)


def test_numeric_grading_imports_no_torch_and_starts_no_process() -> None:
    parent = run_python(
        """
        import sys
        from unspoken.tasks import _verifier
        from unspoken.tasks.arithmetic import Arithmetic
        from unspoken.tasks import gsm8k, math500, multiplication, _validate
        assert _validate.validate(Arithmetic(n=20)).ok
        heavy = {"torch", "transformers", "sympy", "math_verify", "datasets", "numpy"} & set(sys.modules)
        print(sorted(heavy), _verifier.shared().starts)
        """
    )
    out, _ = parent.communicate()
    assert out.strip() == "[] 0"


@needs_math_verify
def test_the_worker_imports_no_torch() -> None:
    probe = "import sys, math_verify; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True).stdout.strip()
        == "False"
    )


def test_model_text_is_never_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a grader ran text")

    monkeypatch.setattr(builtins, "eval", refuse)
    monkeypatch.setattr(builtins, "exec", refuse)
    target = tmp_path / "made"
    code = f"__import__('pathlib').Path('{target}').touch()"
    for text in (rf"\boxed{{{code}}}", f"The answer is {code}", rf"\boxed{{5 + {code}}}"):
        assert not grade("5", text).correct
        assert not grade("5", text, numeric=True).correct
    assert not target.exists()
