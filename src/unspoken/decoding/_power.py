"""What power sampling, particles and importance resampling share: proposals, their laws, and weights.

Two numbers are kept for every generated token, from the forward that generated it, and never rescored: its
log-probability under the model, `lp` (temperature 1, no filter), and under the proposal, `lq`. The weight of
a token is `w = alpha lp - lq`; with a proposal at temperature 1/alpha it depends on the prefix alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unspoken.decoding import _prompt, _sampling
from unspoken.decoding._base import Feed, Row, State, Strategy
from unspoken.decoding._sequence import REJECTED
from unspoken.decoding._tokens import add_top

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM

STORED = 32
"""Candidates of each position that are kept, where the proposal itself has no smaller support."""
# Logarithm of what counts as nothing beside 1. Below it, exp leaves the normal numbers of float32: at temperature 1/4
# most tokens do, and summing a law then takes a CPU 20 times as long.
_LEAST = -87.0


@dataclass(frozen=True)
class Target:
    """The law p^alpha, and how a proposal of temperature tau is corrected to it.

    Attributes:
        alpha: Exponent, at least 1.
        tau: Temperature of the proposal.
        corrected: Whether cuts are drawn from the tokens that are there, whose number enters the ratio; otherwise
            they are drawn from the whole block, and a cut beyond the end changes nothing.
        swap: Whether only what is likelier is accepted: the limit of infinite alpha.
    """

    alpha: float
    tau: float
    corrected: bool = True
    swap: bool = False

    @property
    def monotone(self) -> bool:
        """Whether no token can raise a proposal's chances: `w <= 0`, since `lp <= 0` and `sum_v p(v)^(1/tau) <= 1`."""
        return self.swap or (self.tau <= 1.0 and self.alpha * self.tau >= 1.0 - 1e-9)

    def weight(self, lp: float, lq: float) -> float:
        """The weight of one token; for `swap` its log-probability."""
        if self.swap:
            return lp
        w = self.alpha * lp - lq
        return min(w, 0.0) if self.monotone else w  # rounding may lift it

    def log_ratio(self, new: float, n_new: int, old: float, n_old: int) -> float:
        """Logarithm of the Metropolis-Hastings ratio.

        Args:
            new: Sum of the proposal's weights from the cut to its own end.
            n_new: Its length, an end token included.
            old: The same of the present sequence.
            n_old: Its length.
        """
        value = new - old
        if self.corrected and not self.swap:
            value += math.log(n_old) - math.log(n_new)
        return value

    def accepts(self, log_ratio: float, log_u: float) -> bool:
        """The decision, with the logarithm of a uniform number."""
        return log_ratio > 0.0 if self.swap else log_ratio >= log_u


@dataclass
class Bound:
    """The decision about a proposal while it is made: what has been drawn gives an upper bound of its ratio.

    The sum of weights only falls and the length only grows, so a proposal that would be rejected now is rejected.

    Attributes:
        target: The target.
        log_u: Logarithm of the uniform number of the decision, drawn before the proposal.
        old: Sum of the present sequence's weights from the cut.
        n_old: Its length.
        total: Sum of the proposal's weights so far.
        count: Its length so far.
    """

    target: Target
    log_u: float
    old: float
    n_old: int
    total: float
    count: int

    def add(self, lp: float, lq: float) -> None:
        """One more token."""
        self.total += self.target.weight(lp, lq)
        self.count += 1

    @property
    def log_ratio(self) -> float:
        return self.target.log_ratio(self.total, self.count, self.old, self.n_old)

    @property
    def accepts(self) -> bool:
        return self.target.accepts(self.log_ratio, self.log_u)


@dataclass(frozen=True)
class Laws:
    """Proposal laws of n positions: enough to draw from them again without a forward.

    Attributes:
        ids: [n, K] the likeliest tokens, best first.
        logits: [n, K] theirs.
        base: [n] log-normaliser at temperature 1 over the whole vocabulary, in float64.
        proposal: [n] log-normaliser of the proposal, over its support, in float64.
        tau: Temperature of the proposal.
        closed: Whether the K tokens are the whole support.
    """

    ids: Tensor
    logits: Tensor
    base: Tensor
    proposal: Tensor
    tau: float
    closed: bool

    def rows(self, first: int, last: int | None = None) -> Laws:
        """Those of some positions."""
        cut = slice(first, last)
        parts = (self.ids[cut], self.logits[cut], self.base[cut], self.proposal[cut])
        return Laws(*parts, self.tau, self.closed)

    def then(self, other: Laws) -> Laws:
        """These, then the others."""
        parts = [torch.cat(pair) for pair in zip(self._parts(), other._parts(), strict=True)]
        return Laws(parts[0], parts[1], parts[2], parts[3], self.tau, self.closed)

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.ids, self.logits, self.base, self.proposal

    @staticmethod
    def gather(kept: Sequence[tuple[Laws, int]]) -> Laws | None:
        """Single positions of several steps as one, on the host."""
        if not kept:
            return None
        first = kept[0][0]
        parts = [torch.stack([laws._parts()[p][i] for laws, i in kept]).cpu() for p in range(4)]
        return Laws(parts[0], parts[1], parts[2], parts[3], first.tau, first.closed)

    @staticmethod
    def of(logits: Tensor, tau: float, top_k: int) -> Laws:
        """The laws of a step: logits [n, V] at temperature tau, of the `top_k` likeliest tokens (0: of all)."""
        vocabulary = logits.shape[-1]
        k = min(top_k or STORED, vocabulary)
        best, ids = _sampling.top_k(logits, k)
        closed = bool(top_k) or k == vocabulary
        base = _log_normaliser(logits, best[:, 0], 1.0)
        proposal = _log_normaliser(best if closed else logits, best[:, 0], tau)
        return Laws(ids, best, base, proposal, tau, closed)

    def places(self, uniform: Tensor) -> Tensor:
        """[n] which candidate a uniform number [n] picks; K where it is none of them."""
        mass = torch.exp(self.logits.double() / self.tau - self.proposal.double()[:, None]).cumsum(-1)
        place = torch.searchsorted(mass, uniform[:, None], right=True)[:, 0]
        return place.clamp(max=self.ids.shape[-1] - 1) if self.closed else place

    def numbers(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """[n] `lp` and `lq` of the candidates at these places, in float64."""
        z = self.logits.gather(-1, places[:, None])[:, 0].double()
        return z - self.base.double(), z / self.tau - self.proposal.double()


@dataclass(frozen=True)
class Proposal(Strategy):
    """Draw tokens from the tempered law, and keep what deciding about the sequence needs.

    The row's memory gets `lp` and `lq` (lists of numbers) and, with `keep_laws`, `laws`. A `Bound` in it under
    `bound` ends the row as soon as it cannot be accepted any more.
    """

    tau: float = 1.0
    """Temperature."""
    top_k: int = 0
    """Draw from the k likeliest tokens only; 0 is all."""
    keep_laws: bool = False
    """Keep each position's candidates."""

    def begin(self, lm: CausalLM, row: Row) -> None:
        row.enter("think" if _prompt.opens_think(lm, row.prompt_ids) else "answer")

    def next_input(self, logits: Tensor, hidden: Tensor, state: State) -> list[Feed]:
        everyone = range(len(state.rows))
        uniform = state.uniform(everyone)
        laws = Laws.of(logits, self.tau, self.top_k)
        places = laws.places(uniform)
        outside = places >= laws.ids.shape[-1]
        places = places.clamp(max=laws.ids.shape[-1] - 1)
        ids = laws.ids.gather(-1, places[:, None])[:, 0]
        lp, lq = laws.numbers(places)
        if not laws.closed and bool(outside.any()):
            ids[outside], lp[outside], lq[outside] = _rest(logits[outside], laws, outside, uniform[outside])
        for i, (row, p, q) in enumerate(zip(state.rows, lp.tolist(), lq.tolist(), strict=True)):
            self._remember(row, laws, i, p, q)
        feed = Feed(list(everyone), "token", ids, logprob=lp, sampled_logprob=lq)
        if state.trace(everyone, "summary"):
            probs = _sampling.tempered(logits, self.tau)
            feed.trace["entropy"] = _sampling.entropy(probs, logits, self.tau)
            if state.trace(everyone, "full"):
                add_top(feed, probs, ids)
        return [feed]

    def _remember(self, row: Row, laws: Laws, i: int, lp: float, lq: float) -> None:
        row.memory.setdefault("lp", []).append(lp)
        row.memory.setdefault("lq", []).append(lq)
        if self.keep_laws:
            row.memory.setdefault("laws", []).append((laws, i))
        bound: Bound | None = row.memory.get("bound")
        if bound is not None:
            bound.add(lp, lq)
            if not bound.accepts:
                row.ending = REJECTED

    def observe(self, row: Row, token_id: int, text: str) -> None:
        _prompt.follow_markers(row, text)


def _log_normaliser(logits: Tensor, highest: Tensor, tau: float) -> Tensor:
    """[n] logarithm of the sum of exp(logits / tau), in float64; `highest` [n] are the greatest of the logits.

    Only what is above 1 of it is summed in float32: of the whole, rounding takes 1e-5 of the mass at logits of 40 and
    temperature 1/4, and all of it at a temperature that is small enough. The missing mass would go to the least likely.
    """
    above = ((logits - highest[:, None]) / tau).clamp_(min=_LEAST).logsumexp(-1)
    return highest.double() / tau + above.double()


def _rest(logits: Tensor, laws: Laws, rows: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw among the tokens that are no candidates: ids, `lp` and `lq` of the rows where the number falls there."""
    ids, base, proposal = laws.ids[rows], laws.base[rows].double(), laws.proposal[rows].double()
    inside = torch.exp(laws.logits[rows].double() / laws.tau - proposal[:, None]).sum(-1)
    others = logits.scatter(-1, ids, float("-inf"))
    probs = torch.softmax(others / laws.tau, -1)
    # What is left of the number after the candidates' mass, as a share of the rest of the mass.
    share = ((uniform - inside) / (1.0 - inside).clamp(min=1e-12)).clamp(0.0, 1.0 - 1e-12)
    chosen, _ = _sampling.sample(_sampling.Law(probs, None), share)
    z = logits.gather(-1, chosen[:, None])[:, 0].double()
    return chosen, z - base, z / laws.tau - proposal


@dataclass
class Tokens:
    """The numbers of a sequence of generated tokens.

    Attributes:
        lp: Log-probabilities under the model.
        lq: Under the proposal.
        laws: Their positions' laws, where these are kept.
    """

    lp: list[float] = field(default_factory=list)
    lq: list[float] = field(default_factory=list)
    laws: Laws | None = None

    def first(self, n: int) -> Tokens:
        """Those of the first n tokens."""
        return Tokens(self.lp[:n], self.lq[:n], None if self.laws is None else self.laws.rows(0, n))

    def then(self, memory: dict[str, Any]) -> Tokens:
        """With what a proposal remembered after them."""
        new = Laws.gather(memory.pop("laws", ()))
        laws = self.laws if new is None else new if self.laws is None else self.laws.then(new)
        return Tokens(self.lp + memory.get("lp", []), self.lq + memory.get("lq", []), laws)


# Weights of several sequences


def log_mean(logs: Sequence[float]) -> float:
    """Logarithm of the mean of numbers that are given by their logarithms."""
    top = max(logs)
    return top + math.log(math.fsum(math.exp(value - top) for value in logs) / len(logs))


def normalised(logs: Sequence[float]) -> list[float]:
    """Weights that sum to 1, from logarithms of weights."""
    top = max(logs)
    raw = [math.exp(value - top) for value in logs]
    total = math.fsum(raw)
    return [value / total for value in raw]


def effective_size(weights: Sequence[float]) -> float:
    """How many equally weighted sequences these are worth: one over the sum of squares."""
    return 1.0 / math.fsum(w * w for w in weights)


def draw(weights: Sequence[float], seed: int) -> int:
    """An index, with probabilities that sum to 1."""
    return systematic(weights, 1, seed)[0]


def systematic(weights: Sequence[float], count: int, seed: int) -> list[int]:
    """Systematic resampling: `count` indices in ascending order from one uniform number.

    An index of weight w comes up `count * w` times, rounded down or up, and exactly so often in the mean.
    """
    uniform = float(torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    chosen: list[int] = []
    reached, index = weights[0], 0
    for i in range(count):
        while (i + uniform) / count >= reached and index < len(weights) - 1:
            index += 1
            reached += weights[index]
        chosen.append(index)
    return chosen


def uniforms(seed: int, count: int) -> Tensor:
    """[count] float64, the first uniform numbers of a move: its cut, its decision, then one for each token."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator_after(seed: int, used: int) -> torch.Generator:
    """The generator of a move after some of its numbers: one for each element, however they are drawn."""
    generator = torch.Generator().manual_seed(seed)
    torch.rand(used, generator=generator, dtype=torch.float64)
    return generator
