"""Power sampling by weighted particles: many answers grow together, and the promising ones are multiplied."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from unspoken.decoding import _prompt
from unspoken.decoding._base import Prompt, Row, derive_seed
from unspoken.decoding._power import Proposal, draw, effective_size, log_mean, normalised, systematic
from unspoken.decoding._sequence import Branch, SequenceStrategy, Spawn, Work, finished, room

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM


def log_increment(now: float, before: float, whole: float, past: float, lq: float) -> float:
    """What a particle's log-weight gains over a block.

    The targets before and after it are `p(past)^before` and `p(whole)^now`; a rising exponent therefore also weighs
    the tokens that were there already.

    Args:
        now: Exponent of the target after the block.
        before: Exponent before it.
        whole: Log-probability of all tokens under the model.
        past: Of those before the block.
        lq: Of the block's tokens under the law that they were drawn from.
    """
    return now * whole - before * past - lq


@dataclass(frozen=True)
class _Particle:
    """An answer in the making.

    Attributes:
        branch: What is decoded of it; several particles may share it.
        ancestor: The particle of the beginning that it goes back to.
        logprob: Sum over its tokens under the model.
        log_weight: Logarithm of its weight since the last resampling.
    """

    branch: Branch
    ancestor: int
    logprob: float = 0.0
    log_weight: float = 0.0

    def ended(self, total: int) -> bool:
        return self.branch.complete or len(self.branch.steps) >= total


@dataclass(frozen=True)
class PowerSMC(SequenceStrategy):
    """Sequential Monte Carlo with the target p(x)^alpha over whole answers (arXiv 2602.10273).

    Particles grow block by block. In a block they are drawn at temperature 1/a, where the exponent a rises from 1 to
    alpha over `ramp` tokens; it is constant within a block, at its value for the block's end. After the block a
    particle's weight gains `a log p(all tokens) - a' log p(earlier tokens) - log q(new tokens)`, a' being the last
    block's exponent. Where the effective number of particles is too small they are drawn anew by weight (systematic
    resampling). Answers that have ended stay among them with their weights. In the end the exponent is alpha for all,
    and one particle is drawn by weight: its law tends to p^alpha as their number grows, and the mean weight is an
    unbiased estimate of the sum of p^alpha over all answers.
    """

    formula: ClassVar[str] = "x ~ p(x)^α, by weighted particles"

    alpha: float = 4.0
    """Exponent of the target, at least 1."""
    particles: int = 64
    """Number of answers that grow together."""
    ramp: int = 400
    """Tokens over which the exponent rises from 1 to alpha; 0 begins with alpha."""
    check_every: int = 64
    """Tokens of a block, after which weights are looked at."""
    ess_threshold: float = 0.5
    """Resample when the effective number of particles is below this share of them; 0 never does."""
    think_open: Literal["none", "assistant_prefix", "user_suffix"] = "none"
    """Open a thinking block: at the start of the answer, at the end of the question, or not at all."""

    def problems(self) -> list[str]:
        found = []
        if not 1.0 <= self.alpha < math.inf:
            found.append(f"alpha must be at least 1 and finite, not {self.alpha}.")
        for name, least in (("particles", 1), ("ramp", 0), ("check_every", 1)):
            if getattr(self, name) < least:
                found.append(f"{name} must be at least {least}, not {getattr(self, name)}.")
        if not 0.0 <= self.ess_threshold <= 1.0:
            found.append(f"ess_threshold must be between 0 and 1, not {self.ess_threshold}.")
        return found

    def prompt_ids(self, lm: CausalLM, prompt: Prompt) -> list[int]:
        return _prompt.with_opener(lm, prompt, self.think_open)

    @property
    def width(self) -> int:
        return self.particles

    def exponent(self, position: int) -> float:
        """The target's exponent after so many tokens."""
        share = min(1.0, position / self.ramp) if self.ramp else 1.0
        return 1.0 + (self.alpha - 1.0) * share

    def run(self, lm: CausalLM, row: Row) -> Work:
        total = room(lm, row)
        cloud = [_Particle(Branch([]), i) for i in range(self.particles)]
        position, before, log_normaliser = 0, 1.0, 0.0
        checks: list[dict[str, Any]] = []
        while True:
            moving = [i for i, particle in enumerate(cloud) if not particle.ended(total)]
            if not moving:
                break
            block = len(checks)
            start, position = position, min(position + self.check_every, total)
            now = self.exponent(position)
            proposal = Proposal(1.0 / now)
            branches = yield [
                Spawn(
                    proposal,
                    position - start,
                    derive_seed(row.request.seed, "particle", block, i),
                    parent=cloud[i].branch if start else None,
                    keep=start,
                    shown=i == moving[0],
                    held=position < total,
                )
                for i in moving
            ]
            cloud = self.moved(cloud, dict(zip(moving, branches, strict=True)), now, before)
            before = now
            weights = normalised([particle.log_weight for particle in cloud])
            size = effective_size(weights)
            ended = sum(particle.ended(total) for particle in cloud)
            resampled = ended < len(cloud) and size < self.ess_threshold * len(cloud)
            if resampled:
                log_normaliser += log_mean([particle.log_weight for particle in cloud])
                kept = systematic(weights, len(cloud), derive_seed(row.request.seed, "resample", block))
                cloud = [replace(cloud[i], log_weight=0.0) for i in kept]
            checks.append(
                {
                    "position": position,
                    "exponent": now,
                    "effective_size": size,
                    "ended": ended,
                    "resampled": resampled,
                }
            )
        cloud = self.moved(cloud, {}, self.alpha, before)
        return finished(self.drawn(row, cloud, checks, log_normaliser), row, total)

    @staticmethod
    def moved(
        cloud: list[_Particle], branches: dict[int, Branch], now: float, before: float
    ) -> list[_Particle]:
        """The particles after a block: those that moved with their new branches, and all with new weights."""
        after = []
        for i, particle in enumerate(cloud):
            branch, whole, lq = particle.branch, particle.logprob, 0.0
            if i in branches:
                branch = branches[i]
                whole += math.fsum(branch.memory["lp"])
                lq = math.fsum(branch.memory["lq"])
                if branch.complete:
                    branch.prefix = None  # it is never continued
            gained = log_increment(now, before, whole, particle.logprob, lq)
            after.append(_Particle(branch, particle.ancestor, whole, particle.log_weight + gained))
        return after

    def drawn(
        self,
        row: Row,
        cloud: list[_Particle],
        checks: list[dict[str, Any]],
        log_normaliser: float,
    ) -> Branch:
        """One particle by weight, and the note about all of them."""
        logs = [particle.log_weight for particle in cloud]
        weights = normalised(logs)
        chosen = draw(weights, derive_seed(row.request.seed, "choice"))
        listed = [
            {
                "weight": weight,
                "logprob": particle.logprob,
                "length": len(particle.branch.steps),
                "ended": particle.branch.complete,
                "text": particle.branch.answer_text,
            }
            for particle, weight in zip(cloud, weights, strict=True)
        ]
        note = {
            "alpha": self.alpha,
            "chosen": chosen,
            "effective_size": effective_size(weights),
            "ancestors": len({particle.ancestor for particle in cloud}),
            "log_normaliser": log_normaliser + log_mean(logs),
            "checks": checks,
            "particles": listed,
        }
        row.note("smc", note)
        return cloud[chosen].branch
