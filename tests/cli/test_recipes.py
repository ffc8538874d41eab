"""Every recipe is a command line that parses, with nothing in it that is not used."""

from __future__ import annotations

from pathlib import Path

import pytest

from unspoken.cli import train
from unspoken.cli._arguments import Part, first_stage, named_part, second_stage
from unspoken.cli.evaluate import ALIASES, KINDS, EvalOptions
from unspoken.config import load_yaml

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def named(recipe: Path) -> dict[str, object]:
    values = load_yaml(recipe)
    assert f"unspoken {values['command']} -c recipes/{recipe.name}" in recipe.read_text(encoding="utf-8")
    return values


@pytest.mark.parametrize(
    "recipe", [r for r in RECIPES if load_yaml(r)["command"] == "eval"], ids=lambda path: path.stem
)
def test_evaluation(recipe: Path) -> None:
    values = named(recipe)
    line = first_stage("eval", ["-c", str(recipe), "--limit", "7"], KINDS)
    parts = [Part(EvalOptions, aliases=ALIASES), *(named_part(kind, line.names[kind]) for kind in KINDS)]
    options, task, strategy = second_stage(line, parts, "")
    assert options.limit == 7  # flags override
    assert options.model == values["model"]
    assert (task.name, strategy.name) == (values["task"], values["strategy"])


@pytest.mark.parametrize(
    "recipe", [r for r in RECIPES if load_yaml(r)["command"] == "train"], ids=lambda path: path.stem
)
def test_training(recipe: Path) -> None:
    values = named(recipe)
    job = train.parse(first_stage("train", ["-c", str(recipe), "-o", "x", "--log_every", "7"], ["method"]))
    assert job.options.log_every == 7  # flags override
    assert job.options.lr == values["lr"]
    assert (job.where.model, job.method.name) == (values["model"], values["method"])
    assert (job.task and job.task.name) == values.get("task")


def test_every_recipe_is_tested() -> None:
    assert {load_yaml(recipe)["command"] for recipe in RECIPES} <= {"eval", "train"}
