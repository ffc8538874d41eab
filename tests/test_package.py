"""The package as a whole: light imports, complete names, and versions that agree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import unspoken
from unspoken.cli.main import COMMANDS

ROOT = Path(unspoken.__file__).parents[2]
HEAVY = ("torch", "transformers", "numpy", "matplotlib")


def imported_after(code: str) -> set[str]:
    """Which heavy modules a fresh interpreter has imported after running this code."""
    report = f"import sys\n{code}\nprint('HEAVY', *(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split("HEAVY")[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import unspoken",
        "import unspoken; unspoken.Step, unspoken.UnspokenError, dir(unspoken)",
        "from unspoken.discovery import STRATEGIES as r; [r.summary(n) for n in r.names()]",
        "from unspoken.discovery import TASKS as r; [r.find(n) for n in r.names()]",
        "import unspoken.config, unspoken.types",
        *(
            f"from unspoken.cli.main import main; assert main({words!r}) == 0"
            for words in (["--help"], ["list"], *([command, "--help"] for command in COMMANDS))
        ),
    ],
)
def test_imports_nothing_heavy(code: str) -> None:
    assert imported_after(code) == set()


def test_the_probe_sees_heavy_modules() -> None:
    assert "numpy" in imported_after("import numpy")


def test_public_names_resolve() -> None:
    for name in unspoken.__all__:
        assert getattr(unspoken, name) is not None
        assert name in dir(unspoken)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Soft'"):
        _ = unspoken.Soft


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(unspoken.__file__).read_text(encoding="utf-8"))
    seen = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == unspoken._HOME
    assert set(unspoken.__all__) == {"__version__", *seen}


def test_every_direct_dependency_is_pinned_in_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    used = [
        *project["dependencies"],
        *(r for extra in ("gguf", "eval", "plots", "dev") for r in extras[extra]),
    ]
    wanted = {plain(re.match(r"[\w-]+", requirement)[0]) for requirement in used} - {"unspoken"}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {plain(line.split("==")[0]) for line in lines if "==" in line and not line.startswith("#")}
    assert wanted <= pinned


def plain(name: str) -> str:
    return name.lower().replace("_", "-")


def test_typing_marker_is_there() -> None:
    assert (Path(unspoken.__file__).parent / "py.typed").is_file()
