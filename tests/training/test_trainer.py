"""The trainer: the same run whatever stops it, splits it or accumulates it."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_run
from toy import Toy, toy_data, toy_model
from trainer_help import DEFAULTS, Stop, rows, run, same, stopped_at, weights

import unspoken as un
from unspoken.errors import ConfigError, RunError
from unspoken.training import _checkpoints as checkpoints
from unspoken.training import _trainer
from unspoken.training._base import Data

FSDP = Path(__file__).parents[2] / "recipes" / "accelerate" / "fsdp.yaml"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(folder, save_every=2)
    return folder


def test_learns_and_leaves_a_plain_checkpoint(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = run(tmp_path / "out", epochs=25, lr=2e-2, eval_every=25, save_every=25)
    losses = [row["loss"] for row in rows(tmp_path / "out") if row["event"] == "train"]
    assert losses[-1] < losses[0] / 2
    assert done.steps == 100 and done.metrics["accuracy"] > 0.5
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    AutoTokenizer.from_pretrained(tmp_path / "out")
    assert un.load(tmp_path / "out").strategy == un.ChainOfThought()
    assert (tmp_path / "out" / "best" / "model.safetensors").is_file()
    assert json.loads((tmp_path / "out" / "training.json").read_text())["state"] == "finished"
    kept = [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()]
    assert sorted(kept) == ["step-100", "step-75"]


def test_finished_run_is_left_alone_and_never_starts_again(tmp_path: Path) -> None:
    first = run(tmp_path / "out")
    again = run(tmp_path / "out")
    assert again.already_finished and again.metrics == first.metrics and again.steps == first.steps
    third = run(tmp_path / "out", resume="never")
    assert not third.already_finished and (tmp_path / "out.old-1" / "training.json").is_file()
    assert same(tmp_path / "out", tmp_path / "out.old-1")


def test_other_configuration_is_refused_with_its_keys(tmp_path: Path) -> None:
    run(tmp_path / "out")
    run(tmp_path / "out", log_every=7)  # decides nothing
    with pytest.raises(
        ConfigError, match=r"method\.reset_at is \[\] there.*options\.lr is 0\.01 there and 0\.02 now"
    ):
        run(tmp_path / "out", Toy(reset_at=(1,)), lr=0.02)
    with pytest.raises(ConfigError, match="data is"):
        run(tmp_path / "out", data=toy_data(10))


def test_resumes_bit_for_bit(tmp_path: Path) -> None:
    """In mid-epoch, across resets of the optimizer, with accumulation and dropout."""
    how: dict[str, Any] = {
        "accumulate": 2,
        "save_every": 2,
        "eval_every": 3,
        "lr_schedule": "cosine",
        "warmup_steps": 2,
    }
    method = {"reset_at": (3, 6)}
    run(tmp_path / "whole", Toy(**method), toy_model(dropout=0.1), **how)
    for stop in (2, 6, 9):
        cut = tmp_path / f"cut-{stop}"
        with pytest.raises(Stop):
            run(cut, stopped_at(stop)(**method), toy_model(dropout=0.1), **how)
        run(cut, Toy(**method), toy_model(dropout=0.1), **how)
        assert same(tmp_path / "whole", cut)
        assert rows(tmp_path / "whole") == rows(cut)


def test_trains_from_a_source_tree_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without metadata of the package, a run once ended at its first checkpoint."""
    found = importlib.metadata.version

    def version(name: str) -> str:
        if name == "unspoken":
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(_trainer, "version", version)
    run(tmp_path / "out", save_every=2)
    provenance: Any = un.load(tmp_path / "out").provenance
    assert provenance["versions"]["unspoken"] == un.__version__


def test_a_checkpoint_of_shared_out_weights_is_not_taken_for_a_plain_one(tmp_path: Path) -> None:
    """FSDP and DeepSpeed write the optimizer otherwise: one process cannot go on from there."""
    with pytest.raises(Stop):
        run(tmp_path / "out", stopped_at(5)(), toy_model(), save_every=2)
    for file in (tmp_path / "out").glob("checkpoints/*/trainer/optimizer.pt"):
        file.unlink()
    with pytest.raises(ConfigError, match="written under FSDP or DeepSpeed") as error:
        run(tmp_path / "out", Toy(), toy_model(), save_every=2)
    assert "--resume never" in str(error.value)


@pytest.mark.slow
def test_resumes_after_kill(tmp_path: Path) -> None:
    script = Path(__file__).with_name("toy_run.py")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, str(script)]
    toy_run.go(whole)
    process = subprocess.Popen([*command, str(killed), "slow"])
    until = time.monotonic() + 100
    while not list(killed.glob("checkpoints/step-*")) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoints.read_run(killed)["state"] == "running"  # type: ignore[index]
    toy_run.go(killed)
    assert same(whole, killed)
    assert rows(whole) == rows(killed)


def test_accumulation_is_the_same_as_a_large_batch(tmp_path: Path) -> None:
    data = toy_data(24)
    # Adam makes large steps of rounding errors where a gradient is 0 (the bias of keys), unless eps is larger.
    run(tmp_path / "1x8", accumulate=1, batch_size=8, data=data, method=Plain(), eps=1e-4)
    run(tmp_path / "8x1", accumulate=8, batch_size=1, data=data, method=Plain(), eps=1e-4)
    assert same(tmp_path / "1x8", tmp_path / "8x1", atol=1e-5, rtol=1e-4)


class Plain(Toy):
    """Without draws, which belong to micro-batches."""

    def prepare(self, lm: Any, data: Data, options: Any) -> Any:
        work = super().prepare(lm, data, options)
        batch = work.batch

        def plain(t: int, chosen: Any, generator: Any) -> Any:
            made = batch(t, chosen, generator)
            return {**made, "weight": made["n"].float()}

        work.batch = plain  # type: ignore[method-assign]
        return work


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "lora", "fsdp"])
def test_two_processes_are_the_same_as_one(tmp_path: Path, how: str) -> None:
    if how == "lora":
        pytest.importorskip("peft")
    script = str(Path(__file__).with_name("toy_run.py"))
    toy_run.go(tmp_path / "one", lora=how == "lora", device="cpu")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    if how == "fsdp":
        config = tmp_path / "fsdp.yaml"
        config.write_text(FSDP.read_text(encoding="utf-8") + "use_cpu: true\n", encoding="utf-8")
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    # Two processes cannot share one GPU.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*launch, script, str(tmp_path / "two"), how], check=True, timeout=200, env=environment)
    if how == "fsdp":  # what only it writes
        assert list((tmp_path / "two").glob("checkpoints/step-*/trainer/optimizer.bin"))
    assert weights(tmp_path / "one").keys() == weights(tmp_path / "two").keys()
    assert same(tmp_path / "one", tmp_path / "two", atol=1e-5, rtol=1e-3)
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert one == {
            key: pytest.approx(v, rel=1e-3) if isinstance(v, float) else v for key, v in two.items()
        }


def test_reset_flushes_the_pending_gradients(tmp_path: Path) -> None:
    """A reset before micro-batch 3 ends the window (2, 3) after 2, with what is pending as a step of its own."""
    done = run(
        tmp_path / "out",
        Toy(reset_at=(3,)),
        accumulate=2,
        epochs=2,
        log_every=1,
        save_every=1,
        save_total_limit=9,
    )
    ends = [row["t"] for row in rows(tmp_path / "out") if row["event"] == "train"]
    assert ends == [2, 3, 4, 6, 8] and done.steps == 5
    saved = [weights(tmp_path / "out" / "checkpoints" / f"step-{step}") for step in range(1, 6)]
    for before, after in itertools.pairwise(saved):
        assert any(not torch.equal(before[name], after[name]) for name in before)


def test_optimizer_state_is_gone_after_a_reset(tmp_path: Path) -> None:
    run(tmp_path / "out", Toy(reset_at=(3,)), epochs=1, save_every=1)
    state = torch.load(
        tmp_path / "out" / "checkpoints" / "step-4" / "trainer" / "optimizer.pt", weights_only=True
    )
    assert {int(entry["step"]) for entry in state["state"].values()} == {1}


def test_loss_that_is_no_number_stops_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"micro-batch 5.*step 6.*training rows") as error:
        run(tmp_path / "out", Toy(nan_at=5), save_every=2)
    assert "lower lr" in str(error.value)
    assert [step for step, _ in checkpoints.newest_first(tmp_path / "out")] == [4, 2]
    assert all(
        value.isfinite().all() for value in weights(tmp_path / "out" / "checkpoints" / "step-4").values()
    )


@pytest.mark.parametrize("damage", ["model.safetensors", "trainer/optimizer.pt", "trainer/progress.json"])
def test_damaged_checkpoint_is_skipped(tmp_path: Path, whole: Path, damage: str) -> None:
    with pytest.raises(Stop):
        run(tmp_path / "out", stopped_at(9)(), save_every=2)
    path = tmp_path / "out" / "checkpoints" / "step-8" / damage
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(UserWarning, match="Skipping the checkpoint step-8"):
        run(tmp_path / "out", save_every=2)
    assert same(whole, tmp_path / "out")


def test_full_disk_keeps_the_last_good_checkpoint(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedModel

    save = PreTrainedModel.save_pretrained

    def full(self: Any, folder: Any, **given: Any) -> None:
        if "step-4" in str(folder):
            (Path(folder) / "model.safetensors").write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(self, folder, **given)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(RunError, match="step-4.*No space left"):
        run(tmp_path / "out", save_every=2)
    monkeypatch.undo()
    assert [step for step, _ in checkpoints.newest_first(tmp_path / "out")] == [2]
    run(tmp_path / "out", save_every=2)
    assert same(whole, tmp_path / "out")


@pytest.mark.slow
def test_killed_in_the_middle_of_a_save(tmp_path: Path) -> None:
    script, killed = Path(__file__).with_name("toy_run.py"), tmp_path / "killed"
    died = subprocess.run([sys.executable, str(script), str(killed), "die-saving"], timeout=200)
    assert died.returncode == -signal.SIGKILL
    assert [step for step, _ in checkpoints.newest_first(killed)] == [2]
    un.load(killed / "checkpoints" / "step-2")
    assert list(killed.glob("checkpoints/.step-4*"))
    toy_run.go(killed, save_every=3)  # so that nothing is written over what was left half-written
    toy_run.go(tmp_path / "whole")
    assert same(tmp_path / "whole", killed)
    assert list(killed.rglob(".*")) == []


@pytest.mark.parametrize("kilobytes", [1, 2, 8, 16])
def test_disk_that_takes_no_more(tmp_path: Path, whole: Path, kilobytes: int) -> None:
    """Whatever file it is that does not fit any more: the words differ by who writes it."""
    with pytest.raises(Stop):
        run(tmp_path / "out", stopped_at(3)(), save_every=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kilobytes, hard))
    try:
        with pytest.raises(RunError, match="(?i)could not write|cannot write") as error:
            run(tmp_path / "out", save_every=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "Make room and run the same command again" in str(error.value)
    assert 2 in [step for step, _ in checkpoints.newest_first(tmp_path / "out")]
    run(tmp_path / "out", save_every=2)
    assert same(whole, tmp_path / "out")


def test_adapters_and_new_tokens_reload(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    method, how = Toy(new_token=True), {"lora_r": 2, "lora_target": ("c_attn",), "save_every": 3, "epochs": 2}
    lm = toy_model()
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    run(tmp_path / "out", method, lm, **how)
    after = weights(tmp_path / "out")
    trained = [n for n, v in before.items() if n in after and not torch.equal(after[n][: len(v)], v)]
    assert trained == ["transformer.h.0.attn.c_attn.weight"]
    table = after["transformer.wte.weight"]
    assert len(table) == len(before["transformer.wte.weight"]) + 1
    fresh = toy_model()
    torch.manual_seed(DEFAULTS.get("seed", 1234))
    method.prepare(fresh, toy_data(), None)
    assert not torch.equal(table[-1], fresh.model.state_dict()["transformer.wte.weight"][-1])
    loaded = un.load(tmp_path / "out")
    assert (
        len(loaded.tokenizer) == len(table)
        and loaded.tokenizer.convert_tokens_to_ids("<new>") == len(table) - 1
    )
    with pytest.raises(Stop):
        run(tmp_path / "cut", stopped_at(5)(new_token=True), **how)
    run(tmp_path / "cut", method, **how)
    assert same(tmp_path / "out", tmp_path / "cut")


def test_bf16_keeps_fp32_weights(tmp_path: Path) -> None:
    run(tmp_path / "mixed", precision="bf16", epochs=1)
    run(tmp_path / "pure", precision="pure_bf16", epochs=1)
    run(tmp_path / "full", epochs=1)
    assert {v.dtype for v in weights(tmp_path / "mixed").values()} == {torch.float32}
    assert {v.dtype for v in weights(tmp_path / "pure").values()} == {torch.bfloat16}
    assert not same(tmp_path / "mixed", tmp_path / "full")
    assert same(tmp_path / "mixed", tmp_path / "full", atol=0.05)


def test_a_run_goes_on_when_the_model_that_it_began_with_has_moved(tmp_path: Path) -> None:
    from unspoken.lm.checkpoint import save

    start, moved = tmp_path / "start", tmp_path / "elsewhere" / "under-another-name"
    save(toy_model(), start)

    def go(model: Path, output: Path) -> Any:
        return un.train(Toy(), model=model, output=output, data=toy_data(), epochs=1, quiet=True)

    done = go(start, tmp_path / "out")
    moved.parent.mkdir()
    start.rename(moved)
    again = go(moved, tmp_path / "out")
    assert again.already_finished and again.metrics == done.metrics
    # Other weights in the same place are another model.
    save(toy_model(), moved)
    lm = un.load(moved)
    with torch.no_grad():
        next(lm.model.parameters()).add_(1e-3)
    save(lm, moved)
    with pytest.raises(ConfigError, match="model is"):
        go(moved, tmp_path / "out")
    # A run that ends in the folder it began with is finished all the same.
    go(moved, moved)
    assert go(moved, moved).already_finished


def test_a_run_of_a_model_with_another_activation_is_not_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(tmp_path, stopped_at(4)(), toy_model(), save_every=2)
    for path in tmp_path.glob("checkpoints/step-*/config.json"):
        path.write_text(path.read_text(encoding="utf-8").replace("gelu_new", "gelu"), encoding="utf-8")
    with pytest.raises(
        ConfigError, match="activation_function gelu; the same settings now make one with gelu_new"
    ):
        run(tmp_path, Toy(), toy_model(), save_every=2)
