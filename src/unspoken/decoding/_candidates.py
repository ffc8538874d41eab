"""A choice among independent answers of an inner strategy: what `best_of_n` and `vote` share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.decoding._base import Prompt, Request, Row, Strategy, derive_seed
from unspoken.decoding._sampling import is_greedy
from unspoken.decoding._sequence import Branch, SequenceStrategy, Spawn
from unspoken.discovery import STRATEGIES
from unspoken.errors import RunError

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM


def plain_sampling() -> Strategy:
    """Ordinary sampling from the model's own law; found by name, since strategies do not import each other."""
    made: Strategy = STRATEGIES.find("cot")(temperature=1.0)
    return made


@dataclass(frozen=True)
class OneOfMany(SequenceStrategy):
    """A choice among independent answers of another strategy.

    A candidate that fails is left out and noted, with its reason; the row fails when all of them do.
    """

    tolerant: ClassVar[bool] = True

    inner: Strategy = field(default_factory=plain_sampling)
    """How each candidate is made, by name (default: cot with temperature 1). Its own options stand beside this one."""
    n: int = 8
    """Number of candidates."""

    def problems(self) -> list[str]:
        return [] if self.n >= 1 else [f"n must be at least 1, not {self.n}."]

    def check(self, lm: CausalLM) -> list[str]:
        found = self.inner.check(lm)
        told = isinstance(self.inner, OneOfMany) and self.inner.n > 1
        if self.n > 1 and self.inner.deterministic and not told:
            found.append(self._all_alike())
        return found

    def _all_alike(self) -> str:
        """What to do about an inner strategy that gives the same answer again and again."""
        given, flags = [], []
        for f in fields(self.inner):
            value = getattr(self.inner, f.name)
            if f.name.startswith("temperature") and value is not None and is_greedy(value):
                given.append(f"{f.name} {value:g}")
                flags.append(f"--{f.name} 0.7")
            elif f.name.startswith("top_k") and value == 1:
                given.append(f"{f.name} 1")
                flags.append(f"--{f.name} 0")
        remedy = f"let it draw ({' '.join(flags)})" if flags else "choose another (--inner cot)"
        inner = f"{self.inner.name} with {', '.join(given)}" if given else self.inner.name
        return (
            f"All {self.n} candidates would be the same, since the inner strategy {inner} leaves nothing to chance: "
            f"{remedy}, or ask for n = 1 (--n 1)."
        )

    @property
    def deterministic(self) -> bool:
        return self.inner.deterministic

    def budget(self, request: Request) -> int:
        return self.inner.budget(request)

    def prompt_ids(self, lm: CausalLM, prompt: Prompt) -> list[int]:
        return self.inner.prompt_ids(lm, prompt)

    @property
    def width(self) -> int:
        return self.n * self.inner.width

    def candidates(self, row: Row) -> Generator[list[Spawn], list[Branch], list[Branch]]:
        """Decode all candidates at once; the first is shown as it comes.

        Raises:
            RunError: If all of them failed.
        """
        branches = yield [
            Spawn(
                self.inner,
                row.budget,
                derive_seed(row.request.seed, "candidate", i),
                shown=i == 0,
                held=False,
            )
            for i in range(self.n)
        ]
        reasons = Counter(b.reason.removeprefix("error: ") for b in branches if b.failed)
        failed = reasons.total()
        if failed == self.n:
            raise RunError(f"All {self.n} candidates failed: {'; '.join(reasons)}")
        if failed:
            row.note("failed_candidates", f"{failed} of {self.n}: {'; '.join(reasons)}")
        return branches


def described(branch: Branch) -> dict[str, Any]:
    """A candidate, for a note."""
    return {
        "text": branch.answer_text,
        "reason": branch.reason,
        "length": len(branch.steps),
        "tokens": branch.usage.tokens,
        "logprob": None if branch.failed else branch.logprob,
    }
