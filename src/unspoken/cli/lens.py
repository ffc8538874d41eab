"""`unspoken lens TEXT`: what a model would say after each of its blocks."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from unspoken.cli._arguments import Line, Part, first_stage, name_lists, named_part, option, second_stage
from unspoken.cli._options import ModelOptions, load_model
from unspoken.cli.data import named_task
from unspoken.errors import ConfigError, MissingExtraError, unknown_name

if TYPE_CHECKING:
    from unspoken.analysis.lens import Lens
    from unspoken.analysis.lens_curves import LensCurve
    from unspoken.analysis.lens_grid import LensGrid
    from unspoken.lm.model import CausalLM
    from unspoken.tasks._base import Task
    from unspoken.types import Example

DESCRIPTION = (
    "Read every layer of a model through its own final norm and head: of a text, of the problems of a task (--task), "
    "or of an answer and its thoughts, soft ones included (STRATEGY TEXT). Writes a table, figures, CSV and a page."
)
ALIASES = {"model_name": "model", "n_problems": "limit"}  # as the original script calls them
ORIGINAL_FLAGS = ("model_name", "n_problems", "max_length", "output_file")
ORIGINAL_TASK, ORIGINAL_PROBLEMS, ORIGINAL_LENGTH = "math500", 5, 256
PROBLEMS = 100
PAGES = 8
SHOWN = ("kl", "entropy", "agreement", "final_rank", "answer_rank")
METRICS = (
    "kl", "reverse_kl", "js", "entropy", "agreement", "overlap", "cross_entropy", "cosine", "norm_ratio",
    *(f"{token}_{kind}" for token in ("final", "gold", "answer") for kind in ("rank", "prob", "logprob")),
)  # fmt: skip
TOKEN_WIDTH = 16  # characters of a token in the table
SMALL = ("kl", "entropy", "agreement", "final_rank", "answer_rank", "cosine")


@dataclass(frozen=True, kw_only=True)
class LensOptions(ModelOptions):
    """Options of `lens`."""

    text: str | None = option(None, positional="TEXT")
    """What the model reads; - takes it from standard input."""
    task: str | None = None
    """Read the problems of this task instead; its fields become flags."""
    limit: int | None = None
    """Most problems of the task (default: 100, or 5 with the original's flags)."""
    style: Literal["auto", "chat", "raw", "qa"] = "auto"
    """Chat template, plain text, or the original's `Q: ... A:`; auto is raw for a text, chat for a task or strategy,
    and qa with the original's flags."""
    max_length: int | None = None
    """Most tokens of a prompt, the rest is cut off (default: 256 for qa, else none)."""
    positions: Literal["auto", "last", "prompt", "response", "all"] = "auto"
    """Which positions: the last of the prompt, the prompt, what follows it, or all; auto is all for a text, the last
    for a task, and the response where there is one."""
    gold: bool = False
    """Read the task's worked solution, or its answer, after each prompt."""
    answer: tuple[str, ...] = ()
    """Follow the first token of these (default: the task's answer)."""
    lens: tuple[str, ...] = ("logit",)
    """Any of: logit, last_block (through the last block first, as a truncated model would), and folders of tuned
    lenses."""
    also: tuple[str, ...] = ()
    """Further models for the same figure."""
    metric: str = "kl"
    """What curves and heat map show: kl, reverse_kl, js, entropy, agreement, overlap, cross_entropy, cosine,
    norm_ratio, or final_rank, gold_rank, answer_rank (or _prob, _logprob instead of _rank)."""
    band: Literal["std", "bootstrap", "iqr"] = "std"
    """Around the mean over problems: standard deviation, 95 percent interval of the mean, or the middle half."""
    weight: Literal["problem", "token"] = "problem"
    """Whether problems or tokens count alike."""
    log_y: bool = False
    """A logarithmic axis for the curves."""
    top: int = 5
    """Candidates kept of each layer and position."""
    known_ids_only: bool = False
    """Leave out ids that the tokenizer does not have."""
    memory: int = 256
    """MiB that logits may take."""
    max_new_tokens: int = 128
    """Most steps of an answer that is generated first."""
    seed: int = 0
    """Of that answer, and of the bootstrap."""
    output: str | None = option(None, flag="-o")
    """Folder for the files (default: results/lens)."""
    output_file: str | None = None
    """PNG file for the curves; the other files are put beside it, named after it."""

    def __post_init__(self) -> None:
        problems = []
        try:
            super().__post_init__()
        except ConfigError as error:
            problems += error.problems
        for name in ("limit", "max_length", "max_new_tokens", "memory", "top"):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"{name} must be at least 1, not {value}.")
        if self.text is not None and self.task is not None:
            problems.append("Give a text or a task, not both.")
        if self.gold and self.task is None:
            problems.append("--gold reads a task's solution; name the task with --task.")
        if self.output is not None and self.output_file is not None:
            problems.append("Give a folder with -o or a file with --output_file, not both.")
        if self.output_file is not None and Path(self.output_file).suffix != ".png":
            problems.append(f"output_file must end in .png, not {self.output_file!r}.")
        if not self.lens:
            problems.append("lens must name at least one lens.")
        if self.metric not in METRICS:
            problems.append(f"metric must be one of {', '.join(METRICS)}, not {self.metric!r}.")
        if problems:
            raise ConfigError(problems)


def lens_command(words: list[str]) -> int:
    """Run `unspoken lens`."""
    line = first_stage("lens", words, ["strategy"], positionals=1)
    if line.wants_help and not line.names:
        second_stage(
            line, [Part(LensOptions, aliases=ALIASES)], f"{DESCRIPTION}\n\n{name_lists(['strategy', 'task'])}"
        )
    flags = _flags(line)
    original = bool(flags & set(ORIGINAL_FLAGS))
    if (original or "data" in flags) and named_task(line) is None and _reads_no_text(line):
        line.words += ["--task", ORIGINAL_TASK]
    parts = [Part(LensOptions, aliases=ALIASES)]
    task_name, strategy_name = named_task(line), line.names.get("strategy")
    if task_name is not None:
        parts.append(named_part("task", task_name))
    if strategy_name is not None:
        parts.append(named_part("strategy", strategy_name))
    options, *named = second_stage(line, parts, DESCRIPTION)
    task = named.pop(0) if task_name is not None else None
    strategy = named.pop(0) if strategy_name is not None else None
    if task is None and options.text is None:
        raise ConfigError(
            "There is nothing to read.",
            'Write: unspoken lens "The capital of France is" -m MODEL, or: unspoken lens --task gsm8k --limit 5',
        )
    settled = _settled(options, original, strategy is not None)
    problems = _contradictions(settled, flags, answers=strategy is not None)
    if problems:
        raise ConfigError(problems)
    return _Run(settled, task, strategy).run()


def _contradictions(options: LensOptions, flags: set[str], *, answers: bool) -> list[str]:
    """What can be seen to have no effect or no value before anything is read."""
    found = []
    if options.task is None and flags & {"limit", "n_problems"}:
        found.append("--limit counts the problems of a task; leave it out with a text.")
    if options.gold and answers:
        found.append("--gold reads the task's own solution; leave it out, or the strategy.")
    if "max_new_tokens" in flags and not answers:
        found.append(
            "--max-new-tokens is for an answer that is generated first: name a strategy, such as cot."
        )
    if options.metric.startswith("answer_") and options.task is None and not options.answer:
        found.append(f"{options.metric} follows an answer: give it with --answer.")
    follows = options.metric == "cross_entropy" or options.metric.startswith("gold_")
    if follows and options.positions == "last" and not (options.gold or answers):
        found.append(
            f"{options.metric} needs the token that follows, and nothing follows a prompt's last one: add --gold, or "
            "--positions prompt."
        )
    return found


def _flags(line: Line) -> set[str]:
    """Names of the flags that were typed, and of the keys of the file."""
    typed = {word[2:].partition("=")[0].replace("-", "_") for word in line.words if word.startswith("--")}
    return typed | set(line.file)


def _reads_no_text(line: Line) -> bool:
    """Whether no word stands before the flags, nor a text in the file."""
    return "text" not in line.file and (not line.words or (line.words[0][:1] == "-" and line.words[0] != "-"))


def _settled(options: LensOptions, original: bool, answers: bool) -> LensOptions:
    """The options with `auto` and `None` replaced."""
    of_task = options.task is not None
    style, positions = options.style, options.positions
    if style == "auto":
        style = "qa" if original and of_task else "chat" if of_task or answers else "raw"
    if positions == "auto":
        positions = "response" if answers or options.gold else "last" if of_task else "all"
    length = ORIGINAL_LENGTH if options.max_length is None and style == "qa" else options.max_length
    limit = options.limit or (ORIGINAL_PROBLEMS if original else PROBLEMS)
    return dataclasses.replace(options, style=style, positions=positions, max_length=length, limit=limit)


class _Run:
    """One run of the command: its readings, then its files."""

    def __init__(self, options: LensOptions, task: Task | None, strategy: Any) -> None:
        self.options, self.task, self.strategy = options, task, strategy
        self.groups: list[list[LensGrid]] = []  # one for each model and lens

    def run(self) -> int:
        examples = self._examples()
        for model in (self.options.model, *self.options.also):
            lm = load_model(dataclasses.replace(self.options, model=model))
            lenses = [self._lens(name, lm) for name in self.options.lens]
            grids: list[list[LensGrid]] = [[] for _ in lenses]
            for arguments in self._progress(self._readings(lm, examples), len(examples), model):
                for lens, kept in zip(lenses, grids, strict=True):
                    kept.append(lens(**arguments))
            self.groups += grids
            del lm, lenses  # before the next one is loaded
        curves = [self._curve(grids, self.options.metric) for grids in self.groups]
        for group, line in zip(self.groups, curves, strict=True):
            self._show(group, line)
        for path in self._write(curves):
            sys.stdout.write(f"{path}\n")
        return 0

    # What is read

    def _examples(self) -> list[Example | None]:
        return [None] if self.task is None else list(self.task.examples()[: self.options.limit])

    def _readings(self, lm: CausalLM, examples: Sequence[Example | None]) -> Iterator[dict[str, Any]]:
        """What the lens is called with, for each problem."""
        for example in examples:
            prompt = self._prompt(lm, example)
            answers = self.options.answer or ((example.answer,) if example and example.answer else ())
            shared = {
                "positions": self.options.positions,
                "answers": answers,
                "problem_id": "text" if example is None else example.id,
            }
            if self.strategy is not None:
                yield {
                    "given": self._answer(lm, prompt),
                    "prompt": prompt,
                    "strategy": self.strategy,
                    **shared,
                }
            elif self.options.gold:
                assert example is not None
                solution = str(example.meta.get("solution") or example.answer)
                # After a template's turn there is no space; after `A:` there is.
                before = "" if self.options.style == "chat" and lm.tokens.has_template else " "
                yield {"given": prompt, "response": before + solution, **shared}
            else:
                yield {"given": prompt, **shared}

    def _prompt(self, lm: CausalLM, example: Example | None) -> list[int]:
        from unspoken.analysis._lens_inputs import text_ids

        text = self._text() if example is None else example.question
        if self.options.style == "chat":
            ids = lm.tokens.encode_prompt(
                text if self.task is None or example is None else self.task.prompt(example)
            )
        else:
            ids = text_ids(lm, f"Q: {text} A:" if self.options.style == "qa" else text)
        return ids[: self.options.max_length]

    def _text(self) -> str:
        text = self.options.text
        assert text is not None
        if text == "-":
            text = sys.stdin.read().rstrip("\n")
            self.options = dataclasses.replace(self.options, text=text)  # another model reads it, too
        return text

    def _answer(self, lm: CausalLM, prompt: list[int]) -> Any:
        from unspoken.decoding._sequence import SequenceStrategy

        # Sequence-level strategies write tokens, which need no record.
        record = () if isinstance(self.strategy, SequenceStrategy) else ("inputs",)
        options = self.options
        return lm.generate(
            prompt,
            self.strategy,
            max_new_tokens=options.max_new_tokens,
            seed=options.seed,
            trace="full",
            record=record,
        )

    def _lens(self, name: str, lm: CausalLM) -> Lens:
        from unspoken.analysis._lens_metrics import DEFAULT, GROUPS
        from unspoken.analysis.lens import LENSES

        own = [group for group in GROUPS if group not in DEFAULT and group == self.options.metric]
        how: dict[str, Any] = {
            "metrics": (*DEFAULT, *own),
            "top_k": self.options.top,
            "memory": self.options.memory * 2**20,
            "known_ids_only": self.options.known_ids_only,
        }
        if name in LENSES:
            return LENSES[name](lm, **how)
        if Path(name).is_dir():
            from unspoken.analysis.tuned_lens import TunedLens

            return TunedLens.load(name, lm, **how)
        raise unknown_name("lens", name, LENSES, "Or give the folder of a tuned lens.")

    @staticmethod
    def _progress(items: Iterator[dict[str, Any]], total: int, title: str) -> Iterator[dict[str, Any]]:
        console = Console(stderr=True)
        hidden = not console.is_terminal or total == 1
        yield from track(items, title, total=total, console=console, transient=True, disable=hidden)

    # What is shown and written

    def _curve(self, grids: Sequence[LensGrid], metric: str) -> LensCurve:
        from unspoken.analysis.lens_curves import curve

        options = self.options
        return curve(grids, metric, band=options.band, weight=options.weight, seed=options.seed)

    def _show(self, grids: Sequence[LensGrid], line: LensCurve) -> None:
        """The curve as a table: one line for each layer, the last at the bottom."""
        from unspoken.analysis.lens_grid import visible

        def clipped(text: str) -> str:
            return text if len(text) <= TOKEN_WIDTH else f"{text[: TOKEN_WIDTH - 1]}…"

        first = grids[0]
        names = [line.metric, *(name for name in SHOWN if name in first.values and name != line.metric)]
        means = {name: self._curve(grids, name).mean for name in names}
        read = f"{len(grids)} problems" if len(grids) > 1 else f"{len(first.positions)} positions"
        table = Table(title=Text(f"{first.model}, {first.lens.replace('_', ' ')} lens, {read}"), box=None)
        rows = []
        for row, layer in enumerate(first.layers.tolist()):
            cells = [_number(means[name][row]) for name in names]
            if len(grids) > 1:
                cells.insert(1, f"{_number(line.low[row])} to {_number(line.high[row])}")
            rows.append(["in" if layer < 0 else str(layer), *cells])
        headers = ["block", *(name.replace("_", " ") for name in names)]
        if len(grids) > 1:
            headers.insert(2, "band")
        for header, column in zip(headers, zip(*rows, strict=True), strict=True):
            # Numbers are never cut: what narrows is the text beside them.
            table.add_column(header, justify="right", min_width=max(map(len, (*column, *header.split()))))
        table.add_column(Text(clipped(f"after {visible(first.tokens[-1])}")))
        for layer, shown in zip(first.layers.tolist(), rows, strict=True):
            said, probability = first.top(layer, -1)[0]
            best = Text(
                f"{100 * probability:3.0f} % {clipped(visible(said))}", no_wrap=True, overflow="ellipsis"
            )
            table.add_row(*shown, best)
        console = Console(highlight=False)
        console.print(table)
        kl = self._curve(grids, "kl")
        width = f"{kl.drop_width:.1f} blocks" if kl.drop_width == kl.drop_width else "not reached"
        console.print(
            f"KL falls most in block {kl.steepest_drop}; from 90 % to 10 % of its highest: {width}\n",
            markup=False,
        )

    def _write(self, curves: Sequence[LensCurve]) -> Iterator[Path]:
        from unspoken.analysis._lens_html import page
        from unspoken.analysis.lens_grid import write_aside, write_csv, write_npz

        options = self.options
        if options.output_file is not None:
            stem = Path(options.output_file).with_suffix("")
        else:
            stem = Path(options.output or "results/lens") / "lens"
        grids = [grid for group in self.groups for grid in group]
        shown = [grid for group in self.groups for grid in group[:PAGES]]
        for kind, write in (("csv", write_csv), ("npz", write_npz)):
            path = stem.with_name(f"{stem.name}.{kind}")
            write(path, grids)
            yield path
        path = stem.with_name(f"{stem.name}.html")
        write_aside(path, page(shown).encode("utf-8"))
        yield path
        try:
            for name, content in self._figures(curves):
                path = stem.with_name(f"{stem.name}{name}.png")
                write_aside(path, content)
                yield path
        except MissingExtraError as error:
            sys.stdout.write(f"No figures: matplotlib is not installed. {error.hint}\n")

    def _figures(self, curves: Sequence[LensCurve]) -> Iterator[tuple[str, bytes]]:
        """Ends of file names and figures: curves, over relative depth, several metrics, and a heat map."""
        from unspoken.analysis import lens_plots
        from unspoken.analysis.plots import render

        options = self.options
        yield "", render(lens_plots.curves(curves, log_y=options.log_y), "png")
        if options.also:
            yield "-depth", render(lens_plots.curves(curves, relative=True, log_y=options.log_y), "png")
        small = [name for name in SMALL if all(name in group[0].values for group in self.groups)]
        rows = [[self._curve(group, name) for group in self.groups] for name in small]
        yield "-metrics", render(lens_plots.metric_grid(rows), "png")
        first = next(grid for grid in self.groups[0] if options.metric in grid.values)
        yield "-heatmap", render(lens_plots.heat_map(first, options.metric), "png")


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
