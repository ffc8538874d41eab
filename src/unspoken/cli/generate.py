"""`unspoken generate [STRATEGY] PROMPT`: answer one prompt, and watch it happen."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from rich.console import Console

from unspoken.cli._arguments import (
    Part,
    first_stage,
    name_lists,
    named_part,
    option,
    second_stage,
)
from unspoken.cli._live import LiveViewer, legend, make_viewer
from unspoken.cli._options import ModelOptions, load_model, remembered_strategy
from unspoken.errors import ConfigError, RunError
from unspoken.types import Generation, Message, Trace, Usage

DESCRIPTION = (
    "Answer one prompt with one way of thinking (default: the one that a trained model remembers). In a terminal the "
    "tokens are coloured by their probability and soft steps are shown as ‹nearest tokens›; in a pipe only the "
    "text is written."
)


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(ModelOptions):
    """Options of `generate`."""

    prompt: str = option(positional="PROMPT")
    """The question; - reads it from standard input."""
    max_new_tokens: int = 512
    """Most steps, thinking included; a strategy's own budget (T_total) overrides it."""
    seed: int = 0
    """Seed of the row; the same seed gives the same text."""
    system: str | None = None
    """A system message before the question."""
    stop: tuple[str, ...] = ()
    """End when the answer contains one of these."""
    trace: Literal["auto", "none", "summary", "full"] = "auto"
    """How much is kept of each step; auto is full in a terminal, to show the candidates, else summary."""
    json: bool = False
    """Write every event as one line of JSON."""
    quiet: bool = False
    """No legend and no usage line."""


def generate_command(words: list[str]) -> int:
    """Run `unspoken generate`."""
    line = first_stage("generate", words, ["strategy"], positionals=1)
    if line.wants_help and not line.names:
        line.prog += " [STRATEGY]"
        second_stage(line, [Part(GenerateOptions)], f"{DESCRIPTION}\n\n{name_lists(['strategy'])}")
    parts = [Part(GenerateOptions)]
    for name in line.names.values():
        line.prog += f" {name}"
        parts.append(named_part("strategy", name))
    options, *named = second_stage(line, parts, DESCRIPTION)
    prompt = _prompt(options)
    strategy = named[0] if named else remembered_strategy(options.model, f"{line.prog} STRATEGY PROMPT")
    lm = load_model(options)
    viewer = make_viewer(lm.tokens.token_text, as_json=options.json)
    live = isinstance(viewer, LiveViewer)
    trace: Trace = options.trace if options.trace != "auto" else ("full" if live else "summary")
    if live and not options.quiet:
        Console(stderr=True).print(legend())
    generation = Generation(0)
    stream = lm.stream(
        prompt,
        strategy,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
        stop=options.stop,
        trace=trace,
    )
    try:
        for event in stream:
            generation.apply(event)
            viewer.event(event)
    except KeyboardInterrupt:
        viewer.end(generation)  # what there is, is shown
        raise
    viewer.end(generation)
    if generation.reason.startswith("error"):
        raise RunError(f"The generation failed: {generation.reason.removeprefix('error: ')}")
    if not options.quiet:
        sys.stderr.write(usage_line(generation.usage, generation.reason) + "\n")
    return 0


def _prompt(options: GenerateOptions) -> str | list[Message]:
    text = sys.stdin.read().rstrip("\n") if options.prompt == "-" else options.prompt
    if not text.strip():
        raise ConfigError(
            "The prompt is empty.", 'Write it in quotes, as in: unspoken generate cot "What is 17*23?"'
        )
    if options.system is None:
        return text
    return [{"role": "system", "content": options.system}, {"role": "user", "content": text}]


def usage_line(usage: Usage, reason: str) -> str:
    """What a row cost and why it ended, in one line."""
    parts = [f"{usage.prompt_tokens} prompt tokens", f"{usage.tokens} tokens"]
    if usage.latent_steps:
        parts.append(f"{usage.latent_steps} soft steps")
    if usage.forced_tokens:
        parts.append(f"{usage.forced_tokens} forced")
    parts += [f"{usage.forward_passes} forward passes", f"{usage.seconds:.1f} s", f"ended: {reason}"]
    return " · ".join(parts)
