"""Checkpoints that remember how their model thinks: plain Hugging Face folders with one more file, `unspoken.json`."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

import unspoken
from unspoken.config import from_dict, json_ready, to_dict
from unspoken.discovery import STRATEGIES
from unspoken.errors import ConfigError, ModelError, RunError, UnknownNameError
from unspoken.lm import sources

if TYPE_CHECKING:
    from unspoken.decoding._base import Strategy
    from unspoken.lm.model import CausalLM

FILE = "unspoken.json"
SCHEMA = 1
_REFERENCE_WEIGHTS = ("state_dict.bin", "pytorch_model.bin")
_REFERENCE_PREFIX = "base_model."
_REFERENCE_NAMES = ("base_model", "tokenizer_name")


# What a checkpoint remembers


def remember(
    folder: str | os.PathLike[str], *, strategy: Strategy | None, provenance: dict[str, Any]
) -> None:
    """Write `unspoken.json` into a checkpoint, at once or not at all.

    Args:
        folder: The checkpoint.
        strategy: How its model is decoded; None leaves that open.
        provenance: Where the model comes from, JSON-ready.
    """
    described = None if strategy is None else {"name": strategy.name, "fields": to_dict(strategy)}
    values = {
        "schema": SCHEMA,
        "unspoken": unspoken.__version__,
        "strategy": described,
        "provenance": provenance,
    }
    aside = Path(folder) / f".{FILE}.writing"
    aside.write_text(json.dumps(json_ready(values), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, Path(folder) / FILE)


def recall(folder: str | os.PathLike[str]) -> tuple[Strategy | None, dict[str, Any]]:
    """The strategy and the provenance that a checkpoint remembers; None and {} if it remembers nothing.

    A file of this name that somebody else wrote is left alone, with a warning.

    Raises:
        ModelError: If `unspoken.json` is damaged, of a later version, or names a strategy that is not here.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None, {}
    hint = f"To load the model without its strategy, remove {path}."
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", hint) from error
    if not isinstance(values, dict) or not isinstance(values.get("schema"), int):
        warnings.warn(f"{path} was not written by Unspoken; it is not used.", stacklevel=3)
        return None, {}
    if values["schema"] > SCHEMA:
        raise ModelError(f"{path} was written by a later version ({values.get('unspoken')}).", hint)
    provenance = values.get("provenance") or {}
    described = values.get("strategy")
    if described is None:
        return None, provenance
    try:
        cls = STRATEGIES.find(described["name"])
        return from_dict(cls, described["fields"], aliases=cls.aliases), provenance
    except (KeyError, TypeError, ConfigError) as error:
        if isinstance(error, UnknownNameError):
            hint = f"Install the package or file that defines it. {hint}"
        raise ModelError(f"The strategy in {path} cannot be used: {error}", hint) from error


def save(
    lm: CausalLM,
    folder: str | os.PathLike[str],
    *,
    strategy: Strategy | None = None,
    provenance: dict[str, Any] | None = None,
) -> None:
    """Save a model, its tokenizer and how it thinks; `un.load(folder)` gives all of it back.

    The files are written aside and then renamed, so that a failure leaves an older checkpoint in the same folder as
    it was. Other files in the folder stay.

    Args:
        lm: The model.
        folder: Where to.
        strategy: How it is decoded (default: the one that `lm` remembers).
        provenance: Where it comes from, JSON-ready (default: what `lm` remembers).

    Raises:
        RunError: If it cannot be written.
    """
    target = Path(folder)
    aside = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        with sources.quiet():
            lm.model.save_pretrained(aside)
        lm.tokenizer.save_pretrained(aside)
        remember(aside, strategy=strategy or lm.strategy, provenance=provenance or lm.provenance)
        aside.chmod(0o755)
        for file in aside.iterdir():
            file.chmod(0o644)  # safetensors writes for its owner only
        if target.exists():
            for file in sorted(aside.iterdir()):
                os.replace(file, target / file.name)
        else:
            aside.rename(target)
    except Exception as error:
        # safetensors reports a full disk with an exception of its own.
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise RunError(
                f"Could not write the checkpoint {str(target)!r}: {error}",
                "What was there before is as it was. Make room, or choose another folder.",
            ) from error
        raise
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


# Prompts of trained models


def question_template(tokenizer: PreTrainedTokenizerBase, separator: str) -> str:
    """A chat template that turns one user message into the beginning of a training row: `" {question} {separator}"`.

    Whatever the tokenizer puts before a text by itself is part of it, for templates write their own special tokens.

    Raises:
        ConfigError: If the tokenizer reads the prompt otherwise than the same text in a row.
    """
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    before = whole[: whole.index(bare[0])] if bare and bare[0] in whole else []
    opening = "".join(tokenizer.convert_ids_to_tokens(before))
    for question in ("1 2", "How many?"):
        row = tokenizer(f" {question} {separator} 1 {separator}")["input_ids"]
        prompt = tokenizer(f"{opening} {question} {separator}", add_special_tokens=False)["input_ids"]
        if row[: len(prompt)] != prompt:
            raise ConfigError(
                f"The tokenizer does not read a question before the separator {separator!r} as it does in a row.",
                "Choose a separator that is a special token.",
            )
    start, end = json.dumps(f"{opening} "), json.dumps(f" {separator}")
    return (
        "{% if messages|length != 1 or messages[0]['role'] != 'user' %}"
        "{{ raise_exception('this model reads one question, as one user message') }}{% endif %}"
        f"{{{{ {start} + messages[0]['content']|trim + {end} }}}}"
    )


def set_question_template(tokenizer: PreTrainedTokenizerBase, separator: str) -> None:
    """Give the tokenizer `question_template` as its chat template.

    Raises:
        ConfigError: If the tokenizer reads the prompt otherwise than the same text in a row.
    """
    tokenizer.chat_template = question_template(tokenizer, separator)


# Checkpoints of the implicit-CoT reference code


def is_reference(folder: str | os.PathLike[str]) -> bool:
    """Whether this is a checkpoint of the implicit-CoT reference code (arXiv 2405.14838): raw weights and two names."""
    path = Path(folder)
    return _reference_weights(path) is not None and bool(_reference_config(path))


def import_reference(
    folder: str | os.PathLike[str], output: str | os.PathLike[str], *, base: str | None = None
) -> Path:
    """Convert a checkpoint of the implicit-CoT reference code into one of ours.

    Such a folder holds a state dict, whose names begin with `base_model.`, and a configuration that only names the
    base model and the tokenizer. A position table that was enlarged in training is kept as large as it is.

    Args:
        folder: The checkpoint.
        output: Folder to write.
        base: Folder or hub id of the base model, for its configuration and tokenizer (default: the names that the
            checkpoint gives). Its weights are not needed.

    Returns:
        `output`.

    Raises:
        ModelError: If this is no such checkpoint, or its weights do not fit the base model.
    """
    path = Path(folder)
    weights, names = _reference_weights(path), _reference_config(path)
    if weights is None or not names:
        raise ModelError(
            f"{str(path)!r} is no checkpoint of the implicit-CoT reference code.",
            f"It should hold {_REFERENCE_WEIGHTS[0]}, and a config.json with base_model and tokenizer_name.",
        )
    model_name, tokenizer_name = base or names["base_model"], base or names["tokenizer_name"]
    try:
        loaded = torch.load(weights, map_location="cpu", weights_only=True)
        with sources.quiet():
            config = AutoConfig.from_pretrained(model_name)
            tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    except pickle.UnpicklingError as error:
        raise ModelError(f"{weights} holds more than tensors and is not read: {error}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"The checkpoint {str(path)!r} cannot be read: {error}",
            f"Its base model is {model_name!r}; name a local copy with base=FOLDER.",
        ) from error
    model = _fill(config, {name.removeprefix(_REFERENCE_PREFIX): value for name, value in loaded.items()})
    set_question_template(tokenizer, tokenizer.eos_token)
    from unspoken.lm.model import CausalLM

    # Whether thoughts are left is not recorded: the model closes what it has by its first end token.
    strategy = from_dict(STRATEGIES.find("filler"), {"n_fillers": 0, "separators": 2})
    provenance = {"imported": str(path), "base_model": names["base_model"]}
    save(CausalLM(model, tokenizer), output, strategy=strategy, provenance=provenance)
    return Path(output)


def _fill(config: Any, state: dict[str, Tensor]) -> Any:
    """The model of a configuration with these weights, its tables as large as those of the weights."""
    for ending, field in (
        ("wpe.weight", "n_positions"),
        ("wte.weight", "vocab_size"),
        ("embed_tokens.weight", "vocab_size"),
    ):
        table = next((value for name, value in state.items() if name.endswith(ending)), None)
        if table is not None:
            setattr(config, field, table.shape[0])
    dtype = next((value.dtype for value in state.values() if value.is_floating_point()), torch.float32)
    auto: Any = AutoModelForCausalLM  # its methods have no types
    model = auto.from_config(config, dtype=dtype)
    wanted = model.state_dict()
    absent = sorted(wanted.keys() - state.keys() - set(getattr(model, "_tied_weights_keys", None) or ()))
    other = sorted(
        name for name, value in wanted.items() if name in state and state[name].shape != value.shape
    )
    if absent or other:
        shown = ", ".join([*absent, *other][:3])
        raise ModelError(
            f"The weights do not fit {config.model_type}: {len(absent) + len(other)} differ ({shown})."
        )
    # Masks that older versions of transformers kept among the weights are left out.
    model.load_state_dict({name: value for name, value in state.items() if name in wanted}, strict=False)
    model.tie_weights()
    return model


def _reference_weights(folder: Path) -> Path | None:
    return next((folder / name for name in _REFERENCE_WEIGHTS if (folder / name).is_file()), None)


def _reference_config(folder: Path) -> dict[str, str]:
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(values, dict) or not all(values.get(name) for name in _REFERENCE_NAMES):
        return {}
    return {name: str(values[name]) for name in _REFERENCE_NAMES}
