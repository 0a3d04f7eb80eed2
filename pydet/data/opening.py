# SPDX-License-Identifier: Apache-2.0
"""Recognises in which form a data set comes."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from pydet.data._problems import DatasetError, OnError
from pydet.data._splits import SplitError, split_names
from pydet.data.coco import CocoDataset
from pydet.data.dataset import DetectionDataset
from pydet.data.voc import VocDataset
from pydet.data.yolo import YoloDataset, find_yolo_file


def open_dataset(
    path: str | os.PathLike[str],
    split: str | None = None,
    *,
    on_error: OnError = "raise",
    class_names: Sequence[str] | None = None,
    image_folder: str | os.PathLike[str] | None = None,
    duplicate_iou: float | None = None,
    verify_images: bool = True,
) -> DetectionDataset:
    """Opens a data set in Pascal VOC, COCO or YOLO form, whichever it is.

    Recognised are

    - a JSON file: COCO;
    - a folder with ``Annotations/``: Pascal VOC, with the splits of ``ImageSets/Main``;
    - a folder with ``annotations/instances_<split>*.json``, ``annotations/<split>.json``,
      ``<split>.json`` or ``<split>/_annotations.coco.json``: COCO. Without ``split`` there must be
      one JSON file. A JSON file that is given itself is the one part that its name tells;
    - a folder of XML files beside their images, or such a folder for each split: Pascal VOC;
    - a YAML file, or a folder with ``data.yaml`` or ``dataset.yaml``: YOLO.

    The images of a COCO file are looked for, if ``image_folder`` is not given, beside it, in
    folders named after it or after the split, and in ``images``: the first of these that holds the
    first image of the file.

    Args:
        path: The file or folder.
        split: Which part ("train"); "val" and "valid" are one. None takes everything (VOC, YOLO) or
            the only file there is (COCO).
        on_error: "raise" stops at the first broken record, "skip" leaves broken records out and
            lists them in ``problems``; see :class:`VocDataset`, :class:`CocoDataset` and
            :class:`YoloDataset`.
        class_names: The classes in the order of the labels. None takes the data set's own.
        image_folder: Folder of the images of a COCO file.
        duplicate_iou: From which IoU on two objects of one class are one given twice, which is a
            broken record; None takes both, as COCO's measures do.
        verify_images: Read the head of every image and compare its size with the annotation's; for
            YOLO, which has no sizes, they are always read.

    Raises:
        DatasetError: Nothing there is a known form, there is no such part, or a broken record in
            strict mode.
    """
    root = Path(path)
    if not root.exists():
        raise DatasetError(f"{root} does not exist")
    if not root.is_file() and _is_voc(root, split):
        if image_folder is not None:
            raise DatasetError(f"{root} is a Pascal VOC folder: image_folder is for COCO files")
        return VocDataset(
            root,
            split,
            class_names=class_names,
            on_error=on_error,
            duplicate_iou=duplicate_iou,
            verify_images=verify_images,
        )
    if (yaml := find_yolo_file(root)) is not None:
        if image_folder is not None:
            raise DatasetError(f"{yaml} names its images: image_folder is for COCO files")
        return YoloDataset(
            yaml,
            split,
            class_names=class_names,
            on_error=on_error,
            duplicate_iou=duplicate_iou,
        )
    file = _find_coco_json(root, split)
    return CocoDataset(
        file,
        image_folder,
        split=split,
        class_names=class_names,
        on_error=on_error,
        duplicate_iou=duplicate_iou,
        verify_images=verify_images,
    )


def _is_voc(root: Path, split: str | None) -> bool:
    if (root / "Annotations").is_dir():
        # On file systems that ignore case this may be COCO's folder "annotations".
        return (root / "JPEGImages").is_dir() or any((root / "Annotations").glob("*.xml"))
    folders = [root] if split is None else [root / name for name in split_names(split)]
    return any(any(folder.glob("*.xml")) for folder in folders)


def _find_coco_json(root: Path, split: str | None) -> Path:
    if root.is_file():
        if split is not None and not _of_split([root], split):
            raise SplitError(
                f"{root} is one file, without parts, and by its name not the split {split!r}"
            )
        return root
    everything = sorted(
        file
        for pattern in ("*.json", "annotations/*.json", "*/_annotations.coco.json")
        for file in root.glob(pattern)
    )
    found = everything if split is None else _of_split(everything, split)
    if len(found) == 1:
        return found[0]
    names = ", ".join(str(file.relative_to(root)) for file in everything) or "none"
    wanted = "its only JSON file" if split is None else f"a JSON file for the split {split!r}"
    raise (DatasetError if split is None else SplitError)(
        f"{root} is no Pascal VOC folder (no Annotations, no XML files), no YOLO folder (no "
        f"data.yaml) and no COCO folder with {wanted}; its JSON files: {names}"
        + ("; name a split" if split is None and found else "")
    )


def _of_split(files: Sequence[Path], split: str) -> list[Path]:
    """The JSON file that is a split by its name, else all ``instances_<split>*.json``."""
    for name in split_names(split):
        exact = [file for file in files if _called(file) == name]
        # "train2017" and "train_new" are "train", "trainval" is not.
        pattern = re.compile(rf"instances_{re.escape(name)}(?![^\W\d_])")
        alike = [file for file in files if pattern.match(file.name)]
        if exact or alike:
            return exact[:1] or alike
    return []


def _called(file: Path) -> str:
    """What a JSON file calls its part: "val" of ``instances_val.json``."""
    if file.name == "_annotations.coco.json":
        return file.parent.name
    return file.stem.removeprefix("instances_")
