# SPDX-License-Identifier: Apache-2.0
"""The command line: ``python -m pydet COMMAND ...`` or ``pydet COMMAND ...``.

Each command is a module of `pydet.commands` with ``add_arguments(parser)`` and ``run(args)``, which
returns the exit code; only that of the command at hand is imported.

What a user can mend (a wrong path, value, file, setting) ends in one sentence and exit code 2;
``--debug`` shows where it came from. A loss that is not finite ends in one sentence, too, with exit
code 1. Anything else is a fault of pydet and keeps its traceback.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Protocol, cast

from pydet._version import __version__

COMMANDS = {
    "info": "versions, what was compiled in, devices",
    "demo": "generate a data set, train, evaluate and draw",
    "check": "find what is wrong with a data set",
    "train": "train a detector on a data set",
    "eval": "evaluate a trained detector on a data set",
    "detect": "detect objects in images",
    "convert": "convert weights of other projects, and back",
}

OPTIONAL_PACKAGES = ("lightning_fabric", "matplotlib", "pycocotools", "tensorboard", "tqdm")


class Command(Protocol):
    """What a module of `pydet.commands` offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; returns the exit code."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments, without the program's name; None: those of the process.

    Returns:
        The exit code: 0 done, 1 a loss that is not finite or a data set with problems, 2 a user's
        error, 128 + n stopped by signal n.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = next((argument for argument in arguments if not argument.startswith("-")), "")
    parser = argparse.ArgumentParser(prog="pydet", description="Object detection.")
    parser.add_argument("--version", action="version", version=f"pydet {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for known, text in COMMANDS.items():
        subparser = commands.add_parser(
            known, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
        )
        subparser.add_argument(
            "--debug", action="store_true", help="show the traceback of an error"
        )
        if known == name:
            chosen = subparser
    debug = "--debug" in arguments
    try:
        if name in COMMANDS:
            command = cast(Command, importlib.import_module(f"pydet.commands.{name}"))
            command.add_arguments(chosen)
        args = parser.parse_args(arguments)  # leaves with the help or an error without a command
        return command.run(args)
    except Exception as error:
        code = _exit_code(error)
        if debug or not code:
            raise
        print(f"pydet {name}: error: {_sentence(error)}", file=sys.stderr)
        return code
    except KeyboardInterrupt:
        if debug:
            raise
        print(f"pydet {name}: interrupted", file=sys.stderr)
        return 130


def _exit_code(error: Exception) -> int:
    """2 for what the user can mend, 1 for a training that went wrong, 0 for a fault of pydet.

    By name, not by import: `pydet info` must not load the training for it.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    if "NonFiniteLossError" in names:
        return 1
    mendable = (ValueError, TypeError, OSError, ImportError)
    if isinstance(error, mendable) or names & {"CheckpointError", "OutOfMemoryError"}:
        return 2
    return 0


def _sentence(error: Exception) -> str:
    text = str(error)
    if "Original Traceback" in text:  # from a process that reads images: its last line is the error
        text = text.strip().splitlines()[-1].partition(": ")[2]
    text = " ".join(text.split()) or type(error).__name__
    if isinstance(error, ModuleNotFoundError) and error.name in OPTIONAL_PACKAGES:
        return f"{text}; pip install 'pydet[train]' installs what this command needs"
    if type(error).__name__ == "OutOfMemoryError":
        return f"the device's memory is full; try a smaller --batch-size or --accumulate 2 ({text})"
    return text
