"""`unspoken grade DIR`: grade the answers of an evaluation again, without generating them again."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from unspoken.cli._arguments import Part, first_stage, option, second_stage
from unspoken.errors import ConfigError

DESCRIPTION = (
    "Grade the answers of a finished evaluation again, and list where the graders disagree. Nothing is generated and "
    "no row is changed: grades are written beside the rows, and the same command again goes on where it stopped. "
    "`show`, `compare` and `report` then give the accuracy by each grader."
)


@dataclass(frozen=True, kw_only=True)
class GradeOptions:
    """Options of `grade`."""

    run: str = option(positional="DIR")
    """A folder of `unspoken eval`."""
    grader: Literal["default", "strict", "both"] = "both"
    """default: exact numbers, normal forms, math-verify; strict: comparable with published accuracies."""
    extract: Literal["auto", "boxed", "boxed_or_last_number"] = "auto"
    """Which answers are read; auto leaves it to the grader (strict: boxed only)."""
    limit: int = 20
    """Most disagreements to list."""


def grade_command(words: list[str]) -> int:
    """Run `unspoken grade`."""
    (options,) = second_stage(first_stage("grade", words), [Part(GradeOptions)], DESCRIPTION)
    if options.limit < 0:
        raise ConfigError(f"limit must be at least 0, not {options.limit}.")
    from unspoken.cli._progress import counting
    from unspoken.evaluation.grading import grader_lines, regrade

    with counting("grading") as on_row:
        run = regrade(options.run, options.grader, options.extract, on_row=on_row)
    sys.stdout.write(
        f"{run.name}: {len(run.rows)} answers\n" + "\n".join(grader_lines(run, options.limit)) + "\n"
    )
    return 0
