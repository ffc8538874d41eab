"""Unspoken: reasoning beyond sampled text with any Hugging Face causal language model.

```python
import unspoken as un

lm = un.load("smollm2")
out = lm.generate("What is 17 + 5?", un.ChainOfThought(temperature=0.6), max_new_tokens=128, seed=0)
print(out.answer_text, out.usage.forward_passes)
```

Names are imported when they are first used, so that `import unspoken` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "CausalLM": "unspoken.lm.model",
    "load": "unspoken.lm.model",
    "LogitLens": "unspoken.analysis.lens",
    "TunedLens": "unspoken.analysis.tuned_lens",
    "BeamSearch": "unspoken.decoding.beam",
    "BestOfN": "unspoken.decoding.best_of_n",
    "ChainOfThought": "unspoken.decoding.cot",
    "Filler": "unspoken.decoding.filler",
    "Importance": "unspoken.decoding.importance",
    "LookAhead": "unspoken.decoding.lookahead",
    "PowerSMC": "unspoken.decoding.smc",
    "PowerSampling": "unspoken.decoding.power",
    "SoftThinking": "unspoken.decoding.soft",
    "Vote": "unspoken.decoding.vote",
    "Request": "unspoken.decoding",
    "Strategy": "unspoken.decoding",
    "Task": "unspoken.tasks._base",
    "Comparison": "unspoken.evaluation.comparison",
    "Run": "unspoken.evaluation.records",
    "compare": "unspoken.evaluation.comparison",
    "evaluate": "unspoken.evaluation.runner",
    "load_run": "unspoken.evaluation.runner",
    "Internalize": "unspoken.training.internalize",
    "TrainRun": "unspoken.training._trainer",
    "train": "unspoken.training._trainer",
    "Done": "unspoken.types",
    "Event": "unspoken.types",
    "Example": "unspoken.types",
    "Generation": "unspoken.types",
    "Grade": "unspoken.types",
    "Note": "unspoken.types",
    "Rewind": "unspoken.types",
    "Step": "unspoken.types",
    "Usage": "unspoken.types",
    "fold": "unspoken.types",
    "ConfigError": "unspoken.errors",
    "UnspokenError": "unspoken.errors",
}

__all__ = [
    "__version__",
    "BeamSearch",
    "BestOfN",
    "CausalLM",
    "ChainOfThought",
    "Comparison",
    "ConfigError",
    "Done",
    "Event",
    "Example",
    "Filler",
    "Generation",
    "Grade",
    "Importance",
    "Internalize",
    "LogitLens",
    "LookAhead",
    "Note",
    "PowerSMC",
    "PowerSampling",
    "Request",
    "Rewind",
    "Run",
    "SoftThinking",
    "Step",
    "Strategy",
    "Task",
    "TrainRun",
    "TunedLens",
    "UnspokenError",
    "Usage",
    "Vote",
    "compare",
    "evaluate",
    "fold",
    "load",
    "load_run",
    "train",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'unspoken' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if TYPE_CHECKING:
    from unspoken.analysis.lens import LogitLens
    from unspoken.analysis.tuned_lens import TunedLens
    from unspoken.decoding import Request, Strategy
    from unspoken.decoding.beam import BeamSearch
    from unspoken.decoding.best_of_n import BestOfN
    from unspoken.decoding.cot import ChainOfThought
    from unspoken.decoding.filler import Filler
    from unspoken.decoding.importance import Importance
    from unspoken.decoding.lookahead import LookAhead
    from unspoken.decoding.power import PowerSampling
    from unspoken.decoding.smc import PowerSMC
    from unspoken.decoding.soft import SoftThinking
    from unspoken.decoding.vote import Vote
    from unspoken.errors import ConfigError, UnspokenError
    from unspoken.evaluation.comparison import Comparison, compare
    from unspoken.evaluation.records import Run
    from unspoken.evaluation.runner import evaluate, load_run
    from unspoken.lm.model import CausalLM, load
    from unspoken.tasks._base import Task
    from unspoken.training._trainer import TrainRun, train
    from unspoken.training.internalize import Internalize
    from unspoken.types import Done, Event, Example, Generation, Grade, Note, Rewind, Step, Usage, fold
