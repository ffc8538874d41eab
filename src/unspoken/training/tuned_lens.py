"""Train a tuned lens: an affine map for each layer, after which the frozen model's head reads it as the last one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from unspoken.errors import ConfigError
from unspoken.training._base import Data, Method

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM
    from unspoken.training._options import Options
    from unspoken.training._tuned_lens import LensWork


@dataclass(frozen=True)
class TuneLens(Method):
    """The tuned lens (arXiv 2303.08112): `h_l -> h_l + W_l h_l + b_l` for every layer but the last.

    The loss is the mean `KL(final law || lens)` at the same position, summed over layers. The model is frozen and runs
    once for each batch; W and b begin at 0, so that step 0 is the logit lens, and weight decay pulls back to it (it
    acts on W, not on b). Texts are rows of a task, a file (`texts`), or what the model itself writes (`samples`); they
    are packed, an end token after each, into rows of `row_tokens`. The output is a folder for `un.TunedLens.load`.

    As in the original: `optimizer="sgd"` with `lr=0.1`, `weight_decay=1e-3`, `warmup_ratio=0`.
    """

    trains_model: ClassVar[bool] = False
    option_defaults: ClassVar[dict[str, Any]] = {
        "lr": 1e-3,
        "lr_schedule": "linear",
        "warmup_ratio": 0.1,
        "batch_size": 8,
    }

    rank: int = 0
    """Rank of each W = A B; 0 is a full matrix."""
    bias_only: bool = False
    """Train no W, only b."""
    loss: Literal["kl", "ce"] = "kl"
    """kl: divergence from the model's final law at the same position; ce: cross-entropy to the token that follows."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw with its options, or sgd with Nesterov momentum 0.9."""
    texts: str | None = None
    """File to train on instead of given rows: JSONL, JSON or CSV with text (or question and answer), or plain text."""
    samples: int = 0
    """Train on so many texts that the model writes itself, at temperature 1, instead."""
    sample_tokens: int = 256
    """Most tokens of each of these."""
    sample_prompt: str = ""
    """What each of them begins with; nothing but the token that begins texts if not given."""
    held_out: float = 0.05
    """Share of the texts, the last ones, to evaluate on where no other rows are given for that."""
    row_tokens: int = 256
    """Tokens of a row."""
    positions: int = 0
    """Positions of each row that the loss is taken at, drawn anew each time without bias; 0 is all."""
    eval_positions: int = 32
    """Positions of each row that an evaluation measures, evenly spread; 0 is all."""
    memory: int = 256
    """MiB that logits may take at a time."""

    @property
    def brings_rows(self) -> bool:
        """Whether the texts are a file of its own or the model's samples."""
        return self.texts is not None or self.samples > 0

    def problems(self) -> list[str]:
        found = []
        at_least = {
            "rank": 0,
            "samples": 0,
            "positions": 0,
            "eval_positions": 0,
            "row_tokens": 2,
            "memory": 1,
        }
        for name, least in {**at_least, "sample_tokens": 2}.items():
            if getattr(self, name) < least:
                found.append(f"{name} must be at least {least}, not {getattr(self, name)}.")
        if not 0 < self.held_out < 1:
            found.append(f"held_out must be a share above 0 and below 1, not {self.held_out}.")
        if self.texts is not None and self.samples:
            found.append("The texts are those of a file (texts) or the model's own (samples), not both.")
        if self.rank and self.bias_only:
            found.append("bias_only trains no matrix, so it has no rank; give one of them.")
        if self.positions >= self.row_tokens:
            found.append(
                f"positions must be below row_tokens ({self.row_tokens}), not {self.positions}; 0 is all."
            )
        return found

    def own_data(self) -> Data:
        from unspoken.training._texts import read_texts

        if self.texts is None:  # the model writes them, once it is loaded
            return Data([], manifest={"samples": self.samples})
        rows = read_texts(self.texts)
        return Data(rows, manifest={"texts": self.texts, "rows": len(rows)})

    def extra_words(self, data: Data) -> list[str]:
        return []

    def prepare(self, lm: CausalLM, data: Data, options: Options) -> LensWork:
        from unspoken.training._tuned_lens import LensWork

        problems = []
        if options.lora_r or options.gradient_checkpointing:
            problems.append(
                "A lens trains no part of the model: leave out lora_r and gradient_checkpointing."
            )
        limit = lm.max_positions
        if limit is not None and self.row_tokens > limit:
            problems.append(f"row_tokens is {self.row_tokens}, but the model's context holds {limit}.")
        if self.rank > lm.hidden_size:
            problems.append(f"rank must be at most {lm.hidden_size}, the model's width, not {self.rank}.")
        if problems:
            raise ConfigError(problems)
        return LensWork(self, lm, data, options)
