"""The lab's page on a server that asks for a key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_page import column, finished, run
from serving import serving

from unspoken.lm.model import CausalLM
from unspoken.web._settings import Settings
from unspoken.web.jobs import Engine

Browse = Callable[..., Any]
KEY = "a-long-enough-key"


@pytest.fixture(scope="module")
def keyed(lm: CausalLM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("runs")
    settings = Settings(name="tiny", api_key=KEY, history=folder, host="0.0.0.0", max_new_tokens=64)
    with serving(Engine(lm, batch_size=4), settings) as address:
        yield address


@pytest.fixture
def page(browse: Browse, keyed: str) -> Any:
    """The page that asks for the key."""
    return browse(keyed, ready="#key[open]", allowed="401")


def give(page: Any, key: str) -> None:
    page.fill("#key-value", key)
    page.press("#key-value", "Enter")


def test_the_page_asks_for_the_key_and_does_everything_with_it(page: Any, pictures: Path) -> None:
    assert page.evaluate("document.activeElement.id") == "key-value"
    page.screenshot(path=pictures / "key.png")
    give(page, KEY)
    page.wait_for_selector("html[data-ready]")
    assert page.locator("#key").is_hidden() and page.locator("#general-error").inner_text() == ""
    page.fill("#max_new_tokens", "12")
    run(page, "cot", "filler")
    column(page, 0).get_by_role("button", name="Read the chosen").click()
    page.locator("#lens td").first.wait_for()
    page.click("#history-open")
    page.locator("#history-list li").nth(1).wait_for()
    page.reload()  # the key is kept for this tab, and in nothing that is shared
    page.wait_for_selector("html[data-ready]")
    assert KEY not in page.content() + page.url + page.evaluate("JSON.stringify(localStorage)")


def test_a_wrong_key_is_said_and_the_right_one_may_follow(page: Any) -> None:
    error = page.locator("#key-error")
    for wrong, said in (
        ("", "Type the key first."),
        ("another-long-key", "This is not the right key."),
        ("ключ-ключ", "A key has letters, digits and signs of ASCII, and no blanks."),
    ):
        give(page, wrong)
        page.locator("#key-error", has_text=said).wait_for()
        assert page.locator("#key-value").get_attribute("aria-invalid") == "true"
    give(page, f" {KEY} ")
    page.wait_for_selector("html[data-ready]")
    assert error.is_hidden()


def test_without_the_key_the_page_says_what_to_do(page: Any) -> None:
    page.keyboard.press("Escape")
    page.get_by_text("Nothing runs here without the key. Run asks for it again.").wait_for()
    page.click("#run")
    give(page, KEY)
    page.wait_for_selector("html[data-ready]")
    assert page.locator("#general-error").inner_text() == ""


def test_a_key_that_has_changed_is_asked_for_again(page: Any) -> None:
    give(page, KEY)
    page.wait_for_selector("html[data-ready]")
    page.route(
        "**/api/*", lambda route: route.continue_(headers={**route.request.headers, "authorization": "x"})
    )
    page.fill("#prompt", "What is 2 + 2?")
    page.fill("#max_new_tokens", "4")
    for i in range(2):
        page.locator(".column").nth(i).get_by_label("Strategy", exact=True).select_option("cot")
    page.click("#run")
    page.get_by_text("The key that was given before is not the right one.").wait_for()
    page.unroute_all()
    give(page, KEY)
    page.locator("#key:not([open])").wait_for(state="attached")
    page.click("#run")
    finished(page, 2)
