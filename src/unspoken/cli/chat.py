"""`unspoken chat`: a conversation in the terminal, whose way of thinking can be changed between turns."""

from __future__ import annotations

import dataclasses
import io
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from rich.console import Console

from unspoken.cli._arguments import Part, first_stage, name_lists, named_part, second_stage
from unspoken.cli._live import LiveViewer, legend, make_viewer
from unspoken.cli._options import ModelOptions, load_model
from unspoken.cli.generate import usage_line
from unspoken.config import field_docs, from_dict, to_dict
from unspoken.discovery import STRATEGIES
from unspoken.errors import ConfigError, UnspokenError, unknown_name
from unspoken.types import Generation, Message, Trace

if TYPE_CHECKING:
    from unspoken.decoding._base import Strategy
    from unspoken.lm.model import CausalLM

DESCRIPTION = (
    "Talk with a model. Between turns, /strategy and /set change how it thinks; /help lists what there is. "
    "The conversation is kept, thoughts are not part of it."
)
HELP = """\
/strategy            the present one, with its fields
/strategy NAME       another one; its fields may follow: /strategy soft k=15 T_e=50
/set FIELD=VALUE...  fields of the strategy, or max_new_tokens, seed, system (empty takes it away)
/trace LEVEL         none, summary or full: how much is shown of each step
/new                 forget the conversation
/help                this
/exit                leave; so does the end of the input. Ctrl-C stops an answer"""
OWN = ("max_new_tokens", "seed", "system")


@dataclass(frozen=True, kw_only=True)
class ChatOptions(ModelOptions):
    """Options of `chat`."""

    max_new_tokens: int = 512
    """Most steps of an answer, thinking included."""
    seed: int = 0
    """Of the conversation: with the same seed and the same words it goes the same way."""
    system: str | None = None
    """A system message before the conversation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}.")


def chat_command(words: list[str]) -> int:
    """Run `unspoken chat`."""
    line = first_stage("chat", words, ["strategy"])
    if line.wants_help and not line.names:
        line.prog += " [STRATEGY]"
        second_stage(line, [Part(ChatOptions)], f"{DESCRIPTION}\n\n{name_lists(['strategy'])}")
    parts = [Part(ChatOptions), *(named_part("strategy", name) for name in line.names.values())]
    options, *named = second_stage(line, parts, DESCRIPTION)
    lm = load_model(options)
    strategy = named[0] if named else lm.strategy or STRATEGIES.find("cot")()
    own = {name: getattr(options, name) for name in OWN}
    _Chat(lm, strategy, own).run(_lines())
    return 0


def _lines() -> Iterator[str]:
    """What is typed, a line at a time; bytes that are no text are left for the conversation to refuse."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    import readline  # noqa: F401 - lines can be edited and called back

    while True:
        try:
            yield input("› ")
        except EOFError:
            _say("")
            return
        except KeyboardInterrupt:
            _say("\nType /exit to leave.")


@dataclass
class _Chat:
    """One conversation.

    Attributes:
        lm: The model.
        strategy: How it thinks now.
        own: The options that are no fields of a strategy.
        messages: What was said, without a system message.
        turns: How many answers were begun, for their seeds.
    """

    lm: CausalLM
    strategy: Strategy
    own: dict[str, Any]
    trace: Trace = "full"
    messages: list[Message] = field(default_factory=list)
    turns: int = 0

    def run(self, lines: Iterator[str]) -> None:
        """Answer line by line; a mistake ends nothing."""
        _say(f"{self.lm.source} · {self.strategy.name} · /help lists the commands")
        if sys.stdout.isatty():
            Console(stderr=True).print(legend())
        for line in lines:
            text = line.strip()
            if text in ("/exit", "/quit", "exit"):
                return
            try:
                _check_text(text)
                if text.startswith("/"):
                    self.command(text)
                elif text:
                    self.answer(text)
            except UnspokenError as error:
                _say(f"error: {error}")
            except KeyboardInterrupt:
                _say("Stopped.")

    # -- commands -------------------------------------------------------------------------------

    def command(self, text: str) -> None:
        """One line that begins with a slash."""
        name, _, rest = text[1:].partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "strategy": self.choose,
            "set": self.set,
            "trace": self.set_trace,
            "new": self.forget,
            "help": lambda _: _say(f"{HELP}\n\n{name_lists(['strategy'])}"),
        }
        if name not in commands:
            raise unknown_name("command", f"/{name}", [*(f"/{c}" for c in commands), "/exit"])
        commands[name](rest.strip())

    def choose(self, rest: str) -> None:
        """Another strategy, or a look at the present one."""
        if rest:
            name, *fields = _words(rest)
            cls = STRATEGIES.find(name)
            self._use(from_dict(cls, _pairs(fields, f"/strategy {name}"), aliases=cls.aliases))
        docs = field_docs(type(self.strategy))
        _say(self.strategy.name)
        for key, value in to_dict(self.strategy).items():
            _say(f"  {key} = {value!r}  {docs.get(key, '')}")

    def set(self, rest: str) -> None:
        """Fields of the strategy, or of the conversation."""
        pairs = _pairs(_words(rest), "/set")
        if not pairs:
            raise ConfigError("/set needs a field and its value.", "Write: /set temperature=0.8")
        own = {name: pairs.pop(name) for name in OWN if name in pairs}
        if own:
            made = from_dict(_Own, {**self.own, **own})
            self.own = dataclasses.asdict(made)
        if pairs:
            cls = type(self.strategy)
            now = {cls.aliases.get(name, name): value for name, value in pairs.items()}
            self._use(from_dict(cls, {**to_dict(self.strategy), **now}))
        _say(" · ".join(f"{name} = {value!r}" for name, value in {**own, **pairs}.items()))

    def set_trace(self, rest: str) -> None:
        """How much of each step is shown."""
        if rest not in get_args(Trace):
            raise unknown_name("trace level", rest, get_args(Trace))
        self.trace = rest  # type: ignore[assignment]
        _say(f"trace = {rest}")

    def forget(self, _: str) -> None:
        """Begin again."""
        self.messages.clear()
        _say("The conversation begins again.")

    def _use(self, strategy: Strategy) -> None:
        problems = strategy.check(self.lm)
        if problems:
            raise ConfigError(problems)
        self.strategy = strategy

    # -- answers --------------------------------------------------------------------------------

    def answer(self, text: str) -> None:
        """One turn; what is stopped with Ctrl-C or fails is not kept."""
        from unspoken.decoding._base import derive_seed

        system = self.own["system"]
        asked: list[Message] = [*self.messages, {"role": "user", "content": text}]
        before: list[Message] = [{"role": "system", "content": system}] if system else []
        stream = self.lm.stream(
            [*before, *asked],
            self.strategy,
            max_new_tokens=self.own["max_new_tokens"],
            seed=derive_seed(self.own["seed"], self.turns),
            trace=self.trace,
        )
        self.turns += 1
        viewer = make_viewer(self.lm.tokens.token_text, as_json=False)
        generation = Generation(0)
        try:
            for event in stream:
                generation.apply(event)
                viewer.event(event)
        except KeyboardInterrupt:
            viewer.end(generation)
            _say("Stopped; this turn is not kept.")
            return
        viewer.end(generation)
        if generation.reason.startswith("error"):
            raise ConfigError(f"The answer failed: {generation.reason.removeprefix('error: ')}")
        self.messages = [*asked, {"role": "assistant", "content": generation.answer_text.strip()}]
        self._close(generation, isinstance(viewer, LiveViewer))

    def _close(self, generation: Generation, live: bool) -> None:
        from unspoken.tasks import _answers

        found = _answers.extract(generation.answer_text)
        if live and found is not None and found.rule != "last_number":
            _say(f"answer: {found.text}")
        _say(usage_line(generation.usage, generation.reason))


@dataclass(frozen=True)
class _Own:
    """What `/set` may change besides the strategy."""

    max_new_tokens: int = 512
    seed: int = 0
    system: str | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}.")


def _check_text(text: str) -> None:
    """Refuse a line with bytes that are no text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        encoding = getattr(sys.stdin, "encoding", "utf-8")
        raise ConfigError(f"The line is not readable as {encoding}.", "Send it as UTF-8 text.") from error


def _words(rest: str) -> list[str]:
    """The words of a line; quotes keep blanks together."""
    import shlex

    try:
        return shlex.split(rest)
    except ValueError as error:
        raise ConfigError(
            f"The line cannot be read: {error}.", 'Quotes come in pairs: /set system="Be brief."'
        ) from error


def _pairs(words: list[str], command: str) -> dict[str, Any]:
    """`name=value` words; values are read as YAML, so that numbers are numbers.

    Args:
        words: The words.
        command: What stands before them, for the message.

    Raises:
        ConfigError: If one of them is something else.
    """
    import shlex

    import yaml

    found: dict[str, Any] = {}
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        name, equals, value = word.partition("=")
        if not equals or not name:
            meant = (
                f"{word}={shlex.quote(following)}" if following and "=" not in following else f"{word}=VALUE"
            )
            raise ConfigError(
                f"{word!r} is no field with a value.",
                f"Write: {command} {meant if name.isidentifier() else 'temperature=0.8'}",
            )
        try:
            read = yaml.safe_load(value)
        except yaml.YAMLError:
            read = value
        found[name.replace("-", "_")] = value if name == "system" and value else read
    return found


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
