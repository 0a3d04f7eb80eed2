# SPDX-License-Identifier: Apache-2.0
"""The shape of the project. What fails here prints the checklist of what is missing."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import pydet
import pydet.ops

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
# Two lines and eight files an op, from CONTRIBUTING.md, "Adding an op".
OP_FILES = (
    "csrc/{op}/{op}.h",
    "csrc/{op}/{op}_cpu.cpp",
    "csrc/{op}/{op}_cuda.cu",
    "csrc/{op}/{op}_torch.cpp",
    "pydet/ops/{op}.py",
    "tests/reference/{op}.py",
    "tests/ops/test_{op}.py",
    "benchmarks/bench_{op}.py",
)
OP_LINES = (
    ("csrc/bindings.cpp", r"^void bind_{op}\(pybind11::module_& m\);$"),
    ("csrc/bindings.cpp", r"^  pydet::bind_{op}\(m\);$"),
    ("pydet/ops/__init__.py", r"^from pydet\.ops\.{op} import "),
)
CODE_SUFFIXES = (".py", ".cpp", ".h", ".cu", ".cuh")
WITHOUT_SUFFIX = ("Makefile", "CMakeLists.txt", ".ci/run")
PYTHON_LINES, CPP_LINES = 400, 350
FUNCTION_LINES, CPP_COLUMNS = 60, 100


def _ops() -> list[str]:
    """Every op that has a folder in csrc, a module in pydet.ops or a test."""
    found = {path.name for path in CSRC.iterdir() if path.is_dir()} - {"common"}
    found |= {
        path.stem for path in (ROOT / "pydet/ops").glob("*.py") if not path.stem.startswith("_")
    }
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests/ops").glob("test_*.py")}
    tested -= {"contract", "drop_in", "huge"}  # what holds for every op
    # A private module of pydet.ops may have a test, too.
    found |= {name for name in tested if not (ROOT / f"pydet/ops/_{name}.py").is_file()}
    return sorted(found)


def _tracked() -> list[Path]:
    """The files that git has or would add; all files where this is no clone (an sdist)."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        names = listed.stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        folders = ("csrc", "pydet", "tests", "benchmarks")
        names = [str(p.relative_to(ROOT)) for f in folders for p in (ROOT / f).rglob("*")]
        names += [name for name in WITHOUT_SUFFIX if (ROOT / name).is_file()]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


CODE = [
    path
    for path in _tracked()
    if path.suffix in CODE_SUFFIXES or str(path.relative_to(ROOT)) in WITHOUT_SUFFIX
]
CPP = [path for path in CODE if path.suffix in CODE_SUFFIXES[1:]]
PYTHON = [path for path in CODE if path.suffix == ".py"]


def _report(problems: list[str], rule: str) -> None:
    assert not problems, f"{rule}:\n" + "\n".join(f"  [ ] {problem}" for problem in problems)


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("op", _ops())
def test_an_op_has_its_files_and_lines(op: str) -> None:
    missing = [name.format(op=op) for name in OP_FILES if not (ROOT / name.format(op=op)).is_file()]
    for name, pattern in OP_LINES:
        text = (ROOT / name).read_text(encoding="utf-8")
        if not re.search(pattern.format(op=op), text, re.MULTILINE):
            missing.append(f"a line in {name}: {pattern.format(op=op)}")
    _report(missing, f"The op {op} lacks (see CONTRIBUTING.md, 'Adding an op')")


def test_lists_of_ops_are_alphabetical() -> None:
    for name, pattern in OP_LINES:
        lines = re.findall(
            pattern.format(op=r"(\w+)"), (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE
        )
        assert lines == sorted(lines), f"{name}: the ops must stand in alphabetical order"


def test_every_native_function_is_an_operator() -> None:
    """What a glue file binds, pydet/ops registers with torch, in the module of the same op."""
    problems = []
    for path in sorted(CSRC.glob("*/*_torch.cpp")):
        op = path.parent.name
        module = (ROOT / f"pydet/ops/{op}.py").read_text(encoding="utf-8")
        for name in re.findall(r'\bm\.def\("(\w+)"', path.read_text(encoding="utf-8")):
            if not re.search(rf'"{name}\(', module):
                problems.append(f"define() of {name} in pydet/ops/{op}.py")
    _report(problems, "Bound in C++ but not registered")


def test_torch_stays_in_the_glue() -> None:
    glue = ("loss_glue.h", "overlap_glue.h", "torch_glue.h")
    allowed = {"csrc/bindings.cpp", *(f"csrc/common/{name}" for name in glue)}
    pattern = re.compile(r'#include\s*[<"]((?:torch|ATen|c10|pybind11)/[^>"]+)|_glue\.h"')
    problems = [
        f"{_name(path)}: {match.group(0)}"
        for path in CPP
        if _name(path) not in allowed and not path.name.endswith("_torch.cpp")
        for match in pattern.finditer(path.read_text(encoding="utf-8"))
    ]
    _report(problems, "torch is included outside of *_torch.cpp, *_glue.h and bindings.cpp")


def test_kernels_start_through_launch() -> None:
    """A host compiler must be able to build .cu files, or the emulation cannot run them."""
    problems = [
        _name(path)
        for path in CPP
        if "<<<" in path.read_text(encoding="utf-8") and path.name != "launch.cuh"
    ]
    _report(problems, "CUDA's launch syntax outside of common/launch.cuh: use launch(...)")


def test_no_macro_but_one() -> None:
    problems = [
        f"{_name(path)}: {match.group(0)}"
        for path in CPP
        if _name(path).startswith("csrc/")
        for match in re.finditer(r"^[ \t]*#\s*define\s+(\w+)", path.read_text("utf-8"), re.M)
        if match.group(1) != "PYDET_HOST_DEVICE"
    ]
    _report(problems, "Macros other than PYDET_HOST_DEVICE (use constexpr, templates, functions)")


def test_every_source_file_has_its_licence_line() -> None:
    problems = []
    for path in CODE:
        begin = path.read_text(encoding="utf-8").removeprefix("#!/usr/bin/env bash\n")
        mark = "//" if path in CPP else "#"
        if begin and not begin.startswith(f"{mark} SPDX-License-Identifier: Apache-2.0\n"):
            problems.append(_name(path))
    _report(problems, "First line is not the SPDX line")


def test_files_and_functions_stay_small() -> None:
    problems = []
    for path in CODE:
        count = len(path.read_text(encoding="utf-8").splitlines())
        limit = CPP_LINES if path in CPP else PYTHON_LINES
        # Tests and generated tables of cases may be long; what is read to understand may not.
        if count > limit and not _name(path).startswith("tests/"):
            problems.append(f"{_name(path)}: {count} lines, at most {limit}")
    for path in PYTHON:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            begin = node.body[1].lineno if ast.get_docstring(node) and node.body[1:] else None
            length = (node.end_lineno or 0) - (begin or node.lineno) + 1
            if length > FUNCTION_LINES:
                problems.append(f"{_name(path)}: {node.name} has {length} lines of code")
    for path in CPP:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if len(line) > CPP_COLUMNS:
                problems.append(f"{_name(path)}:{number}: {len(line)} columns")
    _report(problems, "Longer than the limits of CONVENTIONS.md")


def _modules() -> Iterator[str]:
    yield "pydet"
    for module in pkgutil.walk_packages(pydet.__path__, "pydet."):
        private = any(part.startswith("_") for part in module.name.split("."))
        if not private:
            yield module.name


@pytest.mark.parametrize("name", sorted(_modules()))
def test_every_public_name_is_documented(name: str) -> None:
    module = importlib.import_module(name)
    problems = [] if inspect.getdoc(module) else [f"{name} itself"]
    for attribute in getattr(module, "__all__", ()):
        if not hasattr(module, attribute):
            problems.append(f"{attribute} is in __all__ and does not exist")
    for attribute, value in vars(module).items():
        if attribute.startswith("_") or not (inspect.isfunction(value) or inspect.isclass(value)):
            continue
        if value.__module__ == name and not (value.__doc__ or "").strip():
            problems.append(f"{name}.{attribute} has no docstring")
    _report(problems, f"Not documented in {name}")


def test_public_ops_say_what_they_take_and_give() -> None:
    problems = []
    for name, value in vars(pydet.ops).items():
        if name.startswith("_") or not inspect.isfunction(value):
            continue
        documented = inspect.getdoc(value) or ""
        for section in ("Args:", "Returns:", "Raises:"):
            if section not in documented:
                problems.append(f"pydet.ops.{name}: {section}")
        for parameter in inspect.signature(value).parameters:
            if not re.search(rf"^    {parameter}(?:, \w+)*:|, {parameter}:", documented, re.M):
                problems.append(f"pydet.ops.{name}: its argument {parameter}")
    _report(problems, "Docstrings of ops lack")


def test_packages_list_what_they_export() -> None:
    """__all__ of pydet and of its packages is alphabetical and complete."""
    problems = []
    for name in sorted(_modules()):
        module = importlib.import_module(name)
        if not hasattr(module, "__path__") or not hasattr(module, "__all__"):
            continue
        source = inspect.getsource(module)
        exported = set(module.__all__)
        imported = {
            alias.asname or alias.name
            for node in ast.parse(source).body
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pydet")
            for alias in node.names
        }
        missing = {item for item in imported - exported if not item.startswith("_")}
        problems += [f"{name}.__all__: {item}" for item in sorted(missing)]
    _report(problems, "Imported by a package but not in its __all__")
