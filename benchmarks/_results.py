# SPDX-License-Identifier: Apache-2.0
"""Where results lie, and what they say about the machine that they are of."""

import json
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import pydet
from pydet.ops import _library

RESULTS = Path(__file__).parent / "results"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = None
    if cpuinfo.is_file():
        found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text(encoding="utf-8"))
    return found[1].strip() if found else platform.machine()


def machine_name(device: torch.device) -> str:
    """The chip, and the cores that this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {len(os.sched_getaffinity(0))} cores"


def _cpu_path() -> str | None:
    return None if _library.extension is None else _library.extension.cpu_isa()


def folder_of(device: torch.device) -> Path:
    """results/<the chip's name as a folder can have it>; many CPUs give no more than a brand's."""
    name = machine_name(device).replace(",", "")
    if device.type == "cpu":
        name = f"{name} {_cpu_path()}"
    return RESULTS / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the pydet that was measured, marked where it was changed; None outside of a checkout."""
    folder = Path(pydet.__file__).parents[1]
    if not (folder / ".git").exists():
        return None

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ("git", "-C", str(folder), *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=False)

    commit = git("rev-parse", "--short", "HEAD").stdout.strip()
    changed = git("diff", "--quiet", "HEAD", "--", "pydet", "csrc").returncode
    return commit + "-changed" * bool(changed)


def about(device: torch.device) -> dict[str, Any]:
    """The machine and the versions that a result belongs to."""
    return {
        "machine": machine_name(device),
        "pydet": pydet.__version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "cpu_path": _cpu_path(),
        "load_average": os.getloadavg()[0],
    }


def write_results(name: str, device: torch.device, results: list[dict[str, Any]]) -> Path:
    """Writes results/<device>/<name>.json and returns its path."""
    path = folder_of(device) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"name": name, **about(device), "results": _rounded(results)}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def _rounded(value: Any) -> Any:
    """Four digits of each figure: more are noise, and fill the history."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
