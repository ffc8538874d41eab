"""Accuracy and speed tables, on models whose answers are written down and on a tiny real one."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

import unspoken as un
from unspoken.decoding.filler import Filler
from unspoken.errors import ConfigError
from unspoken.evaluation import throughput as module
from unspoken.evaluation.throughput import evaluate_file, filler_sweep, throughput, token_budget
from unspoken.lm import checkpoint
from unspoken.lm.compact import compact_tokenizer
from unspoken.lm.model import CausalLM
from unspoken.lm.tiny import tiny_model
from unspoken.tasks._chains import Chain
from unspoken.types import Generation, Step, Usage

ROWS = [Chain(f"{a} + {b}", f"{a} {b}", str(a + b)) for a in range(3) for b in range(3)]


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    tokenizer = compact_tokenizer(["0 1 2 3 4 + ."], [f"<fill_{i}>" for i in range(4)])
    checkpoint.set_question_template(tokenizer, "<eos>")
    made = CausalLM(tiny_model("tiny", tokenizer, layers=1, width=16, heads=2, max_positions=24), tokenizer)
    made.strategy = Filler(n_fillers=4, kind="distinct", force_sep2=True)
    return made


def says(text: str) -> Generation:
    steps = [
        Step(0, i, "answer", "token", i, ("" if i == 0 else " ") + w) for i, w in enumerate(text.split())
    ]
    return Generation(0, steps, "eos", Usage(tokens=len(steps)), {"fillers": 4})


class Clock:
    """Time that passes only while models generate."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def written_down(lm: CausalLM, clock: Clock, seconds: float, wrong: int) -> Any:
    """A model that takes so long for each batch, and errs in so many of the first rows."""
    made = CausalLM(lm.model, lm.tokenizer)
    made.strategy = lm.strategy
    answers = {tuple(lm.tokens.encode_prompt(r.question)): (i, r) for i, r in enumerate(ROWS)}

    def generate(prompts: Any, strategy: Any, *, batch_size: int, **_: Any) -> list[Generation]:
        clock.now += seconds * -(-len(prompts) // batch_size)
        rows = [answers[tuple(p)] for p in prompts]
        return [says(f"1 2 #### {'9' if i < wrong else row.answer}") for i, row in rows]

    made.generate = generate  # type: ignore[method-assign]
    return made


def test_the_table_of_the_paper(lm: CausalLM, clock: Clock) -> None:
    models = {"no-CoT": written_down(lm, clock, 0.5, 8), "CoT": written_down(lm, clock, 2.0, 0)}
    table = throughput(models, ROWS, batch_sizes=(1, 4), baseline="no-CoT", single_rows=5)
    fast, slow = table.models
    assert (fast.accuracy, slow.accuracy) == (1 / 9, 1.0)
    assert slow.per_second == {1: 0.5, 4: 9 / 6.0} and fast.per_second[1] == 2.0  # 9 rows are 3 batches of 4
    assert fast.relative == {1: 1.0, 4: 1.0} and slow.relative == {1: 0.25, 4: 0.25}
    assert (slow.tokens, slow.fillers) == (4.0, 4.0)
    assert "0.25×" in str(table) and "| CoT | 100.0 % |" in table.markdown()
    values = json.loads(json.dumps(table.to_dict()))
    assert values["models"][1]["relative"] == {"1": 0.25, "4": 0.25} and values["setting"]["repeats"] == 3


def test_wrong_options_are_all_named(lm: CausalLM) -> None:
    with pytest.raises(ConfigError) as caught:
        throughput({"a": lm}, ROWS, baseline="b", batch_sizes=(0,), repeats=0)
    assert len(caught.value.problems) == 3
    with pytest.raises(ConfigError, match="no rows"):
        throughput({"a": lm}, [])
    with pytest.raises(ConfigError, match="remembers no strategy"):
        evaluate_file(CausalLM(lm.model, lm.tokenizer), ROWS)


def test_a_file_is_printed_row_by_row(lm: CausalLM, clock: Clock) -> None:
    out = io.StringIO()
    result = evaluate_file(written_down(lm, clock, 0.25, 3), ROWS, batch_size=2, out=out)
    lines = out.getvalue().splitlines()
    assert (
        lines[-1] == f"Test Accuracy: {6 / 9}. Throughput: {9 / 1.25}" == str(result)
    )  # 5 batches; no warm-up
    assert lines[:4] == ["Input: 0 + 0", "Target: #### 0", "Predicted: 1 2 #### 9", "Wrong"]
    assert out.getvalue().count("Right\n") == 6


def test_a_real_model_gives_the_same_answers_in_any_batch(lm: CausalLM, tmp_path: Path) -> None:
    assert token_budget(lm, ROWS) == 4 + 2 + 8
    texts = []
    for batch_size in (1, 8):
        out = io.StringIO()
        evaluate_file(lm, ROWS, batch_size=batch_size, out=out, max_new_tokens=4)
        texts.append(out.getvalue().rpartition("Test Accuracy")[0])
    assert texts[0] == texts[1]
    checkpoint.save(lm, tmp_path / "model")
    table = throughput({"it": tmp_path / "model"}, ROWS[:2], batch_sizes=(1, 2), max_new_tokens=3, repeats=1)
    assert table.baseline is None and table.models[0].fillers == 4
    assert table.models[0].per_second[1] > 0 and "speed" not in str(table)


def test_the_sweep_varies_only_the_number_of_fillers(lm: CausalLM) -> None:
    sweep = filler_sweep(lm, ROWS[:3], max_new_tokens=3)
    assert [p.fillers for p in sweep.points] == [0, 1, 2, 4, 8]
    assert all(p.n == 3 and p.problem is None for p in sweep.points[:4])
    assert "8 filler tokens" in (sweep.points[-1].problem or "")  # distinct ones end at 4
    assert "4 (trained)" in str(sweep) and json.loads(json.dumps(sweep.to_dict()))["trained"] == 4
    text = Filler(n_fillers=2)
    wide = filler_sweep(lm, ROWS[:3], counts=[0, 40], strategy=text, max_new_tokens=3)
    assert "context holds 24" in (wide.points[1].problem or "")
    with pytest.raises(ConfigError, match="not decoded with fillers"):
        filler_sweep(lm, ROWS, strategy=un.ChainOfThought())
