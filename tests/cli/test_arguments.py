"""Two-stage parsing: names, the -c file, flags of several classes, and every mistake in one message."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from unspoken.cli._arguments import Part, first_stage, option, second_stage
from unspoken.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a made-up command."""

    prompt: str = option(positional="PROMPT")
    """What to ask."""
    model: str = option("small", flag="-m")
    """Which model."""
    quiet: bool = False
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Way:
    """A made-up way to think."""

    aliases: ClassVar[dict[str, str]] = {"strategy": "mixture", "size": "model"}

    mixture: Literal["plain", "mixed"] = "plain"
    """How to mix."""
    T_e: int = 20
    """Steps."""
    T_total: int | None = 60
    think_open: bool = True
    closed: bool | None = None

    def __post_init__(self) -> None:
        if self.T_total is not None and self.T_e > self.T_total:
            raise ConfigError(f"T_e ({self.T_e}) must not exceed T_total ({self.T_total}).")


PARTS = [Part(Options), Part(Way, "strategy way", Way.aliases)]


def parse(*words: str) -> tuple[Options, Way]:
    options, way = second_stage(first_stage("do", words), PARTS, "Do it.")
    return options, way


def refused(*words: str) -> str:
    with pytest.raises(ConfigError) as error:
        parse(*words)
    assert error.value.exit_code == 2
    return str(error.value)


def test_defaults() -> None:
    assert parse("hi") == (Options(prompt="hi"), Way())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--T-e", "5"], Way(T_e=5)),
        (["--T_e", "5"], Way(T_e=5)),
        (["--T_e=5"], Way(T_e=5)),
        (["--T-total", "None"], Way(T_total=None)),
        (["--mixture", "mixed"], Way(mixture="mixed")),
        (["--strategy", "mixed"], Way(mixture="mixed")),
        (["--no-think-open"], Way(think_open=False)),
        (["--closed"], Way(closed=True)),
        (["--no_closed", "--T_e", "5"], Way(closed=False, T_e=5)),
        (["--closed", "None", "--T_e", "5"], Way(T_e=5)),
    ],
)
def test_flags_of_the_named_class(words: list[str], expected: Way) -> None:
    assert parse("hi", *words)[1] == expected


def test_flags_of_the_command() -> None:
    options, _ = parse("-m", "big", "--quiet", "--stop", "a", "b", "--T_e", "3", "hi")
    assert options == Options(prompt="hi", model="big", quiet=True, stop=("a", "b"))


def test_an_alias_may_rename_an_option_of_the_command(tmp_path: Path) -> None:
    assert parse("hi", "--size", "big")[0].model == "big"
    assert parse("hi", "-c", yaml(tmp_path, "size: big\n"))[0].model == "big"


def test_a_dash_and_negative_numbers_are_prompts() -> None:
    assert parse("-")[0].prompt == "-"
    assert parse("-3 + 4")[0].prompt == "-3 + 4"


def test_unknown_flag_gets_a_suggestion() -> None:
    assert "Unknown option '--modle'. Did you mean '--model'?" in refused("--modle", "x", "hi")
    assert "Did you mean '--T-e'?" in refused("hi", "--T_ee", "4")


def test_wrong_choice_gets_a_suggestion_and_comes_with_other_mistakes() -> None:
    message = refused("hi", "--mixture", "mixd", "--T_e", "100")
    assert "did you mean 'mixed'" in message
    assert "T_e (100) must not exceed T_total (60)" in message


def test_left_over_words_are_refused() -> None:
    assert "'there' is left over" in refused("hi", "there")


def test_missing_argument_exits_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        parse()
    assert leave.value.code == 2
    assert "PROMPT" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--T_total", "abc"], ["--T_total=abc"], ["--T_total", "-3a"]])
def test_wrong_numbers_come_with_other_mistakes(words: list[str]) -> None:
    message = refused("hi", *words, "--T-e", "1.5", "--mixture", "mixd")
    value = words[-1].rpartition("=")[2]
    assert f"--T_total must be an integer, not {value!r}." in message
    assert "--T-e must be an integer, not '1.5'." in message
    assert "--mixture must be one of 'plain', 'mixed', not 'mixd' (did you mean 'mixed'?)." in message
    assert message.startswith("3 problems") and "Way" not in message


def test_negative_and_unset_numbers_are_numbers() -> None:
    assert parse("hi", "--T_e", "-5", "--T_total=None")[1] == Way(T_e=-5, T_total=None)
    assert parse("hi", "--T_e=-5", "--T_total", "None")[1] == Way(T_e=-5, T_total=None)
    assert "--T_e must be an integer, not 'None'." in refused("hi", "--T_e", "None")  # it has no unset state


def test_help_shows_docstrings_and_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        parse("--help")
    out = capsys.readouterr().out
    assert leave.value.code == 0
    for expected in ("Which model.", "How to mix.", "{plain,mixed}", "--strategy", "strategy way", "-c FILE"):
        assert expected in out


def yaml(folder: Path, text: str) -> str:
    path = folder / "options.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_file_gives_defaults_and_flags_override(tmp_path: Path) -> None:
    file = yaml(tmp_path, "prompt: hi\nmodel: big\nT-e: 7\nmixture: mixed\nstop: [a]\n")
    assert parse("-c", file) == (Options(prompt="hi", model="big", stop=("a",)), Way(T_e=7, mixture="mixed"))
    assert parse("--T_e", "8", f"--config={file}")[1] == Way(T_e=8, mixture="mixed")
    assert parse("-c", file, "--mixture", "plain", "-m", "small")[0].model == "small"


def test_a_value_of_the_file_is_judged_after_the_flags(tmp_path: Path) -> None:
    file = yaml(tmp_path, "T_e: 100\n")
    assert parse("hi", "-c", file, "--T_total", "200")[1].T_e == 100
    assert "must not exceed" in refused("hi", "-c", file)


def test_unknown_keys_and_wrong_types_of_the_file(tmp_path: Path) -> None:
    message = refused("hi", "-c", yaml(tmp_path, "modle: x\nT_e: many\n"))
    assert "Unknown key 'modle' in the -c file. Did you mean 'model'?" in message
    assert "T_e in the -c file must be an integer, not 'many'" in message


def test_a_file_with_a_near_name_is_suggested(tmp_path: Path) -> None:
    file = yaml(tmp_path, "T_e: 3\n")
    assert f"Did you mean {file!r}?" in refused("hi", "-c", file.replace("options", "option"))
    assert "Did you mean" not in refused("hi", "-c", yaml(tmp_path, "a: [\n"))  # it is there, and broken


def test_file_for_another_command(tmp_path: Path) -> None:
    assert "is for the command 'eval'" in refused("hi", "-c", yaml(tmp_path, "command: eval\n"))


def test_missing_file_and_missing_value() -> None:
    assert "Cannot read" in (message := refused("-c", "no-such-file.yaml"))
    assert "\n  -c names a YAML file of options" in message
    assert "-c needs a value" in refused("hi", "-c")


def test_clashing_fields_are_refused() -> None:
    with pytest.raises(ConfigError, match="'mixture' of strategy b is also a field of strategy a"):
        second_stage(first_stage("do", []), [Part(Way, "strategy a"), Part(Way, "strategy b")], "")


class TestNames:
    """The words that lead a command line."""

    def names(
        self, *words: str, kinds: tuple[str, ...] = ("task", "strategy")
    ) -> tuple[dict[str, str], list[str]]:
        line = first_stage("eval", words, kinds)
        return line.names, line.words

    def test_in_order(self) -> None:
        assert self.names("gsm8k", "soft", "--limit", "3") == (
            {"task": "gsm8k", "strategy": "soft"},
            ["--limit", "3"],
        )

    def test_strategy_by_flag(self) -> None:
        assert self.names("gsm8k", "-s", "./mine.py", "-m", "x") == (
            {"task": "gsm8k", "strategy": "./mine.py"},
            ["-m", "x"],
        )

    def test_from_the_file_and_overridden(self, tmp_path: Path) -> None:
        file = yaml(tmp_path, "command: eval\ntask: gsm8k\nstrategy: soft\n")
        assert self.names("-c", file)[0] == {"task": "gsm8k", "strategy": "soft"}
        assert self.names("math500", "-c", file)[0] == {"task": "math500", "strategy": "soft"}
        assert self.names("-c", file, "cot")[0] == {"task": "gsm8k", "strategy": "cot"}

    def test_a_prompt_is_no_name_when_the_file_has_the_strategy(self, tmp_path: Path) -> None:
        file = yaml(tmp_path, "strategy: soft\n")
        assert self.names("-c", file, "What is 2+2?", kinds=("strategy",)) == (
            {"strategy": "soft"},
            ["What is 2+2?"],
        )
        assert self.names("cot", "hi", "-c", file, kinds=("strategy",)) == ({"strategy": "cot"}, ["hi"])

    def test_flags_first_leave_no_names(self) -> None:
        assert self.names("-m", "x", "gsm8k", "soft")[0] == {}
