"""`unspoken list` and `unspoken pull`: what there is, and how to get a model that needs no hub."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unspoken.cli._arguments import Part, first_stage, name_lists, option, second_stage
from unspoken.discovery import METHODS
from unspoken.errors import unknown_name
from unspoken.lm import zoo


@dataclass(frozen=True)
class ListOptions:
    """Options of `list`."""

    kind: str | None = option(None, positional="[strategies|tasks|models|methods|presets]")
    """What to list; everything if left out."""


def list_command(words: list[str]) -> int:
    """Run `unspoken list`."""
    (options,) = second_stage(first_stage("list", words), [Part(ListOptions)], "List what commands can name.")
    blocks: dict[str, Callable[[], str]] = {
        "strategies": lambda: name_lists(["strategy"]),
        "tasks": lambda: name_lists(["task"]),
        "models": _models,
        "methods": lambda: name_lists(["method"]),
        "presets": _presets,
    }
    if options.kind is not None and options.kind not in blocks:
        raise unknown_name("kind", options.kind, blocks, "Run: unspoken list")
    shown = [options.kind] if options.kind else list(blocks)
    sys.stdout.write("\n\n".join(blocks[kind]() for kind in shown) + "\n")
    return 0


def _presets() -> str:
    """The presets of each method that has a file `_METHOD_presets.py`; the method itself imports torch."""
    blocks = []
    for method in METHODS.names():
        name = f"{METHODS.package}._{method}_presets"
        if importlib.util.find_spec(name) is None:
            continue
        presets: dict[str, dict[str, Any]] = importlib.import_module(name).PRESETS
        width = max(map(len, presets))
        rows = []
        for preset, fields in presets.items():
            told = " ".join(f"{field}={value}" for field, value in fields.items())
            indent = " " * (width + 4)
            rows.append(
                textwrap.fill(told, 110, initial_indent=f"  {preset:<{width}}  ", subsequent_indent=indent)
            )
        title = f"Presets of {method} (unspoken train {method} --preset NAME), and what each sets:"
        blocks.append("\n".join([title, *rows]))
    return "\n\n".join(blocks)


def _models() -> str:
    rows = []
    for name in zoo.names():
        state = "installed" if zoo.installed(name) else f"get it with: unspoken pull {name}"
        rows.append(f"{name}  {zoo.summary(name)}; {state}")
    rows.append(
        "Any Hugging Face causal model by hub id, local folder or GGUF file, as in -m Qwen/Qwen3-0.6B"
    )
    return "Models:\n" + textwrap.indent("\n".join(rows), "  ")


@dataclass(frozen=True)
class PullOptions:
    """Options of `pull`."""

    name: str = option(positional="NAME")
    """Which model; `unspoken list models` shows them."""


def pull_command(words: list[str]) -> int:
    """Run `unspoken pull`."""
    (options,) = second_stage(
        first_stage("pull", words), [Part(PullOptions)], "Fetch a small model that needs no hub."
    )
    if options.name not in zoo.names():
        hint = "Models of the hub are fetched when they are first used: -m OWNER/NAME"
        raise unknown_name("model", options.name, zoo.names(), hint)
    sys.stdout.write(f"{options.name}: {zoo.summary(options.name)}\n")
    if zoo.packaged(options.name):
        sys.stdout.write(f"It comes with Unspoken: -m {options.name}\n")
        return 0
    if not zoo.installed(options.name):
        sys.stdout.write(f"Running: {zoo.install_line(options.name)}\n")
    sys.stdout.write(f"Converting once to safetensors under {zoo.cache_dir()}\n")
    sys.stdout.flush()
    zoo.pull(options.name)
    sys.stdout.write(f"Ready: -m {options.name}\n")
    return 0
