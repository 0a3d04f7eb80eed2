# SPDX-License-Identifier: Apache-2.0
"""Builds pydet._C from csrc/: CPU kernels always, CUDA kernels where torch and nvcc have CUDA.

PYDET_CUDA=0 or 1 decides by hand; TORCH_CUDA_ARCH_LIST, CUDA_HOME and MAX_JOBS are torch's own.
Whatever does not fit together ends here, in one sentence, before anything is compiled.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext as PlainBuildExt

try:
    import torch
    from torch.utils import cpp_extension
except ImportError as error:
    torch, torch_error = None, str(error)

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 11)
SOURCES = [
    str(path.relative_to(ROOT))
    for pattern in ("csrc/*.cpp", "csrc/*/*.cpp")
    for path in sorted(ROOT.glob(pattern))
]
CUDA_SOURCES = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("csrc/*/*_cuda.cu"))]
HEADERS = [
    str(path.relative_to(ROOT))
    for pattern in ("csrc/*/*.h", "csrc/*/*.cuh")
    for path in sorted(ROOT.glob(pattern))
]


def stop(sentence: str) -> None:
    """Ends the build."""
    raise SystemExit(f"pydet: {sentence}")


def check_torch() -> None:
    if torch is None:
        stop(
            f"torch must be installed before pydet is built, got '{torch_error}': install torch, "
            "then run `pip install --no-build-isolation .` with the same Python"
        )
    found = tuple(int(part) for part in re.match(r"(\d+)\.(\d+)", torch.__version__).groups())
    if found < OLDEST_TORCH:
        stop(
            f"torch must be {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]} or newer, got {torch.__version__}"
            f" in {sys.prefix}"
        )


def check_compiler() -> None:
    """A C++ compiler that torch's build will find, and the headers of this Python."""
    # torch compiles with $CXX or c++; setuptools links with the compiler that built this Python.
    linker = sysconfig.get_config_var("LDCXXSHARED") or "c++"
    for command in (os.environ.get("CXX") or "c++", os.environ.get("LDCXXSHARED") or linker):
        program = shlex.split(command)[0]
        if shutil.which(program) is None:
            stop(
                f"a C++ compiler must be on the PATH, got none named '{program}': install GCC 11 "
                "or newer (Debian and Ubuntu: build-essential), or name another one in CXX"
            )
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    source = "#include <span>\n#include <vector>\nint main() { return 0; }\n"
    answer = subprocess.run(
        [*compiler, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"],
        input=source,
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        said = (answer.stderr.strip().splitlines() or ["nothing"])[0]
        stop(f"the C++ compiler '{compiler[0]}' must know C++20 (GCC 11 or newer), got '{said}'")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        stop(
            f"the headers of Python must be installed, got no {header} (Debian and Ubuntu: "
            "python3-dev)"
        )


def nvcc_version() -> tuple[int, int] | None:
    """Version of the nvcc in CUDA_HOME; None where there is none."""
    home = cpp_extension.CUDA_HOME
    nvcc = Path(home, "bin", "nvcc") if home else None
    if nvcc is None or not nvcc.is_file():
        return None
    try:
        answer = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
        said = answer.stdout + answer.stderr
    except OSError as error:
        said = str(error)
    found = re.search(r"release (\d+)\.(\d+)", said)
    if found is None:
        first = (said.strip().splitlines() or ["nothing"])[0]
        stop(
            f"nvcc must print its version, got '{first}' from {nvcc}: set CUDA_HOME to a working "
            "CUDA toolkit, or PYDET_CUDA=0 to build for the CPU only"
        )
    return int(found[1]), int(found[2])


def choose_cuda() -> bool:
    """Whether the CUDA kernels are compiled; stops where they are wanted and cannot be."""
    choice = os.environ.get("PYDET_CUDA", "")
    if choice not in ("", "0", "1"):
        stop(f"PYDET_CUDA must be 0 (CPU only) or 1 (CPU and CUDA), got '{choice}'")
    if choice == "0":
        return False
    torch_cuda = torch.version.cuda
    if torch_cuda is None:
        if choice == "1":
            stop(
                "PYDET_CUDA=1 needs a torch with CUDA, got the CPU build of torch "
                f"{torch.__version__}: install a CUDA build of torch, or unset PYDET_CUDA"
            )
        return False
    nvcc = nvcc_version()
    if nvcc is None:
        where = f"{cpp_extension.CUDA_HOME}/bin" if cpp_extension.CUDA_HOME else "any usual place"
        if choice == "1":
            stop(
                f"PYDET_CUDA=1 needs nvcc, got none in {where}: install the CUDA "
                f"{torch_cuda.split('.')[0]} toolkit and set CUDA_HOME to it, or unset PYDET_CUDA"
            )
        print(f"pydet: no nvcc in {where}: the CUDA kernels are left out", file=sys.stderr)
        return False
    if nvcc[0] != int(torch_cuda.split(".")[0]):
        stop(
            f"nvcc must be of torch's CUDA major version {torch_cuda.split('.')[0]} (torch "
            f"{torch.__version__} has CUDA {torch_cuda}), got {nvcc[0]}.{nvcc[1]} in "
            f"{cpp_extension.CUDA_HOME}: set CUDA_HOME to the right toolkit, or PYDET_CUDA=0 to "
            "build for the CPU only"
        )
    return True


def choose_architectures() -> str:
    """The GPUs to compile for; torch's build reads them from TORCH_CUDA_ARCH_LIST."""
    chosen = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if not chosen:
        if torch.cuda.is_available():
            seen = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
            chosen = ";".join(f"{major}.{minor}" for major, minor in sorted(seen))
        else:
            # No GPU to ask: Turing to Blackwell, which nvcc knows from 12.8 on.
            known = nvcc_version() >= (12, 8)
            chosen = "7.5;8.0;9.0;10.0+PTX" if known else "7.5;8.0;9.0+PTX"
        os.environ["TORCH_CUDA_ARCH_LIST"] = chosen
    return chosen


def settle_toolkit() -> None:
    """Follows an nvcc that is a link or a script (/usr/local/bin/nvcc) to its toolkit.

    torch takes the folder above nvcc's, and would look for headers and libraries there.
    """
    home = Path(cpp_extension.CUDA_HOME)
    if (home / "include" / "cuda_runtime.h").is_file():
        return
    command = [home / "bin" / "nvcc", "--dryrun", "-x", "cu", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    found = re.search(r"^#\$ TOP=(.+)$", said, re.MULTILINE)
    if found and Path(found[1], "bin", "nvcc").is_file():
        cpp_extension.CUDA_HOME = os.environ["CUDA_HOME"] = str(Path(found[1]).resolve())


def cuda_include_dirs() -> list[str]:
    """Headers of CUDA that pip's CUDA packages brought along, where the toolkit has none."""
    if Path(cpp_extension.CUDA_HOME, "include", "cuda_runtime.h").is_file():
        return []
    beside_torch = Path(torch.__file__).parent.parent / "nvidia"
    major = torch.version.cuda.split(".")[0]
    candidates = (beside_torch / f"cu{major}/include", beside_torch / "cuda_runtime/include")
    return [str(path) for path in candidates if (path / "cuda_runtime.h").is_file()]


def plan_extension(extension: Extension) -> None:
    """Fills in the extension: sources, flags and libraries."""
    check_torch()
    check_compiler()
    cuda = choose_cuda()
    architectures = ""
    if cuda:
        settle_toolkit()
        architectures = choose_architectures()
    # No contraction into fused multiply-adds: what decides (NMS, matching) must round as the
    # definition does, on every machine alike. The other two switches only drop what vector code
    # cannot keep: errno and floating-point traps.
    flags = ["-O3", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
    flags += ["-g0", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]
    made = (cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension)(
        extension.name,
        SOURCES + (CUDA_SOURCES if cuda else []),
        include_dirs=[str(ROOT / "csrc"), *(cuda_include_dirs() if cuda else [])],
        depends=HEADERS,
        define_macros=[
            ("PYDET_TORCH_VERSION", f'"{torch.__version__}"'),
            ("PYDET_CUDA_VERSION", f'"{torch.version.cuda if cuda else ""}"'),
            ("PYDET_CUDA_ARCHITECTURES", f'"{architectures}"'),
            *([("PYDET_WITH_CUDA", None)] if cuda else []),
        ],
        extra_compile_args={"cxx": flags, "nvcc": ["-O3", "--fmad=false", "-lineinfo"]},
        extra_link_args=["-fopenmp"],
    )
    vars(extension).update(vars(made))


class BuildExt(cpp_extension.BuildExtension if torch else PlainBuildExt):
    """torch's build, planned when it starts: an sdist can be made without torch or a compiler.

    Objects stay in build/, one folder for each torch and Python, so that a second build of any kind
    compiles only what changed.
    """

    def finalize_options(self):
        given = self.build_temp
        super().finalize_options()
        # setuptools would keep a module that is newer than the sources although torch or a switch
        # has changed since; ninja knows better.
        self.force = True
        if given is not None:
            return
        version = torch.__version__ if torch else "none"
        tag = f"torch{version}-{sys.implementation.cache_tag}-{platform.machine()}"
        cuda = os.environ.get("PYDET_CUDA", "auto") or "auto"
        self.build_temp = str(ROOT / "build" / f"temp-{tag}-cuda_{cuda}")

    def run(self):
        plan_extension(self.extensions[0])
        super().run()


# setuptools runs this file as __main__; the tests import it.
if __name__ == "__main__":
    setup(ext_modules=[Extension("pydet._C", SOURCES)], cmdclass={"build_ext": BuildExt})
