"""From what the user names to what is trained: rows, model, adapters."""

from __future__ import annotations

import hashlib
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from unspoken.discovery import TASKS
from unspoken.errors import ConfigError, DataError, require
from unspoken.lm.model import CausalLM, load
from unspoken.training._base import Data, Method
from unspoken.training._options import Options

if TYPE_CHECKING:
    from unspoken.tasks._chains import ChainTask

TINY = ("tiny", "tiny-llama")


def gather_data(task: ChainTask | str | None, data: Data | None, options: Options) -> Data:
    """The rows of a run.

    Raises:
        ConfigError: If neither or both are given, or the task has no chains of thought.
        DataError: If there is nothing to train on.
    """
    if (task is None) == (data is None):
        raise ConfigError("Give the rows either as task= or as data=.")
    if data is None:
        task = TASKS.find(task)() if isinstance(task, str) else task
        if not hasattr(task, "chains"):
            raise ConfigError(
                f"The task {getattr(task, 'name', task)!r} has no chains of thought to train on.",
                "Run: unspoken list tasks",
            )
        assert task is not None and not isinstance(task, str)
        data = Data(task.chains("train"), task.chains("valid"), task.chains("test"), task.manifest())
    if options.max_size != -1:
        data = replace(data, train=data.train[: options.max_size])
    if not data.train:
        raise DataError("There are no rows to train on.")
    return data


def digest(data: Data) -> str:
    """16 hex digits that change with any row."""
    sha = hashlib.sha256()
    for rows in (data.train, data.valid, data.test):
        for row in rows:
            sha.update(f"{row.question}\x1f{row.cot}\x1f{row.answer}\x1e".encode())
        sha.update(b"\x1d")
    return sha.hexdigest()[:16]


def build(model: str | Path | CausalLM, method: Method, data: Data, options: Options) -> CausalLM:
    """The model to train, in the dtype of its master weights, on the CPU or where it was given.

    Raises:
        ConfigError, ModelError: If there is no such model.
    """
    if isinstance(model, CausalLM):
        lm = model
    elif model in TINY:
        lm = _tiny(model, method, data, options)
    else:
        lm = load(model, dtype="float32", device="cpu")
    if options.reinitialize_weights:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            automatic: Any = AutoModelForCausalLM
            fresh: PreTrainedModel = automatic.from_config(lm.model.config, dtype=torch.float32)
        lm = CausalLM(fresh, lm.tokenizer, source=lm.source)
    lm.model.to(torch.bfloat16 if options.precision == "pure_bf16" else torch.float32)
    return lm


def _tiny(kind: Any, method: Method, data: Data, options: Options) -> CausalLM:
    from unspoken.lm.compact import compact_tokenizer
    from unspoken.lm.tiny import tiny_model

    rows = [*data.train, *data.valid, *data.test]
    tokenizer = compact_tokenizer(
        (f"{row.question} {row.cot} #### {row.answer}" for row in rows), method.extra_words(data)
    )
    longest = max(rows, key=lambda row: len(row.question) + len(row.cot) + len(row.answer))
    length = len(tokenizer(f"{longest.question} {longest.cot} #### {longest.answer}")["input_ids"])
    model = tiny_model(
        kind,
        tokenizer,
        layers=options.layers,
        width=options.width,
        heads=options.heads,
        # Room for fillers, and for rows whose tokens are shorter than those of the longest text.
        max_positions=64 * math.ceil((2 * length + 32) / 64),
        seed=options.seed,
    )
    return CausalLM(model, tokenizer, source=kind)


def add_adapters(lm: CausalLM, old_size: int, options: Options) -> Any:
    """Put LoRA adapters into the model, in place; the embeddings of new tokens are trained whole.

    Args:
        lm: The model, with new tokens in place.
        old_size: Tokens before the method added its own; later ones are new.
        options: With `lora_r` and what belongs to it.

    Returns:
        The model of peft around it, which knows how to save and merge the adapters.
    """
    peft = require("peft", "train", "lora_r")
    new = list(range(old_size, len(lm.tokenizer)))
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=list(options.lora_target) or "all-linear",
        trainable_token_indices=new or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in lm.model.modules()),  # as in GPT-2
    )
    try:
        with warnings.catch_warnings():
            # peft asks for an attribute that transformers is about to rename.
            warnings.simplefilter("ignore", FutureWarning)
            return peft.get_peft_model(lm.model, config)
    except ValueError as error:
        raise ConfigError(
            f"No adapters fit this model: {error}", "Name its linear layers: lora_target."
        ) from error
