"""Stepwise internalisation as one would write it first: the baseline of `training.py`, no part of the product.

Written from the description of the method (arXiv 2405.14838), the short way: rows are Python lists made one
line at a time, separators are searched and tokens cut row by row, logits and accuracy are computed over all
positions, and evaluation is `model.generate`.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import StoppingCriteria, StoppingCriteriaList

IGNORE = -100
ALL = 10**9
"""A scheduled removal larger than any chain of thought."""


class Rows(Dataset[tuple[list[int], list[int]]]):
    """Lines `question||cot #### answer` as lists of ids and labels."""

    def __init__(self, lines: Sequence[str], tokenizer: Any) -> None:
        eos = tokenizer.eos_token
        self.rows: list[tuple[list[int], list[int]]] = []
        for line in lines:
            question, rest = line.strip().split("||")
            cot, answer = (part.strip() for part in rest.split("####"))
            text = f" {question.strip()} {eos} {cot} {eos} #### {answer.replace(',', '')} {eos}"
            ids = tokenizer(text)["input_ids"]
            first = ids.index(tokenizer.eos_token_id)
            self.rows.append((ids, [IGNORE] * (first + 1) + ids[first + 1 :]))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[list[int], list[int]]:
        return copy.deepcopy(self.rows[index])


def collate(rows: list[tuple[list[int], list[int]]], pad: int) -> tuple[Tensor, Tensor]:
    """Pad ids by `pad` and labels by -100, on the right."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [IGNORE] * (width - len(labels)) for _, labels in rows])
    return ids, labels


def separators(ids: Tensor, eos: int, which: int) -> Tensor:
    """The position of each row's `which`-th (from 0) separator."""
    found = []
    for row in ids:
        found.append(row.eq(eos).nonzero(as_tuple=True)[0][which].item())
    return torch.tensor(found, device=ids.device)


def offset(smoothing: float) -> int:
    """A draw from P(k) = (1 - e^-L) e^(-kL), cut at 99."""
    if math.isinf(smoothing):
        return 0
    return min(int(random.expovariate(smoothing)), 99)


def edit(ids: Tensor, labels: Tensor, removal: Sequence[int], eos: int) -> tuple[Tensor, Tensor, bool]:
    """Cut the earliest `removal[i]` tokens of the chain of thought out of each row i.

    Returns:
        Ids and labels, padded to the new width, and whether no row has any chain of thought left.
    """
    first, second, third = (separators(ids, eos, which) for which in range(3))
    rows, empty = [], True
    for i in range(len(ids)):
        start, stop, end = int(first[i]) + 1, int(second[i]), int(third[i]) + 1
        resume = min(start + removal[i], stop)
        empty = empty and resume == stop
        kept_ids = torch.cat([ids[i, :start], ids[i, resume:end]])
        kept_labels = torch.cat([labels[i, :start], labels[i, resume:end]])
        rows.append((kept_ids, kept_labels))
    width = max(len(kept) for kept, _ in rows)
    new_ids = torch.full((len(rows), width), eos, device=ids.device)
    new_labels = torch.full((len(rows), width), IGNORE, device=ids.device)
    for i, (kept_ids, kept_labels) in enumerate(rows):
        new_ids[i, : len(kept_ids)] = kept_ids
        new_labels[i, : len(kept_labels)] = kept_labels
    return new_ids, new_labels, empty


def loss_and_accuracy(model: nn.Module, ids: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Mean cross-entropy and accuracy over the labelled tokens, from the logits of all positions."""
    logits = model(input_ids=ids).logits
    shifted, targets = logits[:, :-1, :].contiguous(), labels[:, 1:].contiguous()
    loss = nn.functional.cross_entropy(shifted.view(-1, shifted.size(-1)), targets.view(-1))
    mask = targets.ne(IGNORE)
    correct = shifted.argmax(-1).eq(targets).logical_and(mask).sum()
    return loss, (correct / mask.sum()).item()


def training(
    model: nn.Module,
    rows: Rows,
    eos: int,
    *,
    batch_size: int,
    remove: int = 0,
    steps_per_token: int | None = None,
    smoothing: float = 4.0,
    lr: float = 5e-5,
    bf16: bool = False,
) -> Iterator[float]:
    """Train without end, one step for each loss that is asked for.

    Args:
        model: In train mode.
        rows: The training rows.
        eos: Id of the separator, end and padding token.
        batch_size: Rows a step.
        remove: Tokens removed from the start.
        steps_per_token: One more token is removed each time as many steps have gone by; None never.
        smoothing: Lambda of the random extra removal.
        lr: Constant learning rate.
        bf16: Whether to run under autocast.
    """
    loader = DataLoader(
        rows, batch_size=batch_size, shuffle=True, collate_fn=lambda batch: collate(batch, eos), num_workers=0
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    step, scheduled, empty = 0, remove, False
    device = next(model.parameters()).device
    while True:
        for ids, labels in loader:
            due = remove + (step // steps_per_token if steps_per_token else 0)
            if due > scheduled and not empty:
                optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
            scheduled = due
            removal = [scheduled + offset(smoothing) for _ in range(len(ids))]
            ids, labels, empty = edit(ids.to(device), labels.to(device), removal, eos)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                loss, _ = loss_and_accuracy(model, ids, labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            yield loss.item()


class _AllEnded(StoppingCriteria):
    """A row has ended at its second end token after the prompt; decoding ends when all rows have."""

    def __init__(self, start: int, eos: int) -> None:
        self.start, self.eos = start, eos

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        ended = torch.tensor([int(row[self.start :].eq(self.eos).sum()) >= 2 for row in input_ids])
        return torch.full_like(ended, bool(ended.all()))


@torch.no_grad()
def evaluate(
    model: Any, lines: Sequence[str], tokenizer: Any, *, remove: int, batch_size: int, max_new_tokens: int
) -> dict[str, float]:
    """Loss and token accuracy of the edited rows, and exact match by `generate` over left-padded static batches."""
    eos = tokenizer.eos_token_id
    rows, right, device = Rows(lines, tokenizer), 0, model.device
    nll, correct, total = 0.0, 0.0, 0
    for first in range(0, len(lines), batch_size):
        batch = lines[first : first + batch_size]
        ids, labels = collate([rows[first + i] for i in range(len(batch))], eos)
        ids, labels, _ = edit(ids.to(device), labels.to(device), [remove] * len(batch), eos)
        loss, accuracy = loss_and_accuracy(model, ids, labels)
        number = int(labels[:, 1:].ne(IGNORE).sum())
        nll, correct, total = nll + loss.item() * number, correct + accuracy * number, total + number

        questions = [line.split("||")[0].strip() for line in batch]
        prompts = [tokenizer(f" {question} {tokenizer.eos_token}")["input_ids"] for question in questions]
        width = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[eos] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        produced = model.generate(
            ids.to(device),
            attention_mask=mask.to(device),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=None,
            pad_token_id=eos,
            stopping_criteria=StoppingCriteriaList([_AllEnded(width, eos)]),
        )
        for line, row in zip(batch, produced[:, width:].tolist(), strict=True):
            ends = [i for i, token in enumerate(row) if token == eos][:2]
            text = tokenizer.decode(row[: ends[1]] if len(ends) == 2 else row, skip_special_tokens=True)
            answer = text.split("####")[-1].strip()
            right += answer == line.split("####")[1].replace(",", "").strip()
    return {"loss": nll / total, "token_accuracy": correct / total, "exact_match": right / len(lines)}
