"""Entry point: picks the command, and turns every outcome into a message and an exit code.

Exit codes: 0 done, 1 a run that failed, 2 a mistake in what was typed, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unspoken import __version__
from unspoken.cli._arguments import HELP_FLAGS, take_file
from unspoken.errors import ConfigError, UnspokenError, unknown_name


@dataclass(frozen=True)
class Command:
    """Where a command lives.

    Attributes:
        module: Module of `unspoken.cli`, with a function of the command's name plus `_command`.
        usage: What follows the command's name.
        summary: One line for the help.
    """

    module: str
    usage: str
    summary: str


COMMANDS = {
    "generate": Command("generate", "[STRATEGY] PROMPT -m MODEL", "answer one prompt, and watch it happen"),
    "eval": Command(
        "evaluate", "TASK [STRATEGY] -m MODEL -o DIR", "solve and grade a task; the same command resumes"
    ),
    "sweep": Command(
        "sweep", "TASK -m MODEL --layers N... -o DIR", "several methods at several depths, with one summary"
    ),
    "compare": Command("results", "DIR DIR...", "paired comparison of finished evaluations"),
    "show": Command("results", "DIR", "read the items of an evaluation"),
    "grade": Command("grade", "DIR", "grade the answers of an evaluation again, by one or two graders"),
    "report": Command("results", "DIR... -o DIR", "Markdown and HTML report with plots"),
    "lens": Command(
        "lens", "[STRATEGY] TEXT -m MODEL", "what each layer would say: curves, heat map and a page"
    ),
    "lens-eval": Command(
        "lens_eval", "DIR -m MODEL --texts FILE", "a tuned lens beside the logit lens, in bits per byte"
    ),
    "chat": Command("chat", "[STRATEGY] -m MODEL", "talk with a model, and change how it thinks"),
    "lab": Command("lab", "-m MODEL", "watch a model think, in the browser"),
    "serve": Command("lab", "-m MODEL", "answer OpenAI clients with any way of thinking"),
    "train": Command(
        "train", "METHOD -m MODEL -o DIR --task TASK", "train a model; the same command resumes"
    ),
    "data": Command("data", "TASK -o DIR", "write the rows of a task as files to train on"),
    "throughput": Command("trained", "DIR...", "accuracy, tokens and speed of trained models, as a table"),
    "curve": Command("trained", "DIR...", "accuracy against removed tokens, fillers and speed, with figures"),
    "list": Command("catalogue", "[strategies|tasks|models|methods]", "what there is"),
    "pull": Command("catalogue", "NAME", "fetch a small model that needs no hub"),
    "env": Command("doctor", "", "versions, for bug reports"),
    "doctor": Command(
        "doctor", "[train -c FILE]", "check that everything works here, or what a training run needs"
    ),
    "demo": Command("demo", "", "compare six ways to think on 24 problems, in a few minutes"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after `unspoken` (default: those of this process).

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except UnspokenError as error:
        _say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _say("Stopped.")
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has gone. Point stdout elsewhere, or the interpreter complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if os.environ.get("UNSPOKEN_DEBUG"):
            traceback.print_exc()
        else:
            _say(
                f"error: {type(error).__name__}: {error}\n"
                "  This is a bug. Set UNSPOKEN_DEBUG=1 to see where, and please report it with `unspoken env`."
            )
        return 1


def _dispatch(words: list[str]) -> int:
    if words and words[0] in ("-c", "--config"):
        _, file = take_file(words)
        if "command" not in file:
            raise ConfigError(
                "The -c file names no command.", "Write `command: eval` into it, or: unspoken eval -c FILE"
            )
        words = [str(file["command"]), *words]
    if not words or words[0] in HELP_FLAGS:
        sys.stdout.write(_help())
        return 0
    if words[0] == "--version":
        sys.stdout.write(f"unspoken {__version__}\n")
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS, "Run: unspoken --help")
    module = importlib.import_module(f"unspoken.cli.{COMMANDS[name].module}")
    run: Callable[[list[str]], int] = getattr(module, f"{name.replace('-', '_')}_command")
    try:
        return run(rest)
    except SystemExit as leave:  # the parser printed help or its own message
        return leave.code if isinstance(leave.code, int) else 2


def _help() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [
        "usage: unspoken COMMAND ...",
        "",
        "Reasoning beyond sampled text with any Hugging Face causal language model.",
        "",
        *(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()),
        "",
        "Examples:",
        '  unspoken generate soft "What is 17*23?" -m smollm2 --k 15',
        "  unspoken eval gsm8k soft -m Qwen/Qwen3-0.6B --samples 4 --limit 200 -o results/soft",
        "  unspoken compare results/cot results/soft",
        "  unspoken train internalize -m tiny --task multiplication --digits 2 -o runs/icot",
        "",
        "`unspoken COMMAND --help` explains each; `-c FILE.yaml` gives defaults that flags override.",
    ]
    return "\n".join(lines) + "\n"


def _say(message: str) -> None:
    sys.stderr.write(message.rstrip("\n") + "\n")
