"""`unspoken lens-eval DIR`: how well a tuned lens and the logit lens predict, on text that it has not seen."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from unspoken.cli._arguments import Part, first_stage, option, second_stage
from unspoken.cli._options import ModelOptions, load_model
from unspoken.errors import ConfigError

if TYPE_CHECKING:
    from unspoken.analysis.lens_scores import LensScores
    from unspoken.lm.model import CausalLM
    from unspoken.training._texts import Packed

DESCRIPTION = (
    "Measure a tuned lens and the logit lens on held-out text: cross-entropy, entropy and KL of each layer in bits per "
    "byte, as a table and as aggregate_metrics.json."
)
TRANSFER_ROWS = 1  # evaluated together: there are as many readings as pairs of layers


@dataclass(frozen=True, kw_only=True)
class LensEvalOptions(ModelOptions):
    """Options of `lens-eval`."""

    lens: str = option(positional="DIR")
    """Folder of a tuned lens."""
    texts: str | None = None
    """File of texts: JSONL, JSON or CSV with text (or question and answer), or plain text."""
    samples: int = 0
    """Use so many texts that the model writes itself instead."""
    sample_tokens: int = 256
    """Most tokens of each of these."""
    row_tokens: int = 256
    """Tokens of a row."""
    rows: int | None = 32
    """Most rows, from the first."""
    positions: int = 32
    """Positions of each row, evenly spread; 0 is all."""
    transfer: bool = False
    """Also read the states of each layer with the translator of each other one (slow: layers squared)."""
    memory: int = 256
    """MiB that logits may take."""
    seed: int = 0
    """Of the samples."""
    output: str | None = option(None, flag="-o")
    """Folder for aggregate_metrics.json (default: results/lens-eval)."""

    def __post_init__(self) -> None:
        problems = []
        try:
            super().__post_init__()
        except ConfigError as error:
            problems += error.problems
        least = {"row_tokens": 2, "positions": 0, "memory": 1, "samples": 0, "sample_tokens": 2, "rows": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                problems.append(f"{name} must be at least {smallest}, not {value}.")
        if (self.texts is None) == (self.samples == 0):
            problems.append("Give the text either as a file with --texts or as --samples of the model.")
        if problems:
            raise ConfigError(problems)


def lens_eval_command(words: list[str]) -> int:
    """Run `unspoken lens-eval`."""
    line = first_stage("lens-eval", words)
    (options,) = second_stage(line, [Part(LensEvalOptions)], DESCRIPTION)
    import torch

    from unspoken.analysis.lens_scores import score, spread_positions, transfer
    from unspoken.analysis.tuned_lens import TunedLens

    lm = load_model(options)
    translators = TunedLens.load(options.lens, lm).translators
    pack = _text(lm, options)
    rows = pack.rows[: options.rows]
    at = torch.tensor(spread_positions(rows.shape[1], options.positions))

    def batches(together: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(part, at.expand(len(part), -1)) for part in torch.split(rows, together)]

    memory = options.memory * 2**20
    lenses = {"logit": None, "tuned": translators}
    scores = score(lm, lenses, batches(8), pack.nats_to_bpb, memory=memory)
    if options.transfer:
        scores.transfer.extend(transfer(lm, translators, batches(TRANSFER_ROWS), memory=memory))
    _show(scores, lm.source)
    sys.stdout.write(f"{scores.save(options.output or 'results/lens-eval')}\n")
    return 0


def _text(lm: CausalLM, options: LensEvalOptions) -> Packed:
    from unspoken.training._texts import chain_text, encode, pack, read_texts, sample

    if options.texts is not None:
        documents = encode(lm, [chain_text(row) for row in read_texts(options.texts)])
    else:
        documents = sample(lm, options.samples, options.sample_tokens, seed=options.seed)
    return pack(lm, documents, options.row_tokens)


def _show(scores: LensScores, model: str) -> None:
    """One line for each layer, the last at the bottom."""
    table = Table(title=Text(f"{model}, {scores.positions} positions, bits per byte"), box=None)
    table.add_column("block", justify="right")
    for lens in scores.lenses:
        for name in ("kl", "ce", "entropy"):
            table.add_column(f"{lens} {name}", justify="right")
    for row, layer in enumerate(scores.layers):
        cells = [
            f"{scores.bits(lens, name)[row]:.3f}"
            for lens in scores.lenses
            for name in ("kl", "ce", "entropy")
        ]
        table.add_row("in" if layer < 0 else str(layer), *cells)
    console = Console(highlight=False)
    console.print(table)
    below = scores.below()
    console.print(
        f"The tuned lens is nearer to the model at {len(below)} of {len(scores.layers) - 1} layers."
    )
    if scores.transfer:
        size = len(scores.transfer)
        own = sum(min(range(size), key=lambda i: scores.transfer[i][j]) == j for j in range(size))
        console.print(
            f"Layer transfer: the layer's own translator is the best one at {own} of {size} layers."
        )
