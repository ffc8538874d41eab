"""Prefill and decode steps over the ragged cache, made cheap without touching the model's own code.

In a step three things are switched on for a single forward and off again after it:

* attention over the ragged cache, through transformers' public `AttentionInterface`: the grouped queries
  of a key head are packed as if they were positions, so keys and values are never repeated;
* on a CPU, linear layers in the order of operands that is fastest for the number of rows. Measured on SmolLM2's
  shapes: in float32, `(W x^T)^T` takes 0.5 to 0.85 of the time from 12 to 48 rows, for the head (many more outputs
  than inputs) 0.55 to 0.75 from 6 to 15 rows; elsewhere it loses up to 2 times. In bfloat16 a single row as a
  matrix-vector product takes 0.65 to 0.85 of the time, and nothing else helps;
* root-mean-square norms as one kernel, where that gives what the model's own module gives.

On a GPU cuDNN's attention is left out: it makes a plan for every new number of rows and columns, and each step has a
column more than the last. On an H100 (1.5 billion parameters, bfloat16) the first 48 steps at batch 1, 8 and 32 took
3.9, 6.8 and 3.7 s with it, where it ran first, and 0.8 to 0.9 s without; in later runs both took 0.8 to 1.3 s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from unspoken.errors import ModelError
from unspoken.lm.cache import RaggedCache

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM

IMPLEMENTATION = "unspoken_ragged"
_HARMLESS = ("position_ids", "cache_position")
SWAPPED_ROWS = range(12, 49)
SWAPPED_ROWS_OF_HEAD = range(6, 16)
HEAD_ASPECT = 8  # a layer with this many times more outputs than inputs counts as a head

Gap = tuple[int, int]
"""Positions left out of a row: the first position that moves, and by how many it and all later ones do."""


def ragged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of one new position a row over a right-aligned window.

    Args:
        module: The attention layer.
        query: [n, Hq, 1, D].
        key: [n, Hkv, W, D], Hq a multiple of Hkv.
        value: [n, Hkv, W, Dv].
        attention_mask: [n, 1, 1, W] additive, or None.
        scaling: Factor on the scores (default 1/sqrt(D)).
        sliding_window: Only the last so many columns are seen. The new position is the last column of
            every row, so this is the same slice for all of them.
        softcap: Scores become `softcap * tanh(scores / softcap)`.
        **others: What else the layer passes; tensors among it are refused.

    Returns:
        [n, 1, Hq, Dv] and None (no attention weights).

    Raises:
        ModelError: If the layer passes a further tensor (attention sinks, say), which would be ignored.
    """
    unknown = [name for name, v in others.items() if isinstance(v, Tensor) and name not in _HARMLESS]
    if unknown:
        raise ModelError(
            f"{type(module).__name__} gives its attention {', '.join(unknown)}, which is not supported."
        )
    n, heads, _one, width = query.shape
    key_heads = key.shape[1]
    if sliding_window is not None and key.shape[2] > sliding_window:
        key, value = key[:, :, -sliding_window:], value[:, :, -sliding_window:]
        attention_mask = None if attention_mask is None else attention_mask[..., -sliding_window:]
    packed = query.reshape(n, key_heads, heads // key_heads, width)
    if softcap is None:
        out = F.scaled_dot_product_attention(packed, key, value, attn_mask=attention_mask, scale=scaling)
    else:
        scores = (packed @ key.transpose(2, 3)) * (width**-0.5 if scaling is None else scaling)
        scores = torch.tanh(scores.float() / softcap) * softcap
        scores = scores if attention_mask is None else scores + attention_mask
        out = torch.softmax(scores, dim=-1).to(value.dtype) @ value
    return out.reshape(n, 1, heads, value.shape[-1]), None


AttentionInterface.register(IMPLEMENTATION, ragged_attention)


Forward = Callable[[Tensor], Tensor]


@contextmanager
def without_cudnn_attention(device: torch.device) -> Iterator[None]:
    """Let torch choose among its other attention kernels on a GPU; nothing on other devices."""
    if device.type != "cuda" or not torch.backends.cuda.cudnn_sdp_enabled():  # type: ignore[no-untyped-call]
        yield
        return
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


class StepMode:
    """Switches a model into step mode, one forward at a time.

    Args:
        model: The causal LM.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.ragged = bool(getattr(model, "_supports_attention_backend", False))
        modules = list(model.modules())
        self._norms = [(m, norm) for m in modules if (norm := _norm_forward(m)) is not None]
        self._linears = [
            (m, *found) for m in modules if type(m) is nn.Linear and (found := _linear_forward(m)) is not None
        ]

    @contextmanager
    def __call__(self, rows: int) -> Iterator[None]:
        """Step mode for one forward of `rows` rows."""
        config = self._model.config
        before = config._attn_implementation
        if self.ragged:
            config._attn_implementation = IMPLEMENTATION
        wanted = self._norms + [(m, forward) for m, forward, when in self._linears if rows in when]
        # A layer whose forward somebody has replaced (accelerate does, to place it on a device) is left alone.
        replaced = [pair for pair in wanted if "forward" not in pair[0].__dict__]
        for module, forward in replaced:
            module.__dict__["forward"] = forward
        try:
            yield
        finally:
            for module, _ in replaced:
                module.__dict__.pop("forward", None)
            config._attn_implementation = before


def _norm_forward(module: nn.Module) -> Forward | None:
    """A root-mean-square norm in two calls instead of six, if the module is one: tried out, not guessed."""
    weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or not isinstance(epsilon, float):
        return None
    shape = tuple(weight.shape)

    def forward(x: Tensor) -> Tensor:
        return weight * F.rms_norm(x, shape, None, epsilon)

    with torch.no_grad():
        x = torch.linspace(-2.0, 3.0, shape[0], dtype=weight.dtype, device=weight.device)[None, None]
        same = torch.allclose(forward(x), module(x), rtol=torch.finfo(weight.dtype).eps * 4)
    return forward if same else None


def _linear_forward(module: nn.Linear) -> tuple[Forward, range] | None:
    """A faster forward of a linear layer on the CPU, and the numbers of rows for which it is faster."""
    if module.weight.device.type != "cpu":
        return None

    def swapped(x: Tensor) -> Tensor:
        weight, bias, flat = module.weight, module.bias, x.reshape(-1, x.shape[-1]).t()
        out = torch.mm(weight, flat) if bias is None else torch.addmm(bias[:, None], weight, flat)
        # Contiguous, since a transposed view would make every later kernel slower.
        return out.t().contiguous().view(*x.shape[:-1], -1)

    def single(x: Tensor) -> Tensor:
        weight, bias, flat = module.weight, module.bias, x.reshape(-1)
        out = torch.mv(weight, flat) if bias is None else torch.addmv(bias, weight, flat)
        return out.view(*x.shape[:-1], -1)

    if module.weight.dtype == torch.float32:
        is_head = module.out_features >= HEAD_ASPECT * module.in_features
        return swapped, SWAPPED_ROWS_OF_HEAD if is_head else SWAPPED_ROWS
    return (single, range(1, 2)) if module.weight.dtype == torch.bfloat16 else None


class Decoder:
    """The live rows of one batch: their cache, and the forwards that extend it.

    Args:
        lm: The model.
        max_rows: Most rows at once.

    Rows are numbered 0..n-1 in the order of the cache; `drop` moves the last row into the hole.
    """

    def __init__(self, lm: CausalLM, max_rows: int) -> None:
        self.lm = lm
        self.cache = RaggedCache(max_rows)
        self._step_mode = StepMode(lm.model)
        self._hidden: Tensor | None = None

    @torch.no_grad()
    def prefill(
        self, prompts: Sequence[Sequence[int]], gaps: Sequence[Gap] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Add rows that have read these prompts.

        Args:
            prompts: Token ids; none empty.
            gaps: The gap in each row's positions; none has one if left out.

        Returns:
            [n, V] float32 logits at each prompt's last position, and the [n, D] hidden states there, after
            the final norm.
        """
        device = self.lm.device
        mask = self.cache.begin_prefill([len(p) for p in prompts], device)
        ids = torch.zeros(mask.shape, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, mask.shape[1] - len(prompt) :] = torch.tensor(prompt)
        positions = (mask.long().cumsum(-1) - 1).clamp_(min=0)
        for row, (first, width) in enumerate(gaps or ()):
            positions[row] += width * (positions[row] >= first)
        return self._forward(input_ids=ids.to(device), attention_mask=mask, position_ids=positions)

    @torch.no_grad()
    def step(self, vectors: Tensor, gaps: Sequence[Gap] | None = None) -> tuple[Tensor, Tensor]:
        """Every row reads one vector.

        Args:
            vectors: [n, D].
            gaps: The gap in each row's positions; none has one if left out.

        Returns:
            As `prefill`.
        """
        device = self.lm.device
        mask = self.cache.begin_step(device, vectors.dtype)
        rows = vectors.shape[0]
        if mask is None and not self._step_mode.ragged:
            mask = vectors.new_zeros(rows, 1, 1, self.cache.end - self.cache.start)
        last = [length - 1 for length in self.cache.lengths]
        if gaps is not None:
            last = [position + width for position, (_, width) in zip(last, gaps, strict=True)]
        positions = torch.tensor(last, device=device)[:, None]
        with self._step_mode(rows):
            return self._forward(inputs_embeds=vectors[:, None], attention_mask=mask, position_ids=positions)

    def _forward(self, **inputs: Any) -> tuple[Tensor, Tensor]:
        model = self.lm.model
        training = model.training
        if training:
            model.eval()
        # What the head reads is the final hidden state; keeping a reference to it costs nothing.
        hook = self.lm.anatomy.head.register_forward_pre_hook(self._keep_hidden)
        try:
            with without_cudnn_attention(self.lm.device):
                out = model(**inputs, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        finally:
            hook.remove()
            if training:
                model.train()
        hidden, self._hidden = self._hidden, None
        assert hidden is not None
        logits = out.logits[:, -1]
        return logits if logits.dtype == torch.float64 else logits.float(), hidden

    def _keep_hidden(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._hidden = args[0][:, -1]
