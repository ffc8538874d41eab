"""`internalize` at work: batches, loss, curriculum, evaluation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unspoken.decoding.filler import Filler
from unspoken.errors import ConfigError
from unspoken.tasks._chains import MARKER
from unspoken.training._base import Batch, Data, Loss, Work
from unspoken.training._edit import IGNORE, Edited, Knobs, edit, supervised
from unspoken.training._internalization_scores import decoded, teacher_forced
from unspoken.training._rows import Rows, Template
from unspoken.training._schedule import Gate, Stage
from unspoken.training._scored import forward_inputs, scored_logits, summed_nll

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM
    from unspoken.training._options import Options
    from unspoken.training.internalize import Internalize

_POOL = 64  # micro-batches whose rows are sorted together


class InternalizationWork(Work):
    """The method bound to a model and data.

    Args:
        method: Its settings.
        lm: The model, which has all words and positions by now.
        data: The rows as text.
        options: Of the run.
        splits: The rows as tokens.
        template: How they are written.
        knobs: What the edit does.

    Attributes:
        notes: What was odd about the data, each as one sentence.
        left_out: How many rows of each split could not be used, by reason.
    """

    def __init__(
        self,
        method: Internalize,
        lm: CausalLM,
        data: Data,
        options: Options,
        splits: dict[str, Rows],
        template: Template,
        knobs: Knobs,
    ) -> None:
        self.method, self.split_rows, self.template, self.knobs = method, splits, template, knobs
        self.rows = splits["train"]
        self.n_rows = len(self.rows)
        self.chains = {"train": data.train, "valid": data.valid, "test": data.test}
        self.epoch_steps = max(1, math.ceil(self.n_rows / options.batch_size))
        self.total_steps = options.micro_batches(self.n_rows)
        self.schedule = method.removal(self.epoch_steps, self.total_steps)
        gated = method.schedule == "accuracy_gated"
        self.gate = (
            Gate(method.gate_accuracy, method.gate_max_steps, self.schedule.begin, 2 * options.accumulate)
            if gated
            else None
        )
        self.sticky = ("correct", "scored") if gated else ()
        self.marker = len(lm.tokenizer(f" {MARKER}", add_special_tokens=False)["input_ids"])
        # Whether something was left of any chain in the last micro-batches made, by number: every process makes
        # all of a micro-batch, so nothing need be asked of the device or of other processes.
        self._left: dict[int, bool] = {}
        words = template.word_ids(lm.tokenizer)
        own_sep2 = template.sep2 != template.eos
        self._sep2_name = str(lm.tokenizer.convert_ids_to_tokens(words[template.sep2])) if own_sep2 else ""
        self.left_out = {name: rows.dropped for name, rows in splits.items() if rows.dropped}
        self.notes = [
            f"{count} rows of {name} were left out, {why}."
            for name, reasons in self.left_out.items()
            for why, count in reasons.items()
        ]
        self._check_counts()
        self.notes += self._odd_schedule()

    def _odd_schedule(self) -> list[str]:
        """What is likely a mistake, though it may be meant, each as one sentence."""
        found = []
        begin = self.schedule.begin
        if math.isfinite(begin) and begin >= self.total_steps:
            found.append(
                f"Nothing is removed in this run: removal begins at micro-batch {begin:,.0f} (pretrain_epochs, "
                f"remove_from_n_steps) of {self.total_steps:,}."
            )
        steps, c = self.rows.steps, self.rows.source.c
        if steps is not None and len(c) and int(steps.count.max()) == 1 and int(c.max()) > 1:
            found.append(
                f"Every chain is a single step: none of the step_delimiters {self.method.step_delimiters} occurs."
            )
        return found

    def _check_counts(self) -> None:
        """Refuse a number of fillers that could not be known when decoding, and a limit that no row ever meets."""
        m, c = self.method, self.rows.source.c
        if (
            m.max_len_train > 0
            and len(c)
            and (shortest := int((self.rows.source.n - c).min())) > m.max_len_train
        ):
            raise ConfigError(
                f"max_len_train {m.max_len_train} leaves no row: without its chain the shortest has {shortest} tokens."
            )
        if m.mode not in ("replace", "ratio") or m.sample_fillers or not len(c):
            return
        if m.infer_num_fillers is None and int(c.min()) != int(c.max()):
            raise ConfigError(
                f"mode {m.mode} gives each row as many fillers as its chain is long, here {int(c.min())} to "
                f"{int(c.max())}, which is unknown when decoding.",
                "Use --mode fixed or --mode capped with --n-fillers N, or say how many to decode with: "
                "--infer-num-fillers N.",
            )

    # Order of the rows

    def plan(self, epoch: int, micro_batch: int, seed: int) -> list[Tensor]:
        source = self.rows.source
        if not self.method.length_buckets or int(source.n.min()) == int(source.n.max()):
            return super().plan(epoch, micro_batch, seed)
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        order = torch.randperm(self.n_rows, generator=generator)
        everyone = torch.arange(self.n_rows)
        lengths = source.n - self._removals(self.stage(epoch * self.epoch_steps), self.rows, everyone, None)
        pools = order.split(_POOL * micro_batch)  # type: ignore[no-untyped-call]
        order = torch.cat([pool[lengths[pool].argsort(stable=True)] for pool in pools])
        batches = list(order.split(micro_batch))  # type: ignore[no-untyped-call]
        whole = self.n_rows // micro_batch  # a short one stays at the end
        shuffled = [batches[i] for i in torch.randperm(whole, generator=generator).tolist()]
        return shuffled + batches[whole:]

    # Curriculum

    def stage(self, t: int) -> Stage:
        """What is removed at micro-batch t."""
        return self.schedule.stage(t, self.gate.raised(t) if self.gate else 0)

    def curriculum(self, t: int) -> dict[str, float]:
        stage = self.stage(t)
        if stage.kind in ("count", "accuracy_gated"):
            most = float(self._units(self.rows, torch.arange(self.n_rows)).max())
            return {"scheduled_removal": min(stage.count, most), "all_removed": float(stage.count >= most)}
        return {"scheduled_share": stage.share, "all_removed": float(stage.share >= 1)}

    @property
    def may_reset(self) -> bool:
        return bool(self.method.reset_optimizer)

    def resets_optimizer(self, t: int, previous: dict[str, float]) -> bool:
        grows = self.schedule.grows(t)
        if self.gate is not None and previous:
            self.gate.observe(t - 1, previous["correct"], previous["scored"])
            grows = self.gate.raised(t) > self.gate.raised(t - 1) and math.isfinite(self.stage(t - 1).count)
        self._left = {at: left for at, left in self._left.items() if at >= t - 1}
        return bool(self.method.reset_optimizer and grows and self._left.get(t - 1, True))

    def state(self) -> dict[str, Any]:
        gate = {"gate": self.gate.state()} if self.gate else {}
        return {"left": [[t, left] for t, left in self._left.items()], **gate}

    def restore(self, state: dict[str, Any]) -> None:
        self._left = {int(t): bool(left) for t, left in state["left"]}
        if self.gate:
            self.gate.restore(state["gate"])

    def scores(self, metrics: dict[str, float], t: int) -> dict[str, float]:
        # Only evaluations of one stage compare with each other: `best` is of the run's last. When a gate opens is
        # not known before.
        last, now = self.stage(self.total_steps - 1), self.stage(max(t - 1, 0))
        score = metrics.get("teacher_forced_exact", metrics.get("exact_match", 0.0))
        found = {}
        if now.kind in ("count", "accuracy_gated"):
            found["best_by_removed/" + ("all" if self._emptied(now) else f"{now.count:g}")] = score
        alike = self.gate is None and (now.count, now.share) == (last.count, last.share)
        # The count goes on rising when nothing is left to remove.
        if alike or (self._emptied(now) and (self.gate is not None or self._emptied(last))):
            found["best"] = score
        return found

    # Batches

    def batch(self, t: int, rows: Tensor, generator: torch.Generator) -> Batch:
        edited = self.edited(self.stage(t), self.rows, rows, generator)
        self._left[t] = not bool(edited.emptied.all())
        skipped = self._too_long(edited.lengths)
        batch = self.inputs(edited, skipped)
        if self.method.fill_target != "ignore" and (
            self.method.fill_loss_weight != 1 or self.method.fill_loss_anneal
        ):
            weight = self.method.fill_loss_weight
            if self.method.fill_loss_anneal:
                weight *= 1 - t / self.total_steps
            at_filler = edited.filler.gather(1, (batch["index"] + 1).clamp(max=edited.ids.shape[1] - 1))
            batch["weights"] = torch.where(at_filler, weight, 1.0) * (batch["targets"] != IGNORE)
        if self.gate is not None:
            batch["judged"] = self._judged(self.stage(t), rows, edited)
        return batch | {"removed": edited.removed, "emptied": edited.emptied, "skipped": skipped}

    def _judged(self, stage: Stage, which: Tensor, edited: Edited) -> Tensor:
        """[n] bool: rows by which a gate judges, those without an offset.

        Where the others begin cannot be known, so a model that has learnt all there is to learn is wrong there.
        """
        if self.knobs.pattern == "random":
            return torch.ones_like(edited.emptied)
        return edited.removed <= self._removals(stage, self.rows, which, None)

    def items(self, batch: Batch) -> Tensor:
        if "weights" in batch:
            return batch["weights"].sum()
        return (batch["targets"] != IGNORE).sum()

    def loss(self, model: nn.Module, batch: Batch, *, detailed: bool) -> Loss:
        logits = scored_logits(model, batch["index"], **forward_inputs(batch))
        targets = batch["targets"]
        metrics: dict[str, Tensor] = {}
        if detailed:
            metrics = {
                "emptied/rows": batch["emptied"].sum(),
                "removed/rows": batch["removed"].sum(),
                "skipped": batch["skipped"].sum(),
            }
        if detailed or self.gate is not None:
            # The argument of the maximum is wanted only here: it reads all the logits once more.
            hits = logits.detach().argmax(-1) == targets
            correct = hits.sum()
            metrics["token_accuracy/items"] = (
                (hits * batch["weights"]).sum() if "weights" in batch else correct
            )
            if self.gate is not None:
                judged = batch["judged"][:, None]
                metrics |= {"correct": (hits & judged).sum(), "scored": ((targets != IGNORE) & judged).sum()}
        return Loss(summed_nll(logits, targets, batch.get("weights")), metrics)

    def _units(self, rows: Rows, which: Tensor) -> Tensor:
        if rows.steps is not None:
            return rows.steps.count[which]
        # An empty chain has its separators to lose.
        return (rows.source.c[which] - rows.tail).clamp(min=min(rows.tail, 1))

    def _removals(self, stage: Stage, rows: Rows, which: Tensor, generator: torch.Generator | None) -> Tensor:
        """[n] tokens that each row loses."""
        units = self._units(rows, which)
        removed = stage.removals(units, generator)
        if rows.steps is not None:
            side = str(self.method.removal_side)
            return rows.steps.tokens(which, removed, rows.source.c[which], side)
        # The separators go with the last token of the chain, or with the first where removal begins at its end: a
        # stage that leaves only them would teach the first place to write them, and forget what it computes.
        joins = removed >= units if self.method.removal_side == "left" else removed > 0
        return torch.minimum(removed + rows.tail * joins, rows.source.c[which])

    def edited(self, stage: Stage, rows: Rows, which: Tensor, generator: torch.Generator | None) -> Edited:
        """Some rows as they are at a stage; without a generator there are no random offsets."""
        source = rows.source.select(which)
        if self.knobs.pattern == "prefix":
            return edit(source, self._removals(stage, rows, which, generator), self.knobs)
        if stage.kind == "switch":
            share = torch.full(source.c.shape, stage.share, dtype=torch.float64)
        else:
            share = self._removals(stage, rows, which, generator) / source.c.clamp(min=1)
        generator = generator or torch.Generator().manual_seed(0)
        drawn = torch.rand(len(which), int(source.c.max()), generator=generator, dtype=torch.float64)
        return edit(source, source.c, self.knobs, drawn < share[:, None])

    def _too_long(self, lengths: Tensor) -> Tensor:
        """[n] bool: rows that are left out for their length."""
        limit = self.method.max_len_train
        over = lengths > limit if limit > 0 else torch.zeros_like(lengths, dtype=torch.bool)
        if self.method.max_len_action == "drop_batch":
            over = over.any().expand_as(over).clone()
        return over

    def inputs(self, edited: Edited, skipped: Tensor | None = None) -> Batch:
        """What the model reads and what it is to say; skipped rows are cut to the others' width, without targets."""
        width = edited.ids.shape[1]
        if skipped is not None and self.method.max_len_train > 0:
            width = max(1, int(edited.lengths.masked_fill(skipped, 0).max()))
            edited.labels.masked_fill_(skipped[:, None], IGNORE)
        index, targets = supervised(edited)
        if index.numel():
            width = min(
                width, int(index.max()) + 1
            )  # nobody reads what follows the last token, the end of a row
        batch = {"input_ids": edited.ids[:, :width], "index": index, "targets": targets}
        if edited.position_ids is not None:
            batch["position_ids"] = edited.position_ids[:, :width]
            # Without a mask, transformers takes a gap in the positions for the seam of two packed texts.
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        return batch

    # Decoding

    def strategy(self, t: int) -> Filler:
        m, stage = self.method, self.stage(max(t - 1, 0))
        n, gap = self.inference_fillers(stage)
        force, bare = self.forces_separator(stage), m.remove_separator and self._emptied(stage)
        return Filler(
            n_fillers=n,
            kind=m.fill_kind if n else "text",  # type: ignore[arg-type]
            token=m.fill_word() if n and m.fill_kind == "text" else " .",
            force_sep2=force,
            sep2="" if bare else self._sep2_name,
            separators=1 if force or bare or self._sep2_name else 2,
            position_gap=gap,
            emit=bool(m.sample_fillers),
        )

    def forces_separator(self, stage: Stage) -> bool:
        """Whether decoding is given the separator before the answer."""
        m = self.method
        return bool(m.force_sep2 and self._emptied(stage) and not m.sample_fillers and not m.remove_separator)

    def _emptied(self, stage: Stage) -> bool:
        if stage.kind in ("count", "accuracy_gated"):
            return bool(stage.count >= self._units(self.rows, torch.arange(self.n_rows)).max())
        return stage.share >= 1

    def inference_fillers(self, stage: Stage) -> tuple[int, int]:
        """Fillers to read, and positions to leave out; chains are taken to be as long as the median one."""
        m, c = self.method, self.rows.source.c
        typical = c.argsort()[len(c) // 2 : len(c) // 2 + 1]
        removed = self._removals(stage, self.rows, typical, None)
        if self.knobs.pattern == "random" and not self._emptied(stage):
            return 0, 0
        fillers = int(self.knobs.fillers(removed))
        gap = int(removed) - fillers if m.keep_position else 0
        if m.sample_fillers:
            return 0, gap
        if m.infer_num_fillers is not None and fillers:
            fillers = m.infer_num_fillers if self._emptied(stage) else min(fillers, m.infer_num_fillers)
        return fillers, gap

    def _decodable(self, stage: Stage) -> bool:
        """Whether rows of this stage can be written with all fillers read in advance."""
        if self._emptied(stage):
            return True
        if self.method.keep_position and self.method.removal_side == "right":
            return False  # the gap begins after what is left of the chain, whose length is unknown in advance
        if self.method.mode == "drop" or self.method.sample_fillers:
            return True
        return self.knobs.pattern == "prefix" and self.knobs.side == "left"

    # Evaluation

    def evaluate(
        self, lm: CausalLM, split: str, t: int, *, limit: int | None, generate: bool
    ) -> dict[str, float]:
        rows = self.split_rows[split]
        n = len(rows) if limit is None else min(limit, len(rows))
        if n == 0:
            return {}
        stage = self.stage(max(t - 1, 0))
        metrics = teacher_forced(self, lm, rows, n, stage)
        if left_out := len(self.chains[split]) - len(rows):
            metrics["left_out"] = float(left_out)  # rows that could not be tokenised, and are in no accuracy
        if generate and self._decodable(stage):
            metrics |= decoded(self, lm, split, n, t, stage)
        return metrics
