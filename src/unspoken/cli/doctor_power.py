"""`unspoken doctor power`: whether power sampling has the law that it says, and how far the alternatives are off."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from unspoken.cli._arguments import Part, first_stage, option, second_stage
from unspoken.cli._options import ModelOptions, load_model

QUESTION = "What is 2 + 3?"


@dataclass(frozen=True, kw_only=True)
class PowerOptions(ModelOptions):
    """Options of `doctor power`."""

    model: str = option("", flag="-m")
    """Check the chains on this model, proposals limited to 3 tokens; without it, on a tiny random one."""
    full: bool = False
    """20,000 chains and 3 seeds for each setting, instead of 300 and 1; takes an hour or so."""


def doctor_power_command(words: list[str]) -> int:
    """Run `unspoken doctor power`."""
    line = first_stage("doctor", words)
    line.prog = "unspoken doctor power"
    description = "Check power sampling: exact kernels, and chains of the engine against their exact law."
    (options,) = second_stage(line, [Part(PowerOptions)], description)
    from unspoken.evaluation import _power_check

    lm = load_model(options) if options.model else None
    if lm is None:
        _write(
            "Distance to p^alpha (total variation, exact, mean of 4 random models); 2, 10 and 100 moves a block:"
        )
        _write(
            f"{'toy':<10}{'alpha':<7}{'plain':<8}{'low T':<8}" + "".join(f"{name:<20}" for name in _COLUMNS)
        )
        for row in _power_check.table():
            ways = (row.published, row.no_op, row.corrected, row.early_return)
            cells = "".join(f"{_numbers(way):<20}" for way in ways)
            _write(f"{row.toy:<10}{row.alpha:<7g}{row.plain:<8.3f}{row.low_temperature:<8.3f}{cells}")
        _write("")
    failed = 0
    for found in _power_check.checks(full=options.full, lm=lm, prompt=QUESTION):
        sign = ">=" if found.at_least else "<="
        _write(f"{'ok  ' if found.ok else 'FAIL'}  {found.name} {found.value:.2g} ({sign} {found.bound:g})")
        failed += not found.ok
    if failed:
        _write(f"\n{failed} failed. A p-value falls below its bound once in a thousand by chance.")
        return 1
    _write("\nPower sampling has the law that it says.")
    return 0


_COLUMNS = ("published loop", "no_op", "corrected", "corrected, original")


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
