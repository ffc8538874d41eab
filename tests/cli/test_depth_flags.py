"""`--depth` and the originals' `--layer_idx` and `--keep_last`: what runs, what is recorded, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from unspoken import compare, load, load_run
from unspoken.cli._arguments import Part, first_stage, second_stage
from unspoken.cli._options import ModelOptions
from unspoken.cli.main import main
from unspoken.decoding.cot import ChainOfThought
from unspoken.errors import ConfigError
from unspoken.lm.depth import FULL, SPECS, Depth

Folder = Callable[[str], Path]


def asked(*words: str) -> Depth | None:
    (options,) = second_stage(first_stage("do", list(words)), [Part(ModelOptions)], "Do it.")
    assert isinstance(options, ModelOptions)
    return options.truncation()


@pytest.mark.parametrize(
    ("words", "depth"),
    [
        ([], None),
        (["--depth", "24"], Depth(keep_first=24)),
        (["--depth", "24+last"], Depth(keep_first=24, keep_last=True)),
        (["--depth", "24", "--keep_last"], Depth(keep_first=24, keep_last=True)),
        (["--depth", "drop:3,5"], Depth(drop=(3, 5))),
        (["--depth=window:10:4"], Depth(drop_window=(10, 4))),
        (["--layer_idx", "26"], Depth(layer_idx=26)),
        (["--layer-idx", "26", "--no-keep-last"], Depth(layer_idx=26, keep_last=False)),
        (["--layer_idx", "26", "--no_keep_last"], Depth(layer_idx=26, keep_last=False)),
    ],
)
def test_flags(words: list[str], depth: Depth | None) -> None:
    assert asked(*words) == depth


def test_a_file_gives_defaults_that_flags_complete(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("depth: 3+last\n", encoding="utf-8")
    assert asked("-c", str(file)) == Depth(keep_first=3, keep_last=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--depth", "most"], "depth must be N (the first N blocks), N+last, drop:I,J"),
        (["--depth", "3", "--layer_idx", "2"], "contradict each other"),
        (["--keep-last"], "No blocks are chosen"),
        (["--depth", "drop:3", "--keep-last"], "keep_last goes with keep_first or layer_idx"),
    ],
)
def test_mistakes_come_with_the_others(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        asked(*words, "--threads", "0")
    assert said in str(error.value) and "threads must be at least 1" in str(error.value)


def test_generate_runs_the_view(tiny_folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "cot", "hi", "-m", str(tiny_folder("llama")), "--max-new-tokens", "8"]
    words += ["--temperature", "0", "--quiet"]
    assert main([*words, "--depth", "1"]) == 0
    shallow, err = capsys.readouterr()
    view = load(tiny_folder("llama")).truncated(keep_first=1)
    expected = view.generate("hi", ChainOfThought(temperature=0.0), max_new_tokens=8)
    assert not isinstance(expected, list)
    assert (shallow.rstrip("\n"), err) == (expected.text.rstrip("\n"), "")
    assert main([*words, "--layer_idx", "0", "--no-keep-last"]) == 0
    assert capsys.readouterr().out == shallow
    assert main(words) == 0
    full = capsys.readouterr().out
    assert full != shallow
    # With the last of two blocks, block 0 and on is everything: this is said.
    assert main([*words, "--layer_idx", "0"]) == 0
    out, err = capsys.readouterr()
    assert out == full and err == f"Note: this depth is the {FULL}.\n"


@pytest.mark.parametrize("words", [["--depth", "some"], ["--depth", "7"], ["--depth", "drop:0,1"]])
def test_a_depth_that_is_none_is_one_message(
    words: list[str], tiny_folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "cot", "hi", "-m", str(tiny_folder("llama")), *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "Traceback" not in err and "blocks" in err


def test_a_depth_beyond_the_model_is_told_as_it_was_typed(
    tiny_folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "cot", "hi", "-m", str(tiny_folder("llama")), "--depth", "99"]) == 2
    assert capsys.readouterr().err == (
        "error: depth 99 asks for the first 99 blocks, but the model has 2; allowed are 1 to 2.\n"
        f"  A depth is {SPECS}; 2 is the full model.\n"
    )


def test_eval_records_the_depth_and_refuses_to_go_on_with_another(
    tiny_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "eval",
        "arithmetic",
        "cot",
        "-m",
        str(tiny_folder("llama")),
        "--n",
        "2",
        "--max-new-tokens",
        "4",
    ]
    assert main([*words, "--depth", "1", "-o", "shallow"]) == 0
    assert "first 1 of 2 blocks" in capsys.readouterr().out
    recorded = load_run("shallow").config["model"]["depth"]
    assert recorded == {"name": "first 1 of 2 blocks", "kept_blocks": [0], "n_dropped": 1}
    assert (
        main([*words, "--layer_idx", "0", "--no-keep-last", "-o", "shallow"]) == 0
    )  # the same, asked otherwise
    capsys.readouterr()
    for other in (["--depth", "0+last"], []):
        assert main([*words, *other, "-o", "shallow"]) == 2
        assert "model.depth.name is 'first 1 of 2 blocks' there" in capsys.readouterr().err
    # What drops nothing is the full model: the same folder, and it is said there.
    assert main([*words, "-o", "full"]) == 0
    assert main([*words, "--depth", "1+last", "-o", "full", "--samples", "2"]) == 0
    config = json.loads(Path("full/run.json").read_text(encoding="utf-8"))["config"]
    assert "depth" not in config["model"] and config["depth"] == FULL
    warnings = " ".join(compare("full", "shallow").warnings)
    assert "different depths: full is the full model, shallow is first 1 of 2 blocks." in warnings
    # Without a folder of their own, depths do not share one.
    for other in ([], ["--depth", "1"], ["--depth", "0+last"], ["--depth", "2"]):
        assert main([*words, *other]) == 0
    assert len(list(Path("results").iterdir())) == 3
