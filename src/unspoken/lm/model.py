"""`load` a causal language model from anywhere, and `CausalLM`: the model as the rest of the project sees it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unspoken.errors import ConfigError, ModelError, RunError
from unspoken.lm import checkpoint, sources
from unspoken.lm.anatomy import find_anatomy, text_config
from unspoken.lm.depth import Depth, Kept
from unspoken.lm.placement import DTYPES, device_of, dtype_of
from unspoken.lm.prompts import Prompt, as_prompts
from unspoken.lm.tokens import Tokens
from unspoken.lm.view import shared_view
from unspoken.types import Event, Generation, Trace, fold

if TYPE_CHECKING:
    from unspoken.decoding._base import Strategy

ATTENTION = ("sdpa", "eager")
_SAMPLED_ELEMENTS = 32


def load(
    source: str | os.PathLike[str],
    *,
    dtype: str = "auto",
    device: str = "auto",
    attn: str = "sdpa",
    trust_remote_code: bool = False,
) -> CausalLM:
    """Load a model and its tokenizer.

    Args:
        source: A name of the zoo (`smollm2`), a folder, a GGUF file, or a hub id (`Qwen/Qwen3-0.6B`), tried in
            this order; write `./smollm2` for a folder that is called like a name of the zoo. A path object is a
            folder or a GGUF file.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: float32 on a CPU, the reference for all results; on a
            GPU the checkpoint's own 16-bit type, bfloat16 if it has none. On a CPU bfloat16 takes half the memory
            and is faster for many rows: ask for it.
        device: As torch names it (`cpu`, `cuda`, `cuda:1`), or `auto`: the first GPU, else the CPU.
        attn: `sdpa` or `eager`, as in transformers.
        trust_remote_code: Whether to run Python code that comes with the checkpoint.

    A checkpoint that was saved with its strategy gives it back as `CausalLM.strategy`.

    Only safetensors and GGUF weights are read, never pickles. What was resolved is in `CausalLM.info()`.
    Sampling defaults that come with a checkpoint are not used; of its generation settings only the end tokens are.

    Raises:
        ConfigError: If the source, dtype, device or attention is unknown, or the model is of a kind that cannot
            be used (encoder-decoder, recurrent).
        ModelError: If it cannot be read or reached, or its parts cannot be proven.
        MissingExtraError: If a package is needed for this source.
    """
    problems = []
    if dtype not in ("auto", *DTYPES):
        problems.append(f"dtype must be auto, {', '.join(DTYPES)}, not {dtype!r}.")
    if attn not in ATTENTION:
        problems.append(f"attn must be {' or '.join(ATTENTION)}, not {attn!r}.")
    try:
        where = device_of(device)
    except ConfigError as error:
        problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    found = sources.resolve(source)
    config = sources.read_config(found, trust_remote_code=trust_remote_code)
    tokenizer = sources.read_tokenizer(found, trust_remote_code=trust_remote_code)
    model = sources.read_model(
        found, config, dtype=dtype_of(dtype, config, where), attn=attn, trust_remote_code=trust_remote_code
    )
    try:
        model.to(where)  # type: ignore[arg-type]
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{found.name!r} does not fit into the memory of {where}.", "Try dtype='bfloat16'."
        ) from error
    lm = CausalLM(model, tokenizer, source=found.name)
    if found.local and not found.gguf:
        lm.strategy, lm.provenance = checkpoint.recall(found.location)
    return lm


class CausalLM:
    """A causal language model with its tokenizer.

    Wrapping one's own model puts it in eval mode and changes nothing else: it stays on its device, in its dtype.

    Args:
        model: A decoder-only Hugging Face model with a language-model head.
        tokenizer: Its tokenizer.
        source: Where it came from, for the records (default: the name in its configuration).
        strategy: What `generate` uses when it is given no strategy.

    Attributes:
        model: The Hugging Face model.
        tokenizer: The Hugging Face tokenizer.
        tokens: Text to ids and back.
        anatomy: The proven parts of the model.
        source: Name of the source.
        strategy: The model's own strategy, or None.
        provenance: Where the model comes from, as its checkpoint says; empty if it does not.
        depth: The blocks that a view made by `truncated` keeps; None for a model that is no view.

    Raises:
        ConfigError: If the model is of a kind that cannot be used.
        ModelError: If its parts cannot be found and proven.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        source: str | None = None,
        strategy: Strategy | None = None,
    ) -> None:
        if not isinstance(model, PreTrainedModel):
            raise ConfigError(
                f"A model must be a transformers PreTrainedModel, not a {type(model).__name__}."
            )
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ConfigError(
                f"A tokenizer must be a transformers tokenizer, not a {type(tokenizer).__name__}."
            )
        sources.refuse_unsupported(model.config, type(model))
        self.model = model.eval()  # type: ignore[no-untyped-call]
        self.tokenizer = tokenizer
        self.anatomy = find_anatomy(model)
        self.tokens = Tokens(tokenizer, self.anatomy.vocab_size)
        self.source = source or model.config.name_or_path or type(model).__name__
        self.strategy = strategy
        self.provenance: dict[str, Any] = {}
        self.depth: Kept | None = None

    def __repr__(self) -> str:
        depth = f", {self.depth.name}" if self.depth else ""
        return f"CausalLM({self.source!r}, {str(self.dtype).removeprefix('torch.')}, {self.device}{depth})"

    # What it is

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the input embedding."""
        return self.anatomy.embed.weight.device  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        """The type of the vectors that the model reads."""
        return self.anatomy.embed.weight.dtype  # type: ignore[return-value]

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self.anatomy.vocab_size

    @property
    def hidden_size(self) -> int:
        """Width of embeddings and hidden states."""
        return int(text_config(self.model).hidden_size)

    @property
    def max_positions(self) -> int | None:
        """Most positions of a prompt and its continuation together; None if the model states no limit."""
        limit = getattr(text_config(self.model), "max_position_embeddings", None)
        return int(limit) if limit and limit > 0 else None

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a text: of the generation settings, the tokenizer, and the template's turns."""
        settings = getattr(self.model, "generation_config", None)
        stated = getattr(settings, "eos_token_id", None)
        listed = list(stated) if isinstance(stated, (list, tuple)) else [stated]
        own = {int(i) for i in [*listed, self.tokenizer.eos_token_id] if i is not None}
        return frozenset(i for i in own | self.tokens.end_of_turn_ids if 0 <= i < self.vocab_size)

    @cached_property
    def weights_hash(self) -> str:
        """16 hex digits that change with the configuration, the dtype, or a training step.

        Of each parameter only `_SAMPLED_ELEMENTS` numbers are read, so this names weights, it does not
        guard them.
        """
        digest = hashlib.sha256(self._config_text().encode())
        for name, parameter in sorted(self.model.named_parameters()):
            flat = parameter.detach().reshape(-1)
            stride = max(1, flat.numel() // _SAMPLED_ELEMENTS)
            sample = flat[::stride][: _SAMPLED_ELEMENTS + 1].contiguous().view(torch.uint8).cpu()
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            digest.update(sample.numpy().tobytes())
        return digest.hexdigest()[:16]

    def info(self) -> dict[str, Any]:
        """What a result depends on, JSON-ready: recorded with every run."""
        config = self.model.config
        depth = {"depth": self.depth.to_dict()} if self.depth else {}
        return {
            "source": self.source,
            "class": type(self.model).__name__,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "attn": str(config._attn_implementation),
            "revision": getattr(config, "_commit_hash", None),
            "weights_hash": self.weights_hash,
            "vocab_size": self.vocab_size,
            "max_positions": self.max_positions,
            **depth,
        }

    # What it reads and says

    def embed(self, ids: Tensor) -> Tensor:
        """[...] ids to [..., D] vectors, as the model's own embedding module gives them."""
        return self.anatomy.embed(ids)  # type: ignore[no-any-return]

    def mix(self, ids: Tensor, weights: Tensor) -> Tensor:
        """Weighted sums of embeddings.

        Args:
            ids: [n, K].
            weights: [n, K] float32.

        Returns:
            [n, D] in the model's dtype; the sum is taken in float32.
        """
        vectors = self.embed(ids).float()
        return torch.bmm(weights.float().unsqueeze(1), vectors).squeeze(1).to(self.dtype)

    def element_wise_max(self, ids: Tensor) -> Tensor:
        """[n, K] ids to [n, D]: in each dimension the largest of the K embeddings."""
        return self.embed(ids).amax(dim=1)

    def unembed(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Final hidden states [..., D], after the last norm, to logits [..., V], scaled and capped as by the model.

        Args:
            hidden: The states; [n, D] where `out` is given.
            out: Memory [n, V] in the dtype of the logits, which is used where the head is a matrix product and nothing
                else. Without gradients only.
        """
        if out is not None and (weight := self.anatomy.plain_weight()) is not None:
            return torch.mm(hidden, weight.T, out=out)
        return self.anatomy.logits_transform(self.anatomy.head(hidden))

    # How deep it looks

    def truncated(
        self,
        depth: Depth | str | None = None,
        *,
        keep_first: int | None = None,
        keep_last: bool | None = None,
        drop: Sequence[int] | None = None,
        drop_window: tuple[int, int] | None = None,
        layer_idx: int | None = None,
    ) -> CausalLM:
        """A view of the model without some of its blocks: the others, then the final norm and the head.

        The view shares the weights: it takes no memory of its own, and training or moving it trains or moves this
        model. It is otherwise independent, and this model is unchanged; both may generate by turns. Of a view, blocks
        are counted as they are in it. A view that drops nothing is called the full model in `info()`.

        Args:
            depth: A `Depth`, or words (`24`, `24+last`, `drop:3,5`, `window:10:4`), instead of what follows.
            keep_first: Number of first blocks that are kept.
            keep_last: Whether the last block is kept as well; goes with `keep_first` (default: no) and `layer_idx`
                (default: yes).
            drop: Blocks that are dropped, counted from 0.
            drop_window: First block that is dropped, and how many are.
            layer_idx: Last of the first blocks that are kept; beyond the last block, the full model.

        Raises:
            ConfigError: If the arguments contradict each other or name blocks that are not there.
            ModelError: If the model cannot be the same without these blocks (shared keys and values, say).
        """
        asked = Depth.read(
            depth,
            keep_first=keep_first,
            keep_last=keep_last,
            drop=drop,
            drop_window=drop_window,
            layer_idx=layer_idx,
        )
        kept = asked.resolve(len(self.anatomy.blocks))
        model = shared_view(self.model, self.anatomy.names["blocks"], kept)
        view = CausalLM(model, self.tokenizer, source=self.source, strategy=self.strategy)
        view.depth = self.depth.of_view(kept) if self.depth else kept
        view.provenance = dict(self.provenance)
        if view.depth.n_dropped:
            view.provenance["depth"] = view.depth.to_dict()
        return view

    # Running it

    def generate(
        self,
        prompts: Prompt | Iterable[Prompt],
        strategy: Strategy | None = None,
        *,
        max_new_tokens: int = 512,
        seed: int = 0,
        batch_size: int = 8,
        trace: Trace = "summary",
        stop: Sequence[str] = (),
        record: Sequence[str] = (),
    ) -> Generation | list[Generation]:
        """Answer one prompt or many.

        Args:
            prompts: One prompt: a string, a list of messages (mappings), or a list of ids. Or many: a list of
                strings, of lists of messages, or of lists of ids.
            strategy: How to think, such as `un.ChainOfThought()`.
            max_new_tokens: Most steps a row may take, thinking included.
            seed: Every row has its own generator, seeded from this and its place in the list.
            batch_size: Rows decoded together; changes the speed, not the results.
            trace: `none`, `summary` or `full`: how much each step records.
            stop: Strings that end a row.
            record: Tensors to attach to each `Generation` as `records`, one entry a step: `inputs` [T, D], the
                vectors read; `hidden` [T, D], the final hidden states from which the steps were decided.

        Returns:
            A `Generation` for one prompt, a list in the same order for many.

        Raises:
            ConfigError: If the strategy is missing or does not fit the model, or an option is wrong.
            RunError: If a row failed.
        """
        rows, many = as_prompts(prompts)
        events = self._stream(
            rows, strategy, max_new_tokens, seed, batch_size, trace, stop, record, live=False
        )
        done = fold(events)
        failed = {row: g.reason for row, g in done.items() if g.reason.startswith("error")}
        if failed:
            row, reason = next(iter(failed.items()))
            which = f"{len(failed)} of {len(rows)} prompts failed; prompt {row}: " if many else ""
            raise RunError(which + reason.removeprefix("error:").strip())
        results = [done[row] for row in sorted(done, key=int)]
        return results if many else results[0]

    def stream(
        self,
        prompts: Prompt | Iterable[Prompt],
        strategy: Strategy | None = None,
        *,
        max_new_tokens: int = 512,
        seed: int = 0,
        batch_size: int = 8,
        trace: Trace = "summary",
        stop: Sequence[str] = (),
        record: Sequence[str] = (),
    ) -> Iterator[Event]:
        """The events of `generate` as they happen; the arguments are the same. Rows are numbered from 0."""
        rows, _many = as_prompts(prompts)
        return self._stream(rows, strategy, max_new_tokens, seed, batch_size, trace, stop, record, live=True)

    def _stream(
        self,
        prompts: list[Prompt],
        strategy: Strategy | None,
        max_new_tokens: int,
        seed: int,
        batch_size: int,
        trace: Trace,
        stop: Sequence[str],
        record: Sequence[str],
        live: bool,
    ) -> Iterator[Event]:
        strategy = strategy or self.strategy
        if strategy is None:
            raise ConfigError(
                "No strategy was given, and this model remembers none.",
                "Pass one: lm.generate(prompt, un.ChainOfThought())",
            )
        if not hasattr(strategy, "stream"):
            raise ConfigError(
                f"A strategy is an object such as un.ChainOfThought() or un.SoftThinking(k=5), not {strategy!r}.",
                "`unspoken list strategies` names them all.",
            )
        return strategy.stream(
            self,
            prompts,
            max_new_tokens=max_new_tokens,
            seed=seed,
            batch_size=batch_size,
            trace=trace,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            record=(record,) if isinstance(record, str) else tuple(record),
            live=live,
        )

    def _config_text(self) -> str:
        values = self.model.config.to_dict()
        for name in ("_name_or_path", "transformers_version", "dtype", "torch_dtype"):
            values.pop(name, None)  # where it was read from and by what, not what it is
        return json.dumps(values, sort_keys=True, default=str)
