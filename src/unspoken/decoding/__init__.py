"""Strategies, one a file, and the loop that runs them."""

from unspoken.decoding._base import Answers, Feed, Request, Row, State, Strategy
from unspoken.decoding._loop import run

__all__ = ["Answers", "Feed", "Request", "Row", "State", "Strategy", "run"]
