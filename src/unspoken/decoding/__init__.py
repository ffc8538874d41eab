"""Strategies, one a file, and the loop that runs them."""

from unspoken.decoding._base import Feed, Request, Row, State, Strategy
from unspoken.decoding._loop import run

__all__ = ["Feed", "Request", "Row", "State", "Strategy", "run"]
