# SPDX-License-Identifier: Apache-2.0
"""``pydet info``, and what import pydet does where the compiled part is missing or does not fit."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

import pydet
from pydet._build_info import find_module, misfit, read_build_info
from pydet.commands import info as info_command

PACKAGE = Path(pydet.__file__).parent
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
USE_OP = """
import torch, pydet, pydet.ops
from pydet.ops import box_iou
print("imported")
boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
try:
    box_iou(boxes, boxes)
except ImportError as error:
    print(error)
else:
    raise SystemExit("box_iou worked")
"""


@pytest.fixture
def package_copy(tmp_path: Path) -> Path:
    """The package without its compiled part; the parent folder is what goes on the path."""
    copy = tmp_path / "pydet"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    return copy


def _python(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=package.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def _assert_refuses_but_imports(package: Path, reason: str) -> None:
    used = _python(package, "-c", USE_OP)
    assert used.returncode == 0, used.stderr
    imported, message = used.stdout.strip().split("\n", maxsplit=1)
    assert imported == "imported"
    assert reason in message
    assert "pip install --no-build-isolation" in message
    shown = _python(package, "-m", "pydet", "info")
    assert shown.returncode == 1, shown.stderr
    assert reason in shown.stdout
    assert "Traceback" not in shown.stderr


def test_without_a_compiled_part(package_copy: Path) -> None:
    _assert_refuses_but_imports(package_copy, "pydet's compiled part (pydet._C) is not built")


def test_with_a_corrupt_compiled_part(package_copy: Path) -> None:
    (package_copy / f"_C{SUFFIX}").write_bytes(b"\x7fELF this is not a library")
    _assert_refuses_but_imports(package_copy, "pydet's compiled part does not load")


def test_built_for_another_torch(package_copy: Path) -> None:
    # The real module with another version in its description: it would load, but must not be.
    built = find_module()
    assert built is not None
    content = built.read_bytes()
    old = f"pydet-build|torch={torch.__version__}|".encode()
    assert content.count(old) == 1
    new = b"pydet-build|torch=1.9.0".ljust(len(old) - 1, b"_") + b"|"
    (package_copy / f"_C{SUFFIX}").write_bytes(content.replace(old, new))
    reason = f"and runs with torch {torch.__version__}"
    _assert_refuses_but_imports(package_copy, reason)
    _assert_refuses_but_imports(package_copy, "pydet was built for torch 1.9.0")


def test_built_for_another_python(package_copy: Path) -> None:
    module = package_copy / "_C.cpython-34-x86_64-linux-gnu.so"
    text = f"\0pydet-build|torch={torch.__version__}|python=3.4.2|cuda=|\0"
    module.write_bytes(b"\x7fELF" + text.encode())
    _assert_refuses_but_imports(package_copy, "pydet was built for Python 3.4.2")


def test_build_info_of_this_build() -> None:
    build = read_build_info(find_module())
    assert build["torch"] == torch.__version__
    assert build["python"].split(".")[:2] == sys.version.split()[0].split(".")[:2]
    assert list(build) == ["torch", "python", "compiler", "cuda", "cuda_architectures"]
    assert build["compiler"]
    assert misfit(build) == ""


def test_build_info_without_a_module(tmp_path: Path) -> None:
    assert find_module(tmp_path) is None
    assert read_build_info(None) == {}
    silent = tmp_path / "_C.so"
    silent.write_bytes(b"no description")
    assert read_build_info(silent) == {}


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_the_cpu_path_is_chosen_at_run_time(isa: str) -> None:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    if isa == "avx2" and not {"avx2", "fma", "f16c"} <= set(flags):
        pytest.skip("needs a CPU with AVX2, FMA and F16C")
    environment = {**os.environ, "PYDET_CPU_ISA": isa}
    shown = subprocess.run(
        [sys.executable, "-m", "pydet", "info", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert json.loads(shown.stdout)["cpu_path"] == isa


def test_every_fact_is_in_the_table() -> None:
    facts = info_command.collect()
    assert facts["problem"] == ""
    table = info_command.format_table(facts)
    for part in (
        pydet.__version__,
        sys.version.split()[0],
        torch.__version__,
        facts["build"]["compiler"],
        facts["cpu_path"],
        f"{facts['threads']} of {facts['cores']} cores",
        "GPU",
        *info_command.OPTIONAL_PACKAGES,
    ):
        assert part in table
    assert facts["cpu_path"] in {"portable", "avx2", "avx512"}


def test_gpu_and_missing_packages_in_the_table() -> None:
    facts = info_command.collect()
    facts["build"] = {**facts["build"], "cuda": "13.0", "cuda_architectures": "9.0"}
    facts["gpus"] = [{"name": "A card", "capability": "9.0", "memory_gib": 79.6}]
    facts["packages"] = {**facts["packages"], "pycocotools": ""}
    table = info_command.format_table(facts)
    assert "A card, compute capability 9.0, 79.6 GiB" in table
    assert "CPU and CUDA (for 9.0)" in table
    assert "not installed (evaluation needs it)" in table


LATER = ("data", "inference", "metrics", "onnx", "training", "visualization")
HEAVY = ("PIL", "lightning_fabric", "matplotlib", "onnx", "onnxscript", "pycocotools")


@pytest.mark.parametrize("name", LATER)
def test_parts_are_imported_when_they_are_asked_for(name):
    code = (
        f"import sys, pydet; heavy = [name for name in {HEAVY} if name in sys.modules]; "
        f"assert not heavy, heavy; assert 'pydet.{name}' not in sys.modules; "
        f"assert '{name}' in dir(pydet); assert pydet.{name} is sys.modules['pydet.{name}']"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_other_attributes_are_missed_as_ever():
    with pytest.raises(AttributeError, match="module 'pydet' has no attribute 'trainer'"):
        _ = pydet.trainer
