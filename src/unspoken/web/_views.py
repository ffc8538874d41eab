"""Views of the model at other depths, made when they are asked for."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from unspoken.errors import UnspokenError
from unspoken.web._errors import printable, wrong
from unspoken.web.jobs import ShuttingDown

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM
    from unspoken.web.jobs import Engine

MOST = 8
"""Views that are remembered; they share the model's weights."""


class Views:
    """The views of an engine's model.

    Args:
        engine: Its thread makes them, since making one runs the model.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._views: OrderedDict[str, CausalLM] = OrderedDict()

    async def of(self, depth: str | None) -> dict[str, CausalLM]:
        """The view of this depth, by its own words; nothing for the full model.

        Raises:
            ApiError: If the words mean no depth of this model.
            ShuttingDown: If the server is.
        """
        if not depth:
            return {}
        if depth not in self._views:
            lm = self._engine.lm
            try:
                self._views[depth] = await self._engine.ask(lambda: lm.truncated(depth))
            except ShuttingDown:
                raise
            except UnspokenError as error:
                raise wrong({"depth": [printable(error.message)]}, hint=error.hint) from error
            while len(self._views) > MOST:
                self._views.popitem(last=False)
        self._views.move_to_end(depth)
        return {depth: self._views[depth]}
