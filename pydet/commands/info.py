# SPDX-License-Identifier: Apache-2.0
"""Say what is installed, what was compiled in and what of the machine is used."""

import argparse
import json
import os
import platform
from importlib import metadata
from typing import Any

import torch

from pydet import __version__
from pydet._build_info import find_module, read_build_info
from pydet.ops import _library

# Each with the part of pydet that needs it.
OPTIONAL_PACKAGES = {
    "lightning-fabric": "training",
    "pycocotools": "evaluation",
    "matplotlib": "plots",
    "tensorboard": "logs of a training",
    "tqdm": "progress bars",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``pydet info``.

    Args:
        parser: That of the subcommand.
    """
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def collect() -> dict[str, Any]:
    """Everything that ``pydet info`` prints, by name; "problem" is empty where all is well."""
    build = read_build_info(find_module())
    extension = _library.extension
    info: dict[str, Any] = {
        "pydet": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda or "",
        "platform": platform.platform(),
        "problem": _library.load_error,
        "build": build,
        "cpu_path": "" if extension is None else extension.cpu_isa(),
        "threads": torch.get_num_threads() if extension is None else extension.num_threads(),
        "cores": os.cpu_count() or 0,
        "gpus": [],
        "packages": {},
    }
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            info["gpus"].append(
                {
                    "name": properties.name,
                    "capability": f"{properties.major}.{properties.minor}",
                    "memory_gib": round(properties.total_memory / 2**30, 1),
                }
            )
    for name in OPTIONAL_PACKAGES:
        try:
            info["packages"][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            info["packages"][name] = ""
    return info


def _gpu_lines(info: dict[str, Any]) -> list[str]:
    if info["gpus"]:
        return [
            f"{gpu['name']}, compute capability {gpu['capability']}, {gpu['memory_gib']} GiB"
            for gpu in info["gpus"]
        ]
    if not info["torch_cuda"]:
        return ["none: this torch is built without CUDA"]
    return ["none: torch sees no CUDA device"]


def _kernels_line(info: dict[str, Any]) -> str:
    if info["problem"]:
        return f"none: {info['problem']}"
    if info["build"].get("cuda"):
        return f"CPU and CUDA (for {info['build']['cuda_architectures']})"
    return "CPU"


def format_table(info: dict[str, Any]) -> str:
    """The text of ``pydet info``, one fact a line.

    Args:
        info: What :func:`collect` returned.
    """
    build = info["build"]
    cuda = f", CUDA {info['torch_cuda']}" if info["torch_cuda"] else ", no CUDA"
    lines = [
        ("pydet", info["pydet"]),
        ("Python", info["python"]),
        ("torch", info["torch"] + cuda),
        ("platform", info["platform"]),
        ("native kernels", _kernels_line(info)),
    ]
    if build:
        with_cuda = f", CUDA {build['cuda']}" if build.get("cuda") else ""
        lines.append(
            (
                "built with",
                f"torch {build.get('torch')}, Python {build.get('python')}, "
                f"compiler {build.get('compiler')}{with_cuda}",
            )
        )
    lines.append(("CPU path", info["cpu_path"] or "none"))
    lines.append(("threads", f"{info['threads']} of {info['cores']} cores"))
    lines += [("GPU", line) for line in _gpu_lines(info)]
    for name, purpose in OPTIONAL_PACKAGES.items():
        found = info["packages"][name] or f"not installed ({purpose} needs it)"
        lines.append((name, found))
    return "\n".join(f"{name:<17} {value}" for name, value in lines)


def run(args: argparse.Namespace) -> int:
    """Prints the report.

    Args:
        args: With ``json``.

    Returns:
        0 if the ops can be used, 1 if not.
    """
    info = collect()
    print(json.dumps(info, indent=2) if args.json else format_table(info))
    return 1 if info["problem"] else 0
