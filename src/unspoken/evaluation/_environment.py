"""What a result depends on besides its configuration: versions, machine, commit. No paths of the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from unspoken import __version__


def environment(device: Any) -> dict[str, Any]:
    """Versions of what computes, the machine in words, and the commit of the working directory if it has one.

    Args:
        device: The `torch.device` of the model.
    """
    import torch

    cuda = getattr(device, "type", str(device)) == "cuda"
    return {
        "unspoken": __version__,  # also where the package is only on the path, without metadata
        **{name: _version(name) for name in ("torch", "transformers", "numpy")},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device_name": torch.cuda.get_device_name(device) if cuda else _cpu_name(),
        "commit": _commit(),
    }


def portable(value: Any) -> Any:
    """A path as its last component, so that a record neither tells nor depends on where things lie."""
    if isinstance(value, Path):
        return value.name
    if isinstance(value, dict):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(item) for item in value]
    separated = isinstance(value, str) and "\n" not in value and (os.sep in value or value.startswith("~"))
    if separated and (os.path.isabs(value) or os.path.exists(os.path.expanduser(value))):
        return Path(value).name
    return value


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
