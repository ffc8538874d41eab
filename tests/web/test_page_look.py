"""The lab's page for everybody: both themes, narrow screens, the keyboard alone, no jumps, no long tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_runs
import pytest
from fake_lab import FakeLab
from fake_page import QUESTION, choose, column, finished, run, seek, steps

Browse = Callable[..., Any]
WATCH = """
window.shifts = []; window.tasks = []; window.said = [];
new PerformanceObserver(list => {
  for (const e of list.getEntries()) if (!e.hadRecentInput) window.shifts.push(e.value);
}).observe({type: 'layout-shift', buffered: true});
"""


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_themes_can_be_read(browse: Browse, lab: FakeLab, pictures: Path, scheme: str) -> None:
    page = browse(lab.address, color_scheme=scheme)
    run(page, "soft", "cot", "power", "continuous")
    page.screenshot(path=pictures / f"{scheme}.png")

    def colour(name: str) -> str:
        value: str = page.evaluate(
            f"() => getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()"
        )
        return value

    for ink in ("ink", "muted", "bad", "good"):
        for ground in ("bg", "surface", "sunken"):
            assert contrast(colour(ink), colour(ground)) >= 4.5, (ink, ground)
    for ground in ("scale-0", "scale-1", "soft-0", "soft-1"):
        assert contrast(colour("ink"), colour(ground)) >= 4.5, ground
    assert contrast(colour("accent-ink"), colour("accent")) >= 4.5
    assert contrast(colour("focus"), colour("surface")) >= 3
    # The scale is told from its ends by lightness alone.
    assert contrast(colour("scale-0"), colour("scale-1")) >= 1.8


def test_the_switch_overrides_the_system_and_is_remembered(browse: Browse, lab: FakeLab) -> None:
    page = browse(lab.address, color_scheme="light")
    ground = "() => getComputedStyle(document.body).getPropertyValue('--bg').trim()"
    light = page.evaluate(ground)
    page.click("#theme")
    assert page.evaluate(ground) == light
    page.click("#theme")
    dark = page.evaluate(ground)
    assert luminance(dark) < 0.05 < luminance(light)
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate(ground) == dark
    page.click("#theme")
    assert page.evaluate(ground) == light


@pytest.mark.parametrize("width", [400, 820])
def test_a_narrow_screen_shows_everything(browse: Browse, lab: FakeLab, pictures: Path, width: int) -> None:
    page = browse(lab.address, viewport={"width": width, "height": 800})
    run(page, "soft", "power")
    column(page, 0).get_by_role("button", name="Settings").click()
    steps(page, 0).nth(2).click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.locator("#card").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width
    page.keyboard.press("Escape")
    page.check("#numbers")
    for i, wide in enumerate((1, 16)):  # what was chosen in one, the last steps in the other
        column(page, i).get_by_role("button", name="Read the chosen").click()
        page.wait_for_function(f"() => document.querySelectorAll('#lens thead th').length === {1 + wide}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=pictures / f"width-{width}.png", full_page=True)


def test_four_columns_show_their_names_and_moves_at_1280(
    browse: Browse, lab: FakeLab, pictures: Path
) -> None:
    page = browse(lab.address, viewport={"width": 1280, "height": 900})
    names = ("soft", "cot", "power", "continuous")
    run(page, *names)
    for i in range(len(names)):
        # A select tells nothing of what it cuts off: a copy that is as wide as its text does.
        room, needed = (
            column(page, i)
            .locator("header select")
            .evaluate(
                """n => {
              const copy = n.cloneNode();
              copy.style.cssText = 'flex: none; width: auto; position: absolute; visibility: hidden';
              copy.append(n.selectedOptions[0].cloneNode(true));
              n.parentNode.append(copy);
              const needed = copy.getBoundingClientRect().width;
              copy.remove();
              return [n.getBoundingClientRect().width, needed];
            }"""
            )
        )
        assert room >= needed, names[i]
    for line in (".status", ".verdicts"):
        assert column(page, 2).locator(line).evaluate("n => n.scrollWidth <= n.clientWidth"), line
    signs = column(page, 2).locator(".signs")
    assert signs.locator("i").last.evaluate("n => n.getBoundingClientRect().right") < signs.evaluate(
        "n => n.getBoundingClientRect().right"
    )
    page.screenshot(path=pictures / "four-1280.png")


def test_the_keyboard_alone_is_enough(browse: Browse, lab: FakeLab) -> None:
    page = browse(lab.address)
    here = "() => [document.activeElement.id, document.activeElement.className, document.activeElement.innerText]"

    def tab_to(wanted: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if any(wanted == str(part).strip() for part in page.evaluate(here)):
                style = page.locator(":focus").evaluate("n => getComputedStyle(n).outlineStyle")
                assert style != "none", f"{wanted} shows no focus"
                return
        raise AssertionError(f"{wanted} is not reached")

    tab_to("prompt")
    page.keyboard.type(QUESTION)
    page.keyboard.press("Shift+Enter")
    assert page.locator("#prompt").input_value() == QUESTION + "\n"
    page.keyboard.press("Enter")
    finished(page, 2)
    tab_to("body")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    assert column(page, 0).locator(".chosen").count() == 3
    tab_to("Lens")
    page.keyboard.press("Enter")
    page.locator("#lens td").first.wait_for()
    assert (lab.lensed[-1]["first"], lab.lensed[-1]["last"]) == (0, 2)
    page.locator("#scrub").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.locator("#scrub-text", has_text="step 1 of 40").wait_for()
    assert steps(page, 1).count() == 1


def test_every_control_has_a_name(browse: Browse, lab: FakeLab) -> None:
    page = browse(lab.address)
    run(page, "soft", "cot")
    for gear in page.get_by_role("button", name="Settings").all():
        gear.click()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, textarea, canvas')].filter(n =>
          !(n.getAttribute('aria-label') || n.labels?.length || n.innerText?.trim() || n.textContent?.trim()))
          .map(n => n.outerHTML)"""
    )
    assert nameless == []
    assert (
        page.locator("[aria-describedby]").evaluate_all(
            "all => all.flatMap(n => n.getAttribute('aria-describedby').split(' '))"
            ".filter(id => !document.getElementById(id))"
        )
        == []
    )


def test_nothing_jumps_while_text_streams_and_little_is_announced(browse: Browse, lab: FakeLab) -> None:
    page = browse(lab.address)
    page.evaluate(WATCH)
    page.evaluate(
        "() => new MutationObserver(() => window.said.push(document.querySelector('#say').textContent))"
        ".observe(document.querySelector('#say'), {childList: true})"
    )
    choose(page, "soft", "cot")
    page.fill("#prompt", QUESTION)
    lab.pace, lab.steps = 0.01, 120
    page.wait_for_timeout(700)  # what is done by hand may move things
    page.evaluate("() => { window.shifts.length = 0; }")
    page.press("#prompt", "Enter")
    finished(page, 2)
    assert sum(page.evaluate("window.shifts")) < 0.02
    # The phases, the chips and the end: said once each, not a word for each token.
    said = page.evaluate("window.said")
    assert len(said) <= 4, said
    assert "ended by itself, answer 27" in said[-1]


@pytest.mark.slow
def test_four_columns_of_500_steps_come_in_portions(browse: Browse, lab: FakeLab, pictures: Path) -> None:
    """However much comes at once, each drawing makes few elements; benchmarks/page.py has how long that takes."""
    lab.steps, lab.pace = 500, 0.0
    for name, make in (
        ("soft", fake_runs.soft),
        ("cot", lambda n, k: [fake_runs._token(i, k=k) for i in range(n)]),
    ):
        body = {"prompt": QUESTION, "strategy": {"name": name}}
        lab.recordings[name] = fake_runs.make(name, body, 500) | {"events": make(500, 20)}
    page = browse(lab.address)
    choose(page, "soft", "cot", "soft", "cot")
    page.evaluate(
        """() => {
          window.portions = [];  // an observer is called once after each drawing
          new MutationObserver(all => window.portions.push(all.reduce((sum, m) =>
            sum + [...m.addedNodes].filter(n => n.classList?.contains('step')).length, 0)))
            .observe(document.querySelector('#columns'), {subtree: true, childList: true});
        }"""
    )
    page.fill("#prompt", QUESTION)
    page.press("#prompt", "Enter")
    finished(page, 4)
    assert [steps(page, i).count() for i in range(4)] == [500] * 4
    for tick in (250, 20, 499, 500):
        seek(page, tick)
        page.locator("#scrub-text", has_text=f"step {tick} of 500").wait_for()
        page.wait_for_function(
            f"() => document.querySelectorAll('.column .body .step').length === {4 * tick}"
        )
    portions = page.evaluate("window.portions")
    assert max(portions) <= 4 * 25
    assert sum(portions) == 4 * (500 + 479 + 1)
    page.screenshot(path=pictures / "smooth.png")
