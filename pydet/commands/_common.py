# SPDX-License-Identifier: Apache-2.0
"""What several commands share."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from PIL import Image

import pydet
from pydet.data import DetectionDataset, open_dataset
from pydet.data._problems import OnError
from pydet.data._splits import SplitError
from pydet.inference import detect
from pydet.models import Detector, fastest_memory_format
from pydet.visualization import side_by_side


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which trained detector is used, and how."""
    parser.add_argument("--weights", metavar="FILE", required=True, help="the trained detector")
    parser.add_argument("--batch-size", type=int, default=8, help="images a batch (default: 8)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; default: CUDA if there is one")
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="Python module to import first, which registers a detector of your own",
    )


def load_detector(args: argparse.Namespace) -> Detector:
    """The detector that `add_model_arguments` asks for, where and as it is fastest."""
    device = _device(args.device)
    if device.type == "cpu":
        pydet.keep_freed_memory()
    model = pydet.load(args.weights, device=device)
    model.to(memory_format=fastest_memory_format(device))  # type: ignore[call-overload]
    return model


def _device(name: str | None) -> torch.device:
    cuda = torch.cuda.device_count()
    if name is None:
        return torch.device("cuda" if cuda else "cpu")
    known = ["cpu", *(["cuda"] if cuda else []), *(f"cuda:{i}" for i in range(cuda))]
    if name not in known:
        raise ValueError(f"--device must be one of {', '.join(known)} here, got {name}")
    return torch.device(name)


def import_modules(names: Sequence[str]) -> None:
    """Import a user's modules, which register detectors; from the current folder, too.

    Raises:
        ImportError: there is no such module.
    """
    if names and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in names:
        importlib.import_module(name)


def open_part(
    path: str,
    split: str,
    default: str,
    on_error: str,
    *,
    everything: bool,
    duplicate_iou: float = 0.0,
    class_names: Sequence[str] | None = None,
) -> DetectionDataset | None:
    """Open the part of a data set that was asked for, or the one that is meant without asking.

    Args:
        path: file or folder of the data set.
        split: the part; empty: the part `default` if there is one.
        default: e.g. "train".
        on_error: "raise" or "skip" for broken records.
        everything: without a part of that name take the whole data set, else none.
        duplicate_iou: from which IoU on two objects of one class are one given twice; 0: none is.
        class_names: the classes, in the order of the labels; None: the data set's own.

    Raises:
        DatasetError: there is no such data set or part, or a record is broken.
    """

    def attempt(part: str | None) -> DetectionDataset:
        return open_dataset(
            path,
            part,
            on_error=cast(OnError, on_error),
            class_names=class_names,
            duplicate_iou=duplicate_iou or None,
        )

    if split:
        return attempt(split)
    try:
        return attempt(default)
    except SplitError:
        return attempt(None) if everything else None


def write_pictures(
    model: Detector, dataset: DetectionDataset, count: int, folder: Path
) -> list[Image.Image]:
    """Draw ground truth and detections of the first images side by side, as ``00.png`` and so on.

    Args:
        model: the detector.
        dataset: its first `count` images are taken.
        count: how many, at most.
        folder: made if absent.

    Returns:
        The pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    samples = [dataset[i] for i in range(min(count, len(dataset)))]
    detections = detect(model, [image for image, _ in samples])
    pictures = []
    for i, ((image, target), found) in enumerate(zip(samples, detections, strict=True)):
        picture = side_by_side(image, target, found, class_names=dataset.class_names)
        picture.save(folder / f"{i:02d}.png")
        pictures.append(picture)
    return pictures
