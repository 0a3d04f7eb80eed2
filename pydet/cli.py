# SPDX-License-Identifier: Apache-2.0
"""The command line: ``python -m pydet COMMAND`` or ``pydet COMMAND``."""

import argparse
import importlib
from collections.abc import Sequence

from pydet import __version__

# One a command, alphabetical: a module of pydet/commands. It imports optional packages inside of
# run(), so that `pydet info` and `--help` work without them.
COMMANDS = ("info",)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; ``run`` of the chosen one is in the namespace."""
    parser = argparse.ArgumentParser(prog="pydet", description="Object detection.")
    parser.add_argument("--version", action="version", version=f"pydet {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"pydet.commands.{name}")
        summary = (module.__doc__ or "").strip().splitlines()[0]
        subparser = subparsers.add_parser(name, help=summary.rstrip("."), description=summary)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: Those of the command line if None.

    Returns:
        The exit status: 0 where all went well.
    """
    args = build_parser().parse_args(arguments)
    status: int = args.run(args)
    return status
