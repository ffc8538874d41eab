"""How well lenses predict: cross-entropy, entropy and KL of each layer on held-out text, in bits per byte."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unspoken.analysis._lens_metrics import Ask, Kept, measure, rows_for
from unspoken.analysis._lens_states import batch_states
from unspoken.errors import ConfigError

if TYPE_CHECKING:
    from unspoken.analysis._translators import Translators
    from unspoken.lm.model import CausalLM

FILE = "aggregate_metrics.json"
MEASURES = ("ce", "entropy", "kl")
_MEMORY = 256 * 2**20


@dataclass(frozen=True)
class LensScores:
    """Means over positions, in nats a token; `bits` gives them in bits a byte.

    Attributes:
        layers: [L] numbers of the blocks; -1 is what the first block reads. The last one is the model itself.
        lenses: For each lens `ce` (to the next token), `entropy` and `kl` (of the final law to the layer's), each [L].
        positions: How many positions the means are of.
        nats_to_bpb: Factor from nats a token to bits a byte: tokens / bytes / ln 2.
        standard_error: For each lens that of `kl`, [L], in nats.
        transfer: [L - 1][L - 1] KL in nats of translator i on the states of layer j, if asked for.
    """

    layers: list[int]
    lenses: dict[str, dict[str, list[float]]]
    positions: int
    nats_to_bpb: float
    standard_error: dict[str, list[float]] = field(default_factory=dict)
    transfer: list[list[float]] = field(default_factory=list)

    def bits(self, lens: str, name: str) -> list[float]:
        """[L] one measure of one lens in bits per byte."""
        return [value * self.nats_to_bpb for value in self.lenses[lens][name]]

    def to_dict(self) -> dict[str, Any]:
        """What `aggregate_metrics.json` holds: bits per byte by lens, measure and layer, and the baseline."""
        first = next(iter(self.lenses))
        names = ["input" if layer < 0 else f"layer_{layer}" for layer in self.layers]
        return {
            "unit": "bits per byte",
            "nats_to_bpb": self.nats_to_bpb,
            "positions": self.positions,
            "baseline": {name: self.bits(first, name)[-1] for name in ("ce", "entropy")},
            **{
                lens: {name: dict(zip(names, self.bits(lens, name), strict=True)) for name in MEASURES}
                for lens in self.lenses
            },
            "kl_standard_error": {
                lens: dict(zip(names, (v * self.nats_to_bpb for v in values), strict=True))
                for lens, values in self.standard_error.items()
            },
            **({"layer_transfer_kl": self._transfer_bits()} if self.transfer else {}),
        }

    def _transfer_bits(self) -> list[list[float]]:
        return [[value * self.nats_to_bpb for value in row] for row in self.transfer]

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `aggregate_metrics.json` into a folder and give its path."""
        from unspoken.analysis.lens_grid import write_aside

        path = Path(folder) / FILE
        write_aside(path, (json.dumps(self.to_dict(), indent=1) + "\n").encode())
        return path

    def below(self, lens: str = "tuned", other: str = "logit") -> list[int]:
        """Layers, but the last, at which the KL of one lens is below that of another."""
        pairs = zip(self.layers[:-1], self.lenses[lens]["kl"], self.lenses[other]["kl"], strict=False)
        return [layer for layer, mine, theirs in pairs if mine < theirs]


def score(
    lm: CausalLM,
    lenses: Mapping[str, Translators | None],
    batches: Iterable[tuple[Tensor, Tensor]],
    nats_to_bpb: float,
    *,
    memory: int = _MEMORY,
) -> LensScores:
    """Measure lenses on rows of text, all on the same positions, in float32.

    Args:
        lm: The model.
        lenses: Translators by name; None is the logit lens.
        batches: Rows [n, T] without padding and positions [n, P] in them, of which none is the last.
        nats_to_bpb: Of the text.
        memory: Bytes that logits may take.

    Raises:
        ConfigError: If there is no row.
    """
    layers = len(lm.anatomy.blocks) + 1
    sums: dict[str, dict[str, Tensor]] = {
        name: {m: torch.zeros(layers, dtype=torch.float64) for m in (*MEASURES, "squares")} for name in lenses
    }
    count = 0
    with torch.no_grad(), torch.autocast(lm.device.type, enabled=False):
        for ids, at in batches:
            hidden = batch_states(lm, ids.to(lm.device), at.to(lm.device))
            gold = ids.gather(1, at.cpu() + 1).flatten().to(hidden.device)
            count += len(gold)
            for name, translators in lenses.items():
                values = _values(lm, hidden, translators, ("kl", "entropy", "gold"), gold, memory)
                kl = values["kl"].double().cpu()
                found = {
                    "ce": -values["gold_logprob"],
                    "entropy": values["entropy"],
                    "kl": kl,
                    "squares": kl * kl,
                }
                for measure_name, value in found.items():
                    sums[name][measure_name] += value.double().cpu().sum(-1)
    if not count:
        raise ConfigError("There is no text to evaluate a lens on.")
    means = {name: {m: s / count for m, s in of.items()} for name, of in sums.items()}
    errors = {
        name: ((of["squares"] - of["kl"] ** 2).clamp(min=0) / count).sqrt().tolist()
        for name, of in means.items()
    }
    return LensScores(
        list(range(-1, layers - 1)),
        {name: {m: of[m].tolist() for m in MEASURES} for name, of in means.items()},
        count,
        nats_to_bpb,
        errors,
    )


def transfer(
    lm: CausalLM, translators: Translators, batches: Iterable[tuple[Tensor, Tensor]], *, memory: int = _MEMORY
) -> list[list[float]]:
    """[D][D] mean KL in nats of translator i on the states that translator j was trained for.

    Its diagonal should be the lowest of each column. D^2 times the cost of one layer.

    Args:
        lm: The model.
        translators: Of the lens.
        batches: As in `score`.
        memory: Bytes that logits may take.
    """
    size = len(translators)
    sums, count = torch.zeros(size, size, dtype=torch.float64), 0
    with torch.no_grad(), torch.autocast(lm.device.type, enabled=False):
        for ids, at in batches:
            hidden = batch_states(lm, ids.to(lm.device), at.to(lm.device))
            count += hidden.shape[1]
            none = torch.full((hidden.shape[1],), -1, device=hidden.device)
            for i in range(size):
                values = _values(lm, hidden, translators, ("kl",), none, memory, always=i)
                sums[i] += values["kl"][:-1].double().cpu().sum(-1)
    table: list[list[float]] = (sums / max(count, 1)).tolist()
    return table


def _values(
    lm: CausalLM,
    hidden: Tensor,
    translators: Translators | None,
    metrics: tuple[str, ...],
    gold: Tensor,
    memory: int,
    always: int | None = None,
) -> dict[str, Tensor]:
    """Arrays [L, m] of one lens; `always` names the translator that reads every layer."""

    def transform(state: Tensor, layer: int) -> Tensor:
        if translators is None:
            return state
        translated: Tensor = translators[layer + 1 if always is None else always](state)
        return translated.to(state.dtype)

    ask = Ask(metrics, 0, gold, gold.new_zeros(0), lm.vocab_size, rows_for(memory, lm.vocab_size))
    numbers = measure(
        hidden,
        hidden,
        ask,
        transform=transform,
        norm=lm.anatomy.norm,
        unembed=lm.unembed,
        weight=lm.anatomy.plain_weight(),
        kept=Kept(),
    )
    return numbers.values


def spread_positions(length: int, wanted: int) -> list[int]:
    """Positions of a row that are measured, evenly spread; none is the last, which has no next token.

    Args:
        length: T.
        wanted: How many; 0 is all.
    """
    usable = length - 1
    wanted = usable if not wanted else min(wanted, usable)
    return sorted({int((i + 0.5) * usable / wanted) for i in range(wanted)})
