"""`unspoken grade`, and tasks that only generate, from end to end on a tiny random model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from unspoken import load_run
from unspoken.cli.main import main
from unspoken.tasks import _verifier

Folder = Callable[[str], Path]


@pytest.mark.skipif(not _verifier._installed(), reason="math-verify is not installed")
def test_grade(tiny_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "p.json", tmp_path / "run"
    data.write_text(json.dumps([{"prompt": f"What is {i} + 30?", "answer": "1/2"} for i in range(3)]))
    words = ["eval", "math500", "cot", "-m", str(tiny_folder("llama")), "--data", str(data), "-o", str(out)]
    assert main([*words, "--prompt-style", "rws", "--max-new-tokens", "6"]) == 0
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    rows[1].update(text=r"\boxed{2/4}", status="correct", answer="2/4", reason="eos")
    (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    for _ in range(2):
        assert main(["grade", str(out)]) == 0
        shown, err = capsys.readouterr()
        assert "run: 3 answers" in shown and "strict: wrong" in shown and err == ""
    assert main(["grade", str(out), "--grader", "strict", "--extract", "boxed", "--limit", "0"]) == 0
    assert "unspoken grade DIR --limit 2" in capsys.readouterr().out
    assert set(load_run(out).rows[1].grades) == {"default", "strict", "strict boxed"}
    assert main(["show", str(out)]) == 0
    assert "strict: wrong" in capsys.readouterr().out
    assert main(["grade", str(tmp_path)]) == 2
    assert main(["grade", str(out), "--grader", "lenient", "--limit", "-1"]) == 2
    assert "default" in capsys.readouterr().err


def test_a_task_that_only_generates(
    tiny_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "a.jsonl", tmp_path / "run"
    data.write_text('{"instruction": "Name a tree."}\n{"instruction": "Name a bird."}\n')
    words = [
        "eval",
        "alpaca_eval",
        "cot",
        "-m",
        str(tiny_folder("llama")),
        "--data",
        str(data),
        "-o",
        str(out),
    ]
    assert main([*words, "--max-new-tokens", "6"]) == 0
    assert "not graded: the task only generates (2 answers)" in capsys.readouterr().out
    assert main(["show", str(out), "--status", "ungraded", "--text"]) == 0
    shown = capsys.readouterr().out
    assert "Name a bird." in shown and "(right:" not in shown
    assert (
        main(
            [
                "eval",
                "arithmetic",
                *words[2:5],
                "--limit",
                "1",
                "--max-new-tokens",
                "4",
                "-o",
                str(tmp_path / "one"),
            ]
        )
        == 0
    )
    for words, message in (
        (["grade", str(tmp_path / "one")], f"Run: unspoken grade {tmp_path / 'one'} --grader default"),
        (["compare", str(out), str(out)], "not graded"),
        (["report", str(out), "-o", str(tmp_path / "report")], "not graded"),
        (["grade", str(out)], "only generates"),
        (["eval", "alpaca_eval", "--validate", "--data", str(data), "-m", "none"], "no gold answers"),
        (["eval", "gpqa", "cot", "-m", str(tiny_folder("llama"))], "--data FILE"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err
