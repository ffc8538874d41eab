"""How well a model does on rows whose chains of thought are partly removed: from one forward, and decoded."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unspoken.tasks._chains import answer_in, normal
from unspoken.training._edit import IGNORE, Edited
from unspoken.training._schedule import Stage
from unspoken.training._scored import forward_inputs, scored_logits, summed_nll

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM
    from unspoken.training._internalization import InternalizationWork
    from unspoken.training._rows import Rows

_EVAL_LOGITS = 2**25  # numbers in the logits of one batch, at most
_EVAL_ROWS = 128
_MOST_PLACES = 64  # answer positions reported one by one
_EXTRA_TOKENS = 8  # beyond the longest target, when decoding


@torch.no_grad()
def teacher_forced(
    work: InternalizationWork, lm: CausalLM, rows: Rows, n: int, stage: Stage
) -> dict[str, float]:
    """One forward over each row: what the model says of each token after the right ones.

    Args:
        work: The method at work.
        lm: The model, in eval mode.
        rows: The rows of a split.
        n: How many of them, from the first.
        stage: What is removed.

    Returns:
        Mean loss, perplexity, token accuracy, tokens removed, rows, accuracy at each place of the answer (its own
        tokens from 0, without those that are only spaces), and `exact_match` where greedy decoding would give the
        same; elsewhere its lower bound, as `teacher_forced_exact`.
    """
    order = rows.source.n[:n].argsort(descending=True, stable=True)
    sums = torch.zeros(4, dtype=torch.float64)  # targets, right ones, their nll, removed tokens
    places = torch.zeros(2, _MOST_PLACES, dtype=torch.float64)
    right_rows, exact, forced = 0, True, work.forces_separator(stage)
    while len(order):
        widest = work.edited(stage, rows, order[:1], None).ids.shape[1]
        size = min(max(1, _EVAL_LOGITS // (widest * lm.vocab_size)), _EVAL_ROWS)
        which, order = order[:size], order[size:]
        edited = work.edited(stage, rows, which, None)
        batch = {name: tensor.to(lm.device) for name, tensor in work.inputs(edited).items()}
        logits = scored_logits(lm.model, batch["index"], **forward_inputs(batch))
        nll = summed_nll(logits, batch["targets"])
        right = (logits.argmax(-1) == batch["targets"]).cpu()
        index, targets = batch["index"].cpu(), batch["targets"].cpu()
        scored = targets != IGNORE
        sums += torch.tensor([scored.sum(), right.sum(), nll, edited.removed.sum()], dtype=torch.float64)
        source = rows.source.select(which)
        # Tokens of the answer with its marker, and the end token; SEP2 stands before them.
        tail = source.n - source.q - source.c - (0 if work.method.remove_separator else 1)
        place = index + 1 - (edited.lengths - tail)[:, None]
        answer = scored & (place >= 0)
        # Places of the answer itself: without the marker before it and the end token after it, and without tokens
        # that are nothing but the spaces between words, which some tokenizers have.
        place = place - (0 if work.method.remove_separator else work.marker)
        last = tail - 1 - (0 if work.method.remove_separator else work.marker)
        inner = answer & (place >= 0) & (place < last[:, None]) & ~_blank(lm, targets)
        place = inner.cumsum(1) - 1
        inner &= place < _MOST_PLACES
        for row, chosen in enumerate((inner, inner & right)):
            places[row] += torch.bincount(place[chosen], minlength=_MOST_PLACES)
        # What decoding is given need not be right: fillers, and SEP2 where it is forced.
        needed = torch.where(edited.emptied[:, None], answer, scored) if forced else scored
        if not work.method.sample_fillers:
            at = (index + 1).clamp(max=edited.filler.shape[1] - 1)
            needed = needed & ~edited.filler.gather(1, at)
        right_rows += int((right | ~needed).all(1).sum())
        exact = exact and _reproduces(work, edited)
    metrics = {
        "loss": float(sums[2] / sums[0]),
        "ppl": math.exp(min(float(sums[2] / sums[0]), 700.0)),
        "token_accuracy": float(sums[1] / sums[0]),
        "removed": float(sums[3] / n),
        "rows": float(n),
        "exact_match" if exact else "teacher_forced_exact": right_rows / n,
    }
    return metrics | {
        f"answer_accuracy/{k}": float(places[1, k] / places[0, k])
        for k in range(_MOST_PLACES)
        if places[0, k]
    }


def _blank(lm: CausalLM, targets: Tensor) -> Tensor:
    """[n, P] bool: which ids are nothing but white space."""
    found = [i for i in targets.unique().tolist() if i >= 0 and not lm.tokens.token_text(i).strip()]  # type: ignore[no-untyped-call]
    return torch.isin(targets, torch.tensor(found, dtype=targets.dtype))


def _reproduces(work: InternalizationWork, edited: Edited) -> bool:
    """Whether greedy decoding would write exactly the rows whose every target is the likeliest token.

    It does where nothing is left of the chain, and the rows have as many fillers as decoding would read.
    """
    if not bool(edited.emptied.all()):
        return False
    if work.method.sample_fillers or work.method.mode == "drop":
        return not work.method.keep_position or len(edited.removed.unique()) == 1  # type: ignore[no-untyped-call]
    fillers = edited.filler.sum(1)
    return bool((fillers == work.inference_fillers(Stage("count", math.inf))[0]).all())


def decoded(
    work: InternalizationWork, lm: CausalLM, split: str, n: int, t: int, stage: Stage
) -> dict[str, float]:
    """Greedy decoding, compared with the answers as text."""
    rows, chains = work.split_rows[split], work.chains[split]
    edited = work.edited(stage, rows, torch.arange(n), None)
    longest = int((edited.lengths - rows.source.q[:n]).max()) + _EXTRA_TOKENS
    results = lm.generate(
        [rows.prompt(i) for i in range(n)],
        work.strategy(t),
        max_new_tokens=longest,
        batch_size=64,
        trace="none",
    )
    assert isinstance(results, list)
    wanted = [normal(chains[int(i)].answer) for i in rows.kept[:n]]
    said = [answer_in(result.text) for result in results]
    return {
        "exact_match": sum(a == b for a, b in zip(said, wanted, strict=True)) / n,
        "numeric_match": sum(_same_number(a, b) for a, b in zip(said, wanted, strict=True)) / n,
        "decoded_tokens": sum(len(result.steps) for result in results) / n,
    }


def _same_number(a: str, b: str) -> bool:
    try:
        return float(a) == float(b)
    except ValueError:
        return a == b
