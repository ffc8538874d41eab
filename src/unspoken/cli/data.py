"""`unspoken data TASK`: write the splits of a task as files to train on."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from unspoken.cli._arguments import (
    Line,
    Part,
    first_stage,
    name_lists,
    named_part,
    option,
    require_names,
    second_stage,
    take_value,
)
from unspoken.errors import ConfigError

DESCRIPTION = (
    "Write the splits of a task as text files, one `question||chain of thought #### answer` a line, and a "
    "manifest with their counts and hashes. The same fields give the same bytes on every machine."
)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Options of `data`."""

    output: str = option(flag="-o")
    """Folder for train.txt, valid.txt, test.txt and manifest.json."""


def data_command(words: list[str]) -> int:
    """Run `unspoken data`."""
    line = first_stage("data", words, ["task"])
    if line.wants_help and not line.names:
        line.prog += " TASK"
        second_stage(line, [Part(DataOptions)], f"{DESCRIPTION}\n\n{name_lists(['task'])}")
    require_names(line, ["task"], "TASK -o DIR")
    name = line.names["task"]
    part = chain_task_part(name)
    line.prog += f" {name}"
    options, task = second_stage(line, [Part(DataOptions), part], DESCRIPTION)
    from unspoken.tasks._chains import write_splits

    manifest = write_splits(task, options.output)
    for split, count in manifest["counts"].items():
        sys.stdout.write(f"{split:<5}  {count:>9,} rows  sha256 {manifest['sha256'][split]}\n")
    sys.stdout.write(
        f"Written: {options.output}\n  Train on it: unspoken train internalize --data_path {options.output} "
        "-m tiny -o runs/mine\n"
    )
    return 0


def named_task(line: Line) -> str | None:
    """The task that `--task` or the -c file names; the flag itself stays for the second stage."""
    given = take_value(line.words, "--task", "--task")[1]
    return given if given is not None else line.file.get("task")


def chain_task_part(name: str) -> Part:
    """The part for a task whose rows have chains of thought.

    Raises:
        ConfigError: If the task has none.
        UnknownNameError: With the nearest known name.
    """
    from unspoken.discovery import TASKS
    from unspoken.tasks._chains import ChainTask

    part = named_part("task", name)
    if not issubclass(part.cls, ChainTask):
        fit = [name for name in TASKS.names() if issubclass(TASKS.find(name), ChainTask)]
        raise ConfigError(
            f"The task {name!r} has no chains of thought to train on.", f"These have: {', '.join(fit)}."
        )
    return part
