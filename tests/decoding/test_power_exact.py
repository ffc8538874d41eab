"""Power sampling's kernel, from the numbers of real branches, leaves p^alpha as it is: max |pi M - pi| < 1e-12."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from power_help import PROMPT, model, next_law, oracle
from power_oracle import DEFECTS, Answer, distance, residual

from unspoken.decoding import Request, run
from unspoken.decoding._base import Row
from unspoken.decoding._power import Bound, Laws, Proposal, Target
from unspoken.decoding._sequence import Branch, Decided, SequenceStrategy, Spawn, Work
from unspoken.decoding.power import PowerSampling
from unspoken.lm.model import CausalLM
from unspoken.lm.tiny import Kind
from unspoken.types import Note, Rewind, Step, fold

EXACT, BROKEN = 1e-12, 1e-3


@dataclass(frozen=True)
class Everything(SequenceStrategy):
    """Decodes a branch through every prefix, and one from every cut of every branch, many at a time."""

    tau: float = 0.5
    top_k: int = 0

    def run(self, lm: CausalLM, row: Row) -> Work:
        inner, limit = Proposal(self.tau, self.top_k, keep_laws=True), row.budget
        table: dict[Answer, list[Laws]] = {}
        said: list[tuple[Answer, list[float], list[float]]] = []

        def take(branch: Branch, kept: int) -> None:
            ids = tuple(branch.token_ids)
            assert not any(token in lm.eos_ids for token in ids[:-1]) and len(ids) <= limit
            assert (branch.reason == "eos") == (ids[-1] in lm.eos_ids)
            assert branch.reason == "eos" or len(ids) == limit
            for t, kept_law in enumerate(branch.memory["laws"], kept):
                law = Laws.gather([kept_law])
                assert law is not None
                table.setdefault(ids[:t], []).append(law)
            said.append((ids[kept:], branch.memory["lp"], branch.memory["lq"]))
            assert len(ids) - kept == len(branch.memory["lp"]) == len(branch.memory["lq"])

        (root,) = yield [Spawn(inner, limit, row.request.seed)]
        take(root, 0)
        level, everyone = {(): root}, [root]
        for depth in range(1, limit):
            asked = []
            for prefix, branch in level.items():
                law = table[prefix][0]
                for place, token in enumerate(law.ids[0].tolist()):
                    if token not in lm.eos_ids:
                        p, q = law.numbers(torch.tensor([place]))
                        asked.append((prefix, branch, Decided(token, float(p), float(q))))
            branches = yield [
                Spawn(
                    inner, limit - depth + 1, 7 * i, parent=parent, keep=depth - 1, decided=first, shown=False
                )
                for i, (_, parent, first) in enumerate(asked)
            ]
            level = {(*prefix, d.token_id): b for (prefix, _, d), b in zip(asked, branches, strict=True)}
            for branch in branches:
                take(branch, depth)
            everyone += branches
        cuts = [(branch, cut) for branch in everyone for cut in range(len(branch.steps))]
        branches = yield [
            Spawn(inner, limit - cut, 3 * i, parent=branch if cut else None, keep=cut, shown=False)
            for i, (branch, cut) in enumerate(cuts)
        ]
        for branch, (_, cut) in zip(branches, cuts, strict=True):
            take(branch, cut)
        row.note("table", table)
        row.note("said", said)
        return root


@cache
def decoded(lm: CausalLM, limit: int, tau: float, top_k: int) -> dict[Answer, list[Laws]]:
    """For each prefix the laws that the branches through it had, each from a cache of its own history."""
    request = Request(PROMPT, Everything(tau=tau, top_k=top_k), max_new_tokens=limit, trace="none")
    out = fold(run(lm, [request], batch_size=11))[0]
    assert not out.reason.startswith("error"), out.reason
    table: dict[Answer, list[Laws]] = out.notes["table"]
    return table


def law_of(law: Laws) -> dict[int, tuple[float, float]]:
    """Each candidate's `lp` and `lq`."""
    numbers = [law.numbers(torch.tensor([place])) for place in range(law.ids.shape[1])]
    return {token: (float(p), float(q)) for token, (p, q) in zip(law.ids[0].tolist(), numbers, strict=True)}


@dataclass(frozen=True, eq=False)
class Chain:
    """The kernel that the sampler's own weights, bound and ratio make of these laws."""

    numbers: dict[Answer, dict[int, tuple[float, float]]]
    ends: frozenset[int]
    target: Target
    cap: int
    defect: str = ""
    _known: dict[Any, Any] = field(default_factory=dict)

    def states(self, prefix: Answer = (), cap: int | None = None) -> list[Answer]:
        cap = cap or self.cap
        if (prefix, cap) not in self._known:
            over = len(prefix) == cap or (prefix and prefix[-1] in self.ends)
            self._known[prefix, cap] = (
                [prefix]
                if over
                else [x for token in self.numbers[prefix] for x in self.states((*prefix, token), cap)]
            )
        found: list[Answer] = self._known[prefix, cap]
        return found

    def of(self, x: Answer) -> list[tuple[float, float]]:
        if x not in self._known:
            self._known[x] = [self.numbers[x[:t]][token] for t, token in enumerate(x)]
        found: list[tuple[float, float]] = self._known[x]
        return found

    def log_ratio(self, old: Answer, new: Answer, cut: int) -> float:
        """As `PowerSampling` computes it."""
        until = len(new) if self.defect == "C1" else None
        weights = [self.target.weight(*pair) for pair in self.of(old)]
        bound = Bound(self.target, 0.0, sum(weights[cut:until], 0.0), len(old), 0.0, cut)
        for pair in self.of(new)[cut:]:
            bound.add(*pair)
        assert bound.count == len(new)
        return bound.log_ratio

    def matrix(self) -> tuple[np.ndarray, np.ndarray]:
        """The kernel and the target."""
        states = self.states()
        place = {x: i for i, x in enumerate(states)}
        m = np.zeros((len(states),) * 2)
        for x in states:
            n = len(x)
            for cut in range(n):
                cap = n if self.defect == "C2" else self.cap
                for y in self.states(x[:cut], cap):
                    if y not in place:
                        continue  # an illegal state, which only a defect can reach
                    drawn = math.exp(sum(q for _, q in self.of(y)[cut:]))
                    accepted = math.exp(min(0.0, self.log_ratio(x, y, cut)))
                    m[place[x], place[y]] += drawn * accepted / (n if self.target.corrected else self.cap)
            m[place[x], place[x]] += 1.0 - m[place[x]].sum() if self.defect != "C2" else 0.0
        pi = np.array([math.exp(self.target.alpha * math.fsum(p for p, _ in self.of(x))) for x in states])
        return m, pi / pi.sum()


def chain(lm: CausalLM, limit: int, cap: int, target: Target, top_k: int = 0, defect: str = "") -> Chain:
    table = decoded(lm, limit, target.tau, top_k)
    return Chain({x: law_of(laws[0]) for x, laws in table.items()}, lm.eos_ids, target, cap, defect)


@pytest.mark.parametrize("corrected", [True, False], ids=["corrected", "no_op"])
@pytest.mark.parametrize(
    ("kind", "size", "limit", "ends", "alpha", "tau", "top_k"),
    [
        ("tiny", 4, 4, True, 2.0, 0.5, 0),
        ("tiny-llama", 4, 4, True, 4.0, 0.25, 0),
        ("tiny-llama", 3, 6, True, 2.0, 0.5, 0),  # 127 states
        ("tiny", 4, 4, True, 2.0, 0.5, 2),
        ("tiny-llama", 3, 5, True, 2.0, 0.8, 0),  # tau above 1/alpha
        ("tiny", 3, 5, True, 2.0, 0.3, 2),  # and below
        ("tiny", 3, 4, False, 2.0, 0.5, 0),  # of fixed length
    ],
)
def test_the_target_is_stationary(
    kind: Kind, size: int, limit: int, ends: bool, alpha: float, tau: float, top_k: int, corrected: bool
) -> None:
    lm = model(kind, size, ends=ends)
    target = Target(alpha, tau, corrected)
    for cap in range(1 if limit < 6 else 6, limit + 1):
        made = chain(lm, limit, cap, target, top_k)
        m, pi = made.matrix()
        assert max(residual(m, pi)) < EXACT and m.min() >= -1e-15
        # The same from a law that one uncached forward gives, by whole sequences and both directions of proposals.
        listed = oracle(
            lm, limit, alpha=alpha, tau=tau, top_k=top_k, cuts="present" if corrected else "block"
        )
        want, law = listed.matrix(cap)
        assert max(residual(want, law)) < EXACT
        order = [made.states().index(x) for x in listed.states(cap)]
        assert len(order) == len(pi)
        tolerance = 1e-12 if kind == "tiny" else 1e-5
        assert np.abs(m[np.ix_(order, order)] - want).max() < tolerance
        assert np.abs(pi[order] - law).max() < tolerance


def test_a_fixed_length_needs_no_correction() -> None:
    a, b = (
        chain(model("tiny", 3, ends=False), 4, 4, Target(2.0, 0.5, rule)).matrix()[0]
        for rule in (True, False)
    )
    assert np.abs(a - b).max() < 1e-15


@pytest.mark.parametrize("defect", ["C1", "C2", "C4"])
def test_the_published_defects_are_noticed(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums cut at the proposal's length; proposals capped at the present length; no correction for the cuts."""
    lm, target = model(), Target(2.0, 0.5)
    if defect == "C4":
        monkeypatch.setattr(Target, "log_ratio", lambda self, new, n_new, old, n_old: new - old)
    m, pi = chain(lm, 4, 4, target, defect=defect).matrix()
    assert min(residual(m, pi)) > BROKEN
    assert min(residual(*oracle(lm, 4, defects=frozenset([defect])).matrix(4))) > BROKEN


def test_the_published_loop_gets_worse_with_more_moves() -> None:
    broken = oracle(model(), 4, defects=DEFECTS)
    pi = oracle(model(), 4).target()
    few, many = (distance(broken.published(2, steps), pi) for steps in (2, 100))
    assert many > few > 0.05
    short = sum(mass for x, mass in broken.published(2, 10).items() if len(x) < 4 and x[-1] != 3)
    assert short > 0.01  # answers that neither end nor fill the budget


@pytest.mark.parametrize(("kind", "tolerance"), [("tiny", 1e-10), ("tiny-llama", 1e-5)])
@pytest.mark.parametrize("top_k", [0, 2])
def test_every_cut_of_the_cache_gives_the_same_law(kind: Kind, tolerance: float, top_k: int) -> None:
    """Whatever a branch kept, from whichever branch, in whatever batch: as a forward over the whole prefix."""
    lm = model(kind)
    table = decoded(lm, 4, 0.5, top_k)
    width = top_k or 4
    seen = 0
    for prefix, laws in table.items():
        want = next_law(lm, prefix)
        for law in laws:
            got = {token: p for token, (p, _) in law_of(law).items()}
            assert all(abs(p - math.log(want[token])) < tolerance for token, p in got.items())
            assert len(got) == width
            seen += 1
    assert seen > 3 * len(table)


@pytest.mark.parametrize(
    ("single", "kind", "tolerance"),
    [(False, "tiny", 1e-10), (True, "tiny", 1e-4), (True, "tiny-llama", 1e-4)],
)
def test_the_sum_of_log_probabilities_is_that_of_one_forward(
    single: bool, kind: Kind, tolerance: float
) -> None:
    lm = model(kind, single=single)
    strategy = PowerSampling(alpha=2.0, block_size=4, mcmc_steps=3)
    asked = [Request(PROMPT, strategy, id=i, max_new_tokens=12, seed=i, trace="none") for i in range(24)]
    out = fold(run(lm, asked, batch_size=8))
    for generation in out.values():
        ids = generation.token_ids
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([[*PROMPT, *ids]]), use_cache=False).logits[0].double()
        own = logits.log_softmax(-1)[len(PROMPT) - 1 : -1][range(len(ids)), ids]
        told = generation.notes["power"]
        assert abs(told["logprob"] - float(own.sum())) < tolerance
        assert told["length"] == len(ids) == len(generation.steps) <= 12
        assert not lm.eos_ids & set(ids[:-1])
        assert (generation.reason == "eos") == (ids[-1] in lm.eos_ids)
        assert generation.reason == "eos" or (generation.reason, len(ids)) == ("length", 12)


@pytest.mark.parametrize("cut", ["corrected", "no_op"])
def test_the_ratios_of_real_chains_are_those_of_the_oracle(cut: Any) -> None:
    """Each proposal of each chain, by probabilities of whole answers and of proposals in both directions."""
    lm, seen = model("tiny"), 0
    listed = oracle(lm, 4, cuts="present" if cut == "corrected" else "block")
    strategy = PowerSampling(
        alpha=2.0, block_size=4, mcmc_steps=6, cut=cut, early_rejection=False, skip_agreement=False
    )
    for seed in range(30):
        state: Answer | None = None
        shown: list[Any] = []
        events = list(run(lm, [Request(PROMPT, strategy, max_new_tokens=4, seed=seed)], live=True))
        last = max(i for i, event in enumerate(events) if isinstance(event, (Step, Rewind)))
        for i, event in enumerate(events):
            if isinstance(event, Step):
                shown.append(event.token_id)
            elif isinstance(event, Rewind):
                state = state or tuple(shown)  # the first block's answer, before the first proposal
                del shown[event.to :]
            elif isinstance(event, Note) and event.name == "mcmc":
                told, new = event.value, tuple(shown)
                state = state or new
                if i > last:
                    state = new  # the answer is shown before the notes that come with it
                elif told["cut"] < len(state):
                    assert new[: told["cut"]] == state[: told["cut"]]
                    want = listed.accept(state, new, told["cut"])
                    assert min(1.0, math.exp(told["log_ratio"])) == pytest.approx(want, rel=1e-9)
                    seen += new != state
                    state = new if told["accepted"] else state
                assert told["length"] == len(state)
                assert told["logprob"] == pytest.approx(math.log(listed.whole(state)), abs=1e-9)
        assert tuple(shown) == state
    assert seen > 8


def test_stated_settings() -> None:
    """Caps of the blocks, and what a chain does with no moves at all."""
    assert PowerSampling(block_size=5).caps(12) == [5, 10, 12]
    assert PowerSampling(num_blocks=4).caps(12) == [3, 6, 9, 12]
    assert PowerSampling(block_size=12).caps(12) == PowerSampling().caps(12) == [12]
    strategy = PowerSampling(alpha=2.0, mcmc_steps=0)
    out = fold(run(model("tiny"), [Request(PROMPT, strategy, max_new_tokens=4)]))[0]
    assert out.notes["power"]["moves"] == 0
