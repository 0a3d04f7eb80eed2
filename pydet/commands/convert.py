# SPDX-License-Identifier: Apache-2.0
"""``python -m pydet convert FILE OUTPUT``: weights of other projects, and back."""

import argparse
import sys

from pydet.weights import convert, projects


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "Convert weights of a detector. A file of another project (recognised by its content) "
        "becomes one of pydet, from which --to writes the same file again."
    )
    parser.add_argument("file", metavar="FILE", help="the weights")
    parser.add_argument("output", metavar="OUTPUT", help="the file to write")
    parser.add_argument(
        "--to",
        choices=("pydet", *projects()),
        default="pydet",
        help="in whose form (default: pydet)",
    )
    parser.add_argument(
        "--class-names", nargs="+", metavar="NAME", help="to pydet: names of the classes, in order"
    )
    parser.add_argument(
        "--norm-eps", type=float, help="to pydet: what the trunk's batch norms add to variances"
    )
    parser.add_argument(
        "--keep-background",
        action="store_true",
        help="to pydet: class 0, the background, stays a class",
    )


def run(args: argparse.Namespace) -> int:
    """Convert; see `pydet.weights.convert`."""
    differences = convert(
        args.file,
        args.output,
        to=args.to,
        class_names=args.class_names,
        norm_eps=args.norm_eps,
        keep_background=args.keep_background,
    )
    print(f"wrote {args.output}")
    if differences:
        print(
            f"{args.to}'s files have no place for these settings; give them to its builder:",
            file=sys.stderr,
        )
        for line in differences:
            print(f"  {line}", file=sys.stderr)
    return 0
