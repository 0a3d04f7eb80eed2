# SPDX-License-Identifier: Apache-2.0
"""``python -m pydet check --data PATH``: everything that is wrong with a data set."""

import argparse

from pydet.data import open_dataset

_DUPLICATE_IOU = 0.9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "Look at every annotation and every image of a data set, print one line for each that is "
        "broken or given twice, and leave with exit code 1 if there is any."
    )
    parser.add_argument("--data", metavar="PATH", required=True, help="data set: VOC, COCO, YOLO")
    parser.add_argument("--split", default="", help="part of it; default: everything")
    parser.add_argument(
        "--decode",
        action="store_true",
        help="decode all pixels, which finds images that are damaged inside; else only their heads "
        "are read",
    )
    parser.add_argument(
        "--duplicate-iou",
        type=float,
        default=_DUPLICATE_IOU,
        metavar="IOU",
        help="from which IoU on two objects of one class may be one given twice (training and "
        f"evaluation take both, unless they are told else); default {_DUPLICATE_IOU}",
    )


def run(args: argparse.Namespace) -> int:
    """Check; see `pydet.data.DetectionDataset.check`.

    Returns:
        0 if nothing is wrong, else 1.
    """
    dataset = open_dataset(
        args.data, args.split or None, on_error="skip", duplicate_iou=args.duplicate_iou
    )
    print(dataset)
    if dataset.num_clipped:
        print(f"{dataset.num_clipped} boxes reach beyond their image and are clipped to it")
    problems = dataset.check(decode=args.decode)
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problems" if problems else "no problems")
    return 1 if problems else 0
