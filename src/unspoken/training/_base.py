"""The seam between a training method and the trainer that runs it.

The trainer owns what every method needs: the optimizer, accumulation, precision, processes, checkpoints,
resumption, evaluation times and logs. A method brings batches, a loss and a curriculum. All three are pure
functions of the number `t` of the micro-batch (0-based, counted over the whole run), so that a resumed run,
and each of several processes, agrees with an uninterrupted single one without telling it anything.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from unspoken.config import Configured
from unspoken.tasks._chains import Chain

if TYPE_CHECKING:
    from unspoken.decoding._base import Strategy
    from unspoken.lm.model import CausalLM
    from unspoken.training._options import Options
    from unspoken.training._weights import Weights

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Data:
    """The rows of a run, by split, and where they come from.

    Attributes:
        train: Rows to train on.
        valid: Rows to evaluate on while training.
        test: Rows for the end; may be empty.
        manifest: Source, arguments, seeds, counts and SHA-256 of each split, as recorded beside checkpoints.
    """

    train: Sequence[Chain]
    valid: Sequence[Chain] = ()
    test: Sequence[Chain] = ()
    manifest: dict[str, Any] = field(default_factory=dict)


@dataclass
class Loss:
    """What a method's loss returns for one micro-batch.

    Attributes:
        total: Scalar: the sum of the losses of its items (not their mean), with gradient.
        metrics: Scalars for the log, summed over the micro-batch too, without gradient. A name that ends in
            `/items` or `/rows` is logged as the mean over items or rows; any other as a plain sum.
    """

    total: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Work(ABC):
    """A method at work on one model and its data. Made by `Method.prepare`, used by the trainer.

    Attributes:
        n_rows: Training rows.
        notes: What was odd about the data, each as one sentence, for the log.
        left_out: How many rows of each split could not be used, by reason.
        splits: Of `valid` and `test` those that can be evaluated; None for those that the data have rows of.
        optimizer: Class of the optimizer and its arguments, instead of AdamW with those of the options.
    """

    n_rows: int
    notes: Sequence[str] = ()
    left_out: Mapping[str, Mapping[str, int]] = {}  # noqa: RUF012 - never changed in place
    splits: Sequence[str] | None = None
    optimizer: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None

    def weights(self, lm: CausalLM) -> Weights | None:
        """What is trained and saved, where that is not the model; None for the model."""
        return None

    def plan(self, epoch: int, micro_batch: int, seed: int) -> list[Tensor]:
        """Row numbers of each micro-batch of an epoch, over all processes together.

        A pure function of its arguments; always `ceil(n_rows / micro_batch)` batches.

        Args:
            epoch: 0-based.
            micro_batch: Rows of one micro-batch (all processes together).
            seed: Of the run.
        """
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        return list(torch.split(torch.randperm(self.n_rows, generator=generator), micro_batch))

    @abstractmethod
    def batch(self, t: int, rows: Tensor, generator: torch.Generator) -> Batch:
        """The tensors of micro-batch `t`.

        Every process makes the whole micro-batch, with `generator` seeded by the run's seed and t, so that the
        draws do not depend on how many processes there are. The trainer then cuts each process's share of the
        rows out of every tensor.

        Args:
            t: Number of the micro-batch in the run.
            rows: [n] row numbers.
            generator: For whatever is random in it.

        Returns:
            Tensors with first dimension n, on the CPU. Where it has an `attention_mask`, its sum is logged as
            the tokens read; else the size of `input_ids`.
        """

    @abstractmethod
    def items(self, batch: Batch) -> Tensor:
        """Scalar: how many items (supervised tokens, say) the loss of a batch sums over."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, *, detailed: bool) -> Loss:
        """The loss of a batch that is on the model's device.

        Args:
            model: The Hugging Face model itself, in train mode (adapters are in place); it may be called or
                reached into, since wrappers for several processes are around this call.
            batch: What `batch` made.
            detailed: Whether the step is logged; costly metrics are wanted only then.
        """

    def curriculum(self, t: int) -> dict[str, float]:
        """What the curriculum says at micro-batch `t`, for the log."""
        return {}

    def resets_optimizer(self, t: int, previous: dict[str, float]) -> bool:
        """Whether the optimizer's state is discarded before micro-batch `t`.

        Args:
            t: Number of the micro-batch.
            previous: Metrics of the last micro-batch with items that `sticky` names; empty at t = 0.
        """
        return False

    @property
    def may_reset(self) -> bool:
        """Whether `resets_optimizer` may ever be true: then processes agree on gradients at every micro-batch."""
        return type(self).resets_optimizer is not Work.resets_optimizer

    sticky: tuple[str, ...] = ()
    """Metrics of each micro-batch that `resets_optimizer` wants back, summed over processes (and divided where
    the name ends in `/items` or `/rows`); they are saved with checkpoints. They must be returned by `loss` also
    where it is not `detailed`."""

    def state(self) -> dict[str, Any]:
        """What the work remembers beside t, JSON-ready, for checkpoints; most methods remember nothing.

        A method with a state takes note of it in `resets_optimizer`, which is called once before each
        micro-batch, in order.
        """
        return {}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027 - most have none
        """Take up what `state` gave, when a run is resumed."""

    @abstractmethod
    def evaluate(
        self, lm: CausalLM, split: str, t: int, *, limit: int | None, generate: bool
    ) -> dict[str, float]:
        """Evaluate on a split as the curriculum stands at `t`; must not touch any global random state.

        Args:
            lm: The model, in eval mode.
            split: `valid` or `test`.
            t: Micro-batches done.
            limit: Most rows; None is all.
            generate: Also decode (slow), not just teacher forcing.
        """

    def scores(self, metrics: dict[str, float], t: int) -> dict[str, float]:
        """What checkpoints are kept for, from an evaluation's metrics: folder name to score, higher is better.

        `{"best": 0.9}` saves the model as `best/` in the output folder if no earlier score of that name was higher.
        A name with a slash, such as `best_by_removed/8`, is that of a stage: saved only with `save_stages`.
        """
        return {}

    @abstractmethod
    def strategy(self, t: int) -> Strategy | None:
        """How a model saved after `t` micro-batches is best decoded; checkpoints remember it."""


@dataclass(frozen=True)
class Method(Configured):
    """A training method. A frozen dataclass in a file of its own; the file name is its name.

    The fields are the Python arguments, the command's flags and the recorded configuration. Each field's
    docstring (the string under it) becomes its help text.

    Attributes:
        trains_model: Whether what it trains and leaves is the model.
        option_defaults: Defaults of `Options` where the method has others.
    """

    trains_model: ClassVar[bool] = True
    option_defaults: ClassVar[dict[str, Any]] = {}

    @property
    def brings_rows(self) -> bool:
        """Whether the rows are its own (`own_data`), so that the run is given none."""
        return False

    def own_data(self) -> Data:
        """The rows of a method that brings them; it may also make them in `prepare`."""
        return Data([])

    def arithmetic(self, epoch_steps: int, total_steps: int) -> dict[str, str]:
        """What the curriculum does in a run, for `unspoken doctor train`: names and texts.

        Args:
            epoch_steps: Micro-batches of an epoch.
            total_steps: Micro-batches of the run.
        """
        return {}

    def longest_row(self, row: int, chain: int) -> int:
        """Most tokens of a row at any time of a run, to tell beforehand what a run needs.

        Args:
            row: Tokens of the whole row.
            chain: Of these, tokens of its chain of thought.
        """
        return row

    @abstractmethod
    def extra_words(self, data: Data) -> list[str]:
        """Tokens that the method needs beside those of the data, such as `<sep1>` or fillers."""

    @abstractmethod
    def prepare(self, lm: CausalLM, data: Data, options: Options) -> Work:
        """Bind the method to a model and data: add tokens, tokenise the rows.

        Raises:
            ConfigError: If the method does not fit the model or the data; all problems at once.
        """
