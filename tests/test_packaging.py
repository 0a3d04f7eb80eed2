# SPDX-License-Identifier: Apache-2.0
"""The build: what setup.py refuses and in which words, and that an sdist and a wheel install."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
# One test compiles everything: a minute on two free cores, far more on busy ones.
pytestmark = pytest.mark.timeout(1500)

# Enough of torch for setup.py to decide. It cannot build with it, and must not come so far.
FAKE_TORCH = """
from types import SimpleNamespace
__version__ = "{version}"
version = SimpleNamespace(cuda={cuda!r})
"""
FAKE_CPP_EXTENSION = """
import os
from setuptools.command.build_ext import build_ext as BuildExtension
CUDA_HOME = os.environ.get("CUDA_HOME")
"""


def _run(
    *arguments: str | Path, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    removed = {"PYDET_CUDA", "CUDA_HOME", "CUDA_PATH", "CXX", "TORCH_CUDA_ARCH_LIST", "PYTHONPATH"}
    kept = {name: value for name, value in os.environ.items() if name not in removed}
    return subprocess.run(
        [str(argument) for argument in arguments],
        cwd=cwd,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )


def _refusal(tmp_path: Path, **environment: str) -> str:
    """The sentence with which a build in this environment ends."""
    build = ("build_ext", "--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "o"))
    ended = _run(sys.executable, "setup.py", *build, **environment)
    assert ended.returncode != 0
    lines = ended.stderr.strip().splitlines()
    assert len([line for line in lines if line.startswith("pydet: ")]) == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert lines[-1].startswith("pydet: ")
    assert not list(tmp_path.glob("**/*.o"))
    return lines[-1].removeprefix("pydet: ")


def _fake_torch(tmp_path: Path, version: str = "2.13.0", cuda: str | None = None) -> str:
    package = tmp_path / "fake" / "torch"
    (package / "utils").mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE_TORCH.format(version=version, cuda=cuda))
    (package / "utils" / "__init__.py").write_text("")
    (package / "utils" / "cpp_extension.py").write_text(FAKE_CPP_EXTENSION)
    return str(package.parent)


def _program(path: Path, says: str, status: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit {status}\n")
    path.chmod(0o755)
    return path


def test_without_torch(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")\n")
    said = _refusal(tmp_path, PYTHONPATH=str(hidden))
    assert said.startswith("torch must be installed before pydet is built, got 'No module named")
    assert "pip install --no-build-isolation ." in said


def test_torch_too_old(tmp_path: Path) -> None:
    said = _refusal(tmp_path, PYTHONPATH=_fake_torch(tmp_path, "2.9.1"))
    assert said.startswith("torch must be 2.11 or newer, got 2.9.1")


def test_without_a_compiler(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    said = _refusal(tmp_path, PATH=str(tmp_path / "bin"))
    assert said.startswith("a C++ compiler must be on the PATH, got none named 'c++'")
    assert "build-essential" in said


def test_compiler_too_old(tmp_path: Path) -> None:
    compiler = _program(tmp_path / "bin" / "old-c++", "unrecognized option -std=c++20", 1)
    said = _refusal(tmp_path, CXX=str(compiler))
    assert "must know C++20 (GCC 11 or newer), got 'unrecognized option -std=c++20'" in said


def test_misspelt_choice(tmp_path: Path) -> None:
    said = _refusal(tmp_path, PYDET_CUDA="yes")
    assert said == "PYDET_CUDA must be 0 (CPU only) or 1 (CPU and CUDA), got 'yes'"


def test_cuda_wanted_without_a_cuda_torch(tmp_path: Path) -> None:
    said = _refusal(tmp_path, PYDET_CUDA="1", PYTHONPATH=_fake_torch(tmp_path))
    assert said.startswith("PYDET_CUDA=1 needs a torch with CUDA, got the CPU build of torch 2.13")


def test_cuda_wanted_without_nvcc(tmp_path: Path) -> None:
    fake = _fake_torch(tmp_path, cuda="13.0")
    said = _refusal(tmp_path, PYDET_CUDA="1", PYTHONPATH=fake, CUDA_HOME=str(tmp_path))
    assert said.startswith(f"PYDET_CUDA=1 needs nvcc, got none in {tmp_path}/bin")
    assert "CUDA 13 toolkit" in said


@pytest.mark.parametrize("choice", ["", "1"])
def test_nvcc_of_another_major_version(tmp_path: Path, choice: str) -> None:
    _program(tmp_path / "cuda" / "bin" / "nvcc", "Cuda compilation tools, release 12.4, V12.4.131")
    fake = _fake_torch(tmp_path, cuda="13.0")
    home = str(tmp_path / "cuda")
    said = _refusal(tmp_path, PYDET_CUDA=choice, PYTHONPATH=fake, CUDA_HOME=home)
    assert said.startswith("nvcc must be of torch's CUDA major version 13 (torch 2.13.0 has")
    assert f"got 12.4 in {home}" in said
    assert "PYDET_CUDA=0" in said


def test_broken_nvcc(tmp_path: Path) -> None:
    _program(tmp_path / "cuda" / "bin" / "nvcc", "cannot open shared object file", 127)
    fake = _fake_torch(tmp_path, cuda="13.0")
    said = _refusal(tmp_path, PYTHONPATH=fake, CUDA_HOME=str(tmp_path / "cuda"))
    assert said.startswith("nvcc must print its version, got 'cannot open shared object file'")


@pytest.fixture
def build_script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py as a module, with a torch and a toolkit that the test sets."""
    spec = importlib.util.spec_from_file_location("pydet_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("PYDET_CUDA", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.setenv(name, "")
    no_gpu = SimpleNamespace(is_available=lambda: False)
    version = SimpleNamespace(cuda="13.0")
    fake = SimpleNamespace(__version__="2.13.0", version=version, cuda=no_gpu)
    monkeypatch.setattr(module, "torch", fake)
    monkeypatch.setattr(module, "cpp_extension", SimpleNamespace(CUDA_HOME=None))
    return module


def test_cuda_is_chosen_where_torch_and_nvcc_have_it(
    build_script: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert build_script.choose_cuda() is False
    assert "no nvcc in any usual place: the CUDA kernels are left out" in capfd.readouterr().err
    monkeypatch.setattr(build_script, "nvcc_version", lambda: (13, 0))
    assert build_script.choose_cuda() is True
    monkeypatch.setenv("PYDET_CUDA", "0")
    assert build_script.choose_cuda() is False
    monkeypatch.setenv("PYDET_CUDA", "1")
    assert build_script.choose_cuda() is True
    monkeypatch.setenv("PYDET_CUDA", "")
    build_script.torch.version.cuda = None
    assert build_script.choose_cuda() is False


def test_architectures(build_script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_script, "nvcc_version", lambda: (13, 0))
    assert build_script.choose_architectures() == "7.5;8.0;9.0;10.0+PTX"
    # What was chosen is handed on to torch's build; a choice by hand stays.
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "7.5;8.0;9.0;10.0+PTX"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6")
    assert build_script.choose_architectures() == "8.6"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    monkeypatch.setattr(build_script, "nvcc_version", lambda: (12, 6))
    assert build_script.choose_architectures() == "7.5;8.0;9.0+PTX"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    build_script.torch.cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 2,
        get_device_capability=lambda index: (9, index),
    )
    assert build_script.choose_architectures() == "9.0;9.1"


def test_nvcc_that_is_a_script(
    build_script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # As /usr/local/bin/nvcc often is: torch then takes /usr/local for the toolkit.
    real = tmp_path / "cuda-13.0"
    _program(real / "bin" / "nvcc", f"#$ TOP={real}/bin/..")
    script = _program(tmp_path / "bin" / "nvcc", "")
    script.write_text(f'#!/bin/sh\nexec {real}/bin/nvcc "$@"\n')
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    build_script.cpp_extension.CUDA_HOME = str(tmp_path)
    build_script.settle_toolkit()
    assert build_script.cpp_extension.CUDA_HOME == str(real)
    assert os.environ["CUDA_HOME"] == str(real)
    (real / "include").mkdir()
    (real / "include" / "cuda_runtime.h").touch()
    assert build_script.cuda_include_dirs() == []


def test_headers_of_cuda_beside_torch(build_script: ModuleType, tmp_path: Path) -> None:
    packages = tmp_path / "site-packages"
    build_script.torch.__file__ = str(packages / "torch" / "__init__.py")
    build_script.cpp_extension.CUDA_HOME = str(tmp_path / "cuda")
    assert build_script.cuda_include_dirs() == []
    headers = packages / "nvidia" / "cu13" / "include"
    headers.mkdir(parents=True)
    (headers / "cuda_runtime.h").touch()
    assert build_script.cuda_include_dirs() == [str(headers)]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    code = f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"
    made = _run(sys.executable, "-c", code)
    assert made.returncode == 0, made.stderr
    (archive,) = folder.glob("pydet-*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the sdist: what the sdist lacks is missed here."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", folder)
    made = _run(sys.executable, "-m", "pip", "wheel", *options, sdist, cwd=folder, PYDET_CUDA="0")
    assert made.returncode == 0, made.stdout + made.stderr
    (archive,) = folder.glob("pydet-*.whl")
    return archive


def test_sdist_holds_the_sources_and_nothing_built(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = {
        str(path.relative_to(ROOT))
        for folder in ("csrc", "pydet")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }
    assert tracked - names == set()
    assert {"LICENSE", "README.md", "Makefile", "CMakeLists.txt", "requirements.txt"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc", ".o"))]


def test_wheel_holds_the_package_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"pydet"}
    assert {"pydet/py.typed", f"pydet/_C{sysconfig.get_config_var('EXT_SUFFIX')}"} <= set(names)
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]


def test_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    made = _run(sys.executable, "-m", "venv", "--without-pip", environment)
    assert made.returncode == 0, made.stderr
    python = environment / "bin" / "python"
    install = ("--no-deps", "--no-index", wheel)
    installed = _run(sys.executable, "-m", "pip", "--python", python, "install", *install)
    assert installed.returncode == 0, installed.stderr
    # torch is a gigabyte, so the environment borrows the one that runs this test; pydet is its own.
    packages = next((environment / "lib").glob("python*/site-packages"))
    borrowed = {str(Path(torch.__file__).parents[1]), sysconfig.get_path("purelib")}
    (packages / "borrowed.pth").write_text("\n".join(borrowed))
    code = (
        "import pydet, torch; from pydet.ops import box_iou; print(pydet.__file__);"
        "print(box_iou(torch.tensor([[0., 0, 2, 2]]), torch.tensor([[1., 0, 3, 2]])).item())"
    )
    used = _run(python, "-c", code, cwd=tmp_path)
    assert used.returncode == 0, used.stderr
    where, iou = used.stdout.split()
    assert Path(where).is_relative_to(environment)
    assert float(iou) == pytest.approx(1 / 3)
    for command in ((python, "-m", "pydet"), (environment / "bin" / "pydet",)):
        shown = _run(*command, "info", cwd=tmp_path)
        assert shown.returncode == 0, shown.stdout + shown.stderr
        assert "native kernels    CPU" in shown.stdout
    shutil.rmtree(environment)
