"""Views of a model without some of its blocks, which share its weights.

A view has module objects and a configuration of its own, and the tensors of the full model: nothing of the full
model is renumbered, so both may run by turns. Which fields of a configuration speak of single blocks is not believed
but tested: the model that the shortened configuration describes is built without weights, block by block it must
say the same as before, and what says otherwise is the block's number or a reason to refuse.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from unspoken.errors import ModelError
from unspoken.lm.anatomy import text_config
from unspoken.lm.depth import Kept

# Fields that count blocks from the first on, and fields that list numbers of blocks.
_COUNTS = ("max_window_layers", "first_k_dense_replace", "num_dense_layers")
_NUMBERS = ("mlp_only_layers", "moe_layers")
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def shared_view(model: PreTrainedModel, blocks: str, kept: Kept) -> PreTrainedModel:
    """A model of some of a model's blocks, with module objects of its own and the same tensors.

    Hooks on the modules of the full model are not taken over.

    Args:
        model: The model; it is not changed.
        blocks: Dotted name of its list of blocks.
        kept: The blocks to keep, numbered as in this model.

    Raises:
        ModelError: If the model is not the same without these blocks: where blocks share keys and values, or depend
            on their place in a way that no configuration can say.
    """
    view = _share(model)
    if not kept.n_dropped:
        return view
    _refuse_coupled(model, text_config(view))
    layers: Any = view.get_submodule(blocks)
    own = type(text_config(view))
    for config in _configs(view):
        if type(config) is own and config.num_hidden_layers == kept.of:
            _shorten(config, kept.blocks)
    layers._modules = {str(place): layers._modules[str(block)] for place, block in enumerate(kept.blocks)}
    _renumber(model, view, blocks, kept.blocks)
    return view


def _share(model: PreTrainedModel) -> PreTrainedModel:
    """A deep copy of everything but the tensors."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        held = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        memo.update({id(tensor): tensor for tensor in held if isinstance(tensor, Tensor)})
        memo.update({id(vars(module)[name]): OrderedDict() for name in _HOOKS if name in vars(module)})
    try:
        view = copy.deepcopy(model, memo)
    except (TypeError, RuntimeError) as error:
        raise _refuse(model, f"has a part that cannot be copied ({error})") from error
    for module in view.modules():
        # transformers records hidden states by hooks, which it puts on again where this is not set.
        module.__dict__.pop("_output_capturing_hooks_installed", None)
    return view


def _configs(view: nn.Module) -> list[Any]:
    """Every configuration object that a module of the view reads, and those inside it, each once."""
    found: dict[int, Any] = {}
    for module in view.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            found[id(config)] = config
            inner = config.get_text_config(decoder=True)
            found[id(inner)] = inner
    return list(found.values())


def _refuse_coupled(model: PreTrainedModel, config: Any) -> None:
    """Refuse models whose blocks read one another's keys and values, or have settings block by block."""
    if getattr(config, "num_kv_shared_layers", None) or any(getattr(config, "kv_sharing_modes", None) or ()):
        raise _refuse(model, "shares keys and values between blocks (num_kv_shared_layers)")
    sources = getattr(config, "kv_source_layers", None)
    if sources and list(sources) != list(range(len(sources))):
        raise _refuse(model, "shares keys and values between blocks (kv_source_layers)")
    if getattr(config, "is_heterogeneous", False):
        raise _refuse(model, "has settings for single blocks (per_layer_config)")


def _shorten(config: Any, kept: Sequence[int]) -> None:
    """Let a configuration of L blocks describe the kept ones."""
    blocks = config.num_hidden_layers
    changed: dict[str, Any] = {"num_hidden_layers": len(kept)}
    for name, value in vars(config).items():
        if name.startswith("_") or name in ("architectures", "eos_token_id"):
            continue
        if name in _COUNTS and isinstance(value, int):
            changed[name] = sum(block < value for block in kept)
        elif name in _NUMBERS and isinstance(value, (list, tuple)):
            changed[name] = [place for place, block in enumerate(kept) if block in value]
        elif isinstance(value, (list, tuple)) and _for_each_block(name, value, blocks):
            changed[name] = type(value)(value[block] for block in kept)
    if "attention_types" in vars(config):  # GPT-Neo: the list for each block, run-length encoded
        changed["attention_types"] = [[[kind], 1] for kind in changed.get("attention_layers", ())]
    for name, value in changed.items():
        setattr(config, name, value)


def _for_each_block(name: str, value: Sequence[Any], blocks: int) -> bool:
    """Whether a list has one entry for each block; some may be longer."""
    return len(value) == blocks or (len(value) > blocks and name in ("layer_types", "no_rope_layers"))


def _renumber(model: PreTrainedModel, view: PreTrainedModel, blocks: str, kept: Sequence[int]) -> None:
    """Give the view's blocks their new numbers, and prove that its configuration describes them.

    Raises:
        ModelError: If it does not.
    """
    full, short = _described(model, model.config), _described(model, view.config)
    mine = dict(view.named_modules())
    before = {_renamed(name, blocks, kept): module for name, module in full.items()}
    before.pop(None, None)
    other = sorted(name for name in before.keys() ^ short.keys() if name is not None)
    if other:
        raise _refuse(model, f"has other parts without these blocks ({', '.join(other[:3])})")
    for name, after in short.items():
        was, place = before[name], _place(name, blocks)
        if not _alike(was, after, outside=place is None):
            raise _refuse(model, f"has another {name} ({type(after).__name__}) without these blocks")
        for key, new in vars(after).items():
            old = vars(was).get(key)
            if not _plain(new) or _equal(old, new):
                continue
            if place is not None and not _follows(full, name, key, blocks, kept):
                raise _refuse(
                    model,
                    f"computes {name.rpartition('.')[2]}.{key} of block {kept[place]} from its place "
                    f"({old!r} there, {new!r} as block {place})",
                )
            # What was set by hand, or belongs to an adapter that the configuration does not know, stays.
            if name in mine and _equal(vars(mine[name]).get(key), old):
                mine[name].__dict__[key] = new


def _renamed(name: str, blocks: str, kept: Sequence[int]) -> str | None:
    """The name in the view of a module of the full model; None if it is dropped."""
    place = _place(name, blocks)
    if place is None:
        return name
    return f"{blocks}.{kept.index(place)}{_inside(name, blocks)}" if place in kept else None


def _follows(full: dict[str, nn.Module], name: str, key: str, blocks: str, kept: Sequence[int]) -> bool:
    """Whether an attribute changes because it is the block's number, or a copy of the list for each block."""
    inside = _inside(name, blocks)
    every = {
        place: vars(module).get(key)
        for other, module in full.items()
        if (place := _place(other, blocks)) is not None and _inside(other, blocks) == inside
    }
    if any(isinstance(value, (list, tuple)) for value in every.values()):
        return all(isinstance(value, (list, tuple)) and len(value) > kept[-1] for value in every.values())
    return all(type(value) is int and value == place for place, value in every.items())


def _alike(before: nn.Module, after: nn.Module, *, outside: bool) -> bool:
    """Whether two modules are of one kind and size.

    Outside the blocks, tables for kinds of blocks that are gone may be gone as well (rotary positions).
    """
    old, new = _shapes(before._buffers), _shapes(after._buffers)
    same = new.items() <= old.items() if outside else new == old
    return type(before) is type(after) and _shapes(before._parameters) == _shapes(after._parameters) and same


def _described(model: PreTrainedModel, config: PreTrainedConfig) -> dict[str, nn.Module]:
    """The modules of the model that this configuration describes once it is saved, without weights, by name."""
    try:
        with torch.device("meta"):
            fresh = type(model)(type(config).from_dict(copy.deepcopy(config.to_dict())))
    except Exception as error:
        raise _refuse(
            model, f"cannot be built from its configuration ({type(error).__name__}: {error})"
        ) from error
    return dict(fresh.named_modules())


def _place(name: str, blocks: str) -> int | None:
    """Which block a module is part of, by its dotted name; None for what is outside."""
    if not name.startswith(f"{blocks}."):
        return None
    return int(name[len(blocks) + 1 :].partition(".")[0])


def _inside(name: str, blocks: str) -> str:
    """What follows the block's number in a dotted name, with its dot."""
    return "".join(name[len(blocks) + 1 :].partition(".")[1:])


def _shapes(tensors: Mapping[str, Tensor | None]) -> dict[str, tuple[int, ...] | None]:
    return {name: None if tensor is None else tuple(tensor.shape) for name, tensor in tensors.items()}


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _equal(left: Any, right: Any) -> bool:
    return type(left) is type(right) and left == right


def _refuse(model: PreTrainedModel, why: str) -> ModelError:
    return ModelError(f"{type(model).__name__} {why}; it cannot be truncated so.")
