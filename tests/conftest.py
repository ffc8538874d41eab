"""Fixtures shared by all tests: tiny random models made from configurations, with no download.

`tiny_model(family)` gives a Hugging Face model and tokenizer, `tiny_lm(family)` the same as an
`unspoken.CausalLM`, `tiny_folder(family)` a saved checkpoint. Models are made once a session and shared:
a test must not change their weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before anything imports transformers or torch: no network, and one thread (two processes may test at once).
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings
from tiny_models import FAMILIES, make_lm, make_model

# Nothing is judged by its time: a busy machine takes as long as it takes.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM


@pytest.fixture(scope="session")
def tiny_model() -> Callable[[str], tuple[Any, Any]]:
    """Function from a family's name to (Hugging Face model, tokenizer)."""
    return make_model


@pytest.fixture(scope="session")
def tiny_lm() -> Callable[[str], CausalLM]:
    """Function from a family's name to a tiny `CausalLM`."""
    return make_lm


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Function from a family's name to a folder with its checkpoint, as `save_pretrained` writes it."""
    root = tmp_path_factory.mktemp("tiny")

    def folder(family: str) -> Path:
        path = root / family
        if not path.exists():
            from transformers.utils import logging

            logging.disable_progress_bar()  # tests look at what is written to stderr
            model, tokenizer = make_model(family)
            model.save_pretrained(path)
            tokenizer.save_pretrained(path)
        return path

    return folder


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Runs a test once for each family."""
    return str(request.param)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data that `UNSPOKEN_DATA` names; the test is skipped without one."""
    folder = os.environ.get("UNSPOKEN_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("UNSPOKEN_DATA names no folder of real data")
    return Path(folder)
