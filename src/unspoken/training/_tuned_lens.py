"""A tuned lens at work: rows, loss, evaluation on held-out text, and its folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unspoken.analysis._lens_metrics import rows_for
from unspoken.analysis._lens_states import batch_states, check_last, read_states
from unspoken.analysis._translators import Translators
from unspoken.analysis.lens_scores import LensScores, score, spread_positions
from unspoken.analysis.tuned_lens import read_tensors, save_lens
from unspoken.errors import ConfigError
from unspoken.training._base import Batch, Data, Loss, Work
from unspoken.training._lens_loss import lens_loss
from unspoken.training._texts import Document, Packed, chain_text, encode, pack, sample
from unspoken.training._weights import Saved, Weights

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM
    from unspoken.tasks._chains import Chain
    from unspoken.training._loop import Loop
    from unspoken.training._options import Options
    from unspoken.training.tuned_lens import TuneLens

MOMENTUM = 0.9
EVALUATED_TOGETHER = 8  # rows


class LensModule(nn.Module):
    """What is trained: the translators. The model that they read is beside them and no part of them.

    So wrappers, optimizers and checkpoints see the translators only, and the model's own parameters stay as they are;
    it moves from device to device with them.
    """

    def __init__(self, lm: CausalLM, translators: Translators) -> None:
        super().__init__()
        self.translators = translators
        self.lm = lm  # no module, so not registered
        self.config = lm.model.config

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.lm.model._apply(fn)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


class LensWeights(Weights):
    """Saves and reads lens folders instead of models."""

    def __init__(self, lm: CausalLM, work: LensWork) -> None:
        super().__init__(lm)
        self.lm, self.work = lm, work
        self.model = LensModule(lm, work.translators)  # type: ignore[assignment]
        self._view = lm

    @property
    def may_shard(self) -> bool:
        return False

    def save(
        self, loop: Loop, folder: Path, strategy: Any, provenance: dict[str, Any], *, write: bool
    ) -> None:
        if not write:
            return
        save_lens(self.lm, self.work.translators, folder, provenance=provenance)
        if self.work.scores_now is not None:
            self.work.scores_now.save(folder)

    def read(self, folder: Path) -> Saved:
        trainer = folder / "trainer"
        progress = json.loads((trainer / "progress.json").read_text(encoding="utf-8"))
        optimizer = torch.load(trainer / "optimizer.pt", map_location="cpu", weights_only=True)
        return Saved(folder, read_tensors(folder), progress, optimizer)

    def load(self, saved: Saved) -> None:
        self.work.translators.load_state_dict(saved.weights)


class LensWork(Work):
    """See `TuneLens`.

    Attributes:
        translators: What is trained.
        scores_now: The last evaluation of held-out text; None before any.
    """

    def __init__(self, method: TuneLens, lm: CausalLM, data: Data, options: Options) -> None:
        self.method, self.lm = method, lm
        self.packs = self._packs(data, options)
        self.n_rows = len(self.packs["train"])
        self.splits = tuple(name for name in ("valid", "test") if name in self.packs)
        self.translators = Translators(
            len(lm.anatomy.blocks),
            lm.hidden_size,
            rank=method.rank,
            bias_only=method.bias_only,
            seed=options.seed,
        )
        self.scores_now: LensScores | None = None
        self._logit: dict[tuple[str, int | None], LensScores] = {}
        train = self.packs["train"]
        self.notes = [
            f"{len(train)} rows of {train.rows.shape[1]} tokens, {len(self.packs['valid'])} held out; "
            f"{sum(p.numel() for p in self.translators.parameters()) / 1e6:.2f} M parameters in "
            f"{len(self.translators)} translators."
        ]
        if method.optimizer == "sgd":
            self.optimizer = (torch.optim.SGD, {"lr": options.lr, "momentum": MOMENTUM, "nesterov": True})
        with torch.no_grad():  # the head must read the last state as the model does
            check_last(lm, read_states(lm, lm.embed(train.rows[0].to(lm.device))))

    def weights(self, lm: CausalLM) -> LensWeights:
        return LensWeights(lm, self)

    def batch(self, t: int, rows: Tensor, generator: torch.Generator) -> Batch:
        ids = self.packs["train"].rows[rows]
        # The last position has no token after it; its KL would be as good as any other's.
        usable = ids.shape[1] - (1 if self.method.loss == "ce" else 0)
        wanted = self.method.positions
        if not wanted or wanted >= usable:
            at = torch.arange(usable).expand(len(ids), -1)
        else:
            at = torch.rand(len(ids), usable, generator=generator).topk(wanted).indices.sort().values
        return {"input_ids": ids, "at": at}

    def items(self, batch: Batch) -> Tensor:
        return torch.tensor(batch["at"].numel())

    def loss(self, model: nn.Module, batch: Batch, *, detailed: bool) -> Loss:
        ids, at = batch["input_ids"], batch["at"]
        hidden = batch_states(self.lm, ids, at)
        targets = ids.gather(1, at + 1).flatten() if self.method.loss == "ce" else None
        rows = rows_for(self.method.memory * 2**20, self.lm.vocab_size)
        total, by_layer = lens_loss(self.translators, hidden, self._unembed, rows=rows, targets=targets)
        mean = by_layer.sum() / len(by_layer)
        return Loss(
            total,
            {"layer_mean/items": mean, "first_layer/items": by_layer[0], "last_layer/items": by_layer[-1]},
        )

    def evaluate(
        self, lm: CausalLM, split: str, t: int, *, limit: int | None, generate: bool
    ) -> dict[str, float]:
        pack = self.packs[split]
        memory = self.method.memory * 2**20
        batches = list(self._batches(pack, limit))
        tuned = score(lm, {"tuned": self.translators}, batches, pack.nats_to_bpb, memory=memory)
        if (split, limit) not in self._logit:  # it does not change
            self._logit[split, limit] = score(lm, {"logit": None}, batches, pack.nats_to_bpb, memory=memory)
        logit = self._logit[split, limit]
        both = LensScores(
            tuned.layers,
            {**logit.lenses, **tuned.lenses},
            tuned.positions,
            tuned.nats_to_bpb,
            {**logit.standard_error, **tuned.standard_error},
        )
        self.scores_now = both
        layers = len(self.translators)
        return {
            "kl": sum(both.lenses["tuned"]["kl"][:-1]) / layers,
            "logit_kl": sum(both.lenses["logit"]["kl"][:-1]) / layers,
            "layers": float(layers),
            "layers_below_logit": float(len(both.below())),
            "baseline_bits_per_byte": both.bits("tuned", "ce")[-1],
            "positions": float(both.positions),
        }

    def strategy(self, t: int) -> None:
        return None

    # Parts

    def _unembed(self, hidden: Tensor) -> Tensor:
        return self.lm.unembed(self.lm.anatomy.norm(hidden))

    def _batches(self, pack: Packed, limit: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        at = torch.tensor(spread_positions(pack.rows.shape[1], self.method.eval_positions))
        for rows in torch.split(pack.rows[:limit], EVALUATED_TOGETHER):
            yield rows, at.expand(len(rows), -1)

    def _packs(self, data: Data, options: Options) -> dict[str, Packed]:
        documents = {name: self._documents(getattr(data, name)) for name in ("train", "valid", "test")}
        if self.method.samples:
            method = self.method
            documents["train"] = sample(
                self.lm,
                method.samples,
                method.sample_tokens,
                seed=options.seed,
                prompt=method.sample_prompt,
                batch_size=options.batch_size,
            )
        if not documents["valid"]:
            documents["train"], documents["valid"] = self._hold_out(documents["train"])
        packed = {n: pack(self.lm, found, self.method.row_tokens) for n, found in documents.items() if found}
        return packed

    def _documents(self, rows: Sequence[Chain]) -> list[Document]:
        return encode(self.lm, [chain_text(row) for row in rows])

    def _hold_out(self, documents: list[Document]) -> tuple[list[Document], list[Document]]:
        """The last documents, or the end of the only one."""
        share = self.method.held_out
        if len(documents) > 1:
            count = max(1, round(share * len(documents)))
            if count < len(documents):
                return documents[:-count], documents[-count:]
        (only,) = documents[:1] or [Document((), 0)]
        at = len(only.ids) - max(2, round(share * len(only.ids)))
        if at < 2:
            raise ConfigError("There is too little text to hold some of it out.", "Give more texts.")
        size = round(only.size * at / len(only.ids))
        return [Document(only.ids[:at], size)], [Document(only.ids[at:], only.size - size)]
