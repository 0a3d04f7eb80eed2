# SPDX-License-Identifier: Apache-2.0
"""What the compiled part was built for, read from its file before it is loaded.

csrc/bindings.cpp puts one line of text into the module. A module that was built for another torch
may fail to load with a message about symbols, or crash; the line says what is wrong before either.
"""

import sys
import sysconfig
from pathlib import Path

import torch

MEND = (
    "Build it for the Python and torch that are installed: "
    "`pip install --no-build-isolation --no-deps --force-reinstall .` in pydet's source folder; "
    "`python -m pydet info` shows what was found"
)
_MARK = b"pydet-build|"


def find_module(folder: Path = Path(__file__).parent) -> Path | None:
    """The file of the compiled module, or None where none is built.

    Args:
        folder: Where to look: the folder of the package.
    """
    fitting = folder / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    if fitting.is_file():
        return fitting
    return next(iter(sorted(folder.glob("_C.*.so"))), None)


def read_build_info(module: Path | None) -> dict[str, str]:
    """What a compiled module says of itself; empty where it says nothing.

    Args:
        module: What :func:`find_module` returned.

    Returns:
        The keys "torch", "python", "compiler", "cuda" and "cuda_architectures" (empty for a build
        without CUDA).
    """
    if module is None:
        return {}
    content = module.read_bytes()
    begin = content.find(_MARK)
    if begin < 0:
        return {}
    end = content.find(b"\0", begin)
    fields = content[begin + len(_MARK) : end].decode("utf-8", "replace").split("|")
    return dict(field.split("=", maxsplit=1) for field in fields if "=" in field)


def misfit(info: dict[str, str]) -> str:
    """Why a module built as ``info`` says does not fit this process; empty if it does.

    Args:
        info: What :func:`read_build_info` returned.
    """
    running = torch.__version__
    built = info.get("torch", running)
    # torch's C++ interface changes from one minor release to the next: an extension fits one.
    if built.split(".")[:2] != running.split(".")[:2]:
        return f"pydet was built for torch {built} and runs with torch {running}. {MEND}."
    python = sys.version.split()[0]
    built = info.get("python", python)
    if built.split(".")[:2] != python.split(".")[:2]:
        return f"pydet was built for Python {built} and runs with Python {python}. {MEND}."
    return ""
