"""`unspoken demo`: six ways to think about the same problems, compared honestly."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unspoken.cli._arguments import Part, first_stage, option, second_stage
from unspoken.cli._options import ModelOptions, load_model
from unspoken.cli.evaluate import run_into
from unspoken.errors import ConfigError

if TYPE_CHECKING:
    from unspoken.evaluation.comparison import Comparison
    from unspoken.evaluation.records import Run

DESCRIPTION = (
    "Solve the same arithmetic problems by chain of thought (greedy and sampled), by soft thinking with two "
    "mixtures, and by its null controls, and compare them; then the same ways on a tiny model that was trained for "
    "its task, where many more problems take seconds. Stopped, it goes on where it was."
)
# SmolLM2-135M solves few word problems and, with no example to follow, few sums. After worked examples it
# solves about half of the plain sums: room for a difference in both directions.
LEVEL, SHOTS, BUDGET, THINK = 0, 3, 96, 24
# It knows no thinking block, so none is opened: it thinks in place of its words, and is then asked for the
# number, greedily, so that what differs between the soft ways is the thinking alone.
SOFT: dict[str, Any] = {"T_e": THINK, "T_total": BUDGET, "temperature2": 0.0}
SOFT |= {"think_open": "none", "transition": "\nSo the answer is", "opener": ""}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "cot-greedy": ("cot", {"temperature": 0.0}),
    "cot-sampled": ("cot", {"temperature": 0.6}),
    "soft-non_uniform": ("soft", {"mixture": "non_uniform", **SOFT}),
    "soft-element_wise_max": ("soft", {"mixture": "element_wise_max", **SOFT}),
    "control-hard_argmax": ("soft", {"mixture": "hard_argmax", **SOFT}),
    "control-uniform": ("soft", {"mixture": "uniform", **SOFT}),
}
CONTROL = "control-hard_argmax"

# Trained to think between <think> and </think>, and right more often than not: room in both directions.
TINY, TINY_TASK, TINY_BUDGET, TINY_LIMIT = "tiny-arithmetic", "sums", 32, 200
TINY_SOFT: dict[str, Any] = {"T_e": 16, "T_total": TINY_BUDGET, "temperature2": 0.0}
TINY_SOFT |= {"min_end_prob": 0.5, "opener": ""}
TINY_WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "cot-greedy": ("cot", {"temperature": 0.0}),
    "cot-sampled": ("cot", {"temperature": 1.0}),
    "soft-non_uniform": ("soft", {"mixture": "non_uniform", **TINY_SOFT}),
    "control-hard_argmax": ("soft", {"mixture": "hard_argmax", **TINY_SOFT}),
}


@dataclass(frozen=True, kw_only=True)
class DemoOptions(ModelOptions):
    """Options of `demo`."""

    limit: int = 24
    """How many problems."""
    level: int = LEVEL
    """0 for plain sums, 1 to 5 for word problems with as many steps."""
    seed: int = 0
    """Base seed of the sampled ways."""
    output: str = option("results/demo", flag="-o")
    """Folder for the results and the report."""
    force: bool = False
    """Move results of another configuration aside, instead of refusing the folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.limit < 1:
            raise ConfigError(f"limit must be at least 1, not {self.limit}.")


def demo_command(words: list[str]) -> int:
    """Run `unspoken demo`."""
    (options,) = second_stage(first_stage("demo", words), [Part(DemoOptions)], DESCRIPTION)
    from unspoken.discovery import TASKS

    started = time.perf_counter()
    task = TASKS.find("arithmetic")(level=options.level, n=options.limit, shots=SHOTS)
    kind = "plain sums" if options.level == 0 else f"word problems of level {options.level}"
    lm = load_model(options)
    folder = Path(options.output)
    _say(
        f"{options.limit} {kind} after {SHOTS} worked examples, {len(WAYS)} ways, on {lm.source} ({_dtype(lm)}).\n"
    )
    runs = _solve(lm, task, WAYS, folder, options, BUDGET)
    if runs is None:
        return 130
    _conclude(runs, folder, options, time.perf_counter() - started)
    tiny = _tiny(options)
    if tiny is None:
        return 130
    _say(_next(folder, options))
    return 0 if all(run.state == "complete" for run in (*runs, *tiny)) else 1


def _tiny(options: DemoOptions) -> list[Run] | None:
    """The same ways of thinking on a tiny trained model; None if stopped."""
    import unspoken
    from unspoken.discovery import TASKS

    started = time.perf_counter()
    lm = unspoken.load(TINY)
    task = TASKS.find(TINY_TASK)(n_test=TINY_LIMIT)
    _say(
        f"\n{TINY_LIMIT} sums of five numbers, {len(TINY_WAYS)} ways, on {TINY}, a model of 0.1 million parameters.\n"
    )
    runs = _solve(lm, task, TINY_WAYS, Path(options.output) / "tiny", options, TINY_BUDGET)
    if runs is None:
        return None
    by_name = dict(zip(TINY_WAYS, runs, strict=True))
    against_control = unspoken.compare(by_name[CONTROL], by_name["soft-non_uniform"])
    _say(f"\n{unspoken.compare(*runs)}\n\nThe mixture against its null control:\n")
    _say("".join(f"  {sentence}\n" for sentence in against_control.sentences))
    _say(f"({time.perf_counter() - started:.0f} s)\n")
    return runs


def _solve(
    lm: Any,
    task: Any,
    ways: dict[str, tuple[str, dict[str, Any]]],
    folder: Path,
    options: DemoOptions,
    budget: int,
) -> list[Run] | None:
    """Evaluate each way; None if stopped."""
    from unspoken.discovery import STRATEGIES

    settings = {
        "seed": options.seed,
        "batch_size": 32,
        "max_new_tokens": budget,
        "trace": "full",
        "force": options.force,
    }
    runs = []
    for name, (strategy, fields) in ways.items():
        run = run_into(folder / name, lm, task, STRATEGIES.find(strategy)(**fields), settings, title=name)
        if run is None:
            return None
        _say(f"  {name:<{max(map(len, ways))}}  {run.summary}\n")
        runs.append(run)
    return runs


def _conclude(runs: list[Run], folder: Path, options: DemoOptions, seconds: float) -> None:
    import unspoken
    from unspoken.evaluation.report import write_report

    comparison = unspoken.compare(*runs)
    by_name = dict(zip(WAYS, runs, strict=True))
    against_control = unspoken.compare(
        by_name[CONTROL], by_name["soft-non_uniform"], by_name["soft-element_wise_max"]
    )
    _, page = write_report(runs, folder / "report")
    _say(
        f"\n{comparison}\n\nMixtures against their null control, which feeds back only the likeliest token:\n"
    )
    _say("".join(f"  {sentence}\n" for sentence in against_control.sentences))
    _say(f"\n{verdict(comparison, against_control)}\n\nReport: {page}  ({seconds:.0f} s)\n")


def verdict(against_first: Comparison, against_control: Comparison) -> str:
    """What may be concluded, in one honest sentence or two."""
    n = against_first.entries[0].n
    found = [
        e
        for c in (against_first, against_control)
        for e in c.entries[1:]
        if e.difference and e.difference.found
    ]
    if not found:
        return (
            f"No difference was found between any of these ways. {n} problems show only large ones: "
            "this is no evidence that they are equal."
        )
    gains = [
        e
        for e in against_control.entries[1:]
        if e.difference and e.difference.found and e.difference.mean > 0
    ]
    mixing = (
        "A mixture beats its null control here: feeding several tokens at once did help."
        if gains
        else "No mixture beats its null control here: nothing shows that mixing itself helped."
    )
    return f"{mixing} {n} problems of one kind and one small model say nothing general."


def _next(folder: Path, options: DemoOptions) -> str:
    model = options.model
    return (
        "\nWhat to try next:\n"
        f"  unspoken show {folder / 'soft-non_uniform'} --wrong --text\n"
        f'  unspoken generate soft "What is 12 + 7?" -m {model} --T_e 24 --think_open none --opener ""\n'
        f"  unspoken demo -m {model} --level 1 --limit 100 -o results/demo-words\n"
        f"  unspoken eval arithmetic soft -m {model} --level 0 --shots 3 --mixture dirichlet --samples 4\n"
    )


def _dtype(lm: Any) -> str:
    return str(lm.info()["dtype"])


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
