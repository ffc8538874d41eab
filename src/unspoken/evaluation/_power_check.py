"""Checks of power sampling that a user can run: exact laws against chains of the real engine.

Kernels are built from the sampler's own weights, ratios and decisions, and from log-probabilities that branches of the
engine gave; chains are then run and compared with the law that the whole algorithm has after so many moves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from unspoken.decoding import Request, run
from unspoken.decoding._base import Prompt, Row, derive_seed
from unspoken.decoding._power import Laws as StepLaws
from unspoken.decoding._power import Proposal, Target
from unspoken.decoding._sequence import Branch, Decided, SequenceStrategy, Spawn, Work
from unspoken.decoding.power import PowerSampling
from unspoken.errors import RunError
from unspoken.evaluation._power_exact import Array, Laws, Sequence, markov
from unspoken.types import fold

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM

EXACT, UNLIKELY = 1e-12, 1e-3
TOYS = ((3, 6), (4, 4))
TABLES = 4
MOVES = (2, 10, 100)
BATCH = 256


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: The check.
        value: What was measured.
        bound: What it may be at most, or at least.
        at_least: Which of the two.
    """

    name: str
    value: float
    bound: float
    at_least: bool = False

    @property
    def ok(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass(frozen=True)
class Distances:
    """Total variation to p^alpha on one kind of toy, by exact computation; means over some random tables.

    Attributes:
        toy: Tokens, longest answer, block.
        alpha: Exponent.
        plain: Of the model's own samples.
        low_temperature: Of samples at temperature 1/alpha.
        published: Of the published loop after 2, 10 and 100 moves a block.
        no_op, corrected: Of the two exact rules.
        early_return: Of the corrected rule that returns after the first block with an end.
    """

    toy: str
    alpha: float
    plain: float
    low_temperature: float
    published: tuple[float, ...]
    no_op: tuple[float, ...]
    corrected: tuple[float, ...]
    early_return: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Visit(SequenceStrategy):
    """Goes through all short continuations of a prompt, each one token further from a branch that is kept.

    The note `laws` gets `lp` and `lq` of every token after every sequence that may go on.
    """

    tau: float = 0.5
    """Temperature of the proposals."""
    top_k: int = 0
    """How many tokens they may take; 0 is all."""

    def run(self, lm: CausalLM, row: Row) -> Work:
        inner, limit = Proposal(self.tau, self.top_k, keep_laws=True), row.budget
        seed = row.request.seed
        (root,) = yield [Spawn(inner, limit, seed, shown=False)]
        level: dict[Sequence, Branch] = {(): root}
        lp: dict[Sequence, dict[int, float]] = {}
        lq: dict[Sequence, dict[int, float]] = {}
        for length in range(limit):
            for sequence, branch in level.items():
                lp[sequence], lq[sequence] = _numbers(branch)
            if length + 1 == limit:
                break
            asked = [
                ((*sequence, token), branch, Decided(token, p, lq[sequence][token]))
                for sequence, branch in level.items()
                for token, p in lp[sequence].items()
                if token not in lm.eos_ids
            ]
            if not asked:
                break
            branches = yield [
                Spawn(
                    inner,
                    limit - length,
                    derive_seed(seed, *sequence),
                    parent=parent,
                    keep=length,
                    decided=decided,
                    shown=False,
                )
                for sequence, parent, decided in asked
            ]
            level = {sequence: branch for (sequence, _, _), branch in zip(asked, branches, strict=True)}
        row.note("laws", (lp, lq))
        return root


def _numbers(branch: Branch) -> tuple[dict[int, float], dict[int, float]]:
    """`lp` and `lq` of all candidates of the first position that the branch decided itself."""
    law = StepLaws.gather(branch.memory["laws"][:1])
    assert law is not None
    if not law.closed:
        raise RunError("The model has too many tokens to list its answers: set top_k.")
    import torch

    lp, lq = {}, {}
    for place, token in enumerate(law.ids[0].tolist()):
        p, q = law.numbers(torch.tensor([place]))
        lp[token], lq[token] = float(p), float(q)
    return lp, lq


def engine_laws(lm: CausalLM, prompt: Prompt, limit: int, tau: float, top_k: int = 0) -> Laws:
    """All laws of what comes next within `limit` tokens of a prompt, from branches of the engine."""
    request = Request(prompt, Visit(tau=tau, top_k=top_k), max_new_tokens=limit, trace="none")
    done = fold(run(lm, [request], batch_size=16))[0]
    if done.reason.startswith("error"):
        raise RunError(done.reason.removeprefix("error: "))
    lp, lq = done.notes["laws"]
    return Laws(lp, lq, lm.eos_ids, limit)


def chains(
    lm: CausalLM, prompt: Prompt, strategy: PowerSampling, limit: int, count: int, *, seed: int = 0
) -> list[Sequence]:
    """The answers of independent chains, run together."""
    requests = (
        Request(
            prompt, strategy, id=i, max_new_tokens=limit, seed=derive_seed(seed, "chain", i), trace="none"
        )
        for i in range(count)
    )
    done = fold(run(lm, requests, batch_size=min(BATCH, count)))
    failed = next((g.reason for g in done.values() if g.reason.startswith("error")), None)
    if failed:
        raise RunError(failed.removeprefix("error: "))
    return [tuple(g.token_ids) for _, g in sorted(done.items())]


def chi_square(laws: Laws, law: Array, answers: list[Sequence], least: float = 5.0) -> float:
    """p-value of Pearson's test; cells that expect fewer than `least` are pooled; 0 if an answer is impossible."""
    import torch

    counts = Counter(answers)
    if any(law[laws.place[answer]] < 1e-13 for answer in counts):
        return 0.0
    cells = np.array([(counts[s], len(answers) * law[i]) for s, i in laws.place.items() if law[i] > 0])
    cells = cells[cells[:, 1].argsort()]
    first = int((cells[:, 1] < least).sum())
    while first < len(cells) and 0 < cells[:first, 1].sum() < least:
        first += 1
    pooled = cells[first:] if not first else np.vstack([cells[:first].sum(0), cells[first:]])
    statistic = float(((pooled[:, 0] - pooled[:, 1]) ** 2 / pooled[:, 1]).sum())
    half = torch.tensor([(len(pooled) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def total_variation(a: Array, b: Array) -> float:
    """Half the summed difference."""
    return float(np.abs(a - b).sum() / 2)


def stationarity(laws: Laws, target: Target) -> float:
    """The largest violation, over all caps: of `pi M = pi`, and of detailed balance."""
    worst = 0.0
    for cap in range(1, laws.limit + 1):
        pi = replace(laws, limit=cap).target(target.alpha)
        states = [laws.place[s] for s in replace(laws, limit=cap).sequences]
        matrix = laws.move(target, cap)[np.ix_(states, states)]
        flow = pi[:, None] * matrix
        worst = max(worst, float(np.abs(pi @ matrix - pi).max()), float(np.abs(flow - flow.T).max()))
    return worst


def distances(size: int, limit: int, alpha: float, block: int = 2, tables: int = TABLES) -> Distances:
    """How far from p^alpha the alternatives end up, in the mean over some random tables."""
    found: list[list[float]] = []
    for seed in range(tables):
        laws = markov(size, limit, 1 / alpha, seed=seed)
        pi = laws.target(alpha)
        ours = PowerSampling(alpha=alpha, block_size=block, stop_mode="full")
        samples = [laws.start() @ laws.extension(lambda _: limit, plain=plain) for plain in (True, False)]
        kinds = (
            replace(ours, mode="reference", stop_mode="final"),
            replace(ours, cut="no_op"),
            ours,
            replace(ours, stop_mode="original"),
        )
        samples += [laws.result(replace(s, mcmc_steps=n)) for s in kinds for n in MOVES]
        found.append([total_variation(sample, pi) for sample in samples])
    mean = [float(value) for value in np.mean(found, 0)]
    groups = [tuple(mean[2 + 3 * i : 5 + 3 * i]) for i in range(4)]
    return Distances(f"V{size} L{limit} B{block}", alpha, mean[0], mean[1], *groups)


def table() -> list[Distances]:
    """The distances on all toys."""
    return [distances(size, limit, alpha) for size, limit in TOYS for alpha in (2.0, 4.0)]


SETTINGS: dict[str, dict[str, Any]] = {
    "corrected": {},
    "no_op": {"cut": "no_op"},
    "full, alpha 4": {"alpha": 4.0, "stop_mode": "full"},
    "original": {"stop_mode": "original", "mcmc_steps": 3},
    "top_k 2, temperature 0.7": {"top_k": 2, "temperature": 0.7},
    "nothing skipped": {"early_rejection": False, "skip_agreement": False},
    "published loop, its own law": {"mode": "reference"},
}


def checks(*, full: bool = False, lm: CausalLM | None = None, prompt: Prompt = "") -> Iterator[Finding]:
    """Run all checks on a tiny random model, or on another model, whose proposals then take 3 tokens only.

    Args:
        full: 20,000 chains and 3 seeds for each setting, instead of 300 and 1.
        lm: The model; a tiny random one is made if none is given.
        prompt: Its prompt.

    Yields:
        Findings, each as soon as it is known.
    """
    count, seeds = (20_000, (1, 2, 3)) if full else (300, (1,))
    if lm is not None:
        for name in ("corrected", "no_op"):
            strategy = _strategy(top_k=3, **SETTINGS[name])
            yield from _engine(name, lm, prompt, strategy, 4, count, seeds)
        return
    for ends in (True, False):
        for top_k, tau in ((0, 0.5), (2, 0.5), (0, 0.8), (0, 0.3)):
            laws = markov(3, 5, tau, seed=7, top_k=top_k)
            laws = laws if ends else _endless(laws)
            name = f"stationary: top_k {top_k}, temperature {tau}" + ("" if ends else ", no end")
            yield Finding(
                name, max(stationarity(laws, Target(2.0, tau, cut)) for cut in (True, False)), EXACT
            )
    laws = markov(3, 5, 0.5, seed=7)
    pi = laws.target(2.0)
    moved = total_variation(pi @ laws.published_move(2.0), pi)
    yield Finding("one move of the published loop moves p^alpha by", moved, 0.01, True)
    from unspoken.lm.tiny import letters_lm

    lm = letters_lm(4, seed=2)
    for name, fields in SETTINGS.items():
        yield from _engine(name, lm, [0], _strategy(**fields), 4, count, seeds)


def _strategy(**fields: Any) -> PowerSampling:
    return PowerSampling(**{"alpha": 2.0, "mcmc_steps": 2, "block_size": 2, **fields})


def _engine(
    name: str,
    lm: CausalLM,
    prompt: Prompt,
    strategy: PowerSampling,
    limit: int,
    count: int,
    seeds: tuple[int, ...],
) -> Iterator[Finding]:
    """The kernel from the engine's own numbers, then its chains."""
    laws = engine_laws(lm, prompt, limit, strategy.target.tau, strategy.top_k)
    if strategy.mode == "exact":
        value = stationarity(laws, strategy.target)
        yield Finding(f"stationary: engine, {name}", value, EXACT)
    law = laws.result(strategy)
    for seed in seeds:
        p = chi_square(laws, law, chains(lm, prompt, strategy, limit, count, seed=seed))
        yield Finding(f"chains: {name}, {count:,}, seed {seed}: p", p, UNLIKELY, True)


def _endless(laws: Laws) -> Laws:
    """The same model where no token ends anything; what followed an end follows what came before it."""
    lp, lq = dict(laws.lp), dict(laws.lq)
    made = Laws(lp, lq, frozenset(), laws.limit)
    front: list[Sequence] = [()]
    for sequence in front:
        if sequence not in lp:
            lp[sequence], lq[sequence] = lp[sequence[:-1]], lq[sequence[:-1]]
        if len(sequence) + 1 < laws.limit:
            front += [(*sequence, token) for token in lp[sequence]]
    return made
