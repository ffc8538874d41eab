"""Teach a model to do without its chain of thought, by removing it step by step or replacing it with fillers."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from unspoken.errors import ConfigError
from unspoken.lm.checkpoint import set_question_template
from unspoken.training._base import Data, Method
from unspoken.training._edit import Knobs
from unspoken.training._internalize_presets import PRESETS as PRESETS
from unspoken.training._internalize_presets import defaults
from unspoken.training._resize import add_words, grow_positions
from unspoken.training._rows import Rows, Template, single_id
from unspoken.training._schedule import Schedule

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM
    from unspoken.training._internalization import InternalizationWork
    from unspoken.training._options import Options

Preset = Literal["no_cot", "explicit_cot", "icot_si", "filler_replace", "filler_fixed", "seed_switch"]


@dataclass(frozen=True)
class Internalize(Method):
    """Stepwise internalisation of the chain of thought (arXiv 2405.14838), with fillers in its place if wanted.

    The model is trained on `Q SEP1 C SEP2 A EOS` while tokens of C are removed on a schedule until none is left:
    with `s` the scheduled count and `o` a random offset, row i loses `min(s + o, |C_i|)` tokens. Fillers (arXiv
    2310.02226, 2404.15758) may take the place of what was removed. A field that is not given is set by the preset.
    """

    aliases: ClassVar[dict[str, str]] = {
        "remove_from_n_tokens": "remove_start_from",
        "switch_from_n_steps": "remove_from_n_steps",
        "switch_token_ratio": "fill_ratio",
    }

    preset: Preset | None = None
    """Settings that go together: a baseline (no_cot, explicit_cot), stepwise internalisation (icot_si), fillers in
    place of what was removed (filler_replace), a fixed number of them from the start (filler_fixed), or random
    switching to pause tokens along a ramp (seed_switch). What is given besides goes before the preset."""

    schedule: Literal["count", "accuracy_gated", "fraction", "joint", "switch"] | None = None
    """How removal grows: by count (default), by count whenever the model is accurate, by a share of each row along a
    ramp, by a random share of each row from the start, or by a ramp of the probability that a token goes."""
    unit: Literal["token", "step"] | None = None
    """What is counted: tokens (default) or whole steps of the chain."""
    step_delimiters: tuple[str, ...] = ("+", ")", ">>")
    """Texts that end a step, for unit step."""
    remove_per_epoch: float | None = None
    """Units removed an epoch (default 8); 0 removes none."""
    remove_every_n_step: int | None = None
    """Micro-batches for each unit removed, instead of remove_per_epoch; 0 (default) uses that."""
    remove_start_from: float | None = None
    """Units removed from the start (default 0); inf removes all."""
    remove_all_when_remove_beyond: float | None = None
    """Remove all as soon as the count would reach this (default inf: never)."""
    pretrain_epochs: float | None = None
    """Epochs before removal begins (default 0); inf never removes."""
    remove_from_n_steps: int | None = None
    """Micro-batches before removal begins, after pretrain_epochs (default 0)."""
    removal_smoothing_lambda: float | None = None
    """L of the random offset o, of probability ~ exp(-L o), that rows lose besides (default inf: none)."""
    removal_side: Literal["left", "right"] | None = None
    """Remove from the beginning of the chain (left, default) or from its end."""
    keep_position: bool = False
    """Leave a hole in the position ids where tokens were removed."""
    reset_optimizer: bool | None = None
    """Forget the optimizer's state whenever a unit more is removed (default false; presets leave it false for
    schedules that do not count)."""
    gate_accuracy: float = 0.98
    """Token accuracy over the last 20 micro-batches, of rows without a random offset, at which accuracy_gated removes
    the next unit."""
    gate_max_steps: int = 0
    """Micro-batches after which accuracy_gated removes the next unit anyhow; 0 waits."""
    joint_beta: float = 1.0
    """Shares of schedule joint are Beta(b, b) distributed; 1 is uniform, and with 0.01 nearly every row loses all or
    nothing."""
    switch_from_n_rate: float | None = None
    """Share removed at the beginning of a ramp (default 0)."""
    ramp_end: float | None = None
    """The part of the run at which a ramp has removed all (default 0.8; seed_switch 1)."""
    remove_tokens: bool = False
    """Remove by count (which is the default): the flag of the command lines that also know switch_tokens."""
    switch_tokens: bool = False
    """The same as preset seed_switch."""
    switch_mode: Literal["random", "sequential"] | None = None
    """Of seed_switch: any tokens (random, default) or the first ones."""

    mode: Literal["drop", "replace", "ratio", "fixed", "capped"] | None = None
    """Fillers for r removed tokens: none (drop, default), r, ceil(fill_ratio * r), always n_fillers, or min(r,
    n_fillers)."""
    fill_pattern: Literal["prefix", "random"] | None = None
    """Remove a block at the side (prefix, default), or each token by chance with the same expected count."""
    fill_kind: Literal["single", "distinct", "text"] | None = None
    """One new token again and again (single, default), <fill_0>, <fill_1> and so on, or the token fill_text."""
    fill_text: str | None = None
    """The filler of kind text (default " .")."""
    fill_target: Literal["ignore", "fill", "cot"] | None = None
    """What is to be predicted at fillers: nothing (ignore, default), the filler, or the token that was there."""
    fill_loss_weight: float = 1.0
    """Weight of the loss at fillers, for the targets fill and cot."""
    fill_loss_anneal: bool = False
    """Let that weight fall to 0 in the course of the run."""
    fill_ratio: float | None = None
    """Fillers per removed token of mode ratio (default 1)."""
    n_fillers: int | None = None
    """Fillers of the modes fixed and capped (filler_fixed: 8)."""
    init_fill: Literal["mean_emb", "eos", "random"] = "mean_emb"
    """How embeddings of new tokens begin: at the mean of all, at that of the end token, or at random."""
    force_sep2: bool | None = None
    """When nothing is left of the chain, read the separator before the answer instead of decoding it (default true)."""
    infer_num_fillers: int | None = None
    """Fillers to decode with after training with replace or ratio on chains of different lengths."""
    sample_fillers: bool | None = None
    """Let the model write its fillers one by one when decoding (default false; seed_switch true)."""

    remove_separator: bool = False
    """Remove the separator before the answer and `####` with the last token of the chain (with removal_side right, with
    the first that goes): the answer then stands where the first token of the chain stood, and the model need not move
    what it has learnt to compute there."""

    sep_mode: Literal["eos", "distinct", "custom"] | None = None
    """Separators: the end token (eos, default), new tokens <sep1> and <sep2> (distinct), or sep1 and sep2 (custom)."""
    sep1: str | None = None
    """Separator between question and chain, for sep_mode custom."""
    sep2: str | None = None
    """Separator between chain and answer, for sep_mode custom."""

    max_len_train: int = -1
    """Leave out rows that are longer than this after removal; they come back when they are short enough. -1: none."""
    max_len_action: Literal["drop_row", "drop_batch"] = "drop_row"
    """Leave out the row that is too long, or its whole micro-batch."""
    truncation: int = -1
    """Leave out rows of more tokens than this before removal, and give the model that many positions if it has fewer;
    -1: no limit but the model's."""
    length_buckets: bool = True
    """Put rows of like length together where lengths differ."""

    def __post_init__(self) -> None:
        # The one place where presets act: what is not given is set here, so that what is recorded is complete.
        if self.switch_tokens and self.preset is None:
            object.__setattr__(self, "preset", "seed_switch")
        chosen = defaults(vars(self))
        if self.sep_mode == "custom":
            chosen |= {"sep1": "", "sep2": ""}
        for f in fields(self):
            if getattr(self, f.name) is None and f.name in chosen:
                object.__setattr__(self, f.name, chosen[f.name])
        super().__post_init__()

    def problems(self) -> list[str]:
        from unspoken.training._internalize_checks import problems

        return problems(self)

    # What the fields mean for the parts

    def fill_word(self, i: int = 0) -> str:
        """The i-th filler token."""
        if self.fill_kind == "text":
            return str(self.fill_text)
        return f"<fill_{i if self.fill_kind == 'distinct' else 0}>"

    def template(self, eos: str) -> Template:
        """How rows are written, for a model with this end token."""
        if self.sep_mode == "eos":
            return Template(eos, eos, eos)
        if self.sep_mode == "custom":
            return Template(str(self.sep1), str(self.sep2), eos)
        # The switching method writes an end token after the question, too.
        before = eos if self.preset == "seed_switch" else ""
        return Template(self.sep1 or "<sep1>", self.sep2 or "<sep2>", eos, before)

    def removal(self, epoch_steps: int, total_steps: int) -> Schedule:
        """The schedule of a run of so many micro-batches."""
        f: Any = self
        return Schedule(
            f.schedule,
            epoch_steps,
            total_steps,
            per_epoch=f.remove_per_epoch,
            every=f.remove_every_n_step,
            start=f.remove_start_from,
            all_beyond=f.remove_all_when_remove_beyond,
            smoothing=f.removal_smoothing_lambda,
            begin=math.ceil(f.pretrain_epochs * epoch_steps) + f.remove_from_n_steps
            if math.isfinite(f.pretrain_epochs)
            else math.inf,
            share_from=f.switch_from_n_rate,
            ramp_end=f.ramp_end,
            beta=f.joint_beta,
        )

    def knobs(self, fill_ids: tuple[int, ...], pad_id: int) -> Knobs:
        """The edit of a run."""
        f: Any = self
        return Knobs(
            side=f.removal_side,
            mode=f.mode,
            pattern=f.fill_pattern,
            target=f.fill_target,
            ratio=f.fill_ratio,
            n_fillers=f.n_fillers,
            fill_ids=fill_ids,
            keep_position=f.keep_position,
            pad_id=pad_id,
        )

    # The method

    def arithmetic(self, epoch_steps: int, total_steps: int) -> dict[str, str]:
        law = self.removal(epoch_steps, total_steps)
        if self.schedule != "count":
            begin = "never" if math.isinf(law.begin) else f"from micro-batch {law.begin:,.0f}"
            return {"removal": f"schedule {self.schedule}, {begin}"}
        last = law.capped(law.planned(total_steps - 1))
        each = law.steps_per_unit
        pace = f"one {self.unit} every {each:,.0f} micro-batches" if each else f"{law.per_epoch:g} an epoch"
        if math.isinf(each) or total_steps <= law.begin:
            pace = "no more"
        reached = "all" if math.isinf(last) else f"{last:,.0f}"
        return {"removal": f"{law.start:g} at first, then {pace}; {reached} at the end of the run"}

    def longest_row(self, row: int, chain: int) -> int:
        fillers: Any = self.n_fillers
        if self.schedule == "count" and math.isinf(float(self.remove_start_from or 0)):
            ratio = {"drop": 0.0, "replace": 1.0}.get(str(self.mode), float(self.fill_ratio or 0))
            in_place = {"fixed": fillers, "capped": min(chain, fillers)}
            row += in_place.get(str(self.mode), math.ceil(ratio * chain)) - chain
        elif self.mode == "fixed":  # there before anything is removed
            row += fillers
        return row + bool(self.template("end").before)

    def extra_words(self, data: Data) -> list[str]:
        words = []
        if self.sep_mode != "eos":
            template = self.template("")
            words += [template.sep1, template.sep2]
        if self.mode != "drop" and self.fill_kind == "text":
            words.append(str(self.fill_text).strip())
        return words

    def prepare(self, lm: CausalLM, data: Data, options: Options) -> InternalizationWork:
        from unspoken.training._internalization import InternalizationWork

        eos = lm.tokenizer.eos_token
        if not isinstance(eos, str):
            raise ConfigError("The model's tokenizer has no end token, which every row needs.")
        template = self.template(eos)
        words = [template.sep1, template.sep2]
        if self.mode != "drop" and self.fill_kind == "text":
            words.append(self.fill_word())
        missing = [w for w in words if single_id(lm.tokenizer, w) is None]
        add_words(lm, [w.strip() for w in missing], self.init_fill, options.seed)
        splits = {}
        for name, chains in (("train", data.train), ("valid", data.valid), ("test", data.test)):
            splits[name] = Rows.build(
                chains,
                lm.tokens,
                template,
                longest=self.truncation if self.truncation > 0 else None,
                delimiters=self.step_delimiters if self.unit == "step" else (),
                with_separator=self.remove_separator,
            )
        knobs = self.knobs(self._fill_ids(lm, list(splits.values()), options.seed), _pad(lm))
        self._fit_positions(lm, list(splits.values()), knobs)
        set_question_template(lm.tokenizer, template.before + template.sep1)
        return InternalizationWork(self, lm, data, options, splits, template, knobs)

    def _fill_ids(self, lm: CausalLM, splits: list[Rows], seed: int) -> tuple[int, ...]:
        if self.mode == "drop":
            return ()
        if self.fill_kind == "text":
            found = single_id(lm.tokenizer, self.fill_word())
            assert found is not None
            return (found,)
        count = 1
        if self.fill_kind == "distinct":
            longest = max(int(rows.source.c.max()) for rows in splits if len(rows))
            longest = max(longest, self.infer_num_fillers or 1)
            count = int(self.n_fillers or 0) if self.mode in ("fixed", "capped") else longest
        return tuple(add_words(lm, [self.fill_word(i) for i in range(count)], self.init_fill, seed))

    def _fit_positions(self, lm: CausalLM, splits: list[Rows], knobs: Knobs) -> None:
        """Refuse rows longer than the model's positions, or give it more where `truncation` allows.

        Raises:
            ConfigError: If rows do not fit.
        """
        needed = 0
        for rows in splits:  # the first are those to train on
            if len(rows):
                source = rows.source
                starts_empty = self.schedule == "count" and math.isinf(float(self.remove_start_from or 0))
                r = source.c if starts_empty else source.c * 0
                length = source.n if knobs.keep_position else source.n - r + knobs.fillers(r)
                if self.max_len_train > 0 and not knobs.keep_position and rows is splits[0]:
                    length = length[length <= self.max_len_train]
                needed = max([needed, *length.max().reshape(-1).tolist()]) if len(length) else needed
        limit = lm.max_positions
        if limit is None or needed <= limit:
            return
        if self.truncation < needed:
            raise ConfigError(
                f"The longest row has {needed} tokens, but the model has {limit} positions.",
                f"Give --truncation {needed} to enlarge the table of positions, or --truncation {limit} to leave "
                "such rows out.",
            )
        grow_positions(lm, self.truncation)


def _pad(lm: CausalLM) -> int:
    pad = lm.tokenizer.pad_token_id
    return int(pad if pad is not None else lm.tokenizer.eos_token_id)
