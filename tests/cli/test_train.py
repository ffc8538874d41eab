"""`unspoken train` and what belongs to it, from end to end on tiny models; the original command lines, too."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from shlex import split

import pytest

from unspoken.cli._arguments import first_stage
from unspoken.cli.main import main
from unspoken.cli.train import parse
from unspoken.discovery import TASKS
from unspoken.tasks._chains import ChainTask
from unspoken.tasks.multiplication import line as line_of

Said = pytest.CaptureFixture[str]
TINY = ["--model", "tiny", "--layers", "1", "--width", "16", "--heads", "2"]
SHORT = [*TINY, "--steps", "2", "--batch_size", "4"]
# As in the original README, but for the interpreter and the script before them, the paths and the model.
STEPWISE = split(
    "--remove_per_epoch 8 --remove_all_when_remove_beyond inf --removal_smoothing_lambda 4 --removal_side left "
    "--pretrain_epochs 0 --seed 3456 --reset_optimizer"
)
GSM8K = split(
    "--lr 1e-5 --batch_size 16 --accumulate 2 --remove_per_epoch 8 --remove_all_when_remove_beyond 39 "
    "--removal_smoothing_lambda 4 --removal_side left --pretrain_epochs 0 --seed 1234 --reset_optimizer --bf16 "
    "--max_len_train 150"
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `2_by_2_mult` and `gsm8k`, each with train.txt, valid.txt and test.txt."""
    root = tmp_path_factory.mktemp("data")
    pairs = [(a, b) for a in range(12, 42, 5) for b in range(13, 83, 7)]
    for name, lines in {
        "2_by_2_mult": [line_of(a, b, 2, 2) for a, b in pairs],
        "gsm8k": [f"Tom has {a} and gets {b}. How many?||<<{a}+{b}={a + b}>> #### {a + b}" for a, b in pairs],
    }.items():
        (root / name).mkdir()
        for stem, part in (("train", lines[:40]), ("valid", lines[40:46]), ("test", lines[46:52])):
            (root / name / f"{stem}.txt").write_text("\n".join(part) + "\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def trained(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the first command block of the original README, on tiny data."""
    output = tmp_path_factory.mktemp("runs") / "not" / "there" / "yet"
    words = ["train", "internalize", "--data_path", str(rows), "--data_name", "2_by_2_mult", *TINY]
    words += ["--epochs", "2", "--lr", "5e-5", "--batch_size", "32", *STEPWISE, "--save_model", str(output)]
    assert main(words) == 0
    return output


def run_of(folder: Path) -> dict[str, object]:
    described = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert described["state"] == "finished"
    return {**described["configuration"]["options"], **described["configuration"]["method"]}


class TestOriginalCommandLines:
    """The three command blocks of the original README."""

    def test_multiplication(self, trained: Path) -> None:
        run = run_of(trained)
        assert (run["lr"], run["batch_size"], run["seed"], run["epochs"]) == (5e-5, 32, 3456, 2)
        assert (run["remove_per_epoch"], run["removal_smoothing_lambda"]) == (8, 4)
        assert run["reset_optimizer"] is True
        assert (trained / "model.safetensors").exists()

    def test_generate(self, rows: Path, trained: Path, capsys: Said) -> None:
        test_path = rows / "2_by_2_mult" / "test.txt"
        words = ["train", "internalize", "--from_pretrained", str(trained), "--test_path", str(test_path)]
        assert main([*words, "--batch_size", "1"]) == 0
        out = capsys.readouterr().out
        last = out.splitlines()[-1]
        assert re.fullmatch(r"Test Accuracy: [01]\.?\d*. Throughput: \d+\.?\d*", last)
        for row in test_path.read_text(encoding="utf-8").splitlines():
            assert row.partition("||")[0] in out  # each example has its lines

    def test_checkpoints_of_the_original_code(
        self, rows: Path, trained: Path, tmp_path: Path, capsys: Said
    ) -> None:
        import torch
        from safetensors.torch import load_file

        old, test_path = tmp_path / "checkpoint_1", rows / "2_by_2_mult" / "test.txt"
        old.mkdir()
        (old / "config.json").write_text(
            json.dumps({n: str(trained) for n in ("base_model", "tokenizer_name")})
        )
        weights = load_file(trained / "model.safetensors")
        weights["lm_head.weight"] = weights["transformer.wte.weight"]
        torch.save({f"base_model.{name}": value for name, value in weights.items()}, old / "state_dict.bin")
        words = ["train", "internalize", "--from_pretrained", str(old)]
        assert main([*words, "--test_path", str(test_path), "--max_new_tokens", "3"]) == 0
        assert "Test Accuracy: " in capsys.readouterr().out
        words += ["--train_path", str(test_path), "--steps", "1", "-o", str(tmp_path / "run")]
        assert main(words) == 0
        assert main(words) == 0
        assert "was finished already" in capsys.readouterr().out

    def test_gsm8k(self, rows: Path, tmp_path: Path, capsys: Said) -> None:
        words = ["train", "internalize", *TINY, "--train_path", str(rows / "gsm8k" / "train.txt")]
        words += ["--val_path", str(rows / "gsm8k" / "valid.txt"), "--epochs", "1", *GSM8K]
        assert main([*words, "--save_model", str(tmp_path / "run")]) == 0
        run = run_of(tmp_path / "run")
        assert (run["precision"], run["accumulate"], run["max_len_train"]) == ("bf16", 2, 150)
        assert run["remove_all_when_remove_beyond"] == 39
        out = capsys.readouterr().out
        assert "train.txt: 40 rows" in out
        assert f"unspoken curve {tmp_path / 'run'}" in out

    def test_switching_flags(self, rows: Path, tmp_path: Path) -> None:
        words = ["train", "internalize", *TINY, "--data_path", str(rows), "--data_name", "2_by_2_mult"]
        words += split("--train_steps 3 --eval_interval 2 --save_interval 2 --batch_size 8 --switch_tokens")
        words += split("--switch_from_n_steps 1 --switch_from_n_rate 0.1 --switch_token_ratio 0.5")
        assert main([*words, "--switch_mode", "random", "--save_model", str(tmp_path / "run")]) == 0
        run = run_of(tmp_path / "run")
        assert (run["preset"], run["fill_ratio"], run["steps"]) == ("seed_switch", 0.5, 3)

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            (
                "--model m --train_path a --val_path b --test_path c --epochs 3 --lr 1e-4 --batch_size 7 "
                "--accumulate 2 --remove_per_epoch 0.5 --remove_all_when_remove_beyond 39 --removal_smoothing_lambda 4 "
                "--removal_side right --pretrain_epochs 1 --truncation 64 --max_len_train 150 --max_new_tokens 12 "
                "--max_size 100 --save_model x --remove_start_from 2 --seed 7 --max_grad_norm 0.5 "
                "--bf16 --reset_optimizer --keep_position --reinitialize_weights",
                {
                    "model": "m", "train_path": "a", "val_path": "b", "test_path": "c", "epochs": 3, "lr": 1e-4,
                    "batch_size": 7, "accumulate": 2, "remove_per_epoch": 0.5, "remove_all_when_remove_beyond": 39,
                    "removal_smoothing_lambda": 4, "removal_side": "right", "pretrain_epochs": 1, "truncation": 64,
                    "max_len_train": 150, "max_new_tokens": 12, "max_size": 100, "output": "x",
                    "remove_start_from": 2, "seed": 7, "max_grad_norm": 0.5, "precision": "bf16",
                    "reset_optimizer": True, "keep_position": True, "reinitialize_weights": True,
                },
            ),
            (
                "--data_path d --data_name n --train_split a --val_split b --test_split c --save_model x "
                "--from_pretrained y "
                "--train_steps 9 --eval_interval 3 --save_interval 4 --remove_tokens --remove_from_n_steps 5 "
                "--remove_from_n_tokens 2 --remove_every_n_step 6",
                {
                    "data_path": "d", "data_name": "n", "train_split": "a", "valid_split": "b", "test_split": "c",
                    "output": "x", "from_pretrained": "y", "steps": 9, "eval_every": 3, "save_every": 4,
                    "remove_tokens": True, "remove_from_n_steps": 5,
                    "remove_start_from": 2, "remove_every_n_step": 6,
                },
            ),
        ],
        ids=["stepwise", "by-steps"],
    )  # fmt: skip
    def test_every_flag_keeps_its_name(self, line: str, expected: dict[str, object]) -> None:
        job = parse(first_stage("train", ["internalize", *split(line)], ["method"]))
        values = {**vars(job.where), **vars(job.options), **vars(job.method)}
        assert {name: values[name] for name in expected} == expected


class TestTrain:
    """`unspoken train`."""

    @pytest.mark.parametrize("name", TASKS.names())
    def test_fields_of_every_task_are_flags(self, name: str) -> None:
        if issubclass(TASKS.find(name), ChainTask):
            job = parse(first_stage("train", ["internalize", "--task", name, "-o", "x"], ["method"]))
            assert job.task.name == name

    def test_task_and_resumption(self, tmp_path: Path, capsys: Said) -> None:
        words = ["train", "internalize", "--task", "modsum", *SHORT, "--n_train", "16", "--n_valid", "4"]
        words += ["--n_test", "4", "-o", str(tmp_path / "run")]
        assert main(words) == 0
        capsys.readouterr()
        assert main(words) == 0
        assert "was finished already" in capsys.readouterr().out
        assert main([*words, "--lr", "1e-3"]) == 2
        err = capsys.readouterr().err
        assert "options.lr" in err
        assert "--resume never" in err

    def test_help_lists_methods_and_fields(self, capsys: Said) -> None:
        assert main(["train", "--help"]) == 0
        out = capsys.readouterr().out
        assert "internalize" in out
        assert "--train-path" in out
        assert main(["train", "internalize", "--task", "multiplication", "--help"]) == 0
        out = capsys.readouterr().out
        assert "--remove-per-epoch" in out
        assert "--digits" in out

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ([], "No method given. Known: "),
            (["internalise"], "Did you mean 'internalize'?"),
            (["internalize", "-o", "x"], "No rows to train on"),
            (["internalize", "--task", "modsum"], "No folder for the result"),
            (["internalize", "--task", "modsum", "--data_path", "d", "-o", "x"], "one place only"),
            (["internalize", "--train_path", "a", "--data_path", "d", "-o", "x"], "one place only"),
            (["internalize", "--data_name", "d", "-o", "x"], "data_name goes with data_path"),
            (["internalize", "--task", "modsom", "-o", "x"], "Did you mean 'modsum'?"),
            (["internalize", "--task", "math500", "-o", "x"], "no chains of thought"),
            (
                ["internalize", "--task", "modsum", "-o", "x", "--learnin_rate", "1"],
                "Did you mean '--learning-rate'?",
            ),
            (["internalize", "--task", "modsum", "-o", "x", "--lr", "-1", "--epochs", "0"], "2 problems"),
            (
                ["internalize", "-o", "x", "--keep_position", "--mode", "fixed"],
                "keep_position with mode fixed",
            ),
            (["internalize", "--task", "modsum", "-o", "x", "--bf16", "--precision", "pure_bf16"], "bf16"),
        ],
    )
    def test_mistakes(self, words: list[str], said: str, capsys: Said) -> None:
        assert main(["train", *words]) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.startswith("error: ")

    @pytest.mark.parametrize(
        ("text", "extra", "code", "said"),
        [
            ("no bars here\n", [], 1, "no '||'"),
            ("1 2||3 #### 4\nno bars\n1||2||3\n5 6|| #### 7\n8||9\n", [], 0, "line 2"),
            ("1 2||3 #### 4\n", ["--remove_start_from", "99"], 0, "1 rows"),
            ("1 2 <eos> 3||3 #### 4\n1 2||3 #### 4\n", [], 0, "1 rows of train were left out"),
            ("1 2||3 #### 4\n" * 8, ["--lr", "1e30"], 1, "loss is"),
            ("1 2||3 #### 4\n", ["--max_len_train", "2"], 2, "max_len_train"),
        ],
        ids=["no-bars", "odd-lines", "beyond-the-end", "stray-separator", "nan", "all-too-long"],
    )
    def test_bad_rows(
        self, text: str, extra: list[str], code: int, said: str, tmp_path: Path, capsys: Said
    ) -> None:
        (tmp_path / "train.txt").write_text(text, encoding="utf-8")
        words = [
            "train",
            "internalize",
            "--train_path",
            str(tmp_path / "train.txt"),
            *SHORT,
            "--log_every",
            "1",
        ]
        assert main([*words, *extra, "-o", str(tmp_path / "run")]) == code
        out, err = capsys.readouterr()
        assert said in out + err
        assert "Traceback" not in out + err

    def test_the_summary_states_what_its_accuracy_is_of(self, tmp_path: Path, capsys: Said) -> None:
        lines = [f"{i} 2||3 #### {i}" for i in range(6)]
        (tmp_path / "train.txt").write_text("\n".join(lines[:3]), encoding="utf-8")
        long = [f"7 {'1 ' * 9}|| 3 #### 1", f"8 {'2 ' * 9}|| 3 #### 1"]
        (tmp_path / "valid.txt").write_text("\n".join([*lines[3:], *long]), encoding="utf-8")
        (tmp_path / "test.txt").write_text("9 2||3 #### 4", encoding="utf-8")
        words = ["train", "internalize", *SHORT, "--truncation", "12", "-o", str(tmp_path / "run")]
        for stem, flag in (("train", "--train_path"), ("valid", "--val_path"), ("test", "--test_path")):
            words += [flag, str(tmp_path / f"{stem}.txt")]
        assert main(words) == 0
        (said,) = (row for row in capsys.readouterr().out.splitlines() if ": 2 steps in" in row)
        assert re.search(r"; 2 more were left out, too long or malformed\); test_loss", said)
        assert re.search(r"exact_match [\d.]+ \(of 3 rows; 2 more", said)
        assert said.endswith("(of 1 rows).")

    def test_rows_longer_than_the_positions(
        self, tiny_folder: Callable[[str], Path], tmp_path: Path, capsys: Said
    ) -> None:
        (tmp_path / "train.txt").write_text(f"{'5 ' * 600}||3 #### 4\n", encoding="utf-8")
        words = [
            "train",
            "internalize",
            "--train_path",
            str(tmp_path / "train.txt"),
            "-o",
            str(tmp_path / "run"),
        ]
        assert main([*words, "-m", str(tiny_folder("gpt2"))]) == 2
        assert "512 positions" in capsys.readouterr().err

    def test_missing_file(self, tmp_path: Path, capsys: Said) -> None:
        words = ["train", "internalize", "--train_path", str(tmp_path / "nowhere.txt"), *SHORT]
        assert main([*words, "-o", str(tmp_path / "run")]) == 1
        assert "nowhere.txt" in capsys.readouterr().err


class TestDoctorTrain:
    """`unspoken doctor train`."""

    def test_arithmetic_of_the_paper(
        self, tiny_folder: Callable[[str], Path], tmp_path: Path, capsys: Said
    ) -> None:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(
            f"command: train\nmethod: internalize\nmodel: {tiny_folder('gpt2')}\ntask: multiplication\ndigits: 2\n"
            "n_train: 6400\nepochs: 3\nbatch_size: 16\naccumulate: 3\nremove_per_epoch: 8\n",
            encoding="utf-8",
        )
        assert main(["doctor", "train", "-c", str(recipe)]) == 0
        out = capsys.readouterr().out
        assert "400 micro-batches of 16 rows" in out
        assert "1,200 micro-batches, 402 steps" in out  # 133 windows of three and a rest in each epoch
        assert "one token every 50 micro-batches; 23 at the end" in out
        assert re.search(r"memory +about \d", out)

    def test_needs_rows(self, rows: Path, tmp_path: Path, capsys: Said) -> None:
        assert main(["doctor", "train", "internalize"]) == 2
        assert "No rows to train on" in capsys.readouterr().err
        file = str(rows / "gsm8k" / "train.txt")
        for words in (["doctor", "train"], ["train"]):
            words += ["internalize", *TINY, "-o", str(tmp_path / "run")]
            assert main([*words, "--task", "gsm8k_aug", "--data", file]) == 1
            err = capsys.readouterr().err
            assert "read as the split 'test'" in err
            assert "add: --split train" in err
            assert main([*words, "--task", "modsum", "--n_train", "0"]) == 1
            assert (
                "'modsum' has no rows to train on.\n  Ask for some: --n-train 1000" in capsys.readouterr().err
            )
        words = ["doctor", "train", "internalize", *TINY, "--task", "gsm8k_aug", "--data", file]
        assert main([*words, "--split", "train"]) == 0


class TestThroughput:
    """`unspoken throughput`, and its numbers in `unspoken curve`."""

    def test_table_sweep_and_figures(self, rows: Path, trained: Path, tmp_path: Path, capsys: Said) -> None:
        pytest.importorskip("matplotlib")
        file = tmp_path / "speed" / "all.json"
        words = [
            "throughput",
            str(trained),
            "--test_path",
            str(rows / "2_by_2_mult" / "test.txt"),
            "--limit",
            "2",
        ]
        words += [
            "--batch_sizes",
            "1",
            "2",
            "--baseline",
            str(trained),
            "--repeats",
            "1",
            "--max_new_tokens",
            "3",
        ]
        assert main([*words, "--sweep_fillers", "0", "1", "-o", str(file)]) == 0
        out = capsys.readouterr().out
        assert "1.00×" in out
        assert "fillers" in out
        assert main(["curve", str(file), "-o", str(tmp_path / "figures")]) == 0
        assert "yet, batch 2" in capsys.readouterr().out
        written = {path.name for path in (tmp_path / "figures").iterdir()}
        assert written == {f"{stem}.{form}" for stem in ("fillers", "speed") for form in ("png", "csv")}

    def test_a_sweep_without_numbers(self, rows: Path, trained: Path, capsys: Said) -> None:
        test_path = ["--test_path", str(rows / "2_by_2_mult" / "test.txt")]
        few = ["--batch_sizes", "2", "--repeats", "1", "--max_new_tokens", "2", "--limit", "2"]
        assert main(["throughput", str(trained), *test_path, *few, "--sweep-fillers"]) == 2
        assert "--sweep-fillers 0 4 8 16" in capsys.readouterr().err
        words = ["throughput", "tiny-filler", "--task", "sum3lite", "--n", "5", "--m", "16"]
        assert main([*words, *few, "--sweep-fillers"]) == 0
        swept = capsys.readouterr().out.partition("\ntiny-filler\n")[2]
        assert re.findall(r"^(\d+)", swept, re.MULTILINE) == ["0", "2", "5", "10", "20"]
        assert main([*words, *few]) == 0
        assert "\ntiny-filler\n" not in capsys.readouterr().out

    def test_mistakes(self, tmp_path: Path, capsys: Said) -> None:
        assert main(["throughput", "somewhere", "--limit", "0"]) == 2
        err = capsys.readouterr().err
        assert "--test_path FILE or with --task" in err
        assert "limit" in err
        (tmp_path / "x.json").write_text("{}", encoding="utf-8")
        assert main(["curve", str(tmp_path / "x.json")]) == 1
        assert "no file of speeds" in capsys.readouterr().err
