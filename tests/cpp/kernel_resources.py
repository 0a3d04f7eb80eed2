# SPDX-License-Identifier: Apache-2.0
"""Compiles every .cu file with nvcc and says what each kernel takes of the GPU.

``python tests/cpp/kernel_resources.py`` prints registers, shared memory, stack and spills of every
kernel for each architecture. A kernel that spills, or keeps an array in local memory, must stand in
``kernel_resources.txt``, with as many bytes at least, or the command fails; ``--update`` writes
that file anew, so that a change of it is seen in review.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
KNOWN = Path(__file__).with_suffix(".txt")
ARCHITECTURES = ("75", "80", "90", "100")
HEAD = "# Kernels with a stack or spills: architecture, kernel, bytes of stack, bytes spilled.\n"


class Kernel(NamedTuple):
    """What ptxas said of one kernel."""

    architecture: str
    name: str
    registers: int
    shared: int  # bytes, as everything that follows
    stack: int
    spilled: int

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from all others."""
        return self.architecture, self.name


def readable(names: list[str]) -> list[str]:
    """C++ names without the parameters of the functions and the namespaces."""
    answer = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    shorter = []
    for name in answer.stdout.splitlines():
        plain = name.replace("(anonymous namespace)::", "").replace("pydet::cuda::", "")
        plain = re.sub(r"\((?:pydet::)?\w+\)(?=\d)", "", plain.replace("pydet::", ""))
        shorter.append(re.sub(r"^void ", "", plain).split("(")[0])
    return shorter


def compile_one(source: Path) -> list[Kernel]:
    """The kernels of one file, for all architectures."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", "-std=c++17", "-O3", "--fmad=false", f"-I{ROOT / 'csrc'}"]
        command += [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
        command += ["--resource-usage", "-c", str(source), "-o", str(Path(folder, "object.o"))]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise SystemExit(f"{source.relative_to(ROOT)} does not compile:\n{answer.stderr}")
    pattern = re.compile(
        r"Compiling entry function '(\w+)' for 'sm_(\d+)\w*'\n"
        r"(?:.*\n)*?.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
        r".*?Used (\d+) registers(.*)"
    )
    found = pattern.findall(answer.stderr)
    names = readable([entry[0] for entry in found])
    kernels = []
    for name, (_, architecture, stack, stores, loads, registers, rest) in zip(
        names, found, strict=True
    ):
        shared = re.search(r"(\d+) bytes smem", rest)
        if name.startswith("cub::"):
            continue  # CUDA's own
        spilled = max(int(stores), int(loads))
        numbers = (int(registers), int(shared[1]) if shared else 0, int(stack), spilled)
        kernels.append(Kernel(f"sm_{architecture}", name, *numbers))
    return kernels


def read_known() -> dict[tuple[str, str], tuple[int, int]]:
    """Stack and spilled bytes of the kernels that may have some."""
    known = {}
    if KNOWN.is_file():
        for line in KNOWN.read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                architecture, rest = line.split(" ", 1)
                name, stack, spilled = rest.rsplit(" ", 2)
                known[architecture, name] = (int(stack), int(spilled))
    return known


def main() -> int:
    """Compiles, prints, compares; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help=f"write {KNOWN.name} anew")
    update = parser.parse_args().update
    sources = sorted((ROOT / "csrc").glob("*/*_cuda.cu"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        kernels = [kernel for found in pool.map(compile_one, sources) for kernel in found]
    print("architecture registers shared stack spilled kernel")
    for k in kernels:
        print(
            f"{k.architecture:12} {k.registers:9} {k.shared:6} {k.stack:5} {k.spilled:7} {k.name}"
        )
    heavy = [k for k in kernels if k.stack or k.spilled]
    if update:
        lines = sorted(f"{k.architecture} {k.name} {k.stack} {k.spilled}\n" for k in heavy)
        KNOWN.write_text(HEAD + "".join(lines), encoding="utf-8")
        return 0
    known = read_known()
    worse = [
        k
        for k in heavy
        if k.stack > known.get(k.key, (0, 0))[0] or k.spilled > known.get(k.key, (0, 0))[1]
    ]
    for k in worse:
        print(
            f"{k.architecture} {k.name}: {k.stack} bytes of stack and {k.spilled} spilled, "
            f"more than {KNOWN.name} has",
            file=sys.stderr,
        )
    print(f"{len(kernels)} kernels, {len(heavy)} with a stack or spills, {len(worse)} of them new")
    return 1 if worse else 0


if __name__ == "__main__":
    raise SystemExit(main())
