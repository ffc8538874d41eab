"""The lab's page in a browser, on recorded streams: running, reading, comparing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_runs
import pytest
from fake_lab import FakeLab
from fake_page import QUESTION, choose, column, finished, patient, run, seek, steps

Browse = Callable[..., Any]


# -- running --------------------------------------------------------------------------------------


def test_a_question_is_answered_in_every_column_from_the_same_seed(
    page: Any, lab: FakeLab, pictures: Path
) -> None:
    page.fill("#seed", "7")
    run(page, "soft", "cot", "power", "continuous")
    assert page.locator("#add").is_disabled()
    assert sorted(body["strategy"]["name"] for body in lab.asked) == ["continuous", "cot", "power", "soft"]
    for body in lab.asked:
        assert {**body, "id": 0, "strategy": 0, "session": 0} == {
            "id": 0, "prompt": QUESTION, "gold": "27", "max_new_tokens": 256, "seed": 7, "trace": "full",
            "strategy": 0, "session": 0,
        }  # fmt: skip
    assert [steps(page, i).count() for i in range(4)] == [lab.steps] * 4
    said = "".join(
        e["text"] for e in fake_runs.soft(lab.steps) if e["event"] == "step" and e["phase"] == "answer"
    )
    assert column(page, 0).locator(".answer .text").inner_text() == said
    for i in range(4):
        result = column(page, i).locator(".result").inner_text()
        assert result.startswith("✓ 27") and "40 passes" in result and "0.5 s" in result
    page.screenshot(path=pictures / "four.png")


def test_a_mixture_is_a_column_of_what_was_fed_and_never_words(page: Any, lab: FakeLab) -> None:
    run(page, "soft", "cot")
    thought = column(page, 0).locator(".think")
    assert thought.locator(".tok, .chip").count() == 0
    for i, event in enumerate(fake_runs.soft(lab.steps)[: lab.steps // 2]):
        fed = [w for w in event["top"]["weights"] if w >= 0.02]
        node = thought.locator(".step").nth(i)
        heights = node.locator(".part:not(.rest)").evaluate_all(
            "all => all.map(n => n.getBoundingClientRect().height)"
        )
        whole = node.evaluate("n => n.getBoundingClientRect().height")
        assert [h / whole for h in heights] == pytest.approx(fed, abs=0.005)
    assert column(page, 0).locator(".transition .chip").all_inner_texts() == ["</think>", "<answer>"]


@pytest.mark.parametrize("how", ["Escape", "button"])
def test_a_run_stops_and_keeps_what_it_has(page: Any, lab: FakeLab, how: str) -> None:
    lab.hold, lab.steps = 10, 400
    choose(page, "cot")
    page.fill("#prompt", QUESTION)
    page.click("#run")
    steps(page, 0).nth(9).wait_for()
    patient(page)
    if how == "Escape":
        page.keyboard.press("Escape")
    else:
        page.click("#stop-all")
    finished(page, 1)
    assert lab.cancelled == {lab.asked[0]["id"]}
    assert "stopped" in column(page, 0).locator(".result").inner_text()
    assert steps(page, 0).count() == 10
    page.locator("#stop-all:disabled").wait_for()


def test_running_again_drops_the_first_connection(page: Any, lab: FakeLab) -> None:
    lab.hold, lab.steps = 10, 300
    choose(page, "cot")
    page.fill("#prompt", "first")
    page.click("#run")
    steps(page, 0).nth(9).wait_for()
    lab.hold, lab.steps = None, 20
    page.fill("#prompt", "second")
    page.press("#prompt", "Enter")
    finished(page, 1)
    assert steps(page, 0).count() == 20
    assert [body["prompt"] for body in lab.asked] == ["first", "second"]


def test_rewound_text_is_struck_then_folded_and_opens_again(page: Any, lab: FakeLab) -> None:
    lab.hold = lab.steps + 4  # three words of the proposal are there, and the five that they replace are gone
    choose(page, "power")
    page.evaluate(
        """() => {
          window.struck = [];
          const look = () => document.querySelectorAll('.struck s').forEach(n => window.struck.push(n.textContent));
          new MutationObserver(look).observe(document.querySelector('#columns'), {subtree: true, childList: true});
        }"""
    )
    page.fill("#prompt", QUESTION)
    page.click("#run")
    old = "".join(event["text"] for event in fake_runs.power(lab.steps)[lab.steps - 5 : lab.steps])
    page.wait_for_function("old => window.struck.includes(old)", arg=old)  # while it happens
    lab.hold = None
    finished(page, 1)
    body = column(page, 0).locator(".body")
    assert "refused" not in "".join(body.locator(".tok").all_inner_texts())
    assert body.locator(".tok").last.inner_text() == " taken"
    page.locator(".struck s").first.wait_for(state="detached")  # folded by itself
    # The chain went back to one place, and from there the refused proposal and the replaced text are kept.
    first, second = body.locator(".rewound").all()
    first.click()
    assert body.locator(".struck s").first.inner_text() == " refused" * 5
    second.press("Enter")
    assert body.locator(".struck s").count() == 2
    status = column(page, 0).locator(".status").inner_text()
    assert "block 1/2" in status
    assert column(page, 0).get_by_role("img", name="Σ log p: 3 values").is_visible()


def test_a_move_that_changes_nothing_is_not_shown_as_accepted(page: Any, lab: FakeLab) -> None:
    run(page, "power")
    signs = column(page, 0).locator(".moves i")
    assert signs.all_inner_texts() == ["✗", "✓", "="]
    assert len(set(signs.evaluate_all("all => all.map(n => getComputedStyle(n).color)"))) == 3
    assert "unchanged, the proposal was the same text" in signs.nth(2).get_attribute("title")
    said = column(page, 0).locator(".verdicts")
    assert said.is_visible()
    assert said.text_content() == "Moves: 1 accepted · 1 rejected · 1 unchanged"


def test_a_latent_step_shows_its_reading_as_a_reading(page: Any, lab: FakeLab) -> None:
    run(page, "continuous")
    assert column(page, 0).locator(".latent .reads").all_inner_texts()[3:] == ["h", "h", "h"]
    steps(page, 0).nth(0).hover()
    assert "Nothing of it was fed or said" in page.locator("#card").inner_text()
    assert page.locator("#card th").all_inner_texts() == ["Id", "Text", "Read"]
    steps(page, 0).nth(4).hover()
    page.locator("#card", has_text="Lens reading, last layer: w2.0").wait_for()
    assert lab.lensed[-1]["first"] == lab.lensed[-1]["last"] == 4


# -- reading --------------------------------------------------------------------------------------


def test_the_card_lists_what_a_step_was(page: Any, pictures: Path) -> None:
    run(page, "soft", "cot")
    steps(page, 0).nth(3).hover()
    card = page.locator("#card").inner_text()
    top = fake_runs.soft(40)[3]["top"]
    for number in (
        *map(str, top["ids"]),
        f"{top['probs'][0]:.3f}",
        f"{top['weights'][0]:.3f}",
        "0.003",
        "0.900 of",
    ):
        assert number in card
    assert "soft mixture, not said" in card and "Entropy" in card
    page.screenshot(path=pictures / "card.png")
    steps(page, 1).nth(3).hover()
    card = page.locator("#card").inner_text()
    assert "said" in card and "Rank\t2" in card.replace("\n", "\t")
    page.mouse.move(5, 5)
    assert page.locator("#card").is_hidden()


def test_keys_walk_pin_and_close(page: Any) -> None:
    run(page, "soft", "cot")
    column(page, 0).locator(".body").focus()
    focused = page.locator(":focus")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert focused.get_attribute("aria-label").startswith("Step 2 · soft mixture, not said, fed ␣")
    assert page.locator("#card").is_visible()
    page.keyboard.press("Enter")
    page.mouse.move(700, 500)
    assert "Step 2" in page.locator("#card.pinned").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#card").is_hidden()
    page.keyboard.press("ArrowDown")
    assert focused.evaluate("n => n.closest('.column').getAttribute('aria-label')") == "Column 2"
    page.keyboard.press("End")
    assert focused.get_attribute("aria-label").startswith("Step 40")
    page.keyboard.press("ArrowLeft")
    assert "said" in focused.get_attribute("aria-label")
    outline = focused.evaluate("n => getComputedStyle(n).outlineStyle + getComputedStyle(n).outlineWidth")
    assert outline == "solid2px"


def test_recolouring_is_one_attribute(page: Any) -> None:
    run(page, "cot")
    page.evaluate(
        "() => { window.changes = 0; new MutationObserver(all => { window.changes += all.length; })"
        ".observe(document.querySelector('#columns'), {subtree: true, attributes: true, childList: true}); }"
    )
    seen = {}
    for name in ("p", "h", "r"):
        page.check(f"input[name=colour][value={name}]", force=True)
        page.wait_for_timeout(250)
        seen[name] = steps(page, 0).evaluate_all(
            "all => all.map(n => getComputedStyle(n).backgroundColor).join()"
        )
    assert len(set(seen.values())) == 3
    assert page.evaluate("window.changes") == 0
    page.check("#numbers")
    shown = steps(page, 0).nth(3).evaluate("n => getComputedStyle(n, '::after').content")
    assert shown == '"2"'  # its rank


def test_the_number_of_a_line_break_stands_before_it(page: Any, lab: FakeLab) -> None:
    broken = fake_runs.make("cot", {"prompt": QUESTION, "strategy": {"name": "cot"}}, 4)
    broken["events"][3]["text"] = "\n"
    lab.recordings["cot"] = broken
    run(page, "cot")
    page.check("#numbers")
    last = steps(page, 0).nth(3)
    before, after = (
        last.evaluate(f"n => getComputedStyle(n, '::{end}').content") for end in ("before", "after")
    )
    assert after == "none"
    assert before.replace('" "', "") == f'"↵{last.get_attribute("data-p")}"'


def test_scrubbing_moves_all_columns(page: Any, lab: FakeLab) -> None:
    run(page, "soft", "cot", "power")
    last = int(page.locator("#scrub").get_attribute("max"))
    assert last == lab.steps + 13  # power's rewound steps are steps, too
    for tick in (5, lab.steps, 1, 12):
        seek(page, tick)
        page.locator("#scrub-text", has_text=f"step {tick} of {last}").wait_for()
        assert [steps(page, i).count() for i in range(3)] == [tick] * 3
    seek(page, lab.steps + 2)
    page.locator("#scrub-text", has_text=f"step {lab.steps + 2}").wait_for()
    assert "refused" in column(page, 2).locator(".body").inner_text()  # the proposal, before it was refused
    page.click("#forward")
    page.click("#back")
    page.click("#back")
    page.locator("#scrub-text", has_text=f"step {lab.steps + 1}").wait_for()
    page.click("#play")
    page.locator("#scrub-text", has_text=f"step {last} of {last}").wait_for()
    assert column(page, 2).locator(".tok").last.inner_text() == " taken"


def test_looking_back_does_not_disturb_a_live_run(page: Any, lab: FakeLab) -> None:
    lab.hold, lab.steps = 60, 120
    choose(page, "cot")
    page.fill("#prompt", QUESTION)
    page.click("#run")
    page.locator("#scrub-text", has_text="step 60 of 60, live").wait_for()
    seek(page, 4)
    page.locator("#scrub-text", has_text="step 4 of 60").wait_for()
    lab.hold = None
    page.locator("#scrub-text", has_text="step 4 of 120").wait_for()
    assert steps(page, 0).count() == 4
    seek(page, 120)
    finished(page, 1)
    assert steps(page, 0).count() == 120


def test_the_lens_reads_the_chosen_span(page: Any, lab: FakeLab, pictures: Path) -> None:
    run(page, "soft", "cot")
    steps(page, 0).nth(2).click()
    steps(page, 0).nth(6).click(modifiers=["Shift"])
    page.keyboard.press("Escape")
    assert column(page, 0).locator(".step.chosen").count() == 5
    column(page, 0).get_by_role("button", name="Read the chosen steps").click()
    lens = page.locator("#lens")
    lens.locator("td").first.wait_for()
    assert (lab.lensed[-1]["first"], lab.lensed[-1]["last"]) == (2, 6)
    assert lens.locator("tbody tr").count() == 4 and lens.locator("td").count() == 20
    before = lens.locator("td").last.evaluate("n => getComputedStyle(n).backgroundColor")
    lens.get_by_label("Colour cells by").select_option("rank")
    assert lens.locator("td").last.evaluate("n => getComputedStyle(n).backgroundColor") != before
    lens.locator("td").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert lens.locator("#lens-cell").inner_text().startswith("Layer 1, step 4: w1.1 · kl 1.6")
    page.check("#numbers")  # the shade is not the only carrier
    shown = lens.locator("td").nth(1).evaluate("n => getComputedStyle(n, '::after').content")
    assert shown == '"2"'  # its rank
    page.screenshot(path=pictures / "lens.png")
    lens.get_by_label("First step").fill("1")
    lens.get_by_label("Last step").fill("3")
    lens.get_by_role("button", name="Read").click()
    page.wait_for_function("() => document.querySelectorAll('#lens td').length === 12")
    lens.get_by_role("button", name="Close").click()
    assert lens.is_hidden()
