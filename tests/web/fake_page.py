"""What tests of the page do with it, in their own words."""

from __future__ import annotations

from typing import Any

QUESTION = "Tom has 3 boxes of 12 pencils and gives 9 away. How many are left?"


def column(page: Any, i: int) -> Any:
    return page.locator(".column").nth(i)


def choose(page: Any, *names: str) -> None:
    """As many columns as names, with these strategies."""
    while page.locator(".column").count() < len(names):
        page.click("#add")
    while page.locator(".column").count() > len(names):
        page.locator(".column").last.get_by_role("button", name="Remove this column").click()
    for i, name in enumerate(names):
        menu = column(page, i).get_by_label("Strategy", exact=True)
        if menu.input_value() != name:  # choosing a strategy sets its fields to their defaults
            menu.select_option(name)


def finished(page: Any, count: int) -> None:
    """Wait until so many columns have their result."""
    page.locator(".result b").nth(count - 1).wait_for(timeout=30_000)
    page.locator("html:not(.running)").wait_for(timeout=30_000)


def run(page: Any, *names: str, prompt: str = QUESTION, gold: str = "27") -> None:
    """Run some strategies to their ends."""
    if names:
        choose(page, *names)
    page.fill("#prompt", prompt)
    page.fill("#gold", gold)
    page.press("#prompt", "Enter")
    finished(page, len(names) or page.locator(".column").count())


def steps(page: Any, i: int) -> Any:
    return column(page, i).locator(".body .step")


def patient(page: Any) -> None:
    """Let a stopped run take as long as it needs to end by itself, however busy the machine is."""
    page.evaluate(
        "() => { const real = setTimeout; window.setTimeout = (f, ms) => (ms === 2000 ? 0 : real(f, ms)); }"
    )


def seek(page: Any, tick: int) -> None:
    """Put the slider of all columns to a step, as a hand would."""
    page.locator("#scrub").evaluate("(s, t) => { s.value = t; s.dispatchEvent(new Event('input')); }", tick)
