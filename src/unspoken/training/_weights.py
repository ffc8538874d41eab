"""The weights of a run: saved as plain Hugging Face folders whatever is around them, and read back."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unspoken.errors import ConfigError
from unspoken.lm import checkpoint
from unspoken.lm.model import CausalLM
from unspoken.lm.sources import quiet

if TYPE_CHECKING:
    from unspoken.decoding._base import Strategy
    from unspoken.training._loop import Loop

_PREFIX = "model."  # of the Hugging Face model in the module that is trained


@dataclass
class Saved:
    """A checkpoint that could be read.

    Attributes:
        folder: Where it is.
        weights: Of the model, or of its adapters.
        progress: Where the run stood.
        optimizer: The optimizer's state; None where a wrapper keeps its own files.
    """

    folder: Path
    weights: dict[str, Tensor]
    progress: dict[str, Any]
    optimizer: Any


class Weights:
    """The model being trained.

    Args:
        lm: The model and its tokenizer.
        adapted: The same model as peft sees it, where adapters are trained.
    """

    def __init__(self, lm: CausalLM, adapted: Any = None) -> None:
        self.model: PreTrainedModel = lm.model
        self.tokenizer, self.source, self.adapted = lm.tokenizer, lm.source, adapted
        self._view: CausalLM | None = None

    @property
    def may_shard(self) -> bool:
        """Whether FSDP and DeepSpeed may share them out."""
        return self.adapted is None

    @contextlib.contextmanager
    def plain(self) -> Iterator[PreTrainedModel]:
        """The model without adapters: itself, or inside the context one of its class with them merged."""
        if self.adapted is None:
            yield self.model
            return
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers: list[Any] = [m for m in self.model.modules() if isinstance(m, BaseTunerLayer)]
        # Taking a merged adapter out again would leave rounding errors behind.
        kept = [layer.get_base_layer().weight.detach().clone() for layer in layers]
        self.adapted.merge_adapter()
        try:
            with torch.device("meta"):
                plain = type(self.model)(self.model.config)
            plain.load_state_dict(_without_adapters(self.model.state_dict()), assign=True)
            for name, buffer in _without_adapters(dict(self.model.named_buffers())).items():
                owner, _, attribute = name.rpartition(".")
                setattr(plain.get_submodule(owner), attribute, buffer)
            plain.tie_weights()
            yield plain
        finally:
            self.adapted.unmerge_adapter()
            for layer, weight in zip(layers, kept, strict=True):
                layer.get_base_layer().weight.data.copy_(weight)

    @contextlib.contextmanager
    def view(self) -> Iterator[CausalLM]:
        """The model as the rest of the project sees it, in eval mode."""
        with self.plain() as plain:
            if plain is not self.model:
                yield CausalLM(plain, self.tokenizer, source=self.source)
                return
            if self._view is None:
                self._view = CausalLM(plain, self.tokenizer, source=self.source)
            plain.eval()  # type: ignore[no-untyped-call]
            yield self._view

    # Writing

    def save(
        self, loop: Loop, folder: Path, strategy: Strategy | None, provenance: dict[str, Any], *, write: bool
    ) -> None:
        """Write the model as a plain Hugging Face folder. Every process calls it, one writes."""
        sharded = loop.is_fsdp_enabled or loop.is_deepspeed_enabled
        state = None
        if sharded:  # every process has a part
            gathered = loop.accelerator.get_state_dict(loop.model_wrapped)
            state = {name.removeprefix(_PREFIX): value for name, value in gathered.items()}
            # Gathered, a head that is tied to the embeddings is a copy of them, which need not be written.
            tied = getattr(self.model, "all_tied_weights_keys", None) or {}
            state = {name: value for name, value in state.items() if name not in tied}
        if not write:
            return
        config = self.model.config
        trained_with, config.use_cache = config.use_cache, loop.uses_cache
        try:
            with self.plain() as plain, quiet():
                plain.save_pretrained(folder, state_dict=state)
                self.tokenizer.save_pretrained(folder)
            checkpoint.remember(folder, strategy=strategy, provenance=provenance)
            for file in folder.iterdir():
                file.chmod(0o644)  # safetensors writes for its owner only
        finally:
            config.use_cache = trained_with

    def save_state(self, loop: Loop, folder: Path, progress: dict[str, Any], *, write: bool) -> None:
        """Write what it takes to go on: the counters, the optimizer, adapters."""
        if write:
            folder.mkdir(parents=True, exist_ok=True)
        if loop.is_fsdp_enabled or loop.is_deepspeed_enabled:
            loop.accelerator.wait_for_everyone()
            loop._save_optimizer_and_scheduler(str(folder))
        elif write:
            assert loop.optimizer is not None
            torch.save(loop.optimizer.state_dict(), folder / "optimizer.pt")
        if write and self.adapted is not None:
            self.adapted.save_pretrained(folder)
        if write:
            (folder / "progress.json").write_text(json.dumps(progress), encoding="utf-8")

    # Reading

    def read(self, folder: Path) -> Saved:
        """Read a checkpoint whole, before anything is changed; raises whatever a damaged file raises."""
        from safetensors.torch import load_file

        trainer = folder / "trainer"
        progress = json.loads((trainer / "progress.json").read_text(encoding="utf-8"))
        optimizer = None
        if (trainer / "optimizer.pt").is_file():
            optimizer = torch.load(trainer / "optimizer.pt", map_location="cpu", weights_only=True)
        if self.adapted is not None:
            weights = load_file(trainer / "adapter_model.safetensors")
        else:
            with quiet():
                same = type(self.model).from_pretrained(folder, dtype=self.model.dtype, use_safetensors=True)
            weights = same.state_dict()
        return Saved(folder, weights, progress, optimizer)

    def load(self, saved: Saved) -> None:
        """Put the weights of a checkpoint into the model.

        Raises:
            ConfigError: If the model they come from had another activation, as tiny models of older versions do.
        """
        path, key = saved.folder / "config.json", "activation_function"
        old = json.loads(path.read_text(encoding="utf-8")).get(key) if path.is_file() else None
        if old is not None and old != (new := getattr(self.model.config, key, old)):
            raise ConfigError(
                f"{saved.folder} is of a model with {key} {old}; the same settings now make one with {new}.",
                "Begin in another folder (-o), or go on with the version that it was begun with.",
            )
        if self.adapted is not None:
            from peft import set_peft_model_state_dict

            set_peft_model_state_dict(self.adapted, saved.weights)
        else:
            self.model.load_state_dict(saved.weights)

    def load_optimizer(self, loop: Loop, saved: Saved) -> None:
        """Put the optimizer's state of a checkpoint into the loop's."""
        if loop.is_fsdp_enabled:
            loop._load_optimizer_and_scheduler(str(saved.folder / "trainer"))
        elif loop.is_deepspeed_enabled:
            _load_deepspeed(loop.model_wrapped, saved.folder / "trainer")
        elif saved.optimizer is None:
            raise ConfigError(f"{saved.folder} was written under FSDP or DeepSpeed.", _AS_BEGUN)
        else:
            assert loop.optimizer is not None
            loop.optimizer.load_state_dict(saved.optimizer)

    # What wrappers did to it

    @contextlib.contextmanager
    def gathered(self, loop: Loop) -> Iterator[None]:
        """Inside, the model has its whole parameters, also where FSDP shares them out."""
        if not loop.is_fsdp_enabled:
            yield
            return
        from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

        wrapped = loop.model_wrapped
        if isinstance(wrapped, FullyShardedDataParallel):
            with FullyShardedDataParallel.summon_full_params(wrapped, writeback=False):
                yield
            return
        parts = [module for module in wrapped.modules() if isinstance(module, FSDPModule)]
        for part in parts:
            part.unshard()
        try:
            yield
        finally:
            for part in parts:
                part.reshard()


_AS_BEGUN = "Go on as the run was begun, or begin again with --resume never."


def _load_deepspeed(engine: Any, folder: Path) -> None:
    from deepspeed.runtime.zero.utils import (  # type: ignore[import-not-found, unused-ignore]
        ZeRORuntimeException,
    )

    try:
        found, _ = engine.load_checkpoint(str(folder))
    except ZeRORuntimeException as error:
        raise ConfigError(
            f"{folder} was written by another number of processes: {error}", _AS_BEGUN
        ) from error
    if found is None:
        raise ConfigError(f"{folder} was not written under DeepSpeed.", _AS_BEGUN)


def _without_adapters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that the model has without adapters, by their names there."""
    own = {
        name: value
        for name, value in state.items()
        if "lora_" not in name and "trainable_tokens_" not in name
    }
    return {
        name.replace(".token_adapter", "").replace(".base_layer", ""): value for name, value in own.items()
    }
