"""The lens of a kept run: what the model would say after each of its layers, at each of some steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from unspoken.analysis.lens import LENSES
from unspoken.errors import ConfigError, UnspokenError
from unspoken.types import Generation, Top, event_from_dict, fold
from unspoken.web._bodies import LensAsk
from unspoken.web._errors import ApiError, printable, wrong
from unspoken.web._kept import damaged
from unspoken.web._prepare import conversation
from unspoken.web._strategies import read_strategy

if TYPE_CHECKING:
    from unspoken.decoding import Strategy
    from unspoken.lm.model import CausalLM
    from unspoken.web._prepare import Prompt

MOST_STEPS = 64
"""Steps that can be read at once: all rows wait meanwhile."""
METRICS = {"kl": "kl", "entropy": "entropy", "prob": "top_prob", "rank": "final_rank"}


def kept_generation(run: Mapping[str, Any]) -> Generation:
    """The generation of a kept run.

    Raises:
        ApiError: If its steps cannot be read again.
    """
    events = []
    for event in run["events"]:
        top = event.get("top")
        if top and "rest" in top:
            raise ApiError(
                422, "The run mixed more candidates than were kept, so its steps cannot be read again."
            )
        try:
            events.append(event_from_dict(event))
        except TypeError as error:
            raise damaged(str(error)) from None
    rows = fold(events)
    if not rows:
        raise ApiError(422, "The run has no steps.")
    if len(rows) > 1:
        raise damaged("it has the events of several runs")
    (generation,) = rows.values()
    return generation


def _check_tokens(generation: Generation, vocab_size: int) -> None:
    """Refuse steps that no run of this vocabulary has."""
    for step in generation.steps:
        top = step.top or Top((), (), ())
        if not len(top.ids) == len(top.probs) == len(top.weights):
            raise damaged(f"step {step.index} has candidates without numbers")
        if any(i >= vocab_size for i in (*top.ids, step.token_id or 0)):
            raise damaged(f"step {step.index} has a token that the model does not know")


def span(ask: LensAsk, steps: int) -> tuple[int, int]:
    """The first and the last step that are read.

    Raises:
        ApiError: If there are none, or too many.
    """
    last = min(steps - 1, ask.first + MOST_STEPS - 1) if ask.last is None else ask.last
    problems: dict[str, list[str]] = {}
    if ask.first >= steps:
        problems["first"] = [f"first must be below {steps}, the number of steps, not {ask.first}."]
    elif not ask.first <= last < steps:
        problems["last"] = [f"last must be from {ask.first} to {steps - 1}, not {last}."]
    elif last - ask.first >= MOST_STEPS:
        problems["last"] = [
            f"last must be at most {ask.first + MOST_STEPS - 1}: {MOST_STEPS} steps at a time."
        ]
    if problems:
        raise wrong(problems)
    return ask.first, last


def prepare(ask: LensAsk, run: Mapping[str, Any], lm: CausalLM) -> Callable[[], dict[str, Any]]:
    """What reads the grid, for the engine's thread: all that can be done without the model is done before.

    Args:
        ask: Which steps, and which lens.
        run: The kept run.
        lm: The model, or the view that decoded the run.

    Raises:
        ApiError: If the run cannot be read by this model.
    """
    generation = kept_generation(run)
    first, last = span(ask, len(generation.steps))
    start = run["start"]
    if start.get("weights_hash") != lm.weights_hash:
        raise ApiError(422, f"The run is of another model ({printable(str(start.get('model')), 80)}).")
    _check_tokens(generation, lm.vocab_size)
    strategy = read_strategy(start["strategy"], lm)
    prompt = conversation(start["prompt"]["user"], start["prompt"].get("system"))
    places = [start["prompt_tokens"] + i for i in range(first, last + 1)]

    def read() -> dict[str, Any]:
        return _read(ask, generation, strategy, prompt, places, lm)

    return read


def _read(
    ask: LensAsk, generation: Generation, strategy: Strategy, prompt: Prompt, places: list[int], lm: CausalLM
) -> dict[str, Any]:
    # The usage of a run that went away is not known; the prompt of any other is checked against it.
    try:
        grid = LENSES[ask.lens](lm, metrics=("kl", "entropy", "final"), top_k=1)(
            generation,
            prompt=prompt,
            strategy=strategy,
            positions=places,
        )
    except ConfigError as error:
        raise ApiError(422, error.message, error.hint, {"run": error.problems}) from error
    except UnspokenError as error:
        raise ApiError(422, error.message, error.hint) from error
    arrays = {"top_prob": grid.top_probs[:, :, 0], **grid.values}
    values = {name: _rows(arrays[source]) for name, source in METRICS.items()}
    best = grid.top_ids[:, :, 0].tolist()
    return {
        "layers": grid.layers.tolist(),
        "steps": list(range(ask.first, ask.first + len(places))),
        "labels": list(grid.tokens),
        "kinds": list(grid.kinds),
        "top": [[grid.texts[i] for i in row] for row in best],
        "values": {ask.metric: values[ask.metric], **values},
        "lens": grid.lens,
        "replay": grid.replay,
    }


def _rows(array: Any) -> list[list[float | None]]:
    return [[round(v, 6) if math.isfinite(v) else None for v in row] for row in array.tolist()]
