"""A strategy inside another on the command line: its name, its flags beside the others, and what clashes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import unspoken as un
from unspoken.cli._arguments import Part, first_stage, named_part, second_stage
from unspoken.cli.evaluate import EvalOptions
from unspoken.cli.generate import GenerateOptions
from unspoken.cli.main import main
from unspoken.discovery import STRATEGIES, TASKS
from unspoken.errors import ConfigError


def generated(*words: str) -> tuple[Any, Any]:
    line = first_stage("generate", words, ["strategy"], positionals=1)
    options, strategy = second_stage(
        line, [Part(GenerateOptions), named_part("strategy", line.names["strategy"])], ""
    )
    return options, strategy


def evaluated(*words: str) -> tuple[Any, Any]:
    line = first_stage("eval", words, ("task", "strategy"))
    parts = [Part(EvalOptions), *(named_part(kind, line.names[kind]) for kind in ("task", "strategy"))]
    _, task, strategy = second_stage(line, parts, "")
    return task, strategy


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", un.BestOfN()),
        ("--temperature 0.3", un.BestOfN(un.ChainOfThought(temperature=0.3))),
        ("--inner cot", un.BestOfN(un.ChainOfThought())),
        ("--inner soft --k 5 --n 3", un.BestOfN(un.SoftThinking(k=5), n=3)),
        ("--inner=soft --inner-k 5 --inner_T_e 7", un.BestOfN(un.SoftThinking(k=5, T_e=7))),
        ("--inner soft --strategy hard_argmax", un.BestOfN(un.SoftThinking(mixture="hard_argmax"))),
        ("--inner vote --n 4 --inner-n 2", un.BestOfN(un.Vote(n=2), n=4)),
        (
            "--inner vote --inner-n 2 --inner-inner soft --k 9 --weights probability",
            un.BestOfN(un.Vote(un.SoftThinking(k=9), n=2, weights="probability")),
        ),
        ("--inner power --no-early-rejection", un.BestOfN(un.PowerSampling(early_rejection=False))),
    ],
)
def test_flags(words: str, expected: Any) -> None:
    assert generated("best_of_n", "hi", *words.split())[1] == expected


def test_an_alias_of_the_inner_strategy_may_mean_an_option_of_the_command() -> None:
    assert generated("vote", "hi", "--T-total", "77")[0].max_new_tokens == 77
    assert generated("vote", "hi", "--inner", "soft", "--T-total", "999")[1].inner.T_total == 999


def yaml(folder: Path, text: str) -> str:
    (folder / "options.yaml").write_text(text, encoding="utf-8")
    return str(folder / "options.yaml")


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("inner: soft\nk: 11\nn: 2", "", un.Vote(un.SoftThinking(k=11), n=2)),
        ("inner: {name: soft, k: 5, T-e: 3}", "", un.Vote(un.SoftThinking(k=5, T_e=3))),
        ("inner: {name: soft, k: 5, T_e: 3}", "--k 6", un.Vote(un.SoftThinking(k=6, T_e=3))),
        ("inner: {name: soft, k: 5}", "--inner soft", un.Vote(un.SoftThinking(k=5))),
        ("inner: {name: soft, k: 5}", "--inner cot", un.Vote(un.ChainOfThought())),
        (
            "inner: {name: vote, n: 3, inner: {name: beam, width: 2}}",
            "",
            un.Vote(un.Vote(un.BeamSearch(2), n=3)),
        ),
        ("inner_temperature: 0.2", "", un.Vote(un.ChainOfThought(temperature=0.2))),
    ],
)
def test_a_file(tmp_path: Path, text: str, words: str, expected: Any) -> None:
    assert generated("vote", "hi", "-c", yaml(tmp_path, text), *words.split())[1] == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--inner sof", "Unknown strategy 'sof'. Did you mean 'soft'?"),
        ("--k 3", "Unknown option '--k'"),
        ("--inner soft --kk 3", "Did you mean '--k'?"),
    ],
)
def test_mistakes(words: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        generated("vote", "hi", *words.split())
    assert said in str(error.value)


def test_mistakes_of_both_come_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        generated("vote", "hi", "--inner", "soft", "--k", "-3", "--n", "0")
    assert [p.split()[0] for p in error.value.problems] == ["n", "k"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("inner: {k: 5}", "inner in the -c file must be the name of a strategy, or a mapping with its name"),
        ("inner: {name: soft, kk: 5}", "Unknown key 'kk' in inner in the -c file. Did you mean 'k'?"),
        ("inner: {name: soft, k: x}", "k in inner in the -c file must be an integer"),
        ("inner: 3", "not 3"),
    ],
)
def test_mistakes_of_a_file(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        generated("vote", "hi", "-c", yaml(tmp_path, text))
    assert said in str(error.value)


def test_a_task_and_a_strategy_with_the_same_field() -> None:
    task, strategy = evaluated("arithmetic", "vote", "--strategy-n", "3", "--task_n", "7")
    assert (task.n, strategy.n) == (7, 3)
    _, strategy = evaluated("arithmetic", "vote", "--inner", "best_of_n", "--inner-n", "2")
    assert strategy.inner.n == 2
    with pytest.raises(ConfigError, match=r"Unknown option '--n'. Write --task-n or --strategy-n."):
        evaluated("arithmetic", "vote", "--n", "3")
    assert evaluated("arithmetic", "cot", "--n", "3")[0].n == 3  # nothing clashes here


def test_a_shared_field_in_a_file(tmp_path: Path) -> None:
    file = yaml(tmp_path, "task_n: 4\nstrategy_n: 3\n")
    assert [x.n for x in evaluated("arithmetic", "vote", "-c", file)] == [4, 3]
    with pytest.raises(ConfigError, match="Write task_n or strategy_n"):
        evaluated("arithmetic", "vote", "-c", yaml(tmp_path, "n: 4\n"))


@pytest.mark.parametrize("task", TASKS.names())
def test_every_task_goes_with_every_strategy(task: str) -> None:
    from unspoken.cli._parts import complete

    for name in STRATEGIES.names():
        parts = [Part(EvalOptions), named_part("task", task), named_part("strategy", name)]
        for part in complete(parts, [], {}):
            assert len(set(part.flags.values())) == len(part.flags)


def test_generate(tiny_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = "generate best_of_n Hi --inner soft --k 3 --T-e 2 --n 2 --max-new-tokens 5 --json -m"
    assert main([*words.split(), str(tiny_folder("llama"))]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    note = next(e["value"] for e in events if e.get("name") == "best_of_n")
    assert len(note["candidates"]) == 2
    assert sum(e["event"] == "step" and e["kind"] == "soft" for e in events) >= 2


def test_eval_and_its_record(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    words = (
        "eval arithmetic vote --inner beam --width 2 --strategy-n 1 --limit 1 --max-new-tokens 4 --quiet -m"
    )
    assert main([*words.split(), str(tiny_folder("llama")), "-o", str(tmp_path / "run")]) == 0
    recorded = un.load_run(tmp_path / "run").config["strategy"]
    assert recorded["inner"]["name"] == "beam" and recorded["inner"]["width"] == 2 and recorded["n"] == 1


def test_help_shows_the_flags_of_the_inner_strategy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "vote", "--inner", "beam", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--inner NAME" in out and "--width" in out and "inner strategy beam" in out
