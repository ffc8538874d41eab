"""The page's pure functions, tested in the language they are written in."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
STATIC = HERE.parents[1] / "src/unspoken/web/static"


def test_the_functions_do_what_their_tests_say() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    files = sorted(str(path) for path in (HERE / "js").glob("*.test.mjs"))
    assert files
    result = subprocess.run(
        [node, "--test", *files], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_page_is_hand_written_and_whole() -> None:
    """No file is long, none is missing, and none names another origin or makes markup from text."""
    files = {path.name: path.read_text(encoding="utf-8") for path in STATIC.iterdir()}
    for name, text in files.items():
        assert text.count("\n") < 400, name
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "style="):
            assert word not in text, (name, word)
        assert "http" not in text.replace("http://www.w3.org/2000/svg", ""), name
        if name.endswith(".js"):
            for line in text.splitlines():
                if line.startswith(("import ", "} from ")):
                    assert line.split('"./')[1].split('"')[0] in files, (name, line)
    named = files["index.html"].split('"/static/')[1:]
    assert {part.split('"')[0] for part in named} <= set(files)
