"""How likely a model finds the answers of several runs: the sum of log p over each, and paired differences.

What sharpening methods climb, whatever it does to accuracy. One plain forward an answer, in the model's own law
(temperature 1, no filter), the same way for every run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import TYPE_CHECKING

import torch

from unspoken import config
from unspoken.discovery import STRATEGIES
from unspoken.errors import ConfigError
from unspoken.evaluation import stats
from unspoken.evaluation._text import NOTHING, number, table
from unspoken.evaluation.records import ResultRow, Run, recorded_task

if TYPE_CHECKING:
    from unspoken.decoding import Strategy
    from unspoken.lm.model import CausalLM

HEADERS = (
    "log p of the answers",
    "answers",
    "mean [95 %]",
    "nats\na token",
    "against {}",
    "standard\nerror",
    "likelier",
)
"""Of the table of `Likelihoods`."""


@dataclass(frozen=True)
class Likelihoods:
    """Log-probabilities of answers, in nats. `str()` gives a table of text.

    Attributes:
        names: Of the runs; the first is the baseline.
        values: For each run the sum of log p of each answer, by row id.
        tokens: For each run the tokens of each answer, its end token included, by row id.
    """

    names: tuple[str, ...]
    values: tuple[Mapping[str, float], ...]
    tokens: tuple[Mapping[str, int], ...]

    @cached_property
    def means(self) -> tuple[float, ...]:
        """Mean sum of log p over the answers of each run."""
        return tuple(fmean(found.values()) for found in self.values)

    def differences(self, run: int) -> list[float]:
        """Of each example that a run has in common with the first: its mean over samples less that of the first's."""
        mine, theirs = (_by_example(self.values[i]) for i in (run, 0))
        return [fmean(mine[example]) - fmean(theirs[example]) for example in theirs if example in mine]

    def rows(self) -> list[list[str]]:
        """The cells of the table (headers: `HEADERS`)."""
        cells = []
        for i, (name, found) in enumerate(zip(self.names, self.values, strict=True)):
            interval = stats.bootstrap(list(_by_example(found).values()))
            apart = self.differences(i) if i else []
            error = stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else None
            cells.append(
                [
                    name,
                    str(len(found)),
                    f"{self.means[i]:.1f} [{interval.low:.1f}, {interval.high:.1f}]",
                    number(sum(found.values()) / max(1, sum(self.tokens[i].values())), 3),
                    f"{fmean(apart):+.1f}" if apart else NOTHING,
                    number(error),
                    f"{sum(d > 0 for d in apart)} of {len(apart)}" if apart else NOTHING,
                ]
            )
        return cells

    def __str__(self) -> str:
        headers = [title.format(self.names[0]) for title in HEADERS]
        return "\n".join(table(headers, self.rows()))


def _by_example(found: Mapping[str, float]) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = {}
    for row, value in found.items():
        groups.setdefault(row.rpartition("#")[0], []).append(value)
    return groups


def likelihoods(
    lm: CausalLM,
    runs: Sequence[Run],
    names: Sequence[str],
    *,
    on_answer: Callable[[int, int], None] | None = None,
) -> Likelihoods:
    """Score the stored answers of runs with a model.

    An answer is its stored text, encoded again (which may part it otherwise than it was sampled), and an end if it
    ended by one: the probability of all end tokens together.

    Args:
        lm: The model; it need not be the one that wrote the answers.
        runs: Runs of strategies that answer at once.
        names: Of the runs.
        on_answer: Called with the number of answers that are scored, and of all.

    Raises:
        ConfigError: If an answer follows thoughts, which the text does not hold, or the prompt of an answer cannot be
            made again.
    """
    check(runs, names)
    total, done = sum(len(run.rows) for run in runs), 0
    values: list[dict[str, float]] = []
    tokens: list[dict[str, int]] = []
    for run, name in zip(runs, names, strict=True):
        task = recorded_task(run)
        examples = {example.id: example for example in task.examples()}
        strategy = _strategy(run)
        values.append({})
        tokens.append({})
        for row in run.rows:
            example = examples.get(row.id.rpartition("#")[0])
            if example is None or example.question != row.question:
                raise ConfigError(
                    f"{name}: the problem of {row.id} is not in the task's data any more.",
                    "Set UNSPOKEN_DATA to the folder whose data the run read.",
                )
            value, size = score(lm, strategy.prompt_ids(lm, task.prompt(example)), row)
            values[-1][row.id], tokens[-1][row.id] = value, size
            done += 1
            if on_answer is not None:
                on_answer(done, total)
    return Likelihoods(tuple(names), tuple(values), tuple(tokens))


def check(runs: Sequence[Run], names: Sequence[str]) -> None:
    """Refuse runs whose answers have no log p of their own.

    Raises:
        ConfigError: Naming all of them.
    """
    problems = []
    for run, name in zip(runs, names, strict=True):
        if not run.rows:
            problems.append(f"{name}: it has no answers.")
        if not all(row.reason for row in run.rows):
            problems.append(f"{name}: it was not recorded how its answers ended.")
        after = sum(
            bool(
                row.phases.get("think")
                or row.thinking.strip()
                or row.usage.latent_steps + row.usage.forced_tokens
            )
            for row in run.rows
        )
        if after:
            problems.append(
                f"{name}: {after} of {len(run.rows)} answers follow thoughts or forced tokens, "
                "so that their text alone has no log p."
            )
        if not run.config.get("task"):
            problems.append(f"{name}: its task was not recorded, so that its prompts cannot be made again.")
    if problems:
        raise ConfigError(
            problems, "Compare runs of strategies that answer at once, or leave out --likelihood."
        )


def _strategy(run: Run) -> Strategy:
    """The recorded strategy, which knows what it adds to a prompt."""
    fields = dict(run.config.get("strategy", {}))
    cls = STRATEGIES.find(fields.pop("name", ""))
    strategy: Strategy = config.from_dict(cls, fields)
    return strategy


def score(lm: CausalLM, prompt: Sequence[int], row: ResultRow) -> tuple[float, int]:
    """The sum of log p of one stored answer after a prompt, in nats, and its number of tokens.

    Raises:
        ConfigError: If there is nothing to score, or it is longer than the model can read.
    """
    ids = lm.tokens.encode(row.text)
    ended = row.reason == "eos"
    size = len(ids) + ended
    if ended and not lm.eos_ids:
        raise ConfigError(f"{row.id} ended by an end token, but the model {lm.source!r} has none.")
    if not size:
        return 0.0, 0
    if lm.max_positions is not None and len(prompt) + len(ids) > lm.max_positions:
        raise ConfigError(
            f"{row.id} takes {len(prompt) + len(ids)} positions, but the model reads {lm.max_positions}."
        )
    given = torch.tensor([[*prompt, *ids]], device=lm.device)
    with torch.inference_mode():
        logits = lm.model(given, logits_to_keep=len(ids) + 1).logits[0, -len(ids) - 1 :].float()
        law = logits.log_softmax(-1)
        wanted = torch.tensor(ids, device=law.device)
        total = law[:-1].gather(-1, wanted[:, None]).double().sum()
        if ended:
            total += law[-1, sorted(lm.eos_ids)].double().logsumexp(-1)
    return float(total), size
