"""Power sampling: a Markov chain over whole answers that targets the model's law to the power alpha."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from unspoken.decoding import _prompt
from unspoken.decoding._base import Prompt, Request, Row, derive_seed
from unspoken.decoding._power import Bound, Proposal, Target, Tokens, generator_after, uniforms
from unspoken.decoding._sequence import (
    REJECTED,
    Branch,
    Decided,
    SequenceStrategy,
    Spawn,
    Work,
    finished,
    room,
)
from unspoken.errors import ConfigError, RunError

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM

BLOCK_SIZE, ALPHA, SWAP_TEMPERATURE = 192, 4.0, 0.25
Moves = Generator[list[Spawn], list[Branch], "_State"]


@dataclass(frozen=True)
class PowerSampling(SequenceStrategy):
    """Metropolis-Hastings with the target p(x)^alpha over finished answers (arXiv 2510.14901, corrected).

    The answer grows block by block. After each block the chain makes `mcmc_steps` moves: cut the text at a random
    token, draw its end anew at temperature 1/alpha, and accept the new end with probability
    `min(1, exp(log r))`, where `log r` is the sum of `alpha lp - lq` over the new end minus that over the old
    one, each to its own end, plus `log n - log n'` for the numbers of tokens that could have been cut.

    States are answers that end with an end token within the limit, or fill it. Unlike the published loop this
    has p^alpha as its stationary law also when answers end by themselves. With a few moves a chain is on its
    way from low temperature to p^alpha, not there: the notes say how many moves were accepted.
    """

    formula: ClassVar[str] = "x ~ p(x)^α, by Markov chain"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "publication": {"alpha": 4.0, "block_size": 192, "mcmc_steps": 10},
        "quick look": {"alpha": 4.0, "block_size": 32, "mcmc_steps": 3},
        "published loop": {"alpha": 4.0, "mcmc_steps": 10, "mode": "reference"},
    }

    aliases: ClassVar[dict[str, str]] = {"T_total": "max_new_tokens", "block_num": "num_blocks"}

    alpha: float | None = None
    """Exponent of the target, at least 1 (default: 1/temperature if that is given, else 4)."""
    temperature: float | None = None
    """Temperature of the proposals; 1/alpha if not given."""
    top_k: int = 0
    """Propose only the k likeliest tokens: the target is then limited to such answers. 0 is all."""
    mcmc_steps: int = 10
    """Moves after each block."""
    block_size: int | None = None
    """Tokens of a block (default: 192, or the whole budget if that is smaller)."""
    num_blocks: int | None = None
    """Number of blocks, instead of their size."""
    stop_mode: Literal["final", "full", "original"] = "final"
    """final leaves the blocks when the answer has ended, and makes the last moves with the whole budget; full goes
    through all blocks; original returns after the first block with an end, which favours short answers."""
    final_steps: int | None = None
    """Moves with the whole budget, in stop mode final (default: as many as mcmc_steps)."""
    cut: Literal["corrected", "no_op"] = "corrected"
    """Cuts are drawn from the tokens of the answer, which the ratio corrects for, or from the whole block, where a
    cut beyond the end changes nothing. Both are exact; the first moves more."""
    max_swap: bool = False
    """Accept only what is likelier (alpha infinite): a hill climb, not a sampler."""
    early_rejection: bool = True
    """End a proposal as soon as it is sure to be rejected; works for temperatures from 1/alpha to 1. The law stays
    the same."""
    skip_agreement: bool = True
    """Draw the part of a proposal that repeats the present answer from the laws kept there, without a forward. The
    law stays the same."""
    mode: Literal["exact", "reference"] = "exact"
    """reference repeats the published loop with its defects, for comparison only."""
    think_open: Literal["none", "assistant_prefix", "user_suffix"] = "none"
    """Open a thinking block: at the start of the answer, at the end of the question, or not at all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is None:
            given = self.temperature if not self.max_swap else None
            object.__setattr__(self, "alpha", 1.0 / given if given else ALPHA)

    def problems(self) -> list[str]:
        found = []
        if self.temperature is not None and not 0.0 < self.temperature < math.inf:
            found.append(
                f"temperature must be above 0, not {self.temperature} (greedy is max_swap's limit, or cot)."
            )
        elif self.alpha is None and self.temperature is not None and self.temperature > 1.0:
            below = f"alpha = {1 / self.temperature:.3g}, below 1"
            found.append(f"temperature {self.temperature} means {below}; give a temperature of 1 or less.")
        if self.alpha is not None and not 1.0 <= self.alpha < math.inf:
            found.append(
                f"alpha must be at least 1 and finite, not {self.alpha}: 1 is plain sampling at temperature 1; "
                "--max-swap (max_swap=True) accepts only what is likelier, as alpha without bound does."
            )
        if self.max_swap and self.alpha is not None and self.alpha != ALPHA:
            found.append("max_swap stands for an infinite alpha: leave alpha out.")
        if self.max_swap and self.mode == "reference":
            found.append("max_swap has no reference mode.")
        if self.block_size is not None and self.num_blocks is not None:
            found.append("block_size and num_blocks say the same: give one of them.")
        for name, least in (
            ("top_k", 0),
            ("mcmc_steps", 0),
            ("block_size", 1),
            ("num_blocks", 1),
            ("final_steps", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                found.append(f"{name} must be at least {least}, not {value}.")
        if self.mode == "reference" and (self.cut != "corrected" or self.stop_mode == "full"):
            found.append(
                "The published loop has its own cuts and stop: leave cut and stop_mode to mode='exact'."
            )
        if self.final_steps is not None and (self.stop_mode != "final" or self.mode == "reference"):
            found.append("final_steps belongs to stop_mode='final' of mode='exact'.")
        return found

    @property
    def target(self) -> Target:
        """What the chain targets, and from what it proposes."""
        assert self.alpha is not None
        tau = self.temperature or (SWAP_TEMPERATURE if self.max_swap else 1.0 / self.alpha)
        return Target(self.alpha, tau, self.cut == "corrected", self.max_swap)

    def budget(self, request: Request) -> int:
        total = request.max_new_tokens
        for name, value in (("block_size", self.block_size), ("num_blocks", self.num_blocks)):
            if value is not None and value > total:
                raise ConfigError(
                    f"{name} must not exceed the budget of {total} tokens, but is {value}: lower it, or raise "
                    "max_new_tokens."
                )
        return total

    def prompt_ids(self, lm: CausalLM, prompt: Prompt) -> list[int]:
        return _prompt.with_opener(lm, prompt, self.think_open)

    def caps(self, total: int) -> list[int]:
        """The lengths at which the blocks end."""
        size = self.block_size or (math.ceil(total / self.num_blocks) if self.num_blocks else BLOCK_SIZE)
        return [*range(size, total, size), total]

    def run(self, lm: CausalLM, row: Row) -> Work:
        total = room(lm, row)
        chain = _Chain(self, row, total)
        state = yield from (chain.reference() if self.mode == "reference" else chain.exact())
        row.note("power", chain.summary(state))
        return finished(state.branch, row, total)


@dataclass
class _State:
    """The chain's present answer: what is decoded, and its numbers."""

    branch: Branch
    tokens: Tokens

    @property
    def n(self) -> int:
        return len(self.branch.steps)


@dataclass
class _Chain:
    """One chain: its moves, and what is counted of them."""

    strategy: PowerSampling
    row: Row
    total: int
    proposals: int = 0
    accepted: int = 0
    ended_early: int = 0
    unchanged: int = 0
    skipped: int = 0
    by_block: list[tuple[int, int]] = field(default_factory=list)
    trace: list[float] = field(default_factory=list)

    def exact(self) -> Moves:
        """Blocks with moves at their caps, and the last moves with the whole budget."""
        s, state = self.strategy, _State(Branch([]), Tokens())
        caps = s.caps(self.total)
        for block, cap in enumerate(caps[:-1]):
            state = yield from self.extended(state, cap, block)
            state = yield from self.moved(state, cap, block, s.mcmc_steps)
            if state.branch.complete and s.stop_mode != "full":
                break
        if s.stop_mode == "original" and state.branch.complete:
            return state
        last = len(caps) - 1
        state = yield from self.extended(state, self.total, last)
        steps = s.final_steps if s.stop_mode == "final" and s.final_steps is not None else s.mcmc_steps
        return (yield from self.moved(state, self.total, last, steps))

    def extended(self, state: _State, cap: int, block: int) -> Moves:
        """The answer goes on to its end or the cap."""
        if state.branch.complete or state.n >= cap:
            return state
        spawn = Spawn(
            self.inner,
            cap - state.n,
            derive_seed(self.row.request.seed, "extend", block),
            parent=state.branch if state.n else None,
            keep=state.n,
        )
        (branch,) = yield [spawn]
        return _State(branch, state.tokens.then(branch.memory))

    def moved(self, state: _State, cap: int, block: int, steps: int) -> Moves:
        """Some moves at one cap."""
        before = self.proposals, self.accepted
        for step in range(steps):
            state = yield from self.move(state, cap, block, step)
        self.by_block.append((self.proposals - before[0], self.accepted - before[1]))
        return state

    @cached_property
    def inner(self) -> Proposal:
        s = self.strategy
        return Proposal(s.target.tau, s.top_k, s.skip_agreement and s.mode == "exact")

    def move(self, state: _State, cap: int, block: int, step: int) -> Moves:
        """One Metropolis-Hastings step."""
        target, n = self.strategy.target, state.n
        seed = derive_seed(self.row.request.seed, "move", block, step)
        u_cut, u_accept = uniforms(seed, 2).tolist()
        cut = int(u_cut * (n if target.corrected else cap))
        self.proposals += 1
        if cut >= n:
            self.unchanged += 1
            return self.decided(state, block, step, cut, cut, True, 0.0)
        weights = [target.weight(*pair) for pair in zip(state.tokens.lp, state.tokens.lq, strict=True)]
        bound = Bound(
            target, math.log(u_accept) if u_accept else -math.inf, sum(weights[cut:], 0.0), n, 0.0, cut
        )
        apart, token = self.agreement(state, cut, seed)
        for t in range(cut, apart):
            bound.add(state.tokens.lp[t], state.tokens.lq[t])
        self.skipped += apart - cut
        if apart == n:
            self.unchanged += 1
            return self.decided(state, block, step, cut, apart, True, 0.0)
        if token is not None:
            bound.add(token.logprob, token.sampled_logprob)
        early = self.strategy.early_rejection and target.monotone
        if early and bound.count and not bound.accepts:
            self.ended_early += 1
            return self.decided(state, block, step, cut, apart, False, bound.log_ratio)
        spawn = Spawn(
            self.inner,
            cap - apart,
            seed,
            parent=state.branch,
            keep=apart,
            decided=token,
            generator=generator_after(seed, 2 + apart - cut + (token is not None)),
            memory={"bound": bound} if early else {},
        )
        (branch,) = yield [spawn]
        if branch.token_ids == state.branch.token_ids:
            # The present numbers stay: scored again they differ by rounding, which a climb would follow.
            self.unchanged += 1
            return self.decided(state, block, step, cut, n, True, 0.0)
        if branch.reason == REJECTED:
            self.ended_early += 1
            return self.decided(state, block, step, cut, apart, False, bound.log_ratio)
        if not early:
            for pair in (
                zip(branch.memory["lp"], branch.memory["lq"], strict=True) if "lp" in branch.memory else ()
            ):
                bound.add(*pair)
        if math.isnan(bound.log_ratio):
            raise RunError(
                f"The log-ratio of move {step} in block {block} is not a number; the chain cannot go on."
            )
        accepted = bound.accepts
        if accepted:
            kept = state.tokens.first(apart)
            if token is not None:
                kept = _with(kept, token, state.tokens, apart)
            state = _State(branch, kept.then(branch.memory))
        return self.decided(state, block, step, cut, apart, accepted, bound.log_ratio)

    def agreement(self, state: _State, cut: int, seed: int) -> tuple[int, Decided | None]:
        """Draw the proposal from the laws kept for the present answer, as long as it repeats that.

        Returns:
            Where the two part (the answer's length if they do not), and the proposal's token there; None if the
            number falls outside the candidates kept, or no laws are kept.
        """
        laws = state.tokens.laws
        if laws is None:
            return cut, None
        laws = laws.rows(cut)
        uniform = uniforms(seed, 2 + state.n - cut)[2:]
        places = laws.places(uniform)
        inside = places < laws.ids.shape[-1]
        places = places.clamp(max=laws.ids.shape[-1] - 1)
        drawn = laws.ids.gather(-1, places[:, None])[:, 0]
        present = torch.tensor([step.token_id for step in state.branch.steps[cut:]])
        differs = ((drawn != present) | ~inside).nonzero()
        if not len(differs):
            return state.n, None
        i = int(differs[0])
        if not inside[i]:
            return cut + i, None
        lp, lq = laws.rows(i, i + 1).numbers(places[i : i + 1])
        return cut + i, Decided(int(drawn[i]), float(lp), float(lq))

    def decided(
        self, state: _State, block: int, step: int, cut: int, apart: int, accepted: bool, log_ratio: float
    ) -> _State:
        """Count a move and report it."""
        self.accepted += accepted
        logprob = math.fsum(state.tokens.lp)
        self.trace.append(logprob)
        values: dict[str, Any] = {
            "block": block,
            "move": step,
            "cut": cut,
            "apart": apart,
            "accepted": accepted,
        }
        self.row.note("mcmc", {**values, "log_ratio": log_ratio, "logprob": logprob, "length": state.n})
        return state

    def summary(self, state: _State) -> dict[str, Any]:
        """What the chain did."""
        s = self.strategy
        made = max(1, self.proposals)
        return {
            "mode": s.mode,
            "alpha": math.inf if s.max_swap else s.alpha,
            "temperature": s.target.tau,
            "early_rejection": s.early_rejection and s.target.monotone and s.mode == "exact",
            "moves": self.proposals,
            "acceptance": self.accepted / made,
            "acceptance_by_block": [a / p if p else None for p, a in self.by_block],
            "unchanged": self.unchanged,
            "ended_early": self.ended_early,
            "skipped_tokens": self.skipped,
            "logprob": math.fsum(state.tokens.lp),
            "logprob_trace": self.trace,
            "length": state.n,
        }

    # -- the published loop -----------------------------------------------------------------------

    def reference(self) -> Moves:
        """The published loop, defects and all (their effect: the class's docstring).

        Proposals are capped at the present length, so that an answer that has ended can only shrink; the present
        answer's sums are cut at the proposal's length; the number of cuts is not corrected for; a proposal may stop
        short without an end; and the first block with an end is the last.
        """
        s, state = self.strategy, _State(Branch([]), Tokens())
        target = s.target
        caps = s.caps(self.total)
        size = caps[0]
        for block in range(len(caps)):
            state = yield from self.extended(state, min(state.n + size, self.total), block)
            before = self.proposals, self.accepted
            for step in range(s.mcmc_steps):
                seed = derive_seed(self.row.request.seed, "move", block, step)
                u_cut, u_accept = uniforms(seed, 2).tolist()
                n, cut = state.n, int(u_cut * state.n)
                generator = generator_after(seed, 2)
                spawn = Spawn(
                    self.inner,
                    n - cut,
                    seed,
                    parent=state.branch if cut else None,
                    keep=cut,
                    generator=generator,
                )
                (branch,) = yield [spawn]
                new = state.tokens.first(cut).then(branch.memory)
                end = len(new.lp)
                log_ratio = sum(
                    target.alpha * p - q for p, q in zip(new.lp[cut:], new.lq[cut:], strict=True)
                ) - sum(
                    target.alpha * p - q
                    for p, q in zip(state.tokens.lp[cut:end], state.tokens.lq[cut:end], strict=True)
                )
                accepted = u_accept == 0.0 or math.log(u_accept) < log_ratio
                self.proposals += 1
                if accepted:
                    state = _State(branch, new)
                state = self.decided(state, block, step, cut, cut, accepted, log_ratio)
            self.by_block.append((self.proposals - before[0], self.accepted - before[1]))
            if state.branch.complete:
                break
        return state


def _with(kept: Tokens, token: Decided, old: Tokens, place: int) -> Tokens:
    """The kept tokens and the decided one, whose law is that of the old answer's token at the same place."""
    assert old.laws is not None
    law = old.laws.rows(place, place + 1)
    laws = law if kept.laws is None else kept.laws.then(law)
    return Tokens([*kept.lp, token.logprob], [*kept.lq, token.sampled_logprob], laws)
