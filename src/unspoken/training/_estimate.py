"""What a training run needs, worked out before it starts: steps, tokens, memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from unspoken.lm.anatomy import text_config
from unspoken.lm.sources import read_config, read_tokenizer, resolve
from unspoken.tasks._chains import Chain
from unspoken.training._base import Data, Method
from unspoken.training._options import TINY, Options
from unspoken.training._rows import single_id
from unspoken.training._setup import build

# Numbers of one token that a block keeps for the backward pass, in units of the model's width: inputs of the two
# norms, queries, keys, values, attention's output, and the wide hidden layer before and after its non-linearity.
_KEPT_IN_BLOCK = 16
_SAMPLED = 2000  # rows that are tokenised to learn their lengths


@dataclass(frozen=True)
class Estimate:
    """A run in numbers. Memory is in bytes and rough; activations are those of the longest rows.

    Attributes:
        rows: Training rows.
        mean_tokens: Of a row at its longest: whole, or as much as the method ever keeps, with its fillers.
        longest: Tokens of the longest such row.
        micro_batches_per_epoch: Of `batch_size` rows.
        micro_batches: Of the whole run.
        steps: Optimizer steps of the whole run.
        rows_per_step: Rows behind one optimizer step.
        tokens: Tokens read in the whole run, if the curriculum never removes more than at first.
        parameters: Of the model.
        trainable: Of these (or of the adapters), trained ones.
        weights: Memory of the parameters.
        gradients: Memory.
        optimizer: Memory of AdamW's two means.
        activations: Memory of one micro-batch.
    """

    rows: int
    mean_tokens: float
    longest: int
    micro_batches_per_epoch: int
    micro_batches: int
    steps: int
    rows_per_step: int
    tokens: int
    parameters: int
    trainable: int
    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All memory together."""
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate(
    model: PreTrainedModel,
    options: Options,
    *,
    rows: int,
    mean_tokens: float,
    longest: int,
    new_tokens: int = 0,
    processes: int = 1,
) -> Estimate:
    """Batch arithmetic and memory of one process.

    Args:
        model: Its shapes count; it may be on the meta device.
        options: Of the run.
        rows: Training rows, before `max_size`.
        mean_tokens: Of a row.
        longest: Tokens of the longest row.
        new_tokens: Tokens that the run adds to the vocabulary.
        processes: That share a micro-batch.
    """
    rows = rows if options.max_size == -1 else min(rows, options.max_size)
    per_epoch = math.ceil(rows / options.batch_size)
    total = options.micro_batches(rows)
    config = text_config(model)
    layers, width = int(config.num_hidden_layers), int(config.hidden_size)
    parameters = sum(p.numel() for p in model.parameters())
    trainable = parameters
    if options.lora_r:
        linear = [p for name, p in model.named_parameters() if p.dim() == 2 and _in_block(name)]
        # Beside the adapters, the embeddings of new tokens are trained whole.
        trainable = sum(options.lora_r * sum(p.shape) for p in linear) + new_tokens * width
    size = 2 if options.precision == "pure_bf16" else 4
    computed = 4 if options.precision == "fp32" else 2
    share = math.ceil(options.batch_size / processes)
    per_token = 2 * layers * width if options.gradient_checkpointing else _KEPT_IN_BLOCK * layers * width
    # Logits, their softmax and its gradient are kept in fp32 for supervised tokens: at most all.
    activations = share * longest * (per_token * computed + 3 * 4 * int(config.vocab_size))
    return Estimate(
        rows=rows,
        mean_tokens=mean_tokens,
        longest=longest,
        micro_batches_per_epoch=per_epoch,
        micro_batches=total,
        steps=options.optimizer_steps(rows),
        rows_per_step=options.batch_size * options.accumulate,
        tokens=round(total * min(options.batch_size, rows) * mean_tokens),
        parameters=parameters,
        trainable=trainable,
        weights=parameters * size,
        gradients=trainable * size,
        optimizer=2 * trainable * size,
        activations=activations,
    )


def _in_block(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))


def estimate_run(model: str | Path, method: Method, chains: Sequence[Chain], options: Options) -> Estimate:
    """`estimate` for a model by its name, whose weights are not read, and rows, of which some are tokenised.

    Raises:
        ConfigError, ModelError: If there is no such model.
    """
    sample = chains[:: max(1, len(chains) // _SAMPLED)]
    shape: PreTrainedModel
    if model in TINY:
        lm = build(model, method, Data(sample), options)
        shape, tokenizer = lm.model, lm.tokenizer
    else:
        source = resolve(model)
        config = read_config(source, trust_remote_code=False)
        tokenizer = read_tokenizer(source, trust_remote_code=False)
        with torch.device("meta"):
            shape = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    eos = tokenizer.eos_token
    texts = [f" {row.question} {eos} {row.cot} {eos} #### {row.answer} {eos}" for row in sample]
    whole = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    bare = [len(ids) for ids in tokenizer([f" {row.cot}" for row in sample])["input_ids"]]
    lengths = [method.longest_row(row, chain) for row, chain in zip(whole, bare, strict=True)]
    words = method.extra_words(Data(sample))
    return estimate(
        shape,
        options,
        rows=len(chains),
        mean_tokens=sum(lengths) / len(lengths),
        longest=max(lengths),
        new_tokens=sum(single_id(tokenizer, word) is None for word in dict.fromkeys(words)),
    )
