"""`unspoken train`: options that would do nothing, names that are nearly right, and what --quiet keeps quiet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unspoken.cli._arguments import first_stage
from unspoken.cli.main import main
from unspoken.cli.train import Job, parse

Said = pytest.CaptureFixture[str]
SHORT = ["--layers", "1", "--width", "16", "--heads", "2", "--steps", "2", "--batch_size", "4"]
TASK = ["--task", "modsum", "-o", "x"]


def job(*words: str) -> Job:
    return parse(first_stage("train", ["internalize", *words], ["method"]))


@pytest.mark.parametrize(
    "flag",
    [
        ["-o", "x"],
        ["--save_model=x"],
        ["--resume", "auto"],
        ["--epochs", "1"],
        ["--lr", "5e-5"],
        ["--remove_per_epoch", "8"],
        ["--reset-optimizer"],
        ["--no-reset-optimizer"],
        ["--preset", "icot_si"],
        ["--truncation", "-1"],
    ],
    ids=lambda words: words[0],
)
def test_an_evaluation_takes_no_options_of_training(flag: list[str], capsys: Said) -> None:
    words = ["train", "internalize", "--from_pretrained", "a", "--test_path", "b"]
    assert main([*words, *flag]) == 2
    assert f"{flag[0].partition('=')[0]} would do nothing" in capsys.readouterr().err


def test_what_an_evaluation_takes() -> None:
    words = "--from_pretrained a --test_path b --batch_size 1 --bf16 --device cpu --max_new_tokens 3 --quiet"
    assert job(*words.split()).where.evaluates


def test_two_beginnings_and_sizes_of_a_given_model(capsys: Said) -> None:
    assert main(["train", "internalize", *TASK, "-m", "gpt2", "--from_pretrained", "y"]) == 2
    assert "give one of them" in capsys.readouterr().err
    assert (
        main(
            [
                "train",
                "internalize",
                *TASK,
                "-m",
                "smollm2",
                "--layers",
                "3",
                "--bf16",
                "--precision=pure_bf16",
            ]
        )
        == 2
    )
    err = capsys.readouterr().err
    assert "layers would do nothing" in err and "2 problems" in err
    assert job(*TASK, "-m", "tiny", "--layers", "3").options.layers == 3
    assert job(*TASK).where.beginning == "gpt2"


def test_what_is_typed_replaces_what_the_file_says(tmp_path: Path, capsys: Said) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("model: tiny\nlayers: 3\nepochs: 9\ntask: modsum\noutput: x\n", encoding="utf-8")
    as_it_is = job("-c", str(file))
    assert (as_it_is.where.model, as_it_is.options.layers, as_it_is.options.epochs) == ("tiny", 3, 9)
    assert (job("-c", str(file), "--train_steps", "5").options.epochs) == 1
    later = job("-c", str(file), "--from_pretrained", "y")
    assert (later.where.beginning, later.options.layers) == ("y", 2)
    assert job("-c", str(file), "-m", "tiny-llama").options.layers == 3
    file.write_text(
        "model: gpt2\nlayers: 3\nepochs: 9\nsteps: 5\ntask: modsum\noutput: x\n", encoding="utf-8"
    )
    assert main(["train", "internalize", "-c", str(file)]) == 2
    assert "epochs 9.0 would do nothing" in capsys.readouterr().err
    assert main(["train", "internalize", "-c", str(file), "--epochs", "2"]) == 2
    assert "layers would do nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--preset", "nope"], "preset"),
        (["--preset", "icot_s"], "did you mean 'icot_si'?"),
        (["--schedule", "cuont", "--lr", "-1"], "2 problems"),
        (["--seed", "99999999999999999999"], "seed must be below"),
        (["-m", "tinyy", "--n_train", "8", "--n_valid", "2", "--n_test", "2"], "Did you mean 'tiny'?"),
    ],
)
def test_names_that_are_nearly_right(words: list[str], said: str, tmp_path: Path, capsys: Said) -> None:
    assert main(["train", "internalize", "--task", "modsum", "-o", str(tmp_path / "x"), *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and said in err


def test_quiet_is_errors_only_and_what_is_left_out_is_recorded(tmp_path: Path, capsys: Said) -> None:
    lines = ["1 2||3 #### 4", "no bars", f"7 {'1 ' * 30}||3 #### 1", "1 <eos> 2||3 #### 4"]
    for stem in ("train", "valid"):
        (tmp_path / f"{stem}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = ["train", "internalize", "-m", "tiny", *SHORT, "--truncation", "12"]
    words += ["--train_path", str(tmp_path / "train.txt"), "--val_path", str(tmp_path / "valid.txt")]
    words += ["--remove_start_from", "inf"]
    assert main([*words, "-o", str(tmp_path / "loud")]) == 0
    out, err = capsys.readouterr()
    assert "warning: 3 questions are both in train and in valid" in err and "warning" not in out
    assert main([*words, "-o", str(tmp_path / "quiet"), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    left_out = {"with a stray or missing separator": 1, "of more than 12 tokens": 1}

    def strictly(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    for file in ("training.json", "unspoken.json"):
        text = (tmp_path / "quiet" / file).read_text(encoding="utf-8")
        values = json.loads(text, parse_constant=strictly)
        values = values.get("provenance", values)
        assert values["left_out"] == {"train": left_out, "valid": left_out}
        method = values["method"] if "method" in values else values["configuration"]["method"]
        assert method["remove_start_from"] == "inf"
    assert values["manifest"]["left_out"] == {"train": {"no '||'": 1}, "valid": {"no '||'": 1}}
    assert main([*words, "-o", str(tmp_path / "quiet")]) == 0
    assert "was finished already" in capsys.readouterr().out
