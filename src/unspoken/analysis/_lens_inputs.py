"""What a lens reads: a row of vectors, each with a name, made of text, ids, vectors or a finished generation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from unspoken.errors import ConfigError
from unspoken.types import LATENT_KINDS, Generation, Step, Top

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM

Positions = Literal["last", "prompt", "response", "all"]
POSITIONS: tuple[str, ...] = ("last", "prompt", "response", "all")
_SAME_NORM = 2e-3  # relative; bfloat16 mixtures are rounded to 8 bits after the norm was taken
_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Reading:
    """One row as the model reads it.

    Attributes:
        vectors: [S, D] what is read, in the model's dtype.
        ids: The token at each position, None where a vector that is no token was read.
        labels: Each position for display.
        kinds: `prompt`, or the kind of the step.
        n_prompt: Positions of the prompt.
        logprobs: Log-probabilities that the decoding recorded: position of the reading that predicts the token
            to the value.
    """

    vectors: Tensor
    ids: tuple[int | None, ...]
    labels: tuple[str, ...]
    kinds: tuple[str, ...]
    n_prompt: int
    logprobs: Mapping[int, float]

    @property
    def gold(self) -> list[int | None]:
        """The token that follows each position, None where none does."""
        return [*self.ids[1:], None]

    def select(self, positions: Positions | Sequence[int]) -> list[int]:
        """Indices of the positions asked for.

        Raises:
            ConfigError: If there are none, or the name or an index is unknown.
        """
        size = len(self.ids)
        if not isinstance(positions, str):
            chosen = [int(i) for i in positions]
            outside = [i for i in chosen if not -size <= i < size]
            if outside or not chosen:
                raise ConfigError(f"positions must be indices from {-size} to {size - 1}, not {positions!r}.")
            return [i % size for i in chosen]
        if positions not in POSITIONS:
            raise ConfigError(f"positions must be {', '.join(POSITIONS)} or indices, not {positions!r}.")
        if positions == "response" and self.n_prompt == size:
            raise ConfigError(
                "There is no response to read, only a prompt.",
                "Read a generation, give a response, or choose positions='prompt'.",
            )
        first = {"last": self.n_prompt - 1, "response": self.n_prompt}.get(positions, 0)
        stop = size if positions in ("response", "all") else self.n_prompt
        return list(range(max(first, 0), stop))


def text_ids(lm: CausalLM, text: str) -> list[int]:
    """Ids of plain text with the special tokens that the tokenizer puts before one; no chat template.

    Raises:
        ConfigError: If the text is empty.
    """
    if not text.strip():
        raise ConfigError("The text is empty.", "Give some words, chat messages or token ids.")
    encoded: Any = lm.tokenizer(text, verbose=False)["input_ids"]
    ids: list[int] = list(encoded)
    while len(ids) > 1 and ids[-1] == lm.tokenizer.eos_token_id:  # some tokenizers close every text
        ids.pop()
    return ids


def answer_ids(lm: CausalLM, answers: int | str | Iterable[int | str]) -> list[int]:
    """Tokens that begin an answer: ids as they are; of a text its first token, with and without a space before it.

    Raises:
        ConfigError: If an id is outside the vocabulary or a text is empty.
    """
    wanted = [answers] if isinstance(answers, (int, str)) else list(answers)
    found: dict[int, None] = {}
    problems = []
    for item in wanted:
        if isinstance(item, str):
            if not item.strip():
                problems.append("An answer must not be empty.")
                continue
            for form in (item.strip(), " " + item.strip()):
                visible = [token for token in lm.tokens.encode(form) if lm.tokens.token_text(token).strip()]
                found.update(dict.fromkeys(visible[:1]))
        elif 0 <= item < lm.vocab_size:
            found[int(item)] = None
        else:
            problems.append(f"The answer's id {item} is outside the vocabulary (0 to {lm.vocab_size - 1}).")
    if problems:
        raise ConfigError(problems)
    return list(found)


def make_reading(
    lm: CausalLM,
    given: Any,
    *,
    prompt: Any = None,
    response: Any = None,
    strategy: Any = None,
    chat: bool = False,
) -> Reading:
    """The reading of what a lens was called with; see `Lens.__call__`.

    Raises:
        ConfigError: If it is of an unknown kind, empty, too long, or lacks what its steps read.
    """
    if isinstance(given, Generation):
        if response is not None:
            raise ConfigError("A generation is its own response; give one or the other.")
        reading = _of_generation(lm, given, prompt, strategy)
    elif isinstance(given, Tensor) and given.is_floating_point():
        if prompt is not None or response is not None:
            raise ConfigError("Vectors are read as they are, without a prompt or a response.")
        reading = _of_vectors(lm, given)
    else:
        if prompt is not None:
            raise ConfigError("prompt= belongs to a generation; a text is its own prompt.")
        ids = prompt_ids(lm, given, chat=chat)
        after = _response_ids(lm, response)
        reading = _of_ids(lm, ids + after, len(ids))
    size, limit = len(reading.ids), lm.max_positions
    if limit is not None and size > limit:
        raise ConfigError(f"There are {size} positions to read, but the model's context holds {limit}.")
    return reading


def prompt_ids(lm: CausalLM, given: Any, *, chat: bool) -> list[int]:
    """Ids of a text (plain, or as one user message), of messages, or of ids.

    Raises:
        ConfigError: If it is of another kind, or empty.
    """
    if isinstance(given, Tensor):
        given = given.tolist()
    if isinstance(given, str) and not chat:
        return text_ids(lm, given)
    return lm.tokens.encode_prompt(given)


def _response_ids(lm: CausalLM, response: Any) -> list[int]:
    if response is None:
        return []
    ids = lm.tokens.encode(response) if isinstance(response, str) else [int(i) for i in response]
    if not ids:
        raise ConfigError("The response is empty.")
    outside = [token for token in ids if not 0 <= token < lm.vocab_size]
    if outside:
        raise ConfigError(f"The response holds ids outside the vocabulary, such as {outside[0]}.")
    return ids


def _of_ids(lm: CausalLM, ids: list[int], n_prompt: int) -> Reading:
    kinds = ["prompt"] * n_prompt + ["forced"] * (len(ids) - n_prompt)
    return Reading(
        _embed(lm, ids), tuple(ids), tuple(lm.tokens.token_text(i) for i in ids), tuple(kinds), n_prompt, {}
    )


def _of_vectors(lm: CausalLM, vectors: Tensor) -> Reading:
    if vectors.dim() != 2 or vectors.shape[1] != lm.hidden_size or not len(vectors):
        raise ConfigError(f"Vectors must be [T, {lm.hidden_size}], not {list(vectors.shape)}.")
    size = len(vectors)
    labels = tuple(f"‹vector {i}›" for i in range(size))
    return Reading(vectors.to(lm.device, lm.dtype), (None,) * size, labels, ("latent",) * size, size, {})


def _of_generation(lm: CausalLM, generation: Generation, prompt: Any, strategy: Any) -> Reading:
    ids = _prompt_of(lm, generation, prompt, strategy)
    steps = generation.steps
    vectors = _embed(lm, ids)
    if steps:
        vectors = torch.cat([vectors, _step_vectors(lm, generation, strategy)])
    labels = [lm.tokens.token_text(i) for i in ids]
    labels += [_label(lm, step) for step in steps]
    logprobs = {
        len(ids) + i - 1: step.logprob
        for i, step in enumerate(steps)
        if step.logprob is not None and step.token_id is not None
    }
    return Reading(
        vectors,
        (*ids, *(step.token_id for step in steps)),
        tuple(labels),
        ("prompt",) * len(ids) + tuple(step.kind for step in steps),
        len(ids),
        logprobs,
    )


def _prompt_of(lm: CausalLM, generation: Generation, prompt: Any, strategy: Any) -> list[int]:
    if prompt is None and generation.prompt_ids is not None:
        return generation.prompt_ids
    if prompt is None:
        raise ConfigError(
            "A generation that was read from a file does not hold its prompt.",
            "Give it: lens(out, prompt=question, strategy=strategy)",
        )
    ids = lm.tokens.encode_prompt(prompt) if strategy is None else strategy.prompt_ids(lm, prompt)
    read = generation.usage.prompt_tokens
    if read and read != len(ids):
        raise ConfigError(
            f"The generation read {read} prompt tokens, but this prompt has {len(ids)}.",
            "Give the prompt it was made from, and strategy= where the strategy adds to it (such as `<think>`).",
        )
    return list(ids)


def _step_vectors(lm: CausalLM, generation: Generation, strategy: Any) -> Tensor:
    """[T, D] what each step read: as recorded, else made again from the step."""
    steps = generation.steps
    recorded = generation.records.get("inputs")
    # The step that ends a row is recorded, and not read.
    if recorded is not None and len(recorded) in (len(steps) - 1, len(steps)):
        vectors = [row for row in recorded.to(lm.device, lm.dtype)]
        vectors += [_step_vector(lm, step, strategy) for step in steps[len(vectors) :]]
        return torch.stack(vectors)
    if recorded is not None:
        raise ConfigError(f"The generation has {len(steps)} steps, but records of {len(recorded)}.")
    return torch.stack([_step_vector(lm, step, strategy) for step in steps])


def _step_vector(lm: CausalLM, step: Step, strategy: Any) -> Tensor:
    if step.token_id is not None:
        return _embed(lm, [step.token_id])[0]
    if step.kind == "soft" and step.top is not None:
        return _mixture(lm, step, step.top, strategy)
    how = "trace='full'" if step.kind == "soft" else "record=('inputs',)"
    raise ConfigError(
        f"Step {step.index} read a {step.kind} vector that the generation did not keep.",
        f"Generate it again with {how}.",
    )


def _mixture(lm: CausalLM, step: Step, top: Top, strategy: Any) -> Tensor:
    """[D] the vector that a soft step read.

    An element-wise maximum reports the same weights as a mean, and a mixture may have been rescaled; the reported
    norm tells what was fed. Only an element-wise maximum that was also rescaled needs `strategy` to be told.
    """
    fed = [i for i, weight in enumerate(top.weights) if weight > 0]
    ids = torch.tensor([[top.ids[i] for i in fed]], device=lm.device)
    weights = torch.tensor([[top.weights[i] for i in fed]], device=lm.device)
    with torch.no_grad():
        mean = lm.mix(ids, weights)[0]
        if step.norm_ratio is None and strategy is None:
            return mean
        biggest = lm.element_wise_max(ids)[0]
        parts = float((lm.embed(ids)[0].float().norm(dim=-1) * weights[0]).sum())
    named = getattr(strategy, "base_mixture", None)
    vector = biggest if named == "element_wise_max" else mean
    if step.norm_ratio is None:
        return vector
    wanted = step.norm_ratio * parts
    if named is None and not _near(mean, wanted) and _near(biggest, wanted):
        return biggest
    if _near(vector, wanted):
        return vector
    return (vector.float() * (wanted / float(vector.float().norm()))).to(lm.dtype)


def _near(vector: Tensor, norm: float) -> bool:
    return abs(float(vector.float().norm()) - norm) <= _SAME_NORM * norm


def _label(lm: CausalLM, step: Step) -> str:
    """A step for display: never as if a token had been read where none was."""
    if step.token_id is not None:
        return lm.tokens.token_text(step.token_id)
    if step.kind in LATENT_KINDS and step.top is not None:
        best = sorted(range(len(step.top.ids)), key=lambda i: -step.top.weights[i])[:_SHOWN]  # type: ignore[union-attr]
        texts = [lm.tokens.token_text(step.top.ids[i]) for i in best]
        return "‹" + "|".join(text.strip() or text for text in texts) + "›"
    return f"‹{step.kind} {step.index}›"


def _embed(lm: CausalLM, ids: Sequence[int]) -> Tensor:
    with torch.no_grad():
        return lm.embed(torch.tensor(list(ids), device=lm.device))
