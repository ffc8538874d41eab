"""Runs that are kept, and the lens that reads them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import SOFT, WAIT, GatedEngine, SlowEngine, ask, post, refused, serving, until

from unspoken.decoding import Request, run
from unspoken.decoding.soft import SoftThinking
from unspoken.lm.model import CausalLM
from unspoken.types import event_from_dict, fold
from unspoken.web._settings import Settings
from unspoken.web.jobs import Engine


def test_runs_are_kept_listed_read_and_deleted(base: str) -> None:
    first, second = (ask(base, prompt=f"question {i}", strategy=SOFT, max_new_tokens=6) for i in range(2))
    ids = [messages[-1][1]["run"] for messages in (second, first)]
    listed = httpx.get(f"{base}/api/runs?limit=2").json()
    assert [entry["id"] for entry in listed] == ids
    assert listed[0]["prompt"] == "question 1" and listed[0]["strategy"] == "soft"
    older = httpx.get(f"{base}/api/runs?limit=1&before={ids[0]}").json()
    assert [entry["id"] for entry in older] == [ids[1]]
    kept = httpx.get(f"{base}/api/run/{ids[0]}").json()
    assert kept["done"] == second[-1][1] and kept["start"] == second[0][1]
    assert kept["events"] == [value for _, value in second[1:-1]]
    assert httpx.delete(f"{base}/api/run/{ids[0]}").json() == {"deleted": True}
    assert httpx.get(f"{base}/api/run/{ids[0]}").status_code == 404
    assert httpx.delete(f"{base}/api/run/{ids[0]}").status_code == 404
    for bad in ("..%2f..%2fetc%2fpasswd", "%2e%2e", "x" * 65, "a b", "....jsonl"):
        assert httpx.get(f"{base}/api/run/{bad}").status_code in (404, 422)


def test_a_browser_that_goes_away_frees_its_row_and_leaves_what_there_was(lm: CausalLM, folder: Path) -> None:
    engine = SlowEngine(lm)
    with serving(engine, Settings(name="tiny", history=folder)) as base:
        body = {"prompt": "hi", "strategy": {"name": "cot", "temperature": 1.5}, "max_new_tokens": 900}
        with httpx.stream("POST", f"{base}/api/stream", json=body, timeout=WAIT) as response:
            text = ""
            for piece in response.iter_text():
                text += piece
                if text.count("event: step") >= 3:
                    break
        until(lambda: engine.running == 0)
        until(lambda: httpx.get(f"{base}/api/runs").json())
        (entry,) = httpx.get(f"{base}/api/runs").json()
        assert entry["reason"] == "cancelled"
        assert len(httpx.get(f"{base}/api/run/{entry['id']}").json()["events"]) < 800


# The lens


def test_the_lens_reads_soft_steps_of_a_kept_run_as_the_library_does(base: str, lm: CausalLM) -> None:
    from unspoken.analysis.lens import LogitLens

    strategy = SoftThinking(T_e=4, k=3)
    messages = ask(base, prompt="What is 2 + 2?", strategy=SOFT, max_new_tokens=12, seed=1)
    start, done = messages[0][1], messages[-1][1]
    grid = post(base, "/api/lens", {"run": done["run"], "first": 1, "last": 6}).json()
    assert grid["steps"] == [1, 2, 3, 4, 5, 6] and grid["layers"] == [-1, 0, 1]
    assert grid["kinds"][0] == "soft" and grid["labels"][0].startswith("‹")
    got = fold(event_from_dict(value) for _, value in messages[1:-1])[start["id"]]
    places = [start["prompt_tokens"] + i for i in grid["steps"]]
    expected = LogitLens(lm)(got, prompt="What is 2 + 2?", strategy=strategy, positions=places)
    for name in ("kl", "entropy"):
        assert grid["values"][name] == [pytest.approx(row, abs=2e-6) for row in expected[name].tolist()]
    assert grid["values"]["rank"][-1] == [1.0] * 6 or grid["values"]["rank"][-1] == [0.0] * 6
    assert grid["top"] == [[expected.texts[i] for i in row] for row in expected.top_ids[:, :, 0].tolist()]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"first": 99}, "first"),
        ({"first": 3, "last": 2}, "last"),
        ({"last": 99}, "last"),
        ({"metric": "x"}, "metric"),
    ],
)
def test_a_span_that_is_not_there(base: str, body: dict[str, Any], field: str) -> None:
    run_id = ask(base, prompt="hi", strategy=SOFT, max_new_tokens=8)[-1][1]["run"]
    status, error = refused(base, {"run": run_id, **body}, "/api/lens")
    assert status == 422 and field in error["fields"]


def test_the_lens_of_nothing_and_of_another_model(
    base: str, lm: CausalLM, tiny_lm: Any, folder: Path
) -> None:
    assert refused(base, {"run": "20200101-no-such-run"}, "/api/lens")[0] == 404
    with serving(Engine(lm), Settings(name="one", history=folder)) as one:
        run_id = ask(one, prompt="hi", strategy="cot", max_new_tokens=4)[-1][1]["run"]
    with serving(Engine(tiny_lm("gpt2")), Settings(name="two", history=folder)) as two:
        assert httpx.get(f"{two}/api/runs").json()[0]["id"] == run_id  # another lab's runs are seen
        status, error = refused(two, {"run": run_id}, "/api/lens")
        assert status == 422 and "another model (one)" in error["message"]


def test_a_lens_while_others_run_changes_nothing(lm: CausalLM, folder: Path) -> None:
    engine = GatedEngine(lm, batch_size=1)
    with serving(engine, Settings(name="tiny", history=folder)) as base:
        engine.let(16)
        run_id = ask(base, prompt="hi", strategy=SOFT, max_new_tokens=12)[-1][1]["run"]
        expected = post(base, "/api/lens", {"run": run_id}).json()
        found: list[Any] = []
        body = {"prompt": "go on", "strategy": {"name": "soft", "T_e": 20}, "max_new_tokens": 60, "seed": 1}
        thread = threading.Thread(target=lambda: found.extend(ask(base, **body)))
        thread.start()
        until(lambda: engine.running == 1)
        grids = [post(base, "/api/lens", {"run": run_id}).json() for _ in range(3)]
        assert engine.running == 1  # they did not wait for its end
        engine.release()
        thread.join(WAIT)
    asked = Request("go on", SoftThinking(T_e=20), "x", 60, 1)
    assert found[-1][1]["text"] == fold(run(lm, [asked], live=True))["x"].text
    assert grids == [expected] * 3
