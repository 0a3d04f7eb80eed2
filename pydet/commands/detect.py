# SPDX-License-Identifier: Apache-2.0
"""``python -m pydet detect IMAGE_OR_FOLDER ... --weights W``: detect objects in images."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from pydet._files import write_text
from pydet.commands._common import add_model_arguments, import_modules, load_detector
from pydet.inference import FileDetection, detect_files, find_images
from pydet.visualization import draw_boxes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "Detect objects. Writes each picture with its boxes (PNG), detections.json (COCO results: "
        "image_id, category_id, bbox as x, y, width, height, score) and images.json (which file an "
        "image_id is, the names of the categories, files that could not be read)."
    )
    parser.add_argument(
        "images", metavar="IMAGE_OR_FOLDER", nargs="+", help="files, or folders of them"
    )
    add_model_arguments(parser)
    parser.add_argument("--output", metavar="DIR", default="detections", help="default: detections")
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.3,
        help="least score that is written and drawn; 0: all that the detector gives (default: 0.3)",
    )
    parser.add_argument("--no-pictures", action="store_true", help="write the JSON files only")


def run(args: argparse.Namespace) -> int:
    """Detect; see `pydet.inference.detect_files`."""
    if not 0 <= args.score_threshold <= 1:
        raise ValueError(f"--score-threshold must lie in 0 ... 1, got {args.score_threshold}")
    import_modules(args.modules)
    folder = Path(args.output)
    paths, root = _find(args.images, folder)
    model = load_detector(args)
    folder.mkdir(parents=True, exist_ok=True)
    names = model.class_names or tuple(str(k) for k in range(model.num_classes))
    results: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    files = detect_files(model, paths, batch_size=args.batch_size)
    try:
        for image_id, file in enumerate(files, start=1):
            name = Path(os.path.relpath(file.path, root)).as_posix()
            if file.image is None:
                print(f"left out: {file.problem}", file=sys.stderr)
                skipped.append({"file_name": name, "problem": file.problem})
                continue
            height, width = file.image.shape[1:]
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            results += _results(file, image_id, args.score_threshold)
            if not args.no_pictures:
                _draw(file, folder / f"{name}.png", names, args.score_threshold)
    finally:  # an interrupted run keeps what it has found
        write_text(folder / "detections.json", json.dumps(results) + "\n")
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(names)]
        listing = {"images": images, "categories": categories, "skipped": skipped}
        write_text(folder / "images.json", json.dumps(listing, indent=2) + "\n")
        print(
            f"{len(results)} objects in {len(images)} images, {len(skipped)} left out; see {folder}"
        )
    if not images:
        raise ValueError(f"none of the {len(paths)} images could be read")
    return 0


def _find(given: list[str], output: Path) -> tuple[list[Path], str]:
    """The files, none twice, and the folder that all of them lie in."""
    if output.resolve() in [Path(path).resolve() for path in given]:
        raise ValueError(f"--output must be another folder than that of the images, got {output}")
    # What an earlier run has drawn is left out.
    found = (file for path in given for file in find_images(path, leave_out=output))
    paths = list({os.path.abspath(file): file for file in found}.values())
    folders = [path if os.path.isdir(path) else os.path.dirname(path) for path in given]
    return paths, os.path.commonpath([os.path.abspath(folder) for folder in folders])


def _results(file: FileDetection, image_id: int, threshold: float) -> list[dict[str, Any]]:
    """COCO results; categories count from 1, as COCO's own do."""
    found = file.detection
    assert found is not None
    keep = found["scores"] >= threshold
    boxes = found["boxes"][keep].double()
    boxes[:, 2:] -= boxes[:, :2]
    scores, labels = found["scores"][keep].tolist(), found["labels"][keep].tolist()
    return [
        {"image_id": image_id, "category_id": label + 1, "bbox": box, "score": score}
        for box, score, label in zip(boxes.tolist(), scores, labels, strict=True)
    ]


def _draw(file: FileDetection, path: Path, names: tuple[str, ...], threshold: float) -> None:
    found = file.detection
    assert found is not None and file.image is not None
    keep = found["scores"] >= threshold
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_boxes(
        file.image,
        found["boxes"][keep],
        found["labels"][keep],
        found["scores"][keep],
        class_names=names,
    ).save(path)
