from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from unspoken.errors import ConfigError
from unspoken.evaluation import Run
from unspoken.evaluation.show import iter_items, summary_lines

Toys = Callable[..., Run]


def test_filters(toy: Toys, tmp_path: Path) -> None:
    run = toy(size=40, output=tmp_path)
    wrong = list(iter_items(tmp_path, wrong_only=True))
    assert wrong == [row for row in run.rows if row.status != "correct"] and 0 < len(wrong) < len(run.rows)
    cut = list(iter_items(run, reason="length"))
    assert cut and {row.status for row in cut} == {"truncated"}
    assert [r.status for r in iter_items(run, status="unparsed")] == ["unparsed"] * run.summary.statuses[
        "unparsed"
    ]
    assert list(iter_items(run, reason="length", status="correct")) == []
    with pytest.raises(ConfigError, match="There are: eos, length"):
        list(iter_items(run, reason="eof"))
    with pytest.raises(ConfigError, match="correct, wrong, unparsed, truncated"):
        list(iter_items(run, status="right"))


def test_summary_tells_accuracy_cost_and_reasons(toy: Toys) -> None:
    run = toy(samples=4)
    text = "\n".join(summary_lines(run))
    assert f"({run.summary.correct}/44 correct, bootstrap 95 % interval)" in text
    assert f"pass@k     1: {100 * run.pass_at(1):.1f} %" in text and "maj@k" in text
    assert "skipped    1 examples" in text
    think = sum(row.phases["think"] for row in run.rows) / 44
    assert f"thinking    {think:.1f} of 3 rounds on average" in text
    ended = sum(row.notes["thinking_ended"] == "budget" for row in run.rows)
    assert f"budget {ended}" in text and "ended by    eos" in text and "steps/s" in text


def test_equal_samples_are_said(toy: Toys) -> None:
    assert "one would tell as much" not in str(toy(limit=3, samples=3))
    assert "one would tell as much" in str(toy(limit=3, samples=3, skill=1.0))


def test_budget_numbers(toy: Toys) -> None:
    run = toy()
    budget = run.budget
    tokens = sorted(row.usage.tokens for row in run.rows)
    assert (budget.tokens.min, budget.tokens.median, budget.tokens.max) == (tokens[0], tokens[5], tokens[-1])
    latent = sum(row.usage.latent_steps for row in run.rows)
    assert budget.latent_coverage == pytest.approx(latent / (latent + sum(tokens)))
    assert budget.measures == {"entropy": 1.0, "norm_ratio": 0.5}
    assert sum(budget.reasons.values()) == 11


def test_reading_results_needs_no_torch(toy: Toys, tmp_path: Path) -> None:
    toy(output=tmp_path)
    code = (
        "import sys; from unspoken.evaluation import compare, load_run\n"
        f"str(load_run({str(tmp_path)!r})); str(compare({str(tmp_path)!r}))\n"
        "sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
