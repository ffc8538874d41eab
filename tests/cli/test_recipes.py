"""Every recipe is a command line that parses, with nothing in it that is not used."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from unspoken.cli import sweep, train
from unspoken.cli._arguments import Part, first_stage, named_part, second_stage
from unspoken.cli.evaluate import ALIASES, KINDS, EvalOptions
from unspoken.config import load_yaml
from unspoken.types import Example, RawText

_VALUE = r"(?: (?!-)[\w.-]+)?"
TOLD = re.compile(
    rf"--(?:preset|schedule|mode|digits|p|n|lr-schedule|remove-[a-z-]+)(?![\w-]){_VALUE}(?: --[a-z][\w-]*{_VALUE})*"
)
"""Runs of flags in a comment that change what is trained."""
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


@pytest.mark.parametrize(
    "recipe", [r for r in RECIPES if load_yaml(r)["command"] == "train"], ids=lambda path: path.stem
)
def test_flags_that_a_training_recipe_tells_go_with_it(recipe: Path) -> None:
    lines = [line for line in recipe.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    lines = [line for line in lines if not re.search("unspoken (throughput|eval)", line)]
    told = TOLD.findall(" ".join(line.lstrip("# ") for line in lines))
    if "Controls:" in " ".join(lines) or "Baselines:" in " ".join(lines):
        assert any("--preset no_cot" in flags for flags in told)
    for flags in told:
        given = flags.rstrip(".").split()
        train.parse(first_stage("train", ["-c", str(recipe), "-o", "x", *given], ["method"]))


@pytest.mark.parametrize(
    "recipe", [r for r in RECIPES if load_yaml(r)["command"] == "sweep"], ids=lambda path: path.stem
)
def test_sweep(recipe: Path) -> None:
    values = named(recipe)
    options, task, methods = sweep.parse(first_stage("sweep", ["-c", str(recipe), "--limit", "7"], ["task"]))
    assert options.limit == 7  # flags override
    assert (options.model, task.name, list(methods)) == (
        values["model"],
        values["task"],
        [*values["methods"]],
    )
    assert len(options.asked()) == len(values["layers"])


@pytest.mark.parametrize("size", ["1.5b", "7b"])
def test_published_settings_of_the_depth_sweep(size: str) -> None:
    from unspoken.evaluation._grid import Grid

    recipe = Path(__file__).parents[2] / f"recipes/math500_depth_sweep_qwen_math_{size}.yaml"
    options, task, methods = sweep.parse(first_stage("sweep", ["-c", str(recipe)], ["task"]))
    example = Example("x", "What is 2 + 2?", "4")
    assert task.prompt(example) == RawText(
        "Can you solve the following math problem? What is 2 + 2? Put your final answer within \\boxed{{}}."
    )
    power = methods["power"]
    assert (power.alpha, power.target.tau, power.caps(1024)[:2]) == (2.0, 0.5, [64, 128])
    grid = Grid.make(options.model, 28, methods, options.asked(), options.shards)
    assert [c.kept.n_dropped for c in grid.configurations if c.method == "power"] == [5, 4, 3, 2, 1, 0]
    assert len(grid.cells) == 90 and "the 90 cells" in recipe.read_text(encoding="utf-8")


def test_the_slurm_template_is_shell() -> None:
    template = Path(__file__).parents[2] / "recipes/slurm/depth_sweep.sbatch"
    subprocess.run(["bash", "-n", str(template)], check=True, timeout=20)
    assert '--shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"' in template.read_text(encoding="utf-8")


def test_every_recipe_is_tested() -> None:
    assert {load_yaml(recipe)["command"] for recipe in RECIPES} <= {"eval", "train", "sweep"}
