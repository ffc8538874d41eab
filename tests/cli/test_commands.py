"""Every command from end to end, on a tiny random model."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from unspoken import load_run
from unspoken.cli.main import main
from unspoken.discovery import STRATEGIES
from unspoken.types import event_from_dict, fold

Folder = Callable[[str], Path]
SMALL = ["--max-new-tokens", "12", "--T_e", "4"]


@pytest.fixture(scope="module")
def runs(tiny_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two finished evaluations of the same six problems."""
    root = tmp_path_factory.mktemp("runs")
    common = ["-m", str(tiny_folder("llama")), "--n", "6", "--level", "0", "--max-new-tokens", "12"]
    assert main(["eval", "arithmetic", "cot", *common, "-o", str(root / "cot")]) == 0
    soft = ["--T_e", "4", "--strategy", "uniform", "--trace", "full"]
    assert main(["eval", "arithmetic", "soft", *common, *soft, "-o", str(root / "soft")]) == 0
    return root / "cot", root / "soft"


class TestGenerate:
    """`unspoken generate`."""

    def test_plain_text_on_stdout_and_usage_on_stderr(
        self, tiny_folder: Folder, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = [
            "generate",
            "cot",
            "hi",
            "-m",
            str(tiny_folder("llama")),
            "--max-new-tokens",
            "6",
            "--seed",
            "3",
        ]
        assert main(words) == 0
        first = capsys.readouterr()
        assert first.out.endswith("\n")
        assert "6 tokens" in first.err
        assert main([*words, "--quiet"]) == 0
        again = capsys.readouterr()
        assert (again.out, again.err) == (first.out, "")

    def test_json_lines_fold_to_the_text(
        self, tiny_folder: Folder, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["generate", "soft", "hi", "-m", str(tiny_folder("qwen3")), *SMALL, "--k", "3", "--quiet"]
        assert main(words) == 0
        text = capsys.readouterr().out
        assert main([*words, "--json"]) == 0
        events = [event_from_dict(json.loads(line)) for line in capsys.readouterr().out.splitlines()]
        (generation,) = fold(events).values()
        assert generation.usage.latent_steps > 0
        assert generation.text.rstrip("\n") + "\n" == text

    def test_prompt_from_standard_input_and_system_message(
        self, tiny_folder: Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import io

        common = ["-m", str(tiny_folder("llama")), "--max-new-tokens", "6", "--temperature", "0", "--quiet"]
        assert main(["generate", "cot", "What is 2 + 3?", *common]) == 0
        direct = capsys.readouterr().out
        monkeypatch.setattr(sys, "stdin", io.StringIO("What is 2 + 3?\n"))
        assert main(["generate", "cot", "-", *common]) == 0
        assert capsys.readouterr().out == direct
        assert main(["generate", "cot", "What is 2 + 3?", *common, "--system", "Be brief."]) == 0
        assert capsys.readouterr().out != direct

    def test_own_strategy_file_and_options_file(
        self, tiny_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        own = tmp_path / "mine.py"
        own.write_text(
            "from __future__ import annotations\nfrom dataclasses import dataclass\n"
            "from unspoken.decoding.cot import ChainOfThought\n\n\n@dataclass(frozen=True)\n"
            "class Mine(ChainOfThought):\n    heat: float = 0.0\n",
            encoding="utf-8",
        )
        file = tmp_path / "options.yaml"
        file.write_text(
            f"model: {tiny_folder('llama')}\nmax_new_tokens: 5\nheat: 0.5\nquiet: true\n", encoding="utf-8"
        )
        assert main(["generate", str(own), "hi", "-c", str(file)]) == 0
        assert main(["generate", "-s", str(own), "hi", "-c", str(file), "--heat", "0.7"]) == 0
        assert main(["generate", str(own), "hi", "-c", str(file), "--haet", "0.7"]) == 2
        assert "Did you mean '--heat'?" in capsys.readouterr().err

    def test_prompt_longer_than_the_context(
        self, tiny_folder: Folder, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["generate", "cot", "apple " * 600, "-m", str(tiny_folder("gpt2"))]) in (1, 2)
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert "512" in err

    def test_k_above_the_vocabulary(self, tiny_folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["generate", "soft", "hi", "-m", str(tiny_folder("llama")), "--k", "100000"]) == 2
        assert "vocabulary" in capsys.readouterr().err

    def test_without_a_name_a_model_thinks_as_it_remembers(
        self, tiny_folder: Folder, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["-m", "tiny-filler", "--quiet"]
        named = ["--n-fillers", "10", "--kind", "single", "--force-sep2"]
        assert main(["generate", "filler", "3 1 2 9 4", *words, *named]) == 0
        expected = capsys.readouterr().out
        assert main(["generate", "3 1 2 9 4", *words]) == 0
        assert capsys.readouterr().out == expected
        assert main(["generate", *words, "--seed", "1", "3 1 2 9 4"]) == 0
        assert capsys.readouterr().out == expected
        assert main(["generate", "hi", "-m", str(tiny_folder("llama"))]) == 2
        assert f"remembers none. Known: {', '.join(STRATEGIES.names())}." in capsys.readouterr().err

    def test_a_filler_that_a_model_lacks(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["generate", "filler", "3 1 2 9 4", "-m", "tiny-filler"]) == 2
        assert "does not know the filler ' .'. It knows <fill_0> (--kind single)" in capsys.readouterr().err
        assert main(["generate", "filler", "3 1 2 9 4", "-m", "tiny-filler", "--kind", "single"]) == 0

    def test_model_that_does_not_exist(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["generate", "cot", "hi", "-m", "./no-such-model"]) in (1, 2)
        assert "no-such-model" in capsys.readouterr().err


class TestEval:
    """`unspoken eval`."""

    def test_results_and_next_step(self, runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
        run = load_run(runs[1])
        assert len(run.rows) == 6
        assert run.config["strategy"]["mixture"] == "uniform"
        assert run.config["task"]["level"] == 0

    def test_the_same_command_again_changes_nothing(
        self, tiny_folder: Folder, runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = (runs[0] / "rows.jsonl").read_bytes()
        common = ["-m", str(tiny_folder("llama")), "--n", "6", "--level", "0", "--max-new-tokens", "12"]
        assert main(["eval", "arithmetic", "cot", *common, "-o", str(runs[0])]) == 0
        out, err = capsys.readouterr()
        assert err == ""  # no running line where there is no terminal
        assert "accuracy" in out
        assert f"unspoken show {runs[0]}" in out
        assert (runs[0] / "rows.jsonl").read_bytes() == before

    def test_another_configuration_is_refused_unless_forced(
        self, tiny_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = [
            "eval",
            "arithmetic",
            "cot",
            "-m",
            str(tiny_folder("llama")),
            "--n",
            "2",
            "-o",
            str(tmp_path / "run"),
        ]
        assert main([*words, "--max-new-tokens", "4"]) == 0
        assert main([*words, "--max-new-tokens", "5"]) == 2
        assert "--force" in capsys.readouterr().err
        assert main([*words, "--max-new-tokens", "5", "--force"]) == 0

    def test_default_folder_is_named_after_the_configuration(
        self, tiny_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        words = [
            "eval",
            "arithmetic",
            "cot",
            "-m",
            str(tiny_folder("llama")),
            "--n",
            "3",
            "--max-new-tokens",
            "4",
        ]
        assert main([*words, "--num_examples", "2"]) == 0
        assert main([*words, "--limit", "3"]) == 0
        (folder,) = (tmp_path / "results").iterdir()  # a larger limit goes on in the same folder
        assert folder.name.startswith("arithmetic-cot-")
        assert len(load_run(folder).rows) == 3
        assert main([*words, "--temperature", "0.9"]) == 0
        assert len(list((tmp_path / "results").iterdir())) == 2

    def test_impossible_extent(self, tiny_folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
        words = [
            "eval",
            "arithmetic",
            "cot",
            "-m",
            str(tiny_folder("llama")),
            "--samples",
            "0",
            "--shard",
            "4/4",
        ]
        assert main(words) == 2
        err = capsys.readouterr().err
        assert "samples must be at least 1" in err
        assert "shard must be" in err

    def test_without_a_name_a_model_thinks_as_it_remembers(
        self, tiny_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["eval", "sum3lite", "--n", "5", "--m", "16", "--limit", "2", "-m"]
        assert main([*words, "tiny-filler", "-o", str(tmp_path / "run")]) == 0
        strategy = load_run(tmp_path / "run").config["strategy"]
        assert (strategy["name"], strategy["n_fillers"]) == ("filler", 10)
        capsys.readouterr()
        assert main([*words, str(tiny_folder("llama")), "-o", str(tmp_path / "other")]) == 2
        assert f"remembers none. Known: {', '.join(STRATEGIES.names())}." in capsys.readouterr().err

    def test_validate_needs_no_model(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["eval", "arithmetic", "--validate", "--n", "20"]) == 0
        assert "20 gold answers" in capsys.readouterr().out

    def test_broken_data_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        broken = tmp_path / "broken.jsonl"
        broken.write_text('{"no question": 1}\n', encoding="utf-8")
        assert main(["eval", "gsm8k", "--validate", "--data", str(broken)]) in (1, 2)
        assert "broken.jsonl" in capsys.readouterr().err

    @pytest.mark.slow
    def test_ctrl_c_keeps_finished_rows_and_resumes(self, tiny_folder: Folder, tmp_path: Path) -> None:
        words = [
            "eval",
            "arithmetic",
            "cot",
            "-m",
            str(tiny_folder("llama")),
            "--n",
            "200",
            "--max-new-tokens",
            "60",
        ]
        words += ["--batch-size", "2", "-o", str(tmp_path / "run")]
        process = subprocess.Popen(
            [sys.executable, "-m", "unspoken", *words],
            stderr=subprocess.PIPE,
            text=True,
            # A test run in the background may have inherited that the signal is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        rows = tmp_path / "run" / "rows.jsonl"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and (not rows.exists() or rows.read_bytes().count(b"\n") < 3):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 130
        assert "kept in" in err
        kept = rows.read_text(encoding="utf-8").splitlines()
        assert 3 <= len(kept) < 200
        assert main([*words, "--limit", str(len(kept) + 2)]) == 0
        assert rows.read_text(encoding="utf-8").splitlines()[: len(kept)] == kept


class TestResults:
    """`unspoken compare`, `show` and `report`."""

    def test_compare(self, runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["compare", *map(str, runs)]) == 0
        out = capsys.readouterr().out
        assert "McNemar" in out
        assert "cot" in out

    def test_report(
        self, runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["report", *map(str, runs), "-o", str(tmp_path)]) == 0
        for path in capsys.readouterr().out.split():
            assert Path(path).stat().st_size > 500

    def test_show_lines_filters_and_items(
        self, runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        rows = load_run(runs[1]).rows
        assert main(["show", str(runs[1]), "--limit", "4"]) == 0
        out = capsys.readouterr().out
        assert "accuracy" in out
        assert rows[0].id in out
        assert "2 more" in out
        wrong = [row for row in rows if not row.correct]
        assert main(["show", str(runs[1]), "--wrong", "--text"]) == 0
        out = capsys.readouterr().out
        assert all((row.id in out) == (not row.correct) for row in rows)
        assert wrong[0].question in out
        assert main(["show", str(runs[1]), "--item", rows[2].example]) == 0
        out = capsys.readouterr().out
        assert rows[2].question in out
        assert rows[3].id not in out

    def test_wrong_answers_come_with_their_text(
        self, runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        wrong = [row for row in load_run(runs[0]).rows if not row.correct]
        assert main(["show", str(runs[0])]) == 0
        assert "question: " not in capsys.readouterr().out
        assert main(["show", str(runs[0]), "--wrong"]) == 0
        lines = capsys.readouterr().out.splitlines()
        questions = [line for line in lines if line.startswith("    question: ")]
        assert len(questions) == len(wrong) > 0
        assert all(
            " ".join(row.question.split())[:40] in line for row, line in zip(wrong, questions, strict=True)
        )
        assert max(len(line) for line in questions) <= 200 + len("    question:  …")
        answers = [line for line in lines if line.startswith("    answer: ")]
        assert len(answers) == sum(bool(row.text.strip()) for row in wrong)

    @pytest.mark.parametrize(
        "words", [["--item", "nope"], ["--status", "rigth"], ["--reason", "boredom"], ["--limit", "-1"]]
    )
    def test_wrong_filters(self, words: list[str], runs: tuple[Path, Path]) -> None:
        assert main(["show", str(runs[0]), *words]) == 2

    def test_originals_tree_in_both_directions(
        self, runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["show", str(runs[1]), "--export", str(tmp_path)]) == 0
        (file,) = tmp_path.rglob("generation_comparison_T_e_*.json")
        capsys.readouterr()
        assert main(["show", str(tmp_path)]) == 0
        assert "accuracy" in capsys.readouterr().out
        assert main(["show", str(file)]) == 0


@pytest.mark.parametrize("command", ["eval", "sweep"])
def test_a_missing_file_is_told_before_the_model_is_loaded(
    command: str,
    tiny_folder: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = {"eval": "evaluate", "sweep": "sweep"}[command]
    monkeypatch.setattr(f"unspoken.cli.{module}.load_model", lambda _: pytest.fail("the model was loaded"))
    asked = ["cot"] if command == "eval" else ["--layers", "100"]
    words = [
        command,
        "gsm8k",
        *asked,
        "-m",
        str(tiny_folder("llama")),
        "--data",
        str(tmp_path / "none.jsonl"),
    ]
    assert main(words) != 0
    assert "none.jsonl" in capsys.readouterr().err


def test_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name in ("cot", "soft", "gsm8k", "math500", "arithmetic", "multiplication", "smollm2"):
        assert name in out
    assert "Presets of internalize" in out
    assert main(["list", "tasks"]) == 0
    assert "Strategies" not in capsys.readouterr().out


def test_list_presets_tells_what_each_sets(capsys: pytest.CaptureFixture[str]) -> None:
    from unspoken.training.internalize import Internalize

    assert main(["list", "presets"]) == 0
    rows = capsys.readouterr().out.split("Presets of internalize")[1]
    assert "filler_fixed    removal_smoothing_lambda=4.0 reset_optimizer=True mode=fixed n_fillers=8" in rows
    for preset in re.findall(r"^  (\w+)", rows, re.MULTILINE):
        assert Internalize(preset=preset).preset == preset


def test_another_strategys_or_tasks_folder_is_refused_by_that_name(
    runs: tuple[Path, Path], tiny_folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    for task, strategy, said in (
        ("arithmetic", "cot", "strategy is 'soft' there and 'cot' here."),
        ("multiplication", "soft", "task is 'arithmetic' there and 'multiplication' here."),
    ):
        assert main(["eval", task, strategy, "-m", str(tiny_folder("llama")), "-o", str(runs[1])]) == 2
        assert capsys.readouterr().err == (
            f"error: {runs[1]} holds another configuration: {said}\n"
            "  Choose another --output, or add --force to move the old folder aside.\n"
        )


def test_runs_without_a_common_problem_get_a_next_step(
    runs: tuple[Path, Path], tiny_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "arithmetic", "cot", "-m", str(tiny_folder("llama")), "--n", "7", "--level", "0"]
    assert main([*words, "--start", "6", "--max-new-tokens", "4", "-o", str(tmp_path / "run")]) == 0
    assert main(["compare", str(runs[0]), str(tmp_path / "run")]) == 2
    assert "Compare runs of the same problems" in capsys.readouterr().err


def test_env_names_the_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("unspoken", "torch", "transformers", "python"))
