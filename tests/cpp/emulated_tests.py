# SPDX-License-Identifier: Apache-2.0
"""Runs the tests of the ops on the CUDA kernels, where there is no GPU: by emulation.

``python tests/cpp/emulated_tests.py FOLDER [ARGUMENTS OF PYTEST]`` builds, in a build folder of
CMake, a pydet whose every call with CPU tensors goes to the launchers of the ``.cu`` files, and
runs tests/ops on it. The kernels are watched by the address and undefined-behaviour sanitizers:
what they find ends the run and names the kernel, its block and thread, and the test. What has not
changed is not built again, and the kernels are those of ``make cpp-sanitize``.

PYDET_EMULATION_SEED chooses the order in which blocks and threads run; without it it is 0.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("pydet", "tests", "docs", "pyproject.toml")  # what the tests of the ops need


def build(folder: Path) -> None:
    """Makes FOLDER/emulated: the project with another compiled module."""
    project = folder / "emulated"
    shutil.rmtree(project, ignore_errors=True)
    project.mkdir(parents=True)
    for name in COPIED:
        if (ROOT / name).is_dir():
            unwanted = shutil.ignore_patterns("_C*", "__pycache__")
            shutil.copytree(ROOT / name, project / name, ignore=unwanted)
        else:
            shutil.copy(ROOT / name, project)
    includes = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    settings = {
        "PYDET_CUDA": "OFF",
        "PYDET_SANITIZE": "address,undefined",
        "PYDET_TORCH_VERSION": torch.__version__,
        "PYDET_TORCH_INCLUDES": ";".join(includes),
        "PYDET_TORCH_LIBRARIES": ";".join(cpp_extension.library_paths()),
        "PYDET_MODULE": str(folder / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"),
    }
    command = ["cmake", "-S", str(ROOT), "-B", str(folder)]
    subprocess.run(command + [f"-D{k}={v}" for k, v in settings.items()], check=True)
    command = ["cmake", "--build", str(folder), "--target", "pydet_emulated_module"]
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count())
    subprocess.run([*command, "--parallel", jobs], check=True)
    shutil.copy(settings["PYDET_MODULE"], project / "pydet")


def library(name: str) -> str:
    """The path of a library of the compiler, which is to be loaded before all others."""
    command = [os.environ.get("CXX", "c++"), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def run(folder: Path, arguments: list[str]) -> int:
    """Runs the tests on what ``build`` made; pytest's exit status."""
    environment = os.environ | {
        "PYTHONPATH": str(folder / "emulated"),
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so.6')}",
        # Python keeps what it has until it ends, and torch has symbols twice.
        "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0:abort_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "HYPOTHESIS_PROFILE": os.environ.get("HYPOTHESIS_PROFILE", "emulated"),
        "OMP_NUM_THREADS": "1",
    }
    # Captured by file descriptor the report of a sanitizer would be lost with the process.
    command = [sys.executable, "-m", "pytest", "--capture=sys", "-q", "-m", "not large"]
    command += ["--numprocesses", os.environ.get("MAX_JOBS") or "auto", *arguments]
    if not any(argument.startswith("tests/") for argument in arguments):
        command.append("tests/ops")
    return subprocess.run(command, cwd=folder / "emulated", env=environment, check=False).returncode


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(f"usage: {sys.argv[0]} FOLDER [ARGUMENTS OF PYTEST]")
    build(Path(sys.argv[1]).resolve())
    raise SystemExit(run(Path(sys.argv[1]).resolve(), sys.argv[2:]))
