"""The OpenAI-compatible interface through Inspect's provider: whole evaluations, strategies chosen by model name.

Inspect is large, so it is not among the packages that tests need; README names the command that installs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unspoken.decoding import Request, run
from unspoken.decoding.cot import ChainOfThought
from unspoken.decoding.soft import SoftThinking
from unspoken.lm.model import CausalLM
from unspoken.types import fold

pytestmark = pytest.mark.filterwarnings("ignore")  # what other projects warn of

QUESTIONS = ("What is 2 + 2?", "What is 3 + 5?")


@pytest.fixture
def inspect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("INSPECT_LOG_DIR", str(tmp_path / "logs"))
    return pytest.importorskip("inspect_ai", exc_type=ImportError)


@pytest.mark.parametrize(
    ("name", "strategy", "own"),
    [
        ("tiny", ChainOfThought(temperature=0.0), {}),
        ("tiny:soft", SoftThinking(T_e=4, k=3, temperature=0.0), {"strategy": {"T_e": 4, "k": 3}}),
    ],
)
def test_an_evaluation_runs_and_its_answers_are_the_librarys(
    inspect: Any, base: str, lm: CausalLM, tmp_path: Path, name: str, strategy: Any, own: dict[str, Any]
) -> None:
    from inspect_ai.dataset import Sample
    from inspect_ai.model import GenerateConfig, get_model
    from inspect_ai.scorer import match

    told = []
    for question in QUESTIONS:
        asked = Request([{"role": "user", "content": question}], strategy, "x", 12, 7)
        told.append(fold(run(lm, [asked], live=True))["x"])
    said = [generation.answer_text for generation in told]
    # A random model answers nothing; one target is how its answer ends, the other is not.
    samples = [
        Sample(input=QUESTIONS[0], target=said[0].strip()[-3:]),
        Sample(input=QUESTIONS[1], target="no such end"),
    ]
    logprobs = {"logprobs": True, "top_logprobs": 2} if name == "tiny" else {}
    config = GenerateConfig(max_tokens=12, seed=7, temperature=0.0, extra_body={"unspoken": own}, **logprobs)
    model = get_model(f"openai-api/unspoken/{name}", base_url=f"{base}/v1", api_key="unused", config=config)
    task = inspect.Task(dataset=samples, scorer=match(location="end", ignore_case=False))
    (log,) = inspect.eval(task, model=model, log_dir=str(tmp_path / "logs"), display="none")
    assert log.status == "success", log.error
    assert [sample.output.completion.strip() for sample in log.samples] == [text.strip() for text in said]
    assert [sample.scores["match"].value for sample in log.samples] == ["C", "I"]
    assert log.results.scores[0].metrics["accuracy"].value == 0.5
    (usage,) = log.stats.model_usage.values()
    assert usage.input_tokens > 0
    assert usage.output_tokens == sum(len(generation.steps) for generation in told)  # forced ones included
    if logprobs:
        entries = log.samples[0].output.choices[0].logprobs.content
        assert entries and all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in entries)
