# SPDX-License-Identifier: Apache-2.0
"""Data sets in the JSON form of MS COCO (Lin et al., ECCV 2014)."""

import itertools
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from pydet.data._paths import native_name
from pydet.data._problems import DatasetError, OnError, ProblemLog
from pydet.data.dataset import DetectionDataset, find_box_problem, find_duplicate, find_image
from pydet.data.records import Box, RecordBuilder, Records

# As a class name: the label is no class. The word is torchvision's.
NO_CLASS = "N/A"


class CocoDataset(DetectionDataset):
    """A COCO JSON file of object instances and the folder of its images.

    Category ids may have gaps; they are mapped to labels 0..K-1 in the order of the ids and kept in
    ``category_ids`` for writing results. A second category of one name is a broken record; where
    those are skipped, its objects are the first's. Images without annotations are kept. ``area`` is
    the file's (in COCO the area of the segmentation; width times height where it is missing);
    ``iscrowd`` and ``ignore`` objects are ``ignored``. ``width`` and ``height`` of an image may be
    missing and then come from the image file.

    Args:
        annotation_file: The JSON file.
        image_folder: The folder that ``file_name`` is relative to. None looks for it beside the
            file, in folders named after the file or the split, and in ``images``: the first of
            these that holds the first image of the file.
        split: A name that the image folder may have, only for looking for it.
        class_names: The classes, in the order that the labels shall have; categories are found by
            name. "N/A" stands for a label that is no class, as in torchvision's names of the labels
            of its COCO models: it has the category id None. None takes the file's categories.
        on_error: "raise" stops at the first broken record with a DatasetError that names it. "skip"
            leaves out broken annotations, and images that cannot be used, and lists them in
            ``problems``.
        duplicate_iou: Two annotations of one class in one image with at least this IoU are one
            object given twice, which is a broken record; None takes both, as COCO's measures do.
        verify_images: Open every image when the data set is opened and compare its size with the
            file's (the head of the image only, about 0.05 ms each).

    Raises:
        DatasetError: The file is not a COCO file, or a broken record and ``on_error`` is "raise".
    """

    def __init__(
        self,
        annotation_file: str | os.PathLike[str],
        image_folder: str | os.PathLike[str] | None = None,
        *,
        split: str | None = None,
        class_names: Sequence[str] | None = None,
        on_error: OnError = "raise",
        duplicate_iou: float | None = None,
        verify_images: bool = True,
    ) -> None:
        log = ProblemLog(on_error)
        file = Path(annotation_file)
        if image_folder is not None and not Path(image_folder).is_dir():
            raise DatasetError(f"image folder {os.fspath(image_folder)} is not a folder")
        data = load_coco_json(file)
        folder = (
            find_image_folder(file, data["images"], split)
            if image_folder is None
            else Path(image_folder)
        )
        categories = _read_categories(data["categories"], file, log)
        first_ids: dict[str, int] = {}
        for category_id, name in categories.items():
            first_ids.setdefault(name, category_id)
        names = sorted(first_ids, key=first_ids.__getitem__)
        if class_names is not None:
            names = list(class_names)
            _check_names(names, first_ids, file)
        category_ids = [first_ids.get(name) for name in names]
        numbers = {name: label for label, name in enumerate(names)}
        labels = {i: numbers[name] for i, name in categories.items() if name in numbers}
        reader = _Reader(file, folder, log, labels, duplicate_iou, verify_images)
        reader.read_images(data["images"])
        reader.read_annotations(data.get("annotations") or [], set(categories))
        records = reader.build()
        log.require_images(file, len(records.image_ids))
        super().__init__(
            records,
            names,
            category_ids,
            folder,
            on_error=on_error,
            problems=log.problems,
            source=str(file),
        )


def load_coco_json(file: Path) -> dict[str, Any]:
    """Reads a JSON file and makes sure that it has the lists of a COCO instances file.

    Raises:
        DatasetError: No such file, not JSON (with line and column), or not an instances file.
    """
    try:
        data = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise DatasetError(f"{file} does not exist") from None
    except json.JSONDecodeError as error:
        if not error.doc.strip():
            raise DatasetError(f"{file} is empty") from error
        raise DatasetError(
            f"{file}, line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}"
        ) from error
    except (ValueError, RecursionError, OSError) as error:
        raise DatasetError(f"{file} cannot be read as JSON: {error}") from error
    for key, required in (("images", True), ("categories", True), ("annotations", False)):
        value = data.get(key) if isinstance(data, dict) else None
        if not isinstance(value, list) and (required or value is not None):
            raise DatasetError(f"{file} is not a COCO instances file: it must hold a list {key!r}")
    return dict(data)


def find_image_folder(file: Path, images: Sequence[Any], split: str | None) -> Path:
    """The folder of the images of a COCO file; see :class:`CocoDataset`."""
    first = next((i["file_name"] for i in images if isinstance(i, dict) and "file_name" in i), "")
    stem = file.stem.removeprefix("instances_")
    names = [stem] if split in (None, stem) else [stem, str(split)]
    candidates = [file.parent]
    for base in (file.parent, file.parent.parent):
        for name in names:
            candidates += [base / name / "images", base / name, base / "images" / name]
        candidates.append(base / "images")
    for folder in candidates:
        if first and os.path.isfile(folder / native_name(folder, str(first))):
            return folder
    # Without a hit the most specific folder is taken, so that each missing image is named.
    return next((folder for folder in candidates[1:] if folder.is_dir()), file.parent)


def _is_id(value: object) -> TypeGuard[int]:
    # Ids are kept in int64 arrays.
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _read_categories(items: list[Any], file: Path, log: ProblemLog) -> dict[int, str]:
    """The names by their ids, in the file's order."""
    categories: dict[int, str] = {}
    for i, item in enumerate(items):
        record = f"categories[{i}]"
        if not isinstance(item, dict) or not _is_id(item.get("id")):
            log.report(file, record, "a category must have an integer 'id'")
        elif not isinstance(item.get("name"), str) or not item["name"]:
            log.report(file, f"{record} (id {item['id']})", "a category must have a 'name'")
        elif item["id"] in categories:
            log.report(file, f"{record} (id {item['id']})", "the category id is given twice")
        else:
            if item["name"] in categories.values():
                reason = f"the name {item['name']!r} is given twice; its objects are the first's"
                log.report(file, f"{record} (id {item['id']})", reason)
            categories[item["id"]] = item["name"]
    return categories


def _check_names(class_names: Sequence[str], known: Iterable[str], file: Path) -> None:
    missing = [name for name in class_names if name not in known and name != NO_CLASS]
    if missing:
        raise DatasetError(
            f"{file} has no category named {missing[0]!r}; it has {', '.join(known)} "
            f"({NO_CLASS!r} stands for a label that is no class)"
        )


class _Reader:
    """Collects images and annotations of one file."""

    def __init__(
        self,
        file: Path,
        image_folder: Path,
        log: ProblemLog,
        labels: dict[int, int],
        duplicate_iou: float | None,
        verify_images: bool,
    ) -> None:
        self.file = file
        self.image_folder = image_folder
        self.log = log
        self.labels = labels
        self.duplicate_iou = duplicate_iou
        self.verify_images = verify_images
        self.sizes: dict[int, tuple[int, int]] = {}
        self.names: dict[int, str] = {}
        self.boxes: dict[int, list[Box]] = {}
        self.free_ids = itertools.count(1)  # for annotations without an id
        self.left_out: set[int] = set()  # ids of images with a problem of their own

    def read_images(self, items: list[Any]) -> None:
        """Checks every image and remembers the good ones, in the file's order."""
        seen_names: set[str] = set()
        for i, item in enumerate(items):
            image_id = item.get("id") if isinstance(item, dict) else None
            name = item.get("file_name") if isinstance(item, dict) else None
            record = f"images[{i}] (id {image_id}, file_name {name})"
            try:
                if not _is_id(image_id) or not isinstance(name, str):
                    raise DatasetError("an image must have an integer 'id' and a 'file_name'")
                if image_id in self.sizes or image_id in self.left_out:
                    raise DatasetError(f"the image id {image_id} is given twice")
                self.left_out.add(image_id)
                if name in seen_names:
                    raise DatasetError(f"the file name {name!r} is given twice")
                seen_names.add(name)
                self.sizes[image_id] = find_image(
                    self.image_folder, name, _declared_size(item), verify=self.verify_images
                )
                self.names[image_id] = name
                self.boxes[image_id] = []
                self.left_out.discard(image_id)
            except DatasetError as error:
                self.log.report(self.file, record, str(error))

    def read_annotations(self, items: list[Any], known_categories: set[int]) -> None:
        """Checks every annotation and gives the good ones to their images."""
        seen: set[int] = set()
        given = (item.get("id") for item in items if isinstance(item, dict))
        self.free_ids = itertools.count(max((i for i in given if _is_id(i)), default=0) + 1)
        for i, item in enumerate(items):
            annotation_id = item.get("id") if isinstance(item, dict) else None
            image_id = item.get("image_id") if isinstance(item, dict) else None
            if _is_id(image_id) and image_id in self.left_out:
                continue  # the image is on the list of problems already
            record = f"annotations[{i}] (id {annotation_id}, image_id {image_id})"
            try:
                if not isinstance(item, dict):
                    raise DatasetError("an annotation must be an object")
                if annotation_id is not None:
                    if not _is_id(annotation_id):
                        raise DatasetError("the annotation id must be an integer")
                    if annotation_id in seen:
                        raise DatasetError(f"the annotation id {annotation_id} is given twice")
                    seen.add(annotation_id)
                if not _is_id(image_id) or image_id not in self.sizes:
                    raise DatasetError(f"there is no image with the id {image_id}")
                self.boxes[image_id].append(self._box(item, image_id, known_categories))
            except DatasetError as error:
                self.log.report(self.file, record, str(error))

    def _box(self, item: dict[str, Any], image_id: int, known: set[int]) -> Box:
        category_id = item.get("category_id")
        if not _is_id(category_id) or category_id not in self.labels:
            known_but_unused = _is_id(category_id) and category_id in known
            why = "is not among the given class names" if known_but_unused else "does not exist"
            raise DatasetError(f"unknown class: the category id {category_id} {why}")
        xywh = _numbers(item.get("bbox"))
        if problem := find_box_problem(xywh, self.sizes[image_id]):
            raise DatasetError(problem)
        area = item.get("area")
        if area is None:
            area = xywh[2] * xywh[3]
        elif not isinstance(area, (int, float)) or not 0 <= area <= sys.float_info.max:
            raise DatasetError(f"area must be a number of at least 0, got {area}")
        box = Box(
            xywh=xywh,
            label=self.labels[int(item["category_id"])],
            area=float(area),
            iscrowd=bool(item.get("iscrowd", 0)),
            ignore=bool(item.get("ignore", 0)),
            annotation_id=next(self.free_ids) if item.get("id") is None else item["id"],
        )
        twin = find_duplicate(box, self.boxes[image_id], self.duplicate_iou)
        if twin is not None:
            raise DatasetError(
                f"repeats annotation {self.boxes[image_id][twin].annotation_id} of the same class "
                f"(IoU of at least {self.duplicate_iou})"
            )
        return box

    def build(self) -> Records:
        """The packed records."""
        builder = RecordBuilder()
        for image_id, size in self.sizes.items():
            builder.add(image_id, size, self.names[image_id], self.boxes[image_id])
        return builder.build()


def _declared_size(item: dict[str, Any]) -> tuple[int, int] | None:
    height, width = item.get("height"), item.get("width")
    if height is None and width is None:
        return None
    if not _is_id(height) or not _is_id(width) or min(height, width) <= 0:
        raise DatasetError(f"width and height must be positive integers, got {width} and {height}")
    return height, width


def _numbers(bbox: object) -> tuple[float, float, float, float]:
    if (
        not isinstance(bbox, list)
        or len(bbox) != 4
        or any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in bbox)
    ):
        raise DatasetError(f"bbox must be four numbers [x, y, width, height], got {bbox}")
    try:
        x, y, width, height = (float(v) for v in bbox)
    except OverflowError:
        raise DatasetError(f"bbox must be four numbers that fit a float, got {bbox}") from None
    return x, y, width, height
