"""What tests of models share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def checkpoint(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A tiny Llama checkpoint that the test may change."""
    return Path(shutil.copytree(tiny_folder("llama"), tmp_path / "checkpoint"))
