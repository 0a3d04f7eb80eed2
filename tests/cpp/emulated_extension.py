# SPDX-License-Identifier: Apache-2.0
"""Builds a pydet whose every call runs the CUDA kernels, on the CPU, by emulation.

``python tests/cpp/emulated_extension.py FOLDER`` makes FOLDER/pydet: the Python files, and a
compiled module in which a CPU tensor goes to the launchers of the ``.cu`` files. With FOLDER in
front of the import path the tests of the ops test the CUDA kernels, where there is no GPU. All of
it is built with the address and undefined-behaviour sanitizers, which have to be preloaded.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parents[2]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def build_script() -> ModuleType:
    """The project's setup.py as a module: its sources and its way to build."""
    spec = importlib.util.spec_from_file_location("pydet_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def host_sources(folder: Path, cuda_sources: list[str]) -> list[str]:
    """A C++ file for each .cu file, which only includes it: torch's build gives .cu to nvcc."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for source in cuda_sources:
        path = folder / f"{Path(source).stem}.cpp"
        text = f'#include "{Path(source).relative_to("csrc")}"\n'
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
        made.append(str(path))
    return made


def main(folder: Path) -> None:
    """Builds into ``folder``; what has not changed is not compiled again."""
    os.chdir(ROOT)
    os.environ["PYDET_CUDA"] = "0"
    script = build_script()

    class Build(script.BuildExt):
        def run(self) -> None:
            extension = self.extensions[0]
            script.plan_extension(extension)
            emulation = ROOT / "tests" / "cpp" / "emulation"
            extension.sources += host_sources(folder / "host", script.CUDA_SOURCES)
            extension.sources.append(str(emulation / "cuda_emulation.cpp"))
            extension.include_dirs.insert(0, str(emulation))
            extension.depends += [str(path) for path in emulation.rglob("*") if path.is_file()]
            extension.define_macros.append(("PYDET_EMULATED", None))
            flags = extension.extra_compile_args["cxx"]
            flags[:] = [flag for flag in flags if flag not in ("-O3", "-g0")]
            flags += ["-O1", "-g1", *SANITIZE]
            extension.extra_link_args += SANITIZE[:1]
            super(script.BuildExt, self).run()

    package = folder / "pydet"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "pydet", package, ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    setup(
        script_args=["build_ext", f"--build-lib={folder}", f"--build-temp={folder / 'objects'}"],
        ext_modules=[Extension("pydet._C", script.SOURCES)],
        cmdclass={"build_ext": Build},
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: {sys.argv[0]} FOLDER")
    main(Path(sys.argv[1]).resolve())
