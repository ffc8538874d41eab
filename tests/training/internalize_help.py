"""Rows, and the work of `internalize` on them."""

from __future__ import annotations

from typing import Any

from rows_help import chains_of, word_lm

from unspoken.tasks._chains import Chain
from unspoken.training._base import Data
from unspoken.training._options import Options
from unspoken.training.internalize import Internalize

CHAINS = chains_of(60)
MIXED = [Chain("1 2", "3 4 + " * (i % 3) + "1" * (i % 2), str(i % 5)) for i in range(40)]


def work_of(
    chains: list[Chain] = CHAINS, kind: str = "tiny", options: Options | None = None, **fields: Any
) -> tuple[Any, Any]:
    lm = word_lm(CHAINS + MIXED, kind)
    data = Data(chains, chains[:20])
    work = Internalize(**fields).prepare(lm, data, options or Options(batch_size=8, epochs=3))
    return work, lm
