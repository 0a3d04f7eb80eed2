# SPDX-License-Identifier: Apache-2.0
"""Builds pydet._C from csrc/: CPU kernels always, CUDA kernels where there is CUDA.

PYDET_CUDA=0 or 1 decides by hand; TORCH_CUDA_ARCH_LIST, CUDA_HOME and MAX_JOBS are torch's own.
"""

import os
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
CSRC = ROOT / "csrc"
# Used where neither TORCH_CUDA_ARCH_LIST nor a visible GPU says which: Turing to Blackwell.
DEFAULT_CUDA_ARCHITECTURES = "7.5;8.0;9.0;10.0+PTX"


def wants_cuda(torch_cuda: str | None, cuda_home: str | None) -> bool:
    """Whether to compile the CUDA kernels."""
    choice = os.environ.get("PYDET_CUDA")
    if choice is not None:
        return choice == "1"
    return torch_cuda is not None and cuda_home is not None


def extension():
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, CppExtension, CUDAExtension

    cuda = wants_cuda(torch.version.cuda, CUDA_HOME)
    sources = sorted(CSRC.glob("*.cpp")) + sorted(CSRC.glob("*/*.cpp"))
    architectures = ""
    if cuda:
        sources += sorted(CSRC.glob("*/*_cuda.cu"))
        if not os.environ.get("TORCH_CUDA_ARCH_LIST") and not torch.cuda.is_available():
            os.environ["TORCH_CUDA_ARCH_LIST"] = DEFAULT_CUDA_ARCHITECTURES
        architectures = os.environ.get("TORCH_CUDA_ARCH_LIST", "native")
    # No contraction into fused multiply-adds: what decides (NMS, matching) must round as the
    # definition does, on every machine alike. The other two switches only drop what vector code
    # cannot keep: errno and floating-point traps.
    flags = ["-O3", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
    flags += ["-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]
    make = CUDAExtension if cuda else CppExtension
    return make(
        "pydet._C",
        [str(source.relative_to(ROOT)) for source in sources],
        include_dirs=[str(CSRC)],
        define_macros=[
            ("PYDET_TORCH_VERSION", f'"{torch.__version__}"'),
            ("PYDET_CUDA_VERSION", f'"{torch.version.cuda if cuda else ""}"'),
            ("PYDET_CUDA_ARCHITECTURES", f'"{architectures}"'),
            *([("PYDET_WITH_CUDA", None)] if cuda else []),
        ],
        extra_compile_args={"cxx": flags, "nvcc": ["-O3", "--fmad=false", "-lineinfo"]},
        extra_link_args=["-fopenmp"],
    )


def build_ext():
    from torch.utils.cpp_extension import BuildExtension

    return BuildExtension


setup(ext_modules=[extension()], cmdclass={"build_ext": build_ext()})
