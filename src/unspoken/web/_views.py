"""Views of the model at other depths, made when they are asked for."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

from unspoken.errors import UnspokenError
from unspoken.web._errors import ApiError, printable, wrong

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
            ApiError: If the words mean no depth of this model, or the server is shutting down.
        """
        if not depth:
            return {}
        if depth not in self._views:
            lm = self._engine.lm
            future = self._engine.call(lambda: lm.truncated(depth))
            try:
                self._views[depth] = await asyncio.wrap_future(future)
            except UnspokenError as error:
                raise wrong({"depth": [printable(error.message)]}, hint=error.hint) from error
            except asyncio.CancelledError:
                if future.cancelled():
                    raise ApiError(503, "The server is shutting down.") from None
                raise
            while len(self._views) > MOST:
                self._views.popitem(last=False)
        self._views.move_to_end(depth)
        return {depth: self._views[depth]}
