from __future__ import annotations

import base64
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import fake_loop
import pytest

from unspoken.analysis import plots
from unspoken.errors import ConfigError, MissingExtraError
from unspoken.evaluation import Run
from unspoken.evaluation.report import write_report

Toys = Callable[..., Run]
EVIL = "<script>alert(1)</script> | `x` <img src=http://example.com/x.png onerror=alert(1)>"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_self_contained_and_escaped(toy: Toys, tmp_path: Path) -> None:
    fake_loop.TEXTS["toy-1#0"] = EVIL
    runs = [toy(skill=0.2), toy(mixture="<b>uniform</b>", skill=0.9)]
    markdown, page = write_report(runs, tmp_path / "new" / "report")
    text = page.read_text(encoding="utf-8")
    parser = Tags()
    parser.feed(text)
    assert parser.open == []
    assert {tag for tag, _ in parser.seen}.isdisjoint({"script", "b>uniform", "link", "iframe"})
    sources = [
        v or "" for _, attrs in parser.seen for k, v in attrs.items() if k in ("src", "href", "srcset")
    ]
    assert len(sources) == 6 and all(s.startswith("data:image/svg+xml;base64,") for s in sources)
    assert not any("onerror" in attrs for _, attrs in parser.seen)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    svg = base64.b64decode(sources[0].partition(",")[2]).decode()
    assert svg.startswith("<?xml") and "<script" not in svg
    for word in (
        "seed",
        "examples",
        "wilson",
        "model.dtype",
        "strategy.T_e",
        "total forward passes",
        "commit",
    ):
        assert word in text


def test_markdown_has_the_figures_beside_it_and_is_escaped(toy: Toys, tmp_path: Path) -> None:
    fake_loop.TEXTS["toy-1#0"] = EVIL
    markdown, _ = write_report([toy(), toy(mixture="uniform")], tmp_path)
    text = markdown.read_text(encoding="utf-8")
    assert "<script" not in text and "<img" not in text
    figures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert figures == ["accuracy.png", "steps.png", "cost.png"]
    for name in figures:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert "no difference" in text or "more accurate" in text
    tables = [part.splitlines() for part in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)]
    for lines in tables:  # no cell breaks out of its table
        assert len({re.sub(r"\\.", "", line).count("|") for line in lines}) == 1
    assert len(tables) == 3 + 11


def test_disagreements_come_first(toy: Toys, tmp_path: Path) -> None:
    fake_loop.TEXTS.update({f"toy-{i}#0": "1" for i in range(20)})
    first = toy(size=20)
    fake_loop.TEXTS["toy-15#0"] = "30"
    second = toy(size=20, mixture="uniform")
    text = write_report([first, second], tmp_path)[1].read_text(encoding="utf-8")
    summaries = re.findall(r"<summary>(.*?)</summary>", text)
    assert len(summaries) == 12 and summaries[0].startswith("✗✓ 15 + 15?")


def test_without_matplotlib_the_report_says_how_to_get_figures(
    toy: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    markdown, page = write_report([toy()], tmp_path)
    for file in (markdown, page):
        text = file.read_text(encoding="utf-8")
        assert "pip install" in text and "unspoken[plots]" in text.replace("\\", "")
    assert list(tmp_path.glob("*.png")) == []
    with pytest.raises(MissingExtraError):
        plots.accuracy(["a"], [0.5], [0.4], [0.6])


def test_unwritable_report(toy: Toys, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="Cannot write a report"):
        write_report([toy()], tmp_path / "file")


def test_figures_are_the_same_every_time_and_take_any_name() -> None:
    def draw() -> bytes:
        figure = plots.accuracy(["a$b$_^", "c" * 60], [0.5, 0.0], [0.4, 0.0], [0.6, 0.1])
        return plots.render(figure, "svg")

    assert draw() == draw()
    one = plots.distribution(["x"], [[3.0]], label="tokens")
    assert plots.render(one, "png").startswith(b"\x89PNG")
    wide = plots.cost_accuracy(["a", "b"], [1, 1000], [0.5, 0.6], [0.4, 0.5], [0.6, 0.7], label="cost")
    assert wide.axes[0].get_xscale() == "log"
