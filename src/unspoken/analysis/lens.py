"""The logit lens: what a model would say after each of its blocks, at every position, thoughts without words included.

The state after block l is read by the model's own final norm and head: `q_l = softmax(head(norm(h_l)))`, and compared
with the model's final law p by `KL(p || q_l)` in nats. l = -1 is what the first block reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unspoken.analysis._lens_inputs import Positions, Reading, answer_ids, make_reading
from unspoken.analysis._lens_metrics import DEFAULT, Ask, Kept, check_metrics, measure, rows_for
from unspoken.analysis._lens_states import States, check_last, read_states, through_last_block
from unspoken.analysis.lens_grid import LensGrid, make_grid
from unspoken.errors import ConfigError, RunError

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM

MEMORY = 256 * 2**20
"""Bytes for logits."""
_REPLAY = {torch.float32: 0.02, torch.float64: 0.02}
_REPLAY_HALF = 0.5


class Lens:
    """A way to read hidden states; a subclass says how they are changed before the final norm and head.

    Args:
        lm: The model.
        metrics: What to compute, of `kl`, `reverse_kl`, `js`, `entropy`, `agreement` (top-1, with the final law),
            `overlap` (of the top k), `final` (rank and log-probability of the final top token), `gold` (of the next
            token), `answer` (of the answer), `geometry` (cosine and norm ratio to the final state).
        top_k: Candidates kept at each layer and position, and compared by `overlap`; 0 keeps none (and `overlap` is
            of the first one).
        memory: Bytes that logits may take, as long as the lens lives; decides how many positions are read at a time,
            not what is found.
        known_ids_only: Leave out ids that the tokenizer does not have (models pad their vocabularies), in p and q
            alike.

    Attributes:
        name: What the lens is called in tables and figures.

    Raises:
        ConfigError: With everything that is wrong.
    """

    name = "lens"

    def __init__(
        self,
        lm: CausalLM,
        *,
        metrics: Sequence[str] = DEFAULT,
        top_k: int = 5,
        memory: int = MEMORY,
        known_ids_only: bool = False,
    ) -> None:
        self.lm = lm
        self.metrics = check_metrics(metrics)
        self.width = min(lm.vocab_size, len(lm.tokenizer)) if known_ids_only else lm.vocab_size
        problems = []
        if not 0 <= top_k <= self.width:
            problems.append(f"top_k must be from 0 to {self.width} (the vocabulary), not {top_k}.")
        if memory < 1:
            problems.append(f"memory must be at least 1 byte, not {memory}.")
        if problems:
            raise ConfigError(problems)
        self.top_k, self.memory = top_k, memory
        self._kept = Kept()

    def transform(self, hidden: Tensor, layer: int) -> Tensor:
        """States [n, d] after block `layer` (-1: what the first block reads) as they are to be read, same shape.

        Asked for all layers but the last block, whose states are the model's own.
        """
        return hidden

    def prepare(self, states: States) -> Tensor:
        """[D + 1, S, d] the states of a whole row, for a lens that needs more than one position at a time."""
        return states.hidden

    def __call__(
        self,
        given: Any,
        *,
        prompt: Any = None,
        response: Any = None,
        strategy: Any = None,
        chat: bool = False,
        positions: Positions | Sequence[int] = "all",
        answers: int | str | Iterable[int | str] = (),
        position_ids: Sequence[int] | None = None,
        problem_id: str = "0",
    ) -> LensGrid:
        """Read one row at every layer.

        Args:
            given: A `Generation`, which is read again as it was decoded: tokens, soft mixtures (of `trace="full"`)
                and latent vectors (of `record=("inputs",)`). Or a text, a list of messages, a list of ids, or vectors
                [T, D] as the first block's input would be embedded.
            prompt: Of a generation: what it answered.
            response: Of a prompt: text or ids that are read after it.
            strategy: Of a generation: how it was decoded, where the strategy adds to the prompt.
            chat: Whether a text is a user's message in the model's chat template, or plain.
            positions: `last` (of the prompt), `prompt`, `response`, `all`, or indices.
            answers: Tokens whose rank and probability are followed: ids, or texts, of which the first token counts,
                with and without a space before it. Of several, the best rank and the sum of probabilities count.
            position_ids: [S], where the row was read with a gap in its positions.
            problem_id: A name for the row, in tables.

        Raises:
            ConfigError: If the input cannot be read.
            ModelError: If the lens at the last block is not the model.
            RunError: If the recorded log-probabilities of a generation are not found again.
        """
        reading = make_reading(self.lm, given, prompt=prompt, response=response, strategy=strategy, chat=chat)
        chosen = reading.select(positions)
        tracked = answer_ids(self.lm, answers)
        if any(token >= self.width for token in tracked):
            raise ConfigError(f"An answer's id is not below {self.width}, the ids that the tokenizer has.")
        if position_ids is not None and len(position_ids) != len(reading.ids):
            raise ConfigError(
                f"There are {len(reading.ids)} positions to read, but {len(position_ids)} position_ids."
            )
        places = None if position_ids is None else torch.tensor(list(position_ids))
        states = read_states(self.lm, reading.vectors, places)
        last_kl = check_last(self.lm, states)
        replay = self._replay(reading, states)
        gold = reading.gold
        golds = [-1 if (token := gold[i]) is None or token >= self.width else token for i in chosen]
        device = states.hidden.device
        ask = Ask(
            self.metrics,
            self.top_k,
            torch.tensor(golds, device=device),
            torch.tensor(tracked, dtype=torch.long, device=device),
            self.width,
            rows_for(self.memory, self.width),
        )
        with torch.no_grad():
            hidden = self.prepare(states)
            whole = chosen == list(range(hidden.shape[1]))
            hidden, raw = (s if whole else s[:, chosen] for s in (hidden, states.hidden))
            numbers = measure(
                hidden,
                raw,
                ask,
                transform=self.transform,
                norm=self.lm.anatomy.norm,
                unembed=self.lm.unembed,
                weight=self.lm.anatomy.plain_weight(),
                kept=self._kept,
            )
        return make_grid(
            self.lm,
            self.name,
            reading,
            chosen,
            numbers,
            answers=tracked,
            problem_id=problem_id,
            last_kl=last_kl,
            replay=replay,
        )

    def _replay(self, reading: Reading, states: States) -> float | None:
        """Mean difference of the recorded log-probabilities to those of this reading, in nats.

        A wrong prompt, or a vector that is not what was read, does not go unnoticed.
        """
        if not reading.logprobs:
            return None
        rows = rows_for(self.memory, self.lm.vocab_size)
        places = list(reading.logprobs)
        differences = []
        with torch.no_grad():
            for start in range(0, len(places), rows):
                part = places[start : start + rows]
                law = self.lm.unembed(self.lm.anatomy.norm(states.hidden[-1, part])).float().log_softmax(-1)
                ids = torch.tensor([[reading.gold[i]] for i in part], device=law.device)
                known = torch.tensor([reading.logprobs[i] for i in part])
                differences.append((law.gather(-1, ids)[:, 0].cpu() - known).abs())
        mean = float(torch.cat(differences).mean())
        if not mean <= _REPLAY.get(self.lm.dtype, _REPLAY_HALF):
            raise RunError(
                f"This is not what the generation read: its log-probabilities differ by {mean:.3g} nats on average.",
                "Give the prompt it was made from, strategy= as it was decoded, and the same model; "
                "vectors that its steps cannot tell are kept by record=('inputs',).",
            )
        return mean


class LogitLens(Lens):
    """Every state read as if it were the last: `softmax(head(norm(h_l)))`.

    ```python
    lens = un.LogitLens(lm)
    grid = lens("The capital of France is", answers="Paris")
    grid.kl, grid.entropy, grid.answer_rank  # [L, T]
    ```
    """

    name = "logit"


class LastBlockLens(Lens):
    """Every state sent through the last block first: `softmax(head(norm(block(h_l))))`.

    The block reads all positions as in the model. At layer l this is what the model would say if the blocks between l
    and the last one were taken out.
    """

    name = "last_block"

    def prepare(self, states: States) -> Tensor:
        return through_last_block(self.lm, states)


LENSES: dict[str, type[Lens]] = {"logit": LogitLens, "last_block": LastBlockLens}
