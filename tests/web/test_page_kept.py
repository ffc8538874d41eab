"""The lab's page in a browser: runs that are kept, addresses that are shared, files, and what goes wrong."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import fake_runs
import pytest
from fake_lab import FakeLab
from fake_page import QUESTION, choose, column, finished, run, steps

Browse = Callable[..., Any]


# -- keeping --------------------------------------------------------------------------------------


def test_runs_are_listed_reopened_and_deleted(page: Any, lab: FakeLab, pictures: Path) -> None:
    run(page, "soft", "cot")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    page.click("#history-open")
    items = page.locator("#history-list li")
    items.nth(1).wait_for()
    assert QUESTION in items.first.inner_text() and "correct" in items.first.inner_text()
    page.screenshot(path=pictures / "history.png")
    soft = items.filter(has=page.locator("b", has_text="soft"))
    soft.get_by_role("button", name="Reopen").click()
    finished(page, 1)
    assert steps(page, 0).count() == lab.steps
    assert column(page, 0).locator(".part").count() > 20
    assert page.locator("#prompt").input_value() == QUESTION
    page.click("#history-open")
    items.nth(1).wait_for()
    items.first.get_by_role("button", name="Delete").click()
    page.wait_for_function("() => document.querySelectorAll('#history-list li').length === 1")
    assert len(lab.runs) == 1
    page.keyboard.press("Escape")
    assert page.locator("#history").is_hidden()


def test_a_shared_address_holds_all_parameters(page: Any, browse: Browse, lab: FakeLab) -> None:
    choose(page, "soft", "cot", "power")
    column(page, 0).get_by_role("button", name="Settings").click()
    column(page, 0).get_by_label("k", exact=True).fill("9")
    column(page, 0).get_by_label("mixture").select_option("uniform")
    page.fill("#prompt", "Is 1 < 2 & 3 > 2? #é")
    page.fill("#seed", "11")
    page.fill("#stop", "\\n\nx|y\n\\\\n")
    page.click("#share")
    page.wait_for_function("() => location.hash.length > 10")
    other = browse(lab.address, page.evaluate("location.pathname + location.hash"))
    assert other.locator(".column > header select").evaluate_all("all => all.map(n => n.value)") == [
        "soft",
        "cot",
        "power",
    ]
    assert other.locator("#prompt").input_value() == "Is 1 < 2 & 3 > 2? #é"
    assert other.locator("#seed").input_value() == "11"
    other.press("#prompt", "Enter")
    finished(other, 3)
    body = next(b for b in lab.asked if b["strategy"]["name"] == "soft")
    assert body["strategy"] == {"name": "soft", "k": 9, "mixture": "uniform"} and body["stop"] == [
        "\n",
        "x|y",
        "\\n",
    ]
    other.reload()  # to the address as it was shared, and a kept run fills the same box
    other.wait_for_selector("html[data-ready]")
    assert other.locator("#stop").input_value() == "\\n\nx|y\n\\\\n"
    other.fill("#stop", "")
    other.click("#history-open")
    other.get_by_role("button", name="Reopen").first.click()
    finished(other, 1)
    assert other.locator("#stop").input_value() == "\\n\nx|y\n\\\\n"
    # An empty box is a parameter, too: another address in the same tab leaves nothing of the first.
    other.evaluate("location.hash = '#lab=' + encodeURIComponent('{\"prompt\": \"q\"}')")
    other.wait_for_function("() => document.querySelector('#prompt').value === 'q'")
    assert other.locator("#stop").input_value() == ""


def test_an_address_says_what_of_it_cannot_be_had(page: Any, browse: Browse, lab: FakeLab) -> None:
    page.fill("#prompt", "q")
    page.click("#share")
    page.wait_for_function("() => location.hash.length > 10")
    address = page.evaluate("location.pathname + location.hash")
    error = "#general-error"
    assert browse(lab.address, address).locator(error).inner_text() == ""
    lab.model = "large"
    said = browse(lab.address, address).locator(error).inner_text()
    assert said == "This address was made with the model tiny; here it is large."
    damaged = browse(lab.address, address[:-12])
    assert "This address is damaged" in damaged.locator(error).inner_text()
    assert damaged.locator(".column").count() == 2  # the page of a new visit
    odd = json.dumps({"seed": "x", "columns": [{"name": "soft", "k": 7, "q": 1}, {"name": "nope"}]})
    other = browse(lab.address, f"/#lab={quote(odd)}")
    assert "left out: seed." in other.locator(error).inner_text()
    assert column(other, 0).get_by_text("soft has no setting q here.").is_visible()
    assert column(other, 1).get_by_text("There is no strategy nope here; this is cot.").is_visible()


def test_a_seed_that_would_lose_digits_is_refused(page: Any, lab: FakeLab) -> None:
    page.fill("#prompt", QUESTION)
    page.fill("#seed", "9007199254740993")
    for button in ("#run", "#share"):
        page.fill("#max_new_tokens", "30")  # clears nothing of the seed
        page.click(button)
        page.locator("#seed-error", has_text="at most 9007199254740991").wait_for()
    assert not lab.asked and page.evaluate("location.hash") == ""
    page.fill("#seed", "9007199254740991")
    choose(page, "cot")
    page.click("#run")
    finished(page, 1)
    assert lab.asked[0]["seed"] == 9007199254740991


def test_settings_that_were_fitted_are_told(page: Any, lab: FakeLab) -> None:
    lab.fitted = ["T_e is 12 instead of 200."]
    run(page, "cot")
    assert column(page, 0).locator(".fitted").inner_text() == "T_e is 12 instead of 200."
    lab.fitted = []
    run(page, "cot")
    assert column(page, 0).locator(".fitted").is_hidden()


def test_exports_hold_what_was_received(page: Any, lab: FakeLab, pictures: Path) -> None:
    run(page, "soft", "cot")

    def export(kind: str) -> bytes:
        page.click("#export")
        with page.expect_download() as waiting:
            page.get_by_role("menuitem", name=kind).click()
        assert waiting.value.suggested_filename == f"unspoken-soft-cot.{kind.lower()}"
        return Path(waiting.value.path()).read_bytes()

    kept = json.loads(export("JSON"))
    assert [r["events"] for r in kept["runs"]] == [
        json.loads(json.dumps(events))
        for events in (fake_runs.make(n, lab.asked[0], lab.steps)["events"] for n in ("soft", "cot"))
    ]
    rows = list(csv.DictReader(io.StringIO(export("CSV").decode())))
    assert len(rows) == 2 * lab.steps
    assert rows[-1]["text"] == kept["runs"][1]["events"][-1]["text"]
    assert {row["strategy"] for row in rows} == {"soft", "cot"}
    picture = export("PNG")
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000
    (pictures / "export.png").write_bytes(picture)


# -- what goes wrong ------------------------------------------------------------------------------


def test_a_page_without_strategies_can_be_tried_again(browse: Browse, lab: FakeLab) -> None:
    lab.down = True
    page = browse(lab.address, ready="#retry:not([hidden])", allowed="503")
    assert page.locator("#general-error").inner_text() == "The model is not ready. Try again."
    page.click("#retry")
    page.locator("#retry:not([hidden])").wait_for()
    lab.down = False
    page.click("#retry")
    page.wait_for_selector("html[data-ready]")
    assert page.locator("#retry").is_hidden() and page.locator("#general-error").inner_text() == ""
    run(page, "cot")


def test_mistakes_are_said_beside_their_fields(page: Any, lab: FakeLab) -> None:
    page.click("#run")
    assert page.locator("#prompt-error").inner_text() == "Type a question first."
    assert page.locator("#prompt").get_attribute("aria-invalid") == "true"
    page.fill("#prompt", QUESTION)
    assert page.locator("#prompt-error").inner_text() == ""
    column(page, 0).get_by_role("button", name="Settings").click()
    k = column(page, 0).get_by_label("k", exact=True)
    k.fill("0")
    row = column(page, 0).locator(".field", has=page.get_by_label("k", exact=True))
    assert row.locator(".problem").inner_text() == "This must be at least 1."
    page.press("#prompt", "Enter")
    assert not [b for b in lab.asked if b["strategy"]["name"] == "soft"]
    assert k.evaluate("n => n === document.activeElement")
    k.fill("3")
    assert row.locator(".problem").inner_text() == ""
    column(page, 0).get_by_role("button", name="Reset").click()
    assert k.input_value() == "5"


def test_the_servers_refusal_is_said_beside_its_field(browse: Browse, lab: FakeLab) -> None:
    page = browse(lab.address, allowed="422")
    page.fill("#prompt", QUESTION)
    page.fill("#max_new_tokens", "50")
    page.click("#run")
    problem = column(page, 0).locator(".field .problem", has_text="T_e must not exceed the budget.")
    problem.wait_for()
    assert problem.is_visible()
    assert column(page, 0).get_by_label("T_e", exact=True).get_attribute("aria-invalid") == "true"
    finished(page, 1)
    assert "✓" not in column(page, 1).locator(".result").inner_text()


def test_a_full_queue_and_a_lost_server_are_said(browse: Browse, lab: FakeLab) -> None:
    page = browse(lab.address, allowed="Failed to load resource")
    choose(page, "cot")
    page.fill("#prompt", "flood")
    page.click("#run")
    column(page, 0).get_by_text("The queue is full. Try again in 3 s.").wait_for()
    page.route("**/api/stream", lambda route: route.abort())
    page.fill("#prompt", QUESTION)
    page.click("#run")
    column(page, 0).get_by_text("The server cannot be reached.").wait_for()
    page.locator("#stop-all:disabled").wait_for()


@pytest.mark.parametrize(
    "attack",
    [
        "<script>window.pwned = 1</script>",
        "<img src=x onerror='window.pwned = 1'>",
        "</s><svg onload=pwned=1>",
    ],
)
def test_text_stays_text(page: Any, attack: str) -> None:
    prompt = f"{attack} onerror"
    run(page, "soft", "power", prompt=prompt, gold=attack)
    assert prompt in column(page, 0).locator(".answer .text").inner_text()
    steps(page, 0).last.click()
    assert attack.replace(" ", "␣") in page.locator("#card").inner_text()
    page.keyboard.press("Escape")
    for rewound in column(page, 1).locator(".rewound").all():
        rewound.click()
    column(page, 0).get_by_role("button", name="Read the chosen").click()
    page.locator("#lens td").first.wait_for()
    column(page, 0).get_by_role("button", name="Prompt, parameters").click()
    assert attack in page.locator("#details pre").first.inner_text()
    page.keyboard.press("Escape")
    page.click("#history-open")
    page.locator("#history-list li").first.wait_for()
    assert attack in page.locator("#history-list").inner_text()
    assert page.evaluate("window.pwned") is None
    assert page.locator("body script, body img, body svg, body iframe").count() == 0
