"""Every recipe is a command line that parses, with nothing in it that is not used."""

from __future__ import annotations

from pathlib import Path

import pytest

from unspoken.cli._arguments import Part, first_stage, named_part, second_stage
from unspoken.cli.evaluate import ALIASES, KINDS, EvalOptions
from unspoken.config import load_yaml

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe(recipe: Path) -> None:
    values = load_yaml(recipe)
    line = first_stage(values["command"], ["-c", str(recipe), "--limit", "7"], KINDS)
    parts = [Part(EvalOptions, aliases=ALIASES), *(named_part(kind, line.names[kind]) for kind in KINDS)]
    options, task, strategy = second_stage(line, parts, "")
    assert options.limit == 7  # flags override
    assert options.model == values["model"]
    assert (task.name, strategy.name) == (values["task"], values["strategy"])
    assert f"unspoken eval -c recipes/{recipe.name}" in recipe.read_text(encoding="utf-8")
