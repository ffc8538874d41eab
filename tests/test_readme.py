"""What the README tells users to type works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.real_model
def test_the_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert len(names["a"].rows) == len(names["b"].rows) == 8  # type: ignore[attr-defined]
    assert (tmp_path / "results" / "quick-soft" / "rows.jsonl").is_file()


@pytest.mark.slow
@pytest.mark.real_model
def test_the_console_block_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from unspoken.cli.main import main

    monkeypatch.chdir(tmp_path)
    (block,) = blocks("console")
    for line in block.splitlines():
        words = shlex.split(line)
        assert words[0] == "unspoken"
        code = main(words[1:])
        shown = capsys.readouterr()
        assert code == 0, f"{line}\n{shown.out}\n{shown.err}"
    assert (tmp_path / "results" / "report" / "report.html").is_file()


def test_the_readme_names_every_strategy_and_task() -> None:
    from unspoken.discovery import STRATEGIES, TASKS

    for name in (*STRATEGIES.names(), *TASKS.names()):
        assert f"`{name}`" in README, name


def test_nothing_in_the_readme_is_left_to_fill_in() -> None:
    assert re.findall(r"\b[A-Z]+_TABLE\b", README) == []
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (ROOT / target).is_file(), target


def test_make_targets_named_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"\bmake ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
