from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_loop
import pytest

from unspoken.errors import ConfigError
from unspoken.evaluation import Run, compare
from unspoken.evaluation.stats import mcnemar
from unspoken.lm.depth import Kept

Toys = Callable[..., Run]


def test_a_gain_is_claimed_only_where_the_interval_excludes_zero(toy: Toys) -> None:
    bad, good = toy(size=60, skill=0.1), toy(size=60, skill=0.9)
    found = compare(bad, good)
    entry = found.entries[1]
    assert (
        entry.verdict == "more accurate"
        and entry.difference is not None
        and entry.difference.interval.low > 0
    )
    assert entry.difference.mean == pytest.approx(good.accuracy - bad.accuracy)
    pairs = list(zip(bad.rows, good.rows, strict=True))
    only = [sum(a.correct and not b.correct for a, b in p) for p in (pairs, [(b, a) for a, b in pairs])]
    assert entry.difference.p == mcnemar(*only)
    assert compare(good, bad).entries[1].verdict == "less accurate"
    same = compare(bad, replace(bad))
    assert same.entries[1].verdict == "no difference found"
    assert "no difference found" in str(same)
    assert same.sentences[0].startswith(
        "fake_loop non_uniform (2): no difference from fake_loop non_uniform found"
    )
    assert [e.name for e in same.entries] == ["fake_loop non_uniform", "fake_loop non_uniform (2)"]


def test_a_handful_of_differing_examples_decides_nothing(toy: Toys) -> None:
    fake_loop.TEXTS.update({f"toy-{i}#0": "0" for i in range(1, 28)})
    base = toy(size=28)
    fake_loop.TEXTS.update({f"toy-{i}#0": str(2 * i) for i in (1, 2, 3, 4)})
    found = compare(base, toy(size=28, mixture="uniform"))
    difference = found.entries[1].difference
    assert difference is not None and difference.excludes_zero and not difference.found
    assert difference.p == 0.125
    assert found.entries[1].verdict == "undecided" and "undecided against" in found.sentences[0]


def test_costs_stand_beside_accuracies(toy: Toys) -> None:
    short, long = toy(T_e=2), toy(T_e=12)
    entry = compare(short, long).entries[1]
    passes = [sum(r.usage.forward_passes for r in run.rows) for run in (short, long)]
    assert entry.forward_ratio == pytest.approx(passes[1] / passes[0])
    assert entry.latent_steps == pytest.approx(sum(r.phases["think"] for r in long.rows) / 11)
    assert entry.seconds is not None and entry.seconds_ratio is not None
    text = str(compare(short, long))
    for word in ("accuracy", "unparsed", "truncated", "tokens", "latent", "forward", "seconds"):
        assert word in text


def test_unequal_work_is_said_with_what_would_make_it_equal(toy: Toys) -> None:
    base, other = toy(), toy(mixture="uniform")
    rows = [
        replace(r, usage=replace(r.usage, tokens=4 * r.usage.tokens, latent_steps=4 * r.usage.latent_steps))
        for r in other.rows
    ]
    voted = replace(other, rows=rows, config={**other.config, "strategy": {"name": "vote", "n": 8}})
    found = compare(base, voted)
    assert found.entries[1].token_ratio == pytest.approx(4.0)
    (warning,) = (w for w in found.warnings if "equal tokens" in w)
    name, first = found.entries[1].name, found.entries[0].name
    assert f"{name} decoded 4 times the tokens of {first}: they are not compared at equal tokens." in warning
    assert f"{name} with n = 2 instead of 8 would take about those of {first}." in warning
    assert found.paired_rows()[0][found.paired_headers.index("tokens")] == "4.00×"
    (warning,) = (w for w in compare(voted, base).warnings if "equal tokens" in w)
    assert "decoded 0.25 times the tokens" in warning and "with n = 2 instead of 8" in warning
    assert not any("equal tokens" in w for w in compare(base, toy(mixture="uniform")).warnings)


def test_a_single_run_has_no_differences(toy: Toys) -> None:
    found = compare(toy())
    assert found.sentences == [] and found.entries[0].verdict == "baseline"
    assert "McNemar" not in str(found)


def test_different_examples_are_cut_to_the_common_ones(toy: Toys) -> None:
    found = compare(toy(limit=6), toy(start=3, limit=3))
    assert [e.n for e in found.entries] == [3, 3]
    assert any("6" in w and "only the 3 common ones" in w for w in found.warnings)
    with pytest.raises(ConfigError, match="no example in common"):
        compare(toy(limit=3), toy(start=3, limit=3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lm": {"source": "other"}}, "differ in model ('other' against 'tiny')"),
        ({"lm": {"dtype": "bfloat16"}}, "differ in dtype"),
        ({"T_total": 30}, "differ in budget of steps (30 against 20)"),
        ({"size": 13}, "differ in data"),
        ({"samples": 2}, "2 samples an example"),
        ({"batch_size": 3}, "differ in batch_size: seconds are not comparable"),
        ({"data": "elsewhere.jsonl"}, "differ in task.data"),
    ],
)
def test_what_makes_runs_incomparable_is_said(toy: Toys, change: dict[str, object], words: str) -> None:
    assert any(words in warning for warning in compare(toy(), toy(**change)).warnings)


def test_depths_of_one_model_are_told_in_one_sentence(toy: Toys, tmp_path: Path) -> None:
    def at(*kept: int) -> dict[str, Any]:
        depth = Kept(kept, 28)
        return {
            "depth": depth.to_dict(),
            "parameters": 100 * len(kept),
            "weights_hash": str(len(kept)),
        }

    whole = toy(size=60, lm={"parameters": 2800, "weights_hash": "28"}, output=tmp_path / "whole")
    short = toy(size=60, lm=at(*range(20)), output=tmp_path / "short")
    both = toy(size=60, lm={**at(*range(20), 27), "dtype": "bfloat16"}, T_total=30, output=tmp_path / "both")
    said = "The runs are of different depths: whole is the full model, short is first 20 of 28 blocks"
    assert compare(whole, short).warnings == (f"{said}.",)
    assert compare(whole, short, both).warnings == (
        f"{said}, both is first 20 and last of 28 blocks.",
        "both and whole differ in dtype ('bfloat16' against 'float32'), budget of steps (30 against 20): accuracies "
        "may not be comparable.",
        "2 differences are tested; intervals and p values are not adjusted for that.",
    )
    # Other weights under the same name are told, where the depth is the same.
    other = toy(size=60, lm={"parameters": 2800, "weights_hash": "x"})
    assert any("differ in model.weights_hash: acc" in w for w in compare(whole, other).warnings)


def test_comparable_runs_give_no_such_warning(toy: Toys) -> None:
    warnings = compare(toy(size=60), toy(size=60, mixture="hard_argmax", skill=0.4)).warnings
    assert warnings == ()


def test_another_grader_is_said(toy: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    old = toy()
    monkeypatch.setattr(fake_loop.Toy, "version", 2)
    assert any("grader and prompt version (2 against 1)" in w for w in compare(old, toy()).warnings)


def test_unfinished_runs_and_failed_rows_are_said(toy: Toys, tmp_path: Path) -> None:
    fake_loop.FAIL.add("toy-3#0")
    failed = toy()
    fake_loop.FAIL.clear()
    fake_loop.INTERRUPT_AFTER.append(8)
    with pytest.raises(KeyboardInterrupt):
        toy(output=tmp_path / "stopped")
    fake_loop.INTERRUPT_AFTER.clear()
    warnings = " ".join(compare(failed, tmp_path / "stopped").warnings)
    assert "stopped is interrupted" in warnings and "1 rows failed" in warnings


def test_several_samples_are_compared_by_majority_and_mean(toy: Toys) -> None:
    texts = {"toy-1": ["2", "2", "9"], "toy-2": ["9", "9", "4"], "toy-3": ["6", "8", "?"]}
    fake_loop.TEXTS.update({f"{e}#{i}": t for e, group in texts.items() for i, t in enumerate(group)})
    base = toy(start=1, limit=3, samples=3)
    fake_loop.TEXTS.update({f"toy-{i}#0": "0" for i in (1, 2, 3)})
    other = toy(start=1, limit=3, mixture="uniform")
    found = compare(base, other)
    difference = found.entries[1].difference
    # Votes of the first: right, wrong, right (a tie goes to the earliest answer); of the second: all wrong.
    assert difference is not None and difference.p == mcnemar(2, 0)
    assert difference.mean == pytest.approx(-(2 / 3 + 1 / 3 + 1 / 3) / 3)
    assert found.entries[0].interval.method == "bootstrap"
    assert any("majority votes" in w for w in found.warnings)


def test_markdown_and_json(toy: Toys) -> None:
    found = compare(toy(), toy(mixture="a|b"))
    assert "a\\|b" in found.markdown()
    decoded = json.loads(json.dumps(found.to_dict()))
    assert decoded["entries"][1]["verdict"] == found.entries[1].verdict


def test_nothing_to_compare(toy: Toys) -> None:
    with pytest.raises(ConfigError, match="Nothing to compare"):
        compare()
    with pytest.raises(ConfigError, match="No rows"):
        compare(replace(toy(), rows=[]))
