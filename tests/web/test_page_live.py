"""The lab's page on the real server and a tiny model: what the recordings promise holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_page import choose, column, finished, patient, run, seek, steps
from serving import GatedEngine, serving

from unspoken.lm.model import CausalLM
from unspoken.web._settings import Settings

Browse = Callable[..., Any]


@pytest.fixture
def page(browse: Browse, base: str) -> Any:
    page = browse(base)
    page.fill("#max_new_tokens", "24")
    return page


def test_a_run_is_watched_compared_read_and_kept(
    page: Any, base: str, browse: Browse, pictures: Path
) -> None:
    choose(page, "soft", "cot", "power")
    column(page, 0).get_by_role("button", name="Settings").click()
    column(page, 0).get_by_label("T_e", exact=True).fill("8")
    column(page, 0).get_by_role("button", name="Settings").click()
    run(page, "soft", "cot", "power", prompt="What is 12 + 30? <script>window.pwned = 1</script>", gold="42")
    for i in range(3):
        assert steps(page, i).count() > 0
        assert "passes" in column(page, i).locator(".result").inner_text()
    assert 0 < column(page, 0).locator(".think .step.soft").count() <= 8
    kept = httpx.get(f"{base}/api/runs").json()[:3]
    assert {run["strategy"] if isinstance(run["strategy"], str) else run["strategy"]["name"] for run in kept} == {
        "soft", "cot", "power",
    }  # fmt: skip

    # Every step that is shown is the step that is kept.
    soft = next(r for r in kept if "soft" in str(r["strategy"]))
    record = httpx.get(f"{base}/api/run/{soft['id']}").json()
    assert steps(page, 0).count() == sum(e["event"] == "step" for e in record["events"])
    first = next(e for e in record["events"] if e["event"] == "step")
    steps(page, 0).first.hover()
    card = page.locator("#card").inner_text()
    assert all(
        str(i) in card for i, w in zip(first["top"]["ids"], first["top"]["weights"], strict=True) if w > 0
    )

    seek(page, 3)
    page.locator("#scrub-text", has_text="step 3 of").wait_for()
    assert [steps(page, i).count() for i in range(3)] == [3, 3, 3]
    seek(page, 10**6)
    column(page, 0).get_by_role("button", name="Read the chosen").click()
    page.locator("#lens td").first.wait_for()
    assert page.locator("#lens tbody tr").count() == 3  # two layers, and what the first of them reads
    page.screenshot(path=pictures / "live.png")

    page.click("#history-open")
    page.locator("#history-list li").nth(2).wait_for()
    page.locator("#history-list").get_by_role("button", name="Reopen").first.click()
    finished(page, 4)
    page.click("#share")
    page.wait_for_function("() => location.hash.length > 10")
    other = browse(base, page.evaluate("location.pathname + location.hash"))
    assert other.locator(".column").count() == 4
    assert other.locator("#max_new_tokens").input_value() == "24"
    assert page.evaluate("window.pwned") is None


def test_every_strategy_has_a_form(page: Any, base: str) -> None:
    for strategy in httpx.get(f"{base}/api/strategies").json():
        choose(page, strategy["name"])
        gear = column(page, 0).get_by_role("button", name="Settings")
        if gear.get_attribute("aria-expanded") == "false":
            gear.click()
        fields = list(strategy["schema"]["properties"])
        assert column(page, 0).locator(".field > label").all_inner_texts() == fields
        assert column(page, 0).locator(".formula").inner_text()
        assert gear.inner_text() == "Settings"  # nothing differs from the defaults


def test_the_servers_sentence_stands_beside_its_field(browse: Browse, base: str) -> None:
    page = browse(base, allowed="422")
    choose(page, "soft")
    page.fill("#max_new_tokens", "24")
    page.fill("#prompt", "x")
    column(page, 0).get_by_role("button", name="Settings").click()
    column(page, 0).get_by_label("T_e", exact=True).fill("100")
    page.click("#run")
    column(page, 0).locator(".field .problem", has_text="T_e (100) must not exceed").wait_for()


def test_defaults_fit_the_budget_and_what_was_fitted_is_told(page: Any) -> None:
    run(page, "soft", prompt="x")  # 200 thinking steps, the default, are more than 24
    assert column(page, 0).locator(".fitted").inner_text().startswith("T_e is 12 instead of 200")
    assert column(page, 0).locator(".problem:visible").count() == 0


def test_stopping_ends_the_run_in_the_server(browse: Browse, lm: CausalLM, tmp_path: Path) -> None:
    engine = GatedEngine(lm, batch_size=2)
    engine.let(20)
    with serving(engine, Settings(name="tiny", history=tmp_path, max_new_tokens=900)) as base:
        page = browse(base)
        choose(page, "soft")
        page.fill("#max_new_tokens", "900")
        page.fill("#prompt", "What is 12 + 30?")
        column(page, 0).get_by_role("button", name="Settings").click()
        column(page, 0).get_by_label("T_e", exact=True).fill("800")
        column(page, 0).get_by_label("min_end_prob", exact=True).fill("1")
        page.click("#run")
        steps(page, 0).nth(3).wait_for()
        patient(page)
        with page.expect_response("**/api/cancel"):
            page.keyboard.press("Escape")
        engine.release()
        finished(page, 1)
        assert "stopped" in column(page, 0).locator(".result").inner_text()
        assert 3 < steps(page, 0).count() <= 21
        assert httpx.get(f"{base}/healthz").json()["running"] == 0
