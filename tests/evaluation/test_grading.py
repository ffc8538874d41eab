"""Several graders on the same answers, and grading a folder again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_loop
import pytest

from unspoken import load_run
from unspoken.config import from_dict
from unspoken.errors import ConfigError, RunError
from unspoken.evaluation import Run, compare, evaluate
from unspoken.evaluation.grading import disagreements, grader_lines, opinions, regrade
from unspoken.evaluation.originals import export_originals
from unspoken.evaluation.report import write_report
from unspoken.tasks import _verifier
from unspoken.tasks._strict import equal as strictly_equal
from unspoken.tasks.alpaca_eval import AlpacaEval
from unspoken.tasks.math500 import Math500
from unspoken.types import Example, Grade, Message

pytestmark = pytest.mark.skipif(not _verifier._installed(), reason="math-verify is not installed")

GOLD = [r"\frac12", "5", "x=5", "7", "8", "(1,2)"]
TEXTS = [r"\boxed{\frac{2}{4}}", r"\boxed{5}", r"\boxed{5.0}", "It is 7.", "nothing", r"\boxed{(1,3)}"]
DEFAULT = ["correct", "correct", "correct", "correct", "unparsed", "wrong"]
STRICT = ["wrong", "correct", "wrong", "unparsed", "unparsed", "wrong"]
Solve = Callable[..., Run]


@pytest.fixture
def solve(tmp_path: Path) -> Solve:
    """An evaluation with prepared answers, in a folder of its own."""
    data = tmp_path / "problems.json"
    rows = [{"prompt": f"{i} apples?", "answer": gold, "id": f"p{i}"} for i, gold in enumerate(GOLD)]
    data.write_text(json.dumps(rows), encoding="utf-8")
    fake_loop.TEXTS.update({f"p{i}#0": text for i, text in enumerate(TEXTS)})

    def run(name: str = "run", **fields: Any) -> Run:
        model: Any = fake_loop.FakeLM()
        task = from_dict(Math500, {"data": str(data), **fields})
        return evaluate(model, task, fake_loop.Fake(), output=tmp_path / name)

    return run


def statuses(run: Run, name: str) -> list[str]:
    return [row.grades[name].status for row in run.rows]


def test_both_grades_are_kept_and_shown(solve: Solve, tmp_path: Path) -> None:
    run = solve(grader="both")
    assert [row.status for row in run.rows] == DEFAULT
    assert statuses(run, "strict") == STRICT
    assert load_run(tmp_path / "run").rows == run.rows
    assert {name: view.accuracy for name, view in opinions(run).items()} == {
        "default": 4 / 6,
        "strict": 1 / 6,
    }
    assert [row.id for row, _, _ in disagreements(run)] == ["p0#0", "p2#0", "p3#0"]
    text = str(run)
    assert "66.7 %" in text and "16.7 %" in text and "strict: unparsed" in text


def test_one_grader_leaves_no_trace_of_another(solve: Solve, tmp_path: Path) -> None:
    run = solve(grader="strict")
    assert [row.status for row in run.rows] == STRICT
    assert "grades" not in (tmp_path / "run" / "rows.jsonl").read_text()
    assert grader_lines(run) == [] and "grader" not in str(run)


def test_grading_again_writes_beside_the_rows(solve: Solve, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    plain = solve()
    before = (folder / "rows.jsonl").read_bytes()
    seen: list[tuple[int, int]] = []
    run = regrade(folder, on_row=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 12) for i in range(1, 13)]
    assert (folder / "rows.jsonl").read_bytes() == before
    assert [row.status for row in run.rows] == DEFAULT == statuses(run, "default")
    assert statuses(run, "strict") == STRICT
    assert list(opinions(run)) == ["default (recorded)", "default", "strict"]
    assert load_run(folder).rows == run.rows != plain.rows
    again = solve()  # the folder is still the same run
    assert again.rows == run.rows and (folder / "rows.jsonl").read_bytes() == before


def test_extraction_has_its_own_grades(solve: Solve, tmp_path: Path) -> None:
    solve()
    regrade(tmp_path / "run", "strict")
    run = regrade(tmp_path / "run", "strict", "boxed_or_last_number")
    assert statuses(run, "strict") == STRICT
    assert statuses(run, "strict boxed_or_last_number") == [*STRICT[:3], "correct", *STRICT[4:]]
    run = regrade(tmp_path / "run", "default", "boxed")
    assert statuses(run, "default boxed") == [*DEFAULT[:3], "unparsed", *DEFAULT[4:]]


def test_what_is_known_is_not_graded_again(
    solve: Solve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve()
    asked: list[str] = []

    def equal(gold: str, answer: str) -> Any:
        asked.append(gold)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return strictly_equal(gold, answer)

    monkeypatch.setattr("unspoken.tasks._strict.equal", equal)
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        regrade(folder, "strict")
    file = folder / "grades.strict.jsonl"
    assert len(file.read_bytes().splitlines()) == 2
    with file.open("ab") as lines:
        lines.write(b'{"id": "p2#0", "of"')  # torn by a kill
    assert statuses(regrade(folder, "strict"), "strict") == STRICT
    assert asked == [GOLD[0], GOLD[1], GOLD[2], GOLD[2], GOLD[5]]
    whole = file.read_bytes()
    regrade(folder, "strict")
    assert len(asked) == 5 and file.read_bytes() == whole
    monkeypatch.setattr(Math500, "version", 99)  # another grader: all are graded again
    regrade(folder, "strict")
    assert len(asked) == 9 and len(file.read_bytes().splitlines()) == 6


def test_a_failing_answer_does_not_end_the_others(
    solve: Solve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve()

    def equal(gold: str, answer: str) -> Any:
        if gold == "5":
            raise ZeroDivisionError("broken grader")
        return strictly_equal(gold, answer)

    monkeypatch.setattr("unspoken.tasks._strict.equal", equal)
    with pytest.raises(RunError, match=r"1 answers could not be graded.*p1#0: ZeroDivisionError"):
        regrade(tmp_path / "run", "strict")
    assert len((tmp_path / "run" / "grades.strict.jsonl").read_bytes().splitlines()) == 5
    assert len(disagreements(load_run(tmp_path / "run"))) == 3


def test_what_cannot_be_graded_again(solve: Solve, toy: Solve, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run folder"):
        regrade(tmp_path / "nothing")
    toy(output=tmp_path / "toy")
    with pytest.raises(ConfigError, match="Unknown task"):  # a task that lies in nobody's reach
        regrade(tmp_path / "toy")
    solve()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    for name, message in (("arithmetic", "has one grader"), ("alpaca_eval", "only generates")):
        record["config"]["task"] = {"name": name}
        (tmp_path / "run" / "run.json").write_text(json.dumps(record))
        with pytest.raises(ConfigError, match=message):
            regrade(tmp_path / "run")
    record["config"]["task"] = {"name": "gsm8k", "grader": "default"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert statuses(regrade(tmp_path / "run", "default"), "default")[1] == "correct"


def test_comparisons_and_reports_give_both_accuracies(solve: Solve, tmp_path: Path) -> None:
    solve(grader="both")
    solve("alone")
    comparison = compare(tmp_path / "run", tmp_path / "alone")
    for text in (str(comparison), comparison.markdown().replace("\\", "")):
        assert "16.7 %" in text and "p3#0" in text and "strict: unparsed" in text
    assert [row[:2] for row in comparison.graders()] == [["run", "default"], ["run", "strict"]]
    markdown, page = write_report([tmp_path / "run"], tmp_path / "report")
    for file in (markdown, page):
        assert "16.7 %" in file.read_text() and "strict: unparsed" in file.read_text()
    alone = str(compare(tmp_path / "alone"))
    assert "grader" not in alone


# Tasks that only generate


class Trees(AlpacaEval):
    """Questions that the fake loop can read."""

    def examples(self) -> list[Example]:
        return [Example(f"t{i}", f"{i} trees", None) for i in range(5)]

    def prompt(self, example: Example) -> list[Message]:
        return [{"role": "user", "content": example.question}]


def test_answers_without_a_grade_are_neither_right_nor_wrong(tmp_path: Path) -> None:
    model: Any = fake_loop.FakeLM()
    summaries: list[str] = []
    run = evaluate(
        model,
        Trees(),
        fake_loop.Fake(),
        samples=2,
        output=tmp_path / "run",
        on_row=lambda row, summary: summaries.append(str(summary)),
    )
    assert len(run.rows) == 10 and {row.status for row in run.rows} == {"ungraded"}
    assert run.state == "complete" and run.skipped == ()
    assert (run.summary.n, run.summary.graded, run.accuracy != run.accuracy) == (10, 0, True)
    assert summaries[-1] == "10 answers, not graded"
    assert "not graded: the task only generates (10 answers)" in str(run) and "pass@k" not in str(run)
    totals = json.loads((tmp_path / "run" / "run.json").read_text())["totals"]
    assert (totals["accuracy"], totals["ungraded"], totals["n"]) == (None, 10, 10)
    with pytest.raises(ConfigError, match="not graded"):
        compare(tmp_path / "run")
    with pytest.raises(ConfigError, match="not graded"):
        export_originals(run, tmp_path / "tree")
    assert all(text.strip() for text in (row.text for row in run.rows))
    assert Trees().grade(Example("e", "?", None), "x") == Grade("ungraded")
