# SPDX-License-Identifier: Apache-2.0
"""``python -m pydet eval --weights W --data PATH``: evaluate a trained detector."""

import argparse
import json
from pathlib import Path

from pydet._files import atomic_path, write_text
from pydet.commands._common import (
    add_model_arguments,
    import_modules,
    load_detector,
    open_part,
    write_pictures,
)
from pydet.data import summarize_problems
from pydet.inference import evaluate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "Evaluate a trained detector: the measures of COCO (by pycocotools) and of Pascal VOC. "
        "Writes metrics.json, detections.json (COCO results) and precision_recall.png."
    )
    add_model_arguments(parser)
    parser.add_argument("--data", metavar="PATH", required=True, help="data set: VOC, COCO, YOLO")
    parser.add_argument(
        "--split", default="", help="part of it; default: test if there is one, else everything"
    )
    parser.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="a broken record stops (raise) or is left out and counted (skip)",
    )
    parser.add_argument(
        "--duplicate-iou",
        type=float,
        default=0.0,
        metavar="IOU",
        help="from which IoU on two objects of one class are one given twice, which is a broken "
        "record; default 0: both are taken",
    )
    parser.add_argument(
        "--output", metavar="DIR", help="folder of the results; default: eval beside the weights"
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=0,
        metavar="N",
        help="also draw ground truth and detections of the first N images side by side",
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")


def run(args: argparse.Namespace) -> int:
    """Evaluate; see `pydet.inference.evaluate`."""
    import_modules(args.modules)
    model = load_detector(args)
    dataset = open_part(
        args.data,
        args.split,
        "test",
        args.on_error,
        everything=True,
        duplicate_iou=args.duplicate_iou,
        class_names=model.class_names,
    )
    assert dataset is not None
    print(dataset)
    if dataset.problems:
        print(summarize_problems(dataset.problems))
    if not dataset.num_boxes:
        raise ValueError(
            f"--data must have objects of the model's classes {list(dataset.class_names)}, got none"
        )
    folder = Path(args.output) if args.output else Path(args.weights).parent / "eval"
    folder.mkdir(parents=True, exist_ok=True)  # now: an evaluation may take hours
    evaluation = evaluate(
        model,
        dataset,
        batch_size=args.batch_size,
        workers=args.workers,
        progress=not args.no_progress,
    )
    print(evaluation.table())
    metrics = {
        "weights": str(args.weights),
        "data": str(args.data),
        "split": args.split,
        "images": len(dataset),
        **evaluation.as_dict(),
    }
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    write_text(folder / "detections.json", json.dumps(evaluation.results) + "\n")
    with atomic_path(folder / "precision_recall.png") as temporary:
        evaluation.plot(temporary)
    if args.pictures > 0:
        write_pictures(model, dataset, args.pictures, folder / "pictures")
    print(f"metrics.json, detections.json and precision_recall.png are in {folder}")
    return 0
