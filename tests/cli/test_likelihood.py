"""`unspoken compare --likelihood`: log p of stored answers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch

import unspoken as un
from unspoken.cli.main import main
from unspoken.errors import ConfigError
from unspoken.evaluation.likelihood import likelihoods, score
from unspoken.evaluation.records import Run, recorded_task

COMMON = ["-m", "tiny-icot-modsum", "--p", "5", "--limit", "8", "--quiet", "--dtype", "float32"]
INNER = ["--inner-think-open", "user_suffix", "--temperature", "6"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three runs of the same problems; some answers end, and some are cut off."""
    root = tmp_path_factory.mktemp("likelihood")
    for name, words in {
        "hot": ["cot", "--n", "6", "--temperature", "6", "--max-new-tokens", "4", "--samples", "2"],
        "vote": ["vote", "--task-n", "6", "--strategy-n", "3", *INNER, "--max-new-tokens", "4"],
        "power": [
            "power",
            "--n",
            "6",
            "--alpha",
            "1",
            "--temperature",
            "8",
            "--mcmc-steps",
            "1",
            "--num-blocks",
            "1",
        ],
        "soft": ["soft", "--n", "6", "--T-e", "4", "--max-new-tokens", "12"],
    }.items():
        assert main(["eval", "modsum", words[0], *COMMON, *words[1:], "-o", str(root / name)]) in (0, 1)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module")
def lm() -> un.CausalLM:
    return un.load("tiny-icot-modsum", dtype="float32")


def naive(lm: un.CausalLM, run: Run, example: str, text: str, ended: bool) -> float:
    """One forward a token, no cache."""
    task = recorded_task(run)
    prompt = task.prompt(next(e for e in task.examples() if e.id == example))
    ids, total = lm.tokens.encode_prompt(prompt), 0.0
    for token in [*lm.tokens.encode(text), *([-1] if ended else [])]:
        with torch.no_grad():
            law = lm.model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
        chosen = law[sorted(lm.eos_ids)].sum() if token < 0 else law[token]
        total += float(chosen.log())
        ids = [*ids, token]
    return total


def test_it_is_what_a_loop_over_tokens_gives(lm: un.CausalLM, folders: dict[str, Path]) -> None:
    run = un.load_run(folders["hot"])
    assert {row.reason for row in run.rows} == {"eos", "length"}
    found = likelihoods(lm, [run], ["hot"])
    for row in run.rows:
        assert found.values[0][row.id] == pytest.approx(
            naive(lm, run, row.example, row.text, row.reason == "eos"), abs=1e-3
        )
        assert found.tokens[0][row.id] == len(lm.tokens.encode(row.text)) + (row.reason == "eos")


def test_the_prompt_is_the_strategy_s_own(lm: un.CausalLM, folders: dict[str, Path]) -> None:
    """An inner strategy may add to it."""
    run = un.load_run(folders["vote"])
    row, task = run.rows[0], recorded_task(run)
    plain = lm.tokens.encode_prompt(task.prompt(task.examples()[0]))
    value = likelihoods(lm, [run], ["vote"]).values[0][row.id]
    assert value == score(lm, [*plain[:-1], *lm.tokens.encode("\n<think>"), plain[-1]], row)[0]
    assert abs(value - score(lm, plain, row)[0]) > 1e-3


def test_it_is_what_power_sampling_noted(lm: un.CausalLM, folders: dict[str, Path]) -> None:
    run = un.load_run(folders["power"])
    found = likelihoods(lm, [run], ["power"])
    assert min(found.values[0].values()) < -1 and len(set(found.tokens[0].values())) > 1
    same = 0
    for row in run.rows:
        noted = row.notes["power"]
        if found.tokens[0][row.id] == noted["length"]:  # else the text parts into other tokens
            assert found.values[0][row.id] == pytest.approx(noted["logprob"], abs=1e-3)
            same += 1
    assert same >= len(run.rows) // 2


def test_the_table(lm: un.CausalLM, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", str(folders["hot"]), str(folders["power"]), "--likelihood", "tiny-icot-modsum"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("log p of the answers"))
    hot, power = (next(x for x in lines[start:] if x.startswith(name)) for name in ("hot", "power"))
    runs = [un.load_run(folders[name]) for name in ("hot", "power")]
    found = likelihoods(lm, runs, ["hot", "power"])
    pairs = [
        found.values[1][f"{example}#0"] - fmean(found.values[0][f"{example}#{k}"] for k in (0, 1))
        for example in runs[0].by_example()
    ]
    assert re.search(rf"^hot\s+16\s+{found.means[0]:.1f} \[", hot)
    expected = rf"{fmean(pairs):+.1f}".replace("+", r"\+")
    error = f"{stdev(pairs) / len(pairs) ** 0.5:.1f}"
    assert re.search(rf"{expected}\s+{error}\s+{sum(d > 0 for d in pairs)} of 8$", power)


def test_answers_after_thoughts_are_refused(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", str(folders["hot"]), str(folders["soft"]), "--likelihood", "tiny-icot-modsum"]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "soft: 8 of 8 answers follow thoughts or forced tokens" in err and "leave out --likelihood" in err


def test_what_cannot_be_scored_is_named(
    lm: un.CausalLM, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = un.load_run(folders["hot"])
    with pytest.raises(ConfigError, match="task was not recorded"):
        likelihoods(lm, [replace(run, config={})], ["hot"])
    other = replace(run, rows=[replace(run.rows[0], question="1 + 1?")])
    with pytest.raises(ConfigError, match="not in the task's data any more"):
        likelihoods(lm, [other], ["hot"])
    with pytest.raises(ConfigError, match="positions, but the model reads"):
        score(lm, [5], replace(run.rows[0], text="1 + 2 = 3. " * 2000))
    assert score(lm, [5], replace(run.rows[0], text="", reason="length")) == (0.0, 0)
    with pytest.raises(ConfigError, match="not recorded how its answers ended"):
        likelihoods(lm, [replace(run, rows=[replace(run.rows[0], reason="")])], ["hot"])
    with pytest.raises(ConfigError, match="it has no answers"):
        likelihoods(lm, [replace(run, rows=[])], ["hot"])
    monkeypatch.setattr(lm, "eos_ids", frozenset())
    ended = next(row for row in run.rows if row.reason == "eos")
    with pytest.raises(ConfigError, match="ended by an end token, but the model .* has none"):
        score(lm, [5], ended)
