"""Find a model's parts by structure, then prove that they are what they seem.

No list of architectures: the blocks are the list of `num_hidden_layers` modules, the final norm is whatever
turns the last block's output into the head's input. Two short forwards prove it at load:
`transform(head(norm(last block's output))) == logits`, and feeding embeddings is the same as feeding ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from unspoken.errors import ModelError

PROBE_TOKENS = 6
_TARGET = 40.0  # probe logits are stretched to this size, where a soft cap of 30 is far from the identity
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The parts of a causal LM, proven at load.

    Attributes:
        base: The module that holds the blocks.
        embed: The input embedding; call it, since some scale inside.
        blocks: The transformer blocks, in order.
        norm: The final norm.
        head: From normed hidden states to raw logits.
        scale: Factor on the raw logits (Cohere, Granite), 1 for most models.
        softcap: Bound of the logits, `softcap * tanh(raw / softcap)` (Gemma 2), None for most models.
        vocab_size: Width of the logits.
        names: Dotted path of each module in the model, by the names above.
    """

    base: nn.Module
    embed: nn.Module
    blocks: nn.ModuleList
    norm: nn.Module
    head: nn.Module
    scale: float
    softcap: float | None
    vocab_size: int
    names: Mapping[str, str]

    def logits_transform(self, raw: Tensor) -> Tensor:
        """From the head's output to the model's logits, same shape."""
        return _transform(raw, self.scale, self.softcap)

    def plain_weight(self) -> Tensor | None:
        """Weights W [V, D] where the logits are states times W.T and nothing else (no bias, scale, cap or hook)."""
        head = self.head
        hooked = head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head)
        plain = type(head) is nn.Linear and head.bias is None and not hooked
        if not plain or self.scale != 1.0 or self.softcap is not None:
            return None
        weight: Tensor = head.weight  # type: ignore[assignment]
        return weight


def find_anatomy(model: PreTrainedModel) -> Anatomy:
    """Find and prove the parts of a model. It must be in eval mode.

    Raises:
        ModelError: Naming the part that could not be found or proven, and what was seen instead.
    """
    embed = model.get_input_embeddings()
    table = getattr(embed, "weight", None)
    if not isinstance(embed, nn.Module) or not isinstance(table, Tensor):
        raise _refuse(model, "has no input embedding (get_input_embeddings() gives none with a weight)")
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(head, nn.Module):
        raise _refuse(model, "has no language-model head (get_output_embeddings() gives nothing)")
    candidates = _block_lists(model)
    ids = _probe_ids(model, table)
    probe = _Probe(model, head, candidates)
    logits = probe.run(input_ids=ids)
    blocks_name, norm_name = _find_norm(model, probe, candidates)
    norm = model.get_submodule(norm_name)
    hidden, raw, gain = probe.block_outputs[blocks_name], probe.raw, probe.gain
    with torch.no_grad():
        again = head(norm(hidden))
    if not _same(again, raw, table.dtype):
        raise _refuse(
            model,
            f"does not compute its logits as head(norm(h)): {norm_name!r} and {probe.head_name!r} on the output of "
            f"{blocks_name!r} differ from the model by {_difference(again, raw)}",
        )
    scale, softcap = _find_transform(model, raw * gain, logits, table.dtype)
    anatomy = Anatomy(
        base=model.get_submodule(blocks_name.rpartition(".")[0]),
        embed=embed,
        blocks=candidates[blocks_name],
        norm=norm,
        head=head,
        scale=scale,
        softcap=softcap,
        vocab_size=logits.shape[-1],
        names={
            "base": blocks_name.rpartition(".")[0],
            "embed": _name_of(model, embed),
            "blocks": blocks_name,
            "norm": norm_name,
            "head": probe.head_name,
        },
    )
    _prove_embeddings(model, anatomy, table, ids, anatomy.logits_transform(raw))
    return anatomy


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of the text part (of a model that also sees or hears)."""
    return model.config.get_text_config(decoder=True)


def _block_lists(model: PreTrainedModel) -> dict[str, nn.ModuleList]:
    """Every outermost list of as many modules as the configuration has layers, by dotted name."""
    wanted = getattr(text_config(model), "num_hidden_layers", None)
    if not isinstance(wanted, int):
        raise _refuse(model, "has a configuration without num_hidden_layers, so its blocks cannot be counted")
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    found = {name: module for name, module in lists.items() if len(module) == wanted}
    found = {n: m for n, m in found.items() if not any(n.startswith(f"{other}.") for other in found)}
    if not found:
        seen = ", ".join(f"{name} ({len(module)})" for name, module in lists.items()) or "none"
        raise _refuse(model, f"has no list of {wanted} blocks; lists of modules: {seen}")
    return found


def _probe_ids(model: PreTrainedModel, table: Tensor) -> Tensor:
    """[1, T] different random ids, the same every time; without those that models treat apart, such as padding."""
    size = getattr(text_config(model), "vocab_size", None) or table.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, int(size), (8 * PROBE_TOKENS,), generator=generator).tolist()
    special = {getattr(model.config, f"{name}_token_id", None) for name in ("pad", "image", "audio", "video")}
    plain = [token for token in dict.fromkeys(ids) if token not in special][:PROBE_TOKENS]
    return torch.tensor([plain], device=table.device)


class _Probe:
    """One forward during which the calls outside the blocks are recorded and the raw logits are stretched."""

    def __init__(
        self, model: PreTrainedModel, head: nn.Module, candidates: Mapping[str, nn.ModuleList]
    ) -> None:
        self.model, self.head, self.candidates = model, head, candidates
        self.head_name = _name_of(model, head)
        self.block_outputs: dict[str, Tensor] = {}
        self.calls: list[tuple[str, Tensor, Tensor]] = []
        self.head_input: Tensor
        self.raw: Tensor
        self.gain = 1.0

    def run(self, **inputs: Tensor) -> Tensor:
        """The model's logits [1, T, V], of the stretched raw logits."""
        with self._hooks():
            logits = _forward(self.model, **inputs)
        if not hasattr(self, "raw"):
            raise _refuse(self.model, f"never calls its head {self.head_name!r}")
        return logits

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        inside = tuple(f"{name}." for name in self.candidates)
        handles = []
        try:
            for name, blocks in self.candidates.items():
                handles.append(blocks[-1].register_forward_hook(self._block_hook(name)))
            for name, module in self.model.named_modules():
                if module is not self.head and not name.startswith(inside):
                    handles.append(module.register_forward_hook(self._call_hook(name)))
            handles.append(self.head.register_forward_hook(self._head_hook))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _block_hook(self, name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if isinstance(hidden, Tensor):
                self.block_outputs[name] = hidden

        return hook

    def _call_hook(self, name: str) -> Any:
        def hook(_module: nn.Module, args: Any, output: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                self.calls.append((name, args[0], output))

        return hook

    def _head_hook(self, _module: nn.Module, args: Any, output: Tensor) -> Tensor:
        self.head_input, self.raw = args[0], output
        largest = float(_without_infinity(output).abs().max())
        self.gain = max(1.0, _TARGET / largest) if largest > 0 else 1.0
        return output * self.gain


def _forward(model: PreTrainedModel, **inputs: Tensor) -> Tensor:
    """The logits [1, T, V] of a plain forward without a cache."""
    try:
        with torch.no_grad():
            output = model(**inputs, use_cache=False)
    except Exception as error:
        given = " and ".join(inputs)
        raise _refuse(model, f"fails on a forward with {given} ({type(error).__name__}: {error})") from error
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise _refuse(model, "returns no logits")
    return logits


def _find_norm(
    model: PreTrainedModel, probe: _Probe, candidates: Mapping[str, nn.ModuleList]
) -> tuple[str, str]:
    """Names of the block list and of the module between its output and the head's input."""
    links = [
        (blocks_name, call_name)
        for blocks_name, hidden in probe.block_outputs.items()
        for call_name, given, output in probe.calls
        if _same_storage(given, hidden) and _same_storage(output, probe.head_input)
    ]
    if links:
        return links[0]
    if not probe.block_outputs:
        raise _refuse(
            model, f"never runs the last of its blocks (lists of the right length: {', '.join(candidates)})"
        )
    hidden_states = probe.block_outputs.values()
    after = [name for name, given, _ in probe.calls if any(_same_storage(given, h) for h in hidden_states)]
    before = [name for name, _, output in probe.calls if _same_storage(output, probe.head_input)]
    raise _refuse(
        model,
        f"has no single final norm between its blocks ({', '.join(probe.block_outputs)}) and its head "
        f"({probe.head_name}); reading the last block: {', '.join(after) or 'nothing'}; "
        f"feeding the head: {', '.join(before) or 'nothing'}",
    )


def _find_transform(
    model: PreTrainedModel, raw: Tensor, logits: Tensor, dtype: torch.dtype
) -> tuple[float, float | None]:
    """What the model does to raw logits, among what its configuration declares and nothing at all."""
    config = text_config(model)
    declared: dict[str, float] = {}
    for name in ("logit_scale", "logits_scaling", "lm_head_multiplier", "final_logit_softcapping"):
        value = getattr(config, name, None)
        if isinstance(value, (int, float)) and value:
            declared[name] = float(value)
    divisor = declared.get("logits_scaling")
    scales = [
        declared.get("logit_scale"),
        1 / divisor if divisor else None,
        declared.get("lm_head_multiplier"),
        1.0,
    ]
    caps = [declared.get("final_logit_softcapping"), None]
    for scale, cap in product([s for s in scales if s is not None], caps):
        if _same(_transform(raw, scale, cap), logits, dtype):
            return scale, cap
    stated = ", ".join(f"{name}={value:g}" for name, value in declared.items()) or "no scale or soft cap"
    raise _refuse(
        model,
        f"changes its logits after the head in an unknown way: its configuration states {stated}, "
        f"but logits and head output differ by {_difference(raw, logits)}",
    )


def _prove_embeddings(
    model: PreTrainedModel, anatomy: Anatomy, table: Tensor, ids: Tensor, logits: Tensor
) -> None:
    """Feed embeddings instead of ids, with another last token: nothing before it may change."""
    if table.shape[0] < anatomy.vocab_size:
        raise _refuse(model, f"has {anatomy.vocab_size} logits for {table.shape[0]} input embeddings")
    other, dtype = ids.clone(), table.dtype
    other[0, -1] = ids[0, 0]
    with torch.no_grad():
        vectors = anatomy.embed(other)
    if not _same(_forward(model, inputs_embeds=vectors)[:, :-1], logits[:, :-1], dtype):
        if _same(_forward(model, input_ids=other)[:, :-1], logits[:, :-1], dtype):
            raise _refuse(model, "gives other logits for the embeddings of tokens than for the tokens")
        raise _refuse(model, "is not causal: a later token changes the logits of earlier ones")


def _transform(raw: Tensor, scale: float, softcap: float | None) -> Tensor:
    logits = raw if scale == 1.0 else raw * scale
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def _same(left: Tensor, right: Tensor, dtype: torch.dtype) -> bool:
    """Equal up to the rounding of `dtype`, relative to the largest entry."""
    if left.shape != right.shape:
        return False
    left, right = left.float(), right.to(left.device).float()
    if not torch.equal(left.isneginf(), right.isneginf()):
        return False
    left, right = _without_infinity(left), _without_infinity(right)
    return bool((left - right).abs().max() <= _TOLERANCE.get(dtype, 4e-2) * right.abs().max())


def _without_infinity(logits: Tensor) -> Tensor:
    """Logits with 0 where a model rules a token out by minus infinity, which no difference can be taken of."""
    return logits.masked_fill(logits.isneginf(), 0.0)


def _difference(left: Tensor, right: Tensor) -> str:
    if left.shape != right.shape:
        return f"shapes {tuple(left.shape)} and {tuple(right.shape)}"
    return f"up to {float((left.float() - right.float()).abs().max()):.3g}, of {float(right.abs().max()):.3g}"


def _same_storage(left: Tensor, right: Tensor) -> bool:
    """Whether one is the other or a view of the same numbers."""
    return left.data_ptr() == right.data_ptr() and left.numel() == right.numel()


def _name_of(model: nn.Module, part: nn.Module) -> str:
    return next((name for name, module in model.named_modules() if module is part), type(part).__name__)


def _refuse(model: nn.Module, why: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__} {why}.",
        "Unspoken needs a decoder-only model: embedding, a list of blocks, a final norm and a head.",
    )
