"""Chain of thought: think in words, one sampled token at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor

from unspoken.decoding import _prompt
from unspoken.decoding._base import Feed, Prompt, Row, State, Strategy
from unspoken.decoding._sampling import filter_problems, is_greedy
from unspoken.decoding._tokens import Sampler

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM


@dataclass(frozen=True)
class ChainOfThought(Strategy):
    """Ordinary decoding: the model reads back the token that was chosen (arXiv 2201.11903).

    The whole text is the answer phase, unless the model opens a thinking block (`<think>`), which lasts
    until it is closed.
    """

    formula: ClassVar[str] = "x ~ p(x)^(1/T)"

    # The budget is not this strategy's own, but the originals' name for it works beside it on a command line.
    aliases: ClassVar[dict[str, str]] = {"T_total": "max_new_tokens"}

    temperature: float = 0.6
    """Sampling temperature; 0 is greedy."""
    top_k: int = 0
    """Keep only the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest tokens that hold this much probability; 1 keeps all."""
    min_p: float = 0.0
    """Drop tokens below this share of the likeliest one; 0 keeps all."""
    think_open: Literal["none", "assistant_prefix", "user_suffix"] = "none"
    """Open a thinking block: at the start of the answer, at the end of the question, or not at all."""

    def problems(self) -> list[str]:
        return filter_problems(self.temperature, self.top_k, self.top_p, self.min_p)

    @property
    def deterministic(self) -> bool:
        return is_greedy(self.temperature, self.top_k)

    def prompt_ids(self, lm: CausalLM, prompt: Prompt) -> list[int]:
        return _prompt.with_opener(lm, prompt, self.think_open)

    def begin(self, lm: CausalLM, row: Row) -> None:
        row.enter("think" if _prompt.opens_think(lm, row.prompt_ids) else "answer")

    def next_input(self, logits: Tensor, hidden: Tensor, state: State) -> list[Feed]:
        sampler = Sampler(self.temperature, self.top_k, self.top_p, self.min_p)
        return [sampler(logits, range(len(state.rows)), state)]

    def observe(self, row: Row, token_id: int, text: str) -> None:
        _prompt.follow_markers(row, text)
