"""Kept runs whose files are damaged, and runs that cannot be kept: said plainly, and without harm to others."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import SOFT, WAIT, GatedEngine, SlowEngine, ask, post, refused, serving, until

from unspoken.lm.model import CausalLM
from unspoken.web import _lens
from unspoken.web._history import DamagedRun, History
from unspoken.web._settings import Settings
from unspoken.web.jobs import Engine

DEEP = "[" * 200_000


@pytest.fixture
def keeping(lm: CausalLM, folder: Path) -> Any:
    with serving(Engine(lm), Settings(name="tiny", history=folder)) as base:
        yield base


def kept_file(base: str, folder: Path) -> Path:
    run = ask(base, prompt="hi", strategy=SOFT, max_new_tokens=8)[-1][1]["run"]
    return folder / f"{run}.jsonl"


@pytest.mark.parametrize(
    "content",
    [DEEP, DEEP + "\n" + DEEP, '{"a": ' * 100_000, '{"strategy": {"name": "x"}, "seed": 1e999}\n{}'],
)
def test_a_damaged_file_takes_nothing_else_with_it(keeping: str, folder: Path, content: str) -> None:
    good = kept_file(keeping, folder)
    (folder / "20260101-damaged-c1.jsonl").write_text(content)
    (folder / "damaged-c1.jsonl").write_text(content)
    listed = httpx.get(f"{keeping}/api/runs")
    assert listed.status_code == 200 and [entry["id"] for entry in listed.json()] == [good.stem]
    assert [entry["id"] for entry in History(folder).list()] == [good.stem]  # as when a server starts


@pytest.mark.parametrize(
    ("usage", "listed"),
    [({"tokens": 1}, True), ({"tokens": float("inf")}, False), ({"tokens": float("nan")}, False)],
)
def test_numbers_that_cannot_be_told_again_are_not_listed(
    keeping: str, folder: Path, usage: dict[str, float], listed: bool
) -> None:
    good = kept_file(keeping, folder)
    *lines, last = good.read_text().splitlines()
    line = json.dumps({**json.loads(last), "usage": usage})
    other = "20260101-000000-000-aaaa"
    (folder / f"{other}.jsonl").write_text("\n".join([*lines, line]) + "\n")
    found = httpx.get(f"{keeping}/api/runs").json()
    assert (other in [entry["id"] for entry in found]) == listed


def start_of(**changes: Any) -> Callable[[list[Any]], None]:
    return lambda lines: lines[0].update(changes)


def event(value: Any) -> Callable[[list[Any]], None]:
    return lambda lines: lines.__setitem__(2, value)


@pytest.mark.parametrize(
    "damage",
    [
        event(None),
        event([]),
        event({"event": "step"}),
        event({"event": "zzz"}),
        event({"event": "rewind", "row": "x", "to": "2"}),
        event({"event": "step", "row": "x", "index": 0, "phase": "answer", "kind": "dance"}),
        event({"event": "step", "row": "x", "index": 0, "phase": "answer", "kind": "token", "token_id": "a"}),
        start_of(depth=[1]),
        start_of(depth={"a": 1}),
        start_of(prompt=None),
        start_of(prompt={"user": 5}),
        start_of(prompt_tokens="a"),
        start_of(prompt_tokens=-1),
        start_of(strategy={"name": "soft", "x": float("nan")}),
    ],
)
def test_a_damaged_run_is_called_damaged(
    keeping: str, folder: Path, damage: Callable[[list[Any]], None]
) -> None:
    file = kept_file(keeping, folder)
    httpx.get(f"{keeping}/api/runs")  # it is known
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    damage(lines)
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    for response in (
        httpx.get(f"{keeping}/api/run/{file.stem}"),
        post(keeping, "/api/lens", {"run": file.stem}),
    ):
        error = response.json()["error"]
        assert response.status_code == 422 and "damaged" in error["message"] and "run" in error["fields"]
    assert httpx.delete(f"{keeping}/api/run/{file.stem}").json() == {"deleted": True}


@pytest.mark.parametrize(
    "line", ["{", DEEP, "NaN", '{"event": "note", "row": "x", "name": "n", "value": 1e999}']
)
def test_a_bad_line_in_the_middle_is_no_missing_run(keeping: str, folder: Path, line: str) -> None:
    file = kept_file(keeping, folder)
    first, *rest = file.read_text().splitlines()
    file.write_text("\n".join([first, line, *rest]) + "\n")
    assert [entry["id"] for entry in httpx.get(f"{keeping}/api/runs").json()] == [file.stem]
    response = httpx.get(f"{keeping}/api/run/{file.stem}")
    assert response.status_code == 422 and "damaged" in response.json()["error"]["message"]
    with pytest.raises(DamagedRun):
        History(folder).read(file.stem)


@pytest.mark.parametrize(
    "damage",
    [
        lambda e: e.update(row="another"),
        lambda e: e.update(token_id=10**6),
        lambda e: e.update(top={"ids": [1, 2], "probs": [1.0], "weights": [1.0]}),
        lambda e: e.update(surprise=1),
    ],
)
def test_what_only_the_lens_needs_is_looked_at_by_the_lens(
    keeping: str, folder: Path, damage: Callable[[dict[str, Any]], None]
) -> None:
    file = kept_file(keeping, folder)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    damage(next(line for line in lines if line.get("event") == "step"))
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert httpx.get(f"{keeping}/api/run/{file.stem}").status_code == 200
    status, error = refused(keeping, {"run": file.stem}, "/api/lens")
    assert status == 422 and "damaged" in error["message"]


def test_the_lens_reads_its_run_off_the_event_loop_and_once(
    keeping: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = kept_file(keeping, folder)
    threads: list[str] = []
    real = _lens.kept_generation

    def watched(run: Any) -> Any:
        threads.append(threading.current_thread().name)
        return real(run)

    monkeypatch.setattr(_lens, "kept_generation", watched)
    assert post(keeping, "/api/lens", {"run": file.stem}).status_code == 200
    (name,) = threads
    assert name.startswith("AnyIO worker")  # neither the event loop's thread nor the engine's


# Runs that cannot be kept


def test_a_run_that_was_left_and_cannot_be_kept_is_logged(
    lm: CausalLM, folder: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    engine = SlowEngine(lm)
    said = ""
    with serving(engine, Settings(name="tiny", history=folder)) as base:
        folder.rename(folder.with_name("moved"))
        body = {"prompt": "hi", "strategy": "cot", "max_new_tokens": 900}
        with httpx.stream("POST", f"{base}/api/stream", json=body, timeout=WAIT) as response:
            for text in response.iter_text():
                if "event: step" in text:
                    break
        until(lambda: engine.running == 0)

        def told() -> bool:
            nonlocal said
            said += capsys.readouterr().err
            return "A run could not be kept" in said

        until(told)
        done = ask(base, prompt="hi", strategy="cot", max_new_tokens=2)[-1][1]
        assert done["run"] is None and "could not be kept" in done["not_kept"]
    assert "never retrieved" not in said + capsys.readouterr().err and "Traceback" not in said


def test_an_engine_that_closes_refuses_the_lens(lm: CausalLM, folder: Path) -> None:
    engine = GatedEngine(lm)
    with serving(engine, Settings(name="tiny", history=folder)) as base:
        engine.let(40)
        file = kept_file(base, folder)
        engine.close()
        assert refused(base, {"run": file.stem}, "/api/lens")[0] == 503
        assert refused(base, {"prompt": "hi", "depth": "1"})[0] == 503
