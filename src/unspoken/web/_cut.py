"""Steps with fewer candidates: of a mixture over a whole vocabulary only the best ones are handed on."""

from __future__ import annotations

from dataclasses import dataclass

from unspoken.types import Top

KEPT = 1024
"""Candidates of a step that leave the engine; the others are counted."""


@dataclass(frozen=True, slots=True)
class CutTop(Top):
    """The best candidates of a step that has more.

    Attributes:
        others: How many others there are.
        others_weight: The weight that was fed of them.
    """

    others: int = 0
    others_weight: float = 0.0


def cut(top: Top, most: int) -> Top:
    """The `most` candidates with the largest weights, or of equal ones with the largest probabilities, in order."""
    if len(top.ids) <= most:
        return top
    order = sorted(range(len(top.ids)), key=lambda i: (-top.weights[i], -top.probs[i]))
    kept, left = sorted(order[:most]), order[most:]
    earlier = top if isinstance(top, CutTop) else CutTop((), (), ())
    return CutTop(
        tuple(top.ids[i] for i in kept),
        tuple(top.probs[i] for i in kept),
        tuple(top.weights[i] for i in kept),
        tuple(top.texts[i] for i in kept) if top.texts else (),
        earlier.others + len(left),
        earlier.others_weight + sum(top.weights[i] for i in left),
    )
