# SPDX-License-Identifier: Apache-2.0
"""The documents say what is: their commands parse, their links lead somewhere, their code runs."""

import argparse
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import pydet
import pydet.ops
from benchmarks import __main__ as benchmarks
from pydet import cli

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("", "csrc", "benchmarks", "docs")
DOCUMENTS = sorted(
    path for folder in FOLDERS for path in (ROOT / folder).glob("*.md") if path.is_file()
)
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def _commands(text: str) -> list[list[str]]:
    """Every command line of the shell blocks, comments and line breaks taken out."""
    lines = "\n".join(_blocks(text, "sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
    missing = [
        target
        for target in targets
        if "://" not in target and not (path.parent / target.partition("#")[0]).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist(path: Path) -> None:
    """make has the targets, and pydet's and the benchmarks' parsers take the arguments."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for words in _commands(path.read_text(encoding="utf-8")):
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            del words[0]
        if words[:1] == ["make"]:
            wanted = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
            assert set(wanted) <= targets, f"{words}: not a target of the Makefile"
        elif words[:3] == ["python", "-m", "pydet"]:
            _parse(words[3:])
        elif words[:3] == ["python", "-m", "benchmarks"]:
            assert set(benchmarks.build_parser().parse_args(words[3:]).names) <= set(
                benchmarks.names()
            ), words


def _parse(arguments: list[str]) -> None:
    name = arguments[0]
    assert name in cli.COMMANDS
    if arguments[-1] == "--help":
        return
    parser = argparse.ArgumentParser()
    importlib.import_module(f"pydet.commands.{name}").add_arguments(parser)
    try:
        parser.parse_args(arguments[1:])
    except SystemExit as ended:
        raise AssertionError(f"python -m pydet {shlex.join(arguments)} is refused") from ended


def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = _blocks(README, "python")
    assert len(blocks) >= 2
    has_onnx = importlib.util.find_spec("onnxscript") is not None
    for block in blocks:
        if "pydet.onnx" in block and not has_onnx:
            continue
        exec(compile(block, "README.md", "exec"), {})


def test_tables_of_the_readme_are_complete() -> None:
    cells = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\|.*\|$", README, re.MULTILINE))))
    functions = {
        name
        for name, value in vars(pydet.ops).items()
        if callable(value) and not isinstance(value, type) and not name.startswith("_")
    }
    assert functions - cells == set()
    # Asked of another process, because other tests register detectors of their own in this one.
    command = [sys.executable, "-c", "import pydet; print(*pydet.list_models())"]
    models = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert models
    assert set(models) - cells == set()


def test_changelog_knows_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert headings[0] == "Unreleased" or headings[0] == pydet.__version__
    sections = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert sections <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_path_of_one_machine(path: Path) -> None:
    found = re.findall(r"(?<![\w.])/(?:tmp|root|home|work)/\S+", path.read_text(encoding="utf-8"))
    assert found == []
