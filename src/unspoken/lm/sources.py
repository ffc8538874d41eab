"""Where models come from: zoo names, folders, GGUF files, hub ids; reading them, and saying what is wrong."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.errors as hub
import torch
from safetensors import SafetensorError
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
)
from transformers.utils import hub as transformers_hub
from transformers.utils import logging as transformers_logging

from unspoken.errors import ConfigError, MissingExtraError, ModelError, UnspokenError, require, suggest
from unspoken.lm import zoo

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_TOKENIZER_FILES = ("tokenizer*.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json", "tokenizer*.py")
# Models that the hub knows without their owner; it has taken no new such names since owners came.
_BARE_IDS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "openai-gpt", "ctrl")
_PROBE_SECONDS = 5.0
_KINDS = "A model is a name of the zoo ({}), a folder, a GGUF file or a hub id such as Qwen/Qwen3-0.6B."
_GGUF_HEADER = 16 << 20  # bytes that hold the settings of a GGUF file and its vocabulary, with room
# Layers whose state cannot be cut, forked or shifted like keys and values.
_RECURRENT_LAYERS = ("linear_attention", "conv", "hybrid", "mamba", "recurrent")


@dataclass(frozen=True)
class Source:
    """A place that a model is read from.

    Attributes:
        name: As the user called it, for the records.
        location: A folder or a hub id.
        gguf: Name of the GGUF file in the folder, if it is one.
        local: Whether it is on this computer.
    """

    name: str
    location: str
    gguf: str | None = None
    local: bool = True


def resolve(source: str | os.PathLike[str]) -> Source:
    """Find out what kind of source this is. Reads nothing from the network; converts a zoo model if needed.

    Raises:
        ConfigError: If it is none.
    """
    name = os.fspath(source)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"No model was named ({source!r}).", _kinds())
    if isinstance(source, str) and name in zoo.names():
        return Source(name, str(zoo.locate(name)))
    path = Path(name).expanduser()
    if path.is_dir():
        return Source(name, str(path))
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ConfigError(f"There is no GGUF file {name!r}.")
        for module in ("gguf", "accelerate"):
            require(module, "gguf", f"Reading the GGUF file {path.name}")
        return Source(name, str(path.parent), path.name)
    if path.is_file():
        raise ConfigError(f"{name!r} is a file, but not a GGUF file.", _kinds())
    looks_local = not isinstance(source, str) or name.startswith((".", "~", os.sep)) or "\\" in name
    if looks_local or not _HUB_ID.fullmatch(name):
        raise ConfigError(f"There is no folder {name!r}.{_meant(name)}", _kinds())
    if "/" not in name and name not in _BARE_IDS and not _is_cached(name):
        raise ConfigError(f"Unknown model {name!r}.{_meant(name)}", _kinds())
    return Source(name, name, local=False)


def read_config(source: Source, *, trust_remote_code: bool) -> PreTrainedConfig:
    """The model's configuration, of a kind that can be used.

    Raises:
        ConfigError: If the model is unknown or of another kind.
        ModelError: If the configuration cannot be read.
    """
    if not source.local and not _is_cached(source.location):
        _probe(source)
    try:
        with quiet(source):
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                source.location, trust_remote_code=trust_remote_code, **_gguf(source)
            )
    except (OSError, ValueError, KeyError) as error:
        raise _explain(source, error, "configuration (config.json)") from error
    refuse_unsupported(config, _causal_class(source, config, trust_remote_code))
    return config


def read_tokenizer(source: Source, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
        ModelError: If it has none, or one that cannot be read.
    """
    hint = "Give your own with your model: un.CausalLM(model, tokenizer)"
    folder = Path(source.location)
    if source.local and not source.gguf and not any(any(folder.glob(p)) for p in _TOKENIZER_FILES):
        raise ModelError(f"{source.name!r} holds no tokenizer (no tokenizer.json or the like).", hint)
    try:
        with quiet(source):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                source.location, trust_remote_code=trust_remote_code, **_gguf(source)
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        problem = _explain(source, error, "tokenizer")
        problem.hint = problem.hint or hint
        raise problem from error
    if source.gguf and _gguf_split(folder / source.gguf) == "smollm":
        _split_digits(tokenizer)
    return tokenizer


def read_model(
    source: Source, config: PreTrainedConfig, *, dtype: torch.dtype, attn: str, trust_remote_code: bool
) -> PreTrainedModel:
    """The model with its weights, on the CPU.

    Raises:
        ConfigError: If the model does not support the attention implementation.
        ModelError: If weights are missing, incomplete, or only there as pickles.
    """
    if not source.gguf:
        _require_safetensors(source)
    try:
        with quiet(source):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.location,
                config=config,
                dtype=dtype,
                attn_implementation=attn,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **_gguf(source),
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if "attention" in str(error) and attn != "eager":
            raise ConfigError(
                f"{source.name!r} does not support attn={attn!r}.", "Use attn='eager'."
            ) from error
        raise _explain(source, error, "weights") from error
    model: PreTrainedModel = loaded[0]
    report = loaded[1]
    absent = sorted(report["missing_keys"]) + [str(key) for key in report["mismatched_keys"]]
    if absent:
        shown = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
        raise ModelError(f"The weights of {source.name!r} lack {len(absent)} that its model needs: {shown}.")
    return model


def refuse_unsupported(config: PreTrainedConfig, model_class: type | None) -> None:
    """Refuse models that are no decoder with keys and values.

    Raises:
        ConfigError: Naming the model's kind and why it cannot be used.
    """
    name = model_class.__name__ if model_class else config.model_type
    why = None
    layers = getattr(config.get_text_config(decoder=True), "layer_types", None) or ()
    recurrent = sorted({kind for kind in layers if kind in _RECURRENT_LAYERS})
    if config.is_encoder_decoder:
        why = "an encoder-decoder"
    elif recurrent:
        why = f"a model with recurrent layers ({', '.join(recurrent)})"
    elif getattr(model_class, "_is_stateful", False):
        why = "a recurrent (stateful) model"
    if why:
        raise ConfigError(
            f"{name} ({config.model_type}) is {why}; Unspoken needs a decoder-only transformer, whose keys and "
            "values can be cut and forked.",
            "Models that work: Llama, Qwen2, Qwen3, Mistral, Gemma, GPT-2, GPT-NeoX and their like.",
        )


def _causal_class(source: Source, config: PreTrainedConfig, trust_remote_code: bool) -> type | None:
    """The class of the model, None for one that comes with its own code."""
    if trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return None
    made_for = config.architectures or []
    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if config.is_encoder_decoder or (known and not made_for):
        return _mapped(config) if known else None
    if not known or not set(made_for) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        what = ", ".join(made_for) or config.model_type
        raise ConfigError(f"{source.name!r} is a {what}, not a causal language model.", _kinds())
    return _mapped(config)


def _mapped(config: PreTrainedConfig) -> type:
    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    kind: type = found[0] if isinstance(found, tuple) else found
    return kind


def _require_safetensors(source: Source) -> None:
    try:
        found = [
            transformers_hub.cached_file(source.location, name, _raise_exceptions_for_missing_entries=False)
            for name in _WEIGHTS[: 1 if _has(source, _WEIGHTS[0]) else 2]
        ]
    except OSError as error:
        raise _explain(source, error, "weights") from error
    if any(found):
        return
    if source.local and any(Path(source.location).glob("*.bin")):
        raise ModelError(
            f"{source.name!r} holds its weights as pickles (.bin), which can run code when they are read; only "
            "safetensors are.",
            "If you trust it, convert it once: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)",
        )
    raise ModelError(f"{source.name!r} holds no weights as safetensors ({' or '.join(_WEIGHTS)}).")


def _has(source: Source, name: str) -> bool:
    return source.local and (Path(source.location) / name).is_file()


def _is_cached(name: str) -> bool:
    """Whether the hub's cache holds this model's configuration."""
    try:
        return isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str)
    except hub.HFValidationError:  # no possible name
        return False


def _probe(source: Source) -> None:
    """Ask once whether the hub can be reached: its client tries for half a minute before it gives up.

    What the hub answers is left to the reading that follows.

    Raises:
        ModelError: If there is no answer.
    """
    try:
        url = huggingface_hub.hf_hub_url(source.location, "config.json")
        huggingface_hub.get_hf_file_metadata(url, timeout=_PROBE_SECONDS)
    except (hub.HfHubHTTPError, hub.EntryNotFoundError, hub.FileMetadataError, ValueError):
        return
    except Exception as error:  # of the HTTP package, which differs by the version of the client
        raise _explain(source, ConnectionError(str(error)), "configuration") from error


def _meant(name: str) -> str:
    """The nearest name among the zoo, the folders beside it and the hub's short names, as a question."""
    here = Path(name).expanduser().parent
    folders = [str(path.parent) for path in here.glob("*/config.json")] if here.is_dir() else []
    near = suggest(name, [*zoo.names(), *folders, *_BARE_IDS])
    return f" Did you mean {near!r}?" if near else ""


def _explain(source: Source, error: BaseException, part: str) -> UnspokenError:
    """What went wrong, from the causes behind transformers' general errors."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    kinds = tuple(type(cause) for cause in causes)

    def caused_by(*wanted: type) -> bool:
        return any(issubclass(kind, wanted) for kind in kinds)

    text = " ".join(str(error).split())
    meant = _meant(source.name)
    if "trust_remote_code" in text:
        return ConfigError(
            f"{source.name!r} needs Python code that comes with it.",
            "If you trust it: trust_remote_code=True (--trust-remote-code)",
        )
    if caused_by(hub.GatedRepoError):
        return ModelError(
            f"{source.name!r} is gated on the hub.",
            f"Accept its terms at https://huggingface.co/{source.location}, then run: hf auth login",
        )
    if caused_by(hub.RepositoryNotFoundError, hub.HFValidationError):
        return ConfigError(f"Unknown model {source.name!r}: the hub has none of this name.{meant}", _kinds())
    if caused_by(hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, ConnectionError):
        return ModelError(
            f"{source.name!r} is no folder here and not in the hub's cache, and the hub cannot be reached.{meant}",
            f"{_kinds()} Offline, use a folder or: unspoken pull {zoo.names()[0]}",
        )
    if caused_by(ImportError):
        return MissingExtraError(
            f"The {part} of {source.name!r} needs a package that is not installed: {text}"
        )
    return ModelError(f"The {part} of {source.name!r} cannot be read: {text[:400]}")


def _kinds() -> str:
    return _KINDS.format(", ".join(zoo.names()))


def _gguf(source: Source) -> dict[str, Any]:
    return {"gguf_file": source.gguf} if source.gguf else {}


def _gguf_split(path: Path) -> str:
    """Name of the rule by which the file's tokenizer splits text before merging; empty if it states none.

    Found by its key in the header: gguf's own reader takes seconds for the vocabulary that follows.
    """
    with path.open("rb") as file:
        header = file.read(_GGUF_HEADER)
    key = b"tokenizer.ggml.pre"
    at = header.find(len(key).to_bytes(8, "little") + key)
    if at < 0:
        return ""
    at += 8 + len(key) + 4  # the length of the key, the key, and the type of its value: a string
    size = int.from_bytes(header[at : at + 8], "little")
    return header[at + 8 : at + 8 + size].decode("utf-8", errors="replace")


def _split_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    """Split off each digit before anything else, as SmolLM's own tokenizer does.

    transformers ignores this rule of a GGUF file, and then reads a line break or space before a number as
    other tokens than the model was trained on.
    """
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


@contextmanager
def quiet(source: Source | None = None) -> Iterator[None]:
    """No progress bars of transformers for what is on the disk; a source on the hub keeps them for its download."""
    hide = (source is None or source.local) and transformers_logging.is_progress_bar_enabled()
    if hide:
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if hide:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
