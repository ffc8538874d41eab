"""Power sampling by looking ahead: each piece of the answer is chosen by how well answers go on from it."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from unspoken.decoding import _prompt
from unspoken.decoding._base import Prompt, Row, derive_seed
from unspoken.decoding._power import Laws, Proposal, draw, log_mean, normalised
from unspoken.decoding._sequence import Branch, Decided, SequenceStrategy, Spawn, Work, finished, room
from unspoken.errors import RunError

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM


def chances(pieces: Sequence[float], futures: Sequence[Sequence[float]], jackknife: bool) -> list[float]:
    """Probabilities proportional to `exp(piece) * mean over m of exp(future_m)`.

    A ratio of means is biased by order 1/M. The jackknife, `M r - (M - 1) mean over m of r without the m-th`, leaves
    order 1/M^2; what it makes negative counts as 0.

    Args:
        pieces: [K] logarithms.
        futures: [K][M] logarithms, M the same for all.
        jackknife: Whether to correct the bias.
    """

    def ratio(leave_out: int | None) -> list[float]:
        kept = [[f for m, f in enumerate(logs) if m != leave_out] for logs in futures]
        return normalised([piece + log_mean(logs) for piece, logs in zip(pieces, kept, strict=True)])

    plain, count = ratio(None), len(futures[0])
    if not jackknife or count < 2:
        return plain
    without = [ratio(m) for m in range(count)]
    corrected = [
        max(0.0, count * p - (count - 1) * math.fsum(r[i] for r in without) / count)
        for i, p in enumerate(plain)
    ]
    total = math.fsum(corrected)
    return [p / total for p in corrected]


@dataclass(frozen=True)
class _Piece:
    """A candidate for what comes next.

    Attributes:
        branch: The answer with it.
        log_weight: Logarithm of the piece's p^alpha, over the probability that it was drawn with if it was drawn.
    """

    branch: Branch
    log_weight: float


Pieces = Generator[list[Spawn], list[Branch], list[_Piece]]


@dataclass(frozen=True)
class LookAhead(SequenceStrategy):
    """Draw the answer piece by piece from p(x)^alpha, each with an estimate of what may follow (arXiv 2601.21590).

    The law of the next piece v under p^alpha is proportional to `p(v)^alpha zeta(v)`, where `zeta(v)` is the sum of
    p^alpha over all ways to go on after it. For each of some candidates, zeta is estimated by rollouts at temperature
    1/alpha: the mean of `exp(sum over their tokens of alpha lp - lq)`, which is unbiased.

    With a block size of 1 the candidates are the likeliest tokens: with all tokens as candidates the answer's law tends
    to p^alpha as the number of rollouts grows. Longer pieces are drawn at temperature 1/alpha, and weighed by the same
    sum over their own tokens: there the law tends to p^alpha as the number of candidates grows. Rollouts cost up to
    `candidates * rollouts` answers for every piece.
    """

    formula: ClassVar[str] = "v ~ p(v)^α ζ(v), ζ by rollouts"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "token by token": {"block_size": 1, "candidates": 8, "rollouts": 8, "horizon": 32},
    }

    alpha: float = 4.0
    """Exponent of the target, at least 1."""
    block_size: int = 192
    """Tokens of a piece."""
    candidates: int = 8
    """Pieces to choose from: drawn ones, or the likeliest tokens with a block size of 1."""
    rollouts: int = 8
    """Continuations of each candidate by which its future is estimated."""
    horizon: int | None = None
    """Most tokens of a continuation (default: the rest of the budget). A shorter one sees less of the future."""
    jackknife: bool = True
    """Correct the bias of the ratio of estimates; needs at least 2 rollouts."""
    think_open: Literal["none", "assistant_prefix", "user_suffix"] = "none"
    """Open a thinking block: at the start of the answer, at the end of the question, or not at all."""

    def problems(self) -> list[str]:
        found = []
        if not 1.0 <= self.alpha < math.inf:
            found.append(f"alpha must be at least 1 and finite, not {self.alpha}.")
        for name in ("block_size", "candidates", "rollouts", "horizon"):
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(f"{name} must be at least 1, not {value}.")
        if self.jackknife and self.rollouts == 1:
            found.append(
                "One rollout leaves nothing to correct: give rollouts = 2 or more, or jackknife = False."
            )
        return found

    def prompt_ids(self, lm: CausalLM, prompt: Prompt) -> list[int]:
        return _prompt.with_opener(lm, prompt, self.think_open)

    @property
    def width(self) -> int:
        return self.candidates * self.rollouts

    def run(self, lm: CausalLM, row: Row) -> Work:
        total, answer = room(lm, row), Branch([])
        pieces: list[dict[str, Any]] = []
        while not answer.complete and len(answer.steps) < total:
            seed = derive_seed(row.request.seed, "piece", len(pieces))
            look = self.tokens if self.block_size == 1 else self.blocks
            found = yield from look(answer, total, seed)
            futures = yield from self.futures(found, total, seed)
            weights = chances([piece.log_weight for piece in found], futures, self.jackknife)
            chosen = draw(weights, derive_seed(seed, "choice"))
            pieces.append(
                {
                    "position": len(answer.steps),
                    "chosen": chosen,
                    "probabilities": weights,
                    "log_futures": [log_mean(logs) for logs in futures],
                }
            )
            answer = found[chosen].branch
        row.note("lookahead", {"alpha": self.alpha, "pieces": pieces})
        return finished(answer, row, total)

    def blocks(self, answer: Branch, total: int, seed: int) -> Pieces:
        """Candidates of several tokens, drawn at temperature 1/alpha."""
        start = len(answer.steps)
        stop = min(start + self.block_size, total)
        branches = yield [
            Spawn(
                Proposal(1.0 / self.alpha),
                stop - start,
                derive_seed(seed, "candidate", i),
                parent=answer if start else None,
                keep=start,
                shown=i == 0,
                held=stop < total,
            )
            for i in range(self.candidates)
        ]
        return [
            _Piece(b, self.alpha * math.fsum(b.memory["lp"]) - math.fsum(b.memory["lq"])) for b in branches
        ]

    def tokens(self, answer: Branch, total: int, seed: int) -> Pieces:
        """The likeliest tokens as candidates; what comes out of the one draw that finds them is not used."""
        start = len(answer.steps)
        peek = Proposal(1.0 / self.alpha, self.candidates, keep_laws=True)
        (seen,) = yield [
            Spawn(peek, 1, seed, parent=answer if start else None, keep=start, shown=False),
        ]
        law = Laws.gather(seen.memory["laws"])
        assert law is not None
        logprobs = (law.logits[0].double() - law.base[0]).tolist()
        given = [(t, lp) for t, lp in zip(law.ids[0].tolist(), logprobs, strict=True) if math.isfinite(lp)]
        if not given:
            raise RunError("The model gives no token a probability; there is nothing to choose from.")
        logs = [self.alpha * lp for _, lp in given]
        log_total = log_mean(logs) + math.log(len(logs))
        branches = yield [
            Spawn(
                Proposal(1.0 / self.alpha),
                1,
                derive_seed(seed, "candidate", i),
                parent=seen,
                keep=start,
                decided=Decided(token, lp, self.alpha * lp - log_total),
                shown=i == 0,
                held=start + 1 < total,
            )
            for i, (token, lp) in enumerate(given)
        ]
        return [_Piece(branch, log) for branch, log in zip(branches, logs, strict=True)]

    def futures(
        self, pieces: list[_Piece], total: int, seed: int
    ) -> Generator[list[Spawn], list[Branch], list[list[float]]]:
        """[K][M] log-weights of the rollouts of each candidate; 0 for one after which nothing comes."""
        logs = [[0.0] * self.rollouts for _ in pieces]
        places = [
            (i, m)
            for i, piece in enumerate(pieces)
            if len(pieces) > 1 and not piece.branch.complete and len(piece.branch.steps) < total
            for m in range(self.rollouts)
        ]
        if not places:
            return logs
        horizon = self.horizon or total
        branches = yield [
            Spawn(
                Proposal(1.0 / self.alpha),
                min(horizon, total - len(pieces[i].branch.steps)),
                derive_seed(seed, "rollout", i, m),
                parent=pieces[i].branch,
                keep=len(pieces[i].branch.steps),
                shown=False,
                held=False,
            )
            for i, m in places
        ]
        for (i, m), branch in zip(places, branches, strict=True):
            logs[i][m] = self.alpha * math.fsum(branch.memory["lp"]) - math.fsum(branch.memory["lq"])
        return logs
