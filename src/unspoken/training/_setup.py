"""From what the user names to what is trained: rows, model, adapters."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainingArguments
from transformers.pytorch_utils import Conv1D

from unspoken import config as configs
from unspoken.discovery import METHODS, TASKS
from unspoken.errors import ConfigError, DataError, MissingExtraError, require, suggest
from unspoken.lm import zoo
from unspoken.lm.model import CausalLM, load
from unspoken.tasks._chains import SPLITS
from unspoken.training._base import Data, Method
from unspoken.training._options import FREE, TINY, Options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unspoken.tasks._chains import Chain, ChainTask

_READ = ("*.safetensors", "*.json", "*.model", "*.txt")
_NOTES = ("unspoken.json", "training.json")  # where a checkpoint comes from: nothing that is trained on


def configure(method: str | Method, options: Options | None, given: dict[str, Any]) -> tuple[Method, Options]:
    """The method and the options, from objects, a name, and loose fields."""
    shared = {f.name for f in fields(Options)} | set(Options.aliases)
    ours = {key: value for key, value in given.items() if key in shared}
    others = {key: value for key, value in given.items() if key not in shared}
    if ours and options is not None:
        raise ConfigError(f"Give {', '.join(ours)} in options= too, or leave options= out.")
    if isinstance(method, str):
        cls = METHODS.find(method)
        return cls(**others), options or _options(cls.option_defaults, ours)
    if others:
        raise ConfigError(
            f"Unknown arguments: {', '.join(others)}; fields of the method belong to the method."
        )
    return method, options or _options(method.option_defaults, ours)


def _options(defaults: dict[str, Any], given: dict[str, Any]) -> Options:
    meant = {Options.aliases.get(key, key) for key in given}
    return Options(**{key: value for key, value in defaults.items() if key not in meant}, **given)


def deepspeed_wanted(precision: str) -> bool:
    """Whether the launcher asks for DeepSpeed, by the variables that `accelerate launch` sets.

    Raises:
        MissingExtraError: If it does, and DeepSpeed is not installed.
        ConfigError: If it would cut up the weights or keep them in half precision.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() not in ("1", "t", "true", "y", "yes", "on"):
        return False
    if importlib.util.find_spec("deepspeed") is None:
        raise MissingExtraError(
            "ACCELERATE_USE_DEEPSPEED asks for DeepSpeed, which is not installed.",
            "Run: DS_BUILD_OPS=0 pip install deepspeed",
        )
    problems = []
    if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3":
        problems.append("DeepSpeed's stage 3 cuts up the weights, which is not supported: use zero_stage: 2.")
    if (mixed := os.environ.get("ACCELERATE_MIXED_PRECISION", "no")) != "no":
        problems.append(
            f"mixed_precision {mixed} makes DeepSpeed keep and save the weights so: use no, and --precision bf16."
        )
    if precision == "pure_bf16":
        problems.append("precision pure_bf16 does not go with DeepSpeed: use bf16 or fp32.")
    if problems:
        raise ConfigError(problems, "See recipes/accelerate/deepspeed_zero2.yaml, and fsdp.yaml beside it.")
    return True


def arguments(options: Options, output: Path) -> TrainingArguments:
    """What the Trainer is told: devices, precision and AdamW; the rest is `Loop`'s.

    Raises:
        MissingExtraError: If the launcher asks for DeepSpeed, and it is not installed.
        ConfigError: If it asks for what does not go with it.
    """
    deepspeed, use_cpu = (
        deepspeed_wanted(options.precision),
        options.device == "cpu" or not torch.cuda.is_available(),
    )
    if deepspeed and use_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # it looks for devices by itself
    arguments = TrainingArguments(
        output_dir=str(output),
        run_name=output.name,
        project="unspoken",
        use_cpu=use_cpu,
        # Told, DeepSpeed would keep the model itself in bfloat16, and save it so: `Loop` casts instead.
        bf16=options.precision == "bf16" and not deepspeed,
        # Told to DeepSpeed, which multiplies it by the processes; the trainer itself cuts batches in `Loop`.
        per_device_train_batch_size=max(1, options.batch_size // int(os.environ.get("WORLD_SIZE", "1"))),
        max_steps=2**40,  # `Loop` says when it is over
        learning_rate=options.lr,
        weight_decay=options.weight_decay,
        adam_beta1=options.beta1,
        adam_beta2=options.beta2,
        adam_epsilon=options.eps,
        max_grad_norm=options.max_grad_norm,
        seed=options.seed,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to=list(options.report_to) or "none",
        ddp_find_unused_parameters=False,
        ddp_timeout=24 * 3600,  # one process evaluates while the others wait
        log_level="error",
        log_level_replica="error",
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # several GPUs are for several processes: accelerate launch
    return arguments


def require_trackers(options: Options) -> None:
    """Refuse trackers that are not installed, before anything is written.

    Raises:
        MissingExtraError: With the line that installs one.
    """
    for name in options.report_to:
        packages = ("tensorboard", "tensorboardX") if name == "tensorboard" else (name,)
        if not any(importlib.util.find_spec(package) for package in packages):
            raise MissingExtraError(
                f"report_to={name} needs the package {name!r}, which is not installed.",
                f"Run: pip install {name}",
            )


def check_processes(options: Options, arguments: TrainingArguments) -> None:
    """Refuse a micro-batch that does not divide among the processes.

    Raises:
        ConfigError: If it does not.
    """
    if options.batch_size % arguments.world_size:
        raise ConfigError(
            f"batch_size counts the rows of all processes together: {options.batch_size} does not divide among "
            f"{arguments.world_size}."
        )


def identity(
    method: Method, model: str | Path | CausalLM, data: Data, options: Options, output: Path
) -> dict[str, Any]:
    """What must be the same for a run to go on; models on the disk count by what they are, not by where they lie."""
    if isinstance(model, CausalLM):
        name = f"weights {model.weights_hash}"
    elif (path := Path(model).expanduser()).exists() and model not in (*TINY, *zoo.names()):
        # A run that ends where it began replaces what it began with.
        inside = path.resolve() == output.resolve()
        name = "the output folder's own" if inside else f"files {content_hash(path)}"
    else:
        name = str(model)
    kept = {key: value for key, value in configs.to_dict(options).items() if key not in FREE}
    return {
        "method": {"name": method.name, **configs.to_dict(method)},
        "model": name,
        "data": digest(data),
        "options": kept,
    }


def gather_data(task: ChainTask | str | None, data: Data | None, options: Options, method: Method) -> Data:
    """The rows of a run.

    Raises:
        ConfigError: If neither or both are given, or the task has no chains of thought.
        DataError: If there is nothing to train on.
    """
    if method.brings_rows:
        if task is not None or data is not None:
            raise ConfigError(f"This {method.name} brings its own rows: leave out task= and data=.")
        data = method.own_data()
        return data if options.max_size == -1 else replace(data, train=data.train[: options.max_size])
    if (task is None) == (data is None):
        raise ConfigError("Give the rows either as task= or as data=.")
    task = TASKS.find(task)() if isinstance(task, str) else task
    if data is None:
        if not hasattr(task, "chains"):
            raise ConfigError(
                f"The task {getattr(task, 'name', task)!r} has no chains of thought to train on.",
                "Run: unspoken list tasks",
            )
        assert task is not None
        splits = {split: task.chains(split) for split in SPLITS}
        data = Data(splits["train"], splits["valid"], splits["test"], task.manifest(splits))
    if options.max_size != -1:
        data = replace(data, train=data.train[: options.max_size])
    require_rows(data.train, task)
    return data


def require_rows(rows: Sequence[Chain], task: ChainTask | None) -> None:
    """Refuse a run with nothing to train on.

    Args:
        rows: To train on.
        task: Where they come from, if it is a task.

    Raises:
        DataError: If there are none.
    """
    if rows:
        return
    if task is None:
        raise DataError("There are no rows to train on.", "Give some with --task NAME or --train_path FILE.")
    problem, hint = f"The task {task.name!r} has no rows to train on", None
    file = getattr(task, "data", None)
    if file is not None and Path(file).is_dir():
        problem += f": the folder {file!r} has no file for the split 'train'"
        hint = "Put train.txt into it, or name a file that is read as this split: --data FILE --split train"
    elif file is not None:
        problem += f": {file!r} is read as the split {task.split!r}"
        hint = "To train on this file add: --split train"
    elif hasattr(task, "n_train"):
        hint = "Ask for some: --n-train 1000"
    raise DataError(f"{problem}.", hint)


def content_hash(source: Path) -> str:
    """16 hex digits that change with what a model is read from: a file, or the files of a folder."""
    files = [path for pattern in _READ for path in source.glob(pattern) if path.name not in _NOTES]
    sha = hashlib.sha256()
    for path in sorted(files) if source.is_dir() else [source]:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        sha.update(f"{path.name if source.is_dir() else ''}\x1f{content}\x1e".encode())
    return sha.hexdigest()[:16]


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
        lm = _load(model)
    if options.reinitialize_weights:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            automatic: Any = AutoModelForCausalLM
            fresh: PreTrainedModel = automatic.from_config(lm.model.config, dtype=torch.float32)
        lm = CausalLM(fresh, lm.tokenizer, source=lm.source)
    lm.model.to(torch.bfloat16 if options.precision == "pure_bf16" else torch.float32)
    return lm


def _load(model: str | Path) -> CausalLM:
    try:
        return load(model, dtype="float32", device="cpu")
    except ConfigError as error:
        # Training alone knows models that are made from scratch.
        near = suggest(str(model), [*TINY, *zoo.names()])
        if near in TINY:
            raise ConfigError(
                f"Unknown model {str(model)!r}. Did you mean {near!r}?",
                f"{' and '.join(TINY)} are made from scratch. {error.hint or ''}".strip(),
            ) from error
        raise


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
