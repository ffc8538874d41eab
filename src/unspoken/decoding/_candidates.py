"""A choice among independent answers of an inner strategy: what `best_of_n` and `vote` share."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from unspoken.decoding._base import Prompt, Request, Row, Strategy, derive_seed
from unspoken.decoding._sequence import Branch, SequenceStrategy, Spawn
from unspoken.discovery import STRATEGIES

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM


def plain_sampling() -> Strategy:
    """Ordinary sampling from the model's own law; found by name, since strategies do not import each other."""
    made: Strategy = STRATEGIES.find("cot")(temperature=1.0)
    return made


@dataclass(frozen=True)
class OneOfMany(SequenceStrategy):
    """A choice among independent answers of another strategy."""

    inner: Strategy = field(default_factory=plain_sampling)
    """How each candidate is made, by name (default: cot with temperature 1). Its own options stand beside this one."""
    n: int = 8
    """Number of candidates."""

    def problems(self) -> list[str]:
        return [] if self.n >= 1 else [f"n must be at least 1, not {self.n}."]

    def check(self, lm: CausalLM) -> list[str]:
        return self.inner.check(lm)

    def budget(self, request: Request) -> int:
        return self.inner.budget(request)

    def prompt_ids(self, lm: CausalLM, prompt: Prompt) -> list[int]:
        return self.inner.prompt_ids(lm, prompt)

    @property
    def width(self) -> int:
        return self.n * self.inner.width

    def candidates(self, row: Row) -> Generator[list[Spawn], list[Branch], list[Branch]]:
        """Decode all candidates at once; the first is shown as it comes."""
        return (
            yield [
                Spawn(
                    self.inner,
                    row.budget,
                    derive_seed(row.request.seed, "candidate", i),
                    shown=i == 0,
                    held=False,
                )
                for i in range(self.n)
            ]
        )


def described(branch: Branch) -> dict[str, Any]:
    """A candidate, for a note."""
    return {
        "text": branch.answer_text,
        "reason": branch.reason,
        "length": len(branch.steps),
        "tokens": branch.usage.tokens,
        "logprob": branch.logprob,
    }
