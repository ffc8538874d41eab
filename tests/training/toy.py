"""A method for the tests of the trainer: copy a word of the question, with a curriculum that resets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from unspoken.decoding.cot import ChainOfThought
from unspoken.tasks._chains import Chain
from unspoken.training._base import Data, Loss, Method, Work

WORDS = [str(i) for i in range(12)]


def toy_data(n: int = 26) -> Data:
    """Rows `a b c -> a`, of 1 to 3 words."""
    generator = torch.Generator().manual_seed(5)
    rows = []
    for _ in range(n):
        length = int(torch.randint(1, 4, (1,), generator=generator))
        words = [WORDS[int(i)] for i in torch.randint(12, (length,), generator=generator)]
        rows.append(Chain(" ".join(words), "", words[0]))
    return Data(rows, rows[:8], manifest={"task": "toy"})


def toy_model(family: str = "gpt2", dropout: float = 0.0) -> Any:
    """A tiny model and a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from unspoken.lm.model import CausalLM

    words = {word: i for i, word in enumerate(["<pad>", "<eos>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(words), n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=1,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
    )  # fmt: skip
    return CausalLM(GPT2LMHeadModel(config), fast, source="toy")


@dataclass(frozen=True)
class Toy(Method):
    """Copies the first word."""

    aliases: ClassVar[dict[str, str]] = {}

    reset_at: tuple[int, ...] = ()
    """Micro-batches before which the optimizer is reset."""
    nan_at: int = -1
    """Micro-batch with a loss that is no number."""
    new_token: bool = False
    """Add a token and use it as the separator."""

    def extra_words(self, data: Data) -> list[str]:
        return []

    def prepare(self, lm: Any, data: Data, options: Any) -> Work:
        if self.new_token:
            lm.tokenizer.add_tokens(["<new>"])
            lm.model.resize_token_embeddings(len(lm.tokenizer), mean_resizing=False)
        return ToyWork(self, lm.tokenizer, data)


class ToyWork(Work):
    """See `Toy`."""

    sticky = ("loud/rows",)

    def __init__(self, method: Toy, tokenizer: Any, data: Data) -> None:
        self.method, self.n_rows = method, len(data.train)
        separator = ["<new>"] if method.new_token else []
        self.rows = [
            tokenizer.convert_tokens_to_ids([*row.question.split(), "<eos>", *separator, row.answer])
            for row in data.train
        ]
        self.calls: list[int] = []

    def batch(self, t: int, rows: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        self.calls.append(t)
        chosen = [self.rows[i] for i in rows.tolist()]
        width = max(map(len, chosen))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in chosen])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in chosen])
        weight = 0.5 + torch.rand(len(rows), generator=generator)
        nan = torch.full((len(rows),), float("nan") if t == self.method.nan_at else 1.0)
        # As many items a row as it has words: unequal, so that means of means would be wrong.
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "weight": weight * mask.sum(1) * nan,
            "n": mask.sum(1),
        }

    def items(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return batch["n"].sum()

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor], *, detailed: bool) -> Loss:
        mask = batch["attention_mask"]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(batch["input_ids"], attention_mask=mask, position_ids=positions).logits[:, -2]
        each = nn.functional.cross_entropy(logits.float(), batch["input_ids"][:, -1], reduction="none")
        right = (logits.argmax(-1) == batch["input_ids"][:, -1]).sum()
        loud = batch["weight"].sum().detach()
        return Loss((each * batch["weight"]).sum(), {"accuracy/rows": right, "loud/rows": loud})

    def curriculum(self, t: int) -> dict[str, float]:
        return {"stage": float(sum(r <= t for r in self.method.reset_at))}

    def resets_optimizer(self, t: int, previous: dict[str, float]) -> bool:
        assert t == 0 or previous["loud/rows"] > 0
        return t in self.method.reset_at

    def evaluate(self, lm: Any, split: str, t: int, *, limit: int | None, generate: bool) -> dict[str, float]:
        assert not lm.model.training
        right = 0
        for row in self.rows[:limit]:
            logits = lm.model(input_ids=torch.tensor([row], device=lm.device)).logits
            right += int(logits[0, -2].argmax() == row[-1])
        torch.rand(3)  # a careless method: training must not notice
        return {"accuracy": right / len(self.rows[:limit])}

    def scores(self, metrics: dict[str, float], t: int) -> dict[str, float]:
        return {"best": metrics["accuracy"]}

    def strategy(self, t: int) -> Any:
        return ChainOfThought()
