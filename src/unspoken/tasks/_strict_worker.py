"""The process behind `_strict`: decides whether two expressions are equal with sympy, and can be killed.

Run as a script. Expressions are read by the small parser below; nothing is ever evaluated as code.
"""

import os
import sys

# As a script, this folder comes first on the path; its files must not hide anyone's modules.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE]

import importlib  # noqa: E402
import re  # noqa: E402
from typing import Any  # noqa: E402

from unspoken.tasks._verifier_worker import Comparer, serve  # noqa: E402

_TOKEN = re.compile(r"(\d+(?:\.\d*)?|\.\d+)|([a-z])|([π√+\-*/^()])")


class Reader:
    """Reads `2√(3)/3 + x^2`: numbers, letters, π, √, + - * / ^, brackets and products without a sign.

    Args:
        library: The module sympy.
        text: One expression.

    Raises:
        ValueError: If it is none (when read).
    """

    def __init__(self, library: Any, text: str) -> None:
        self.sympy = library
        self.tokens: list[str] = []
        at = 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise ValueError(f"{text[at]!r} is no part of an expression")
            self.tokens.append(match.group())
            at = match.end()
        self.at = 0

    def read(self) -> Any:
        """The whole expression."""
        value = self._sum()
        if self.at != len(self.tokens):
            raise ValueError(f"{self.tokens[self.at]!r} is left over")
        return value

    def _next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def _take(self) -> str:
        token = self._next()
        self.at += 1
        return token

    def _sum(self) -> Any:
        value = self._product()
        while self._next() in ("+", "-"):
            sign = self._take()
            term = self._product()
            value = value + term if sign == "+" else value - term
        return value

    def _product(self) -> Any:
        value = self._signed()
        while (token := self._next()) and token not in "+-)^":
            if token in "*/":
                self._take()
                factor = self._signed()
                if token == "/" and factor == 0:
                    raise ValueError("division by zero")
                value = value * factor if token == "*" else value / factor
            else:
                value = value * self._power()
        return value

    def _signed(self) -> Any:
        if self._next() in ("+", "-"):
            return -self._signed() if self._take() == "-" else self._signed()
        return self._power()

    def _power(self) -> Any:
        base = self._atom()
        if self._next() != "^":
            return base
        self._take()
        return base ** self._signed()

    def _atom(self) -> Any:
        token = self._take()
        if token == "(":
            value = self._sum()
            if self._take() != ")":
                raise ValueError("a bracket is not closed")
            return value
        if token == "√":
            return self.sympy.sqrt(self._atom())
        if token == "π":
            return self.sympy.pi
        if token.isalpha():
            return self.sympy.Symbol(token)
        if token[:1].isdigit() or token[:1] == ".":
            return self.sympy.Rational(token.rstrip(".") or "0")  # exact, so that 0.1 + 0.2 is 0.3
        raise ValueError(f"{token!r} where a number was expected")


def _strict() -> Comparer:
    library = importlib.import_module("sympy")

    def same(gold: str, answer: str) -> bool:
        difference = Reader(library, gold).read() - Reader(library, answer).read()
        return bool(library.simplify(difference) == 0)

    return same


if __name__ == "__main__":
    serve(_strict)
