# SPDX-License-Identifier: Apache-2.0
"""Data sets in the folder layout and XML of Pascal VOC (Everingham et al., IJCV 2010)."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeElementTree

from pydet.data._paths import IMAGE_SUFFIXES, resolve_inside
from pydet.data._problems import DatasetError, OnError, ProblemLog
from pydet.data._splits import SplitError, split_names
from pydet.data.dataset import DetectionDataset, find_box_problem, find_duplicate, find_image
from pydet.data.records import Box, RecordBuilder

Coordinates = Literal["voc", "zero_based", "continuous"]

# What to add to (xmin, ymin, xmax, ymax) of a file to get corners in continuous coordinates.
_TO_CONTINUOUS: dict[str, tuple[float, float, float, float]] = {
    "voc": (-1.0, -1.0, 0.0, 0.0),
    "zero_based": (0.0, 0.0, 1.0, 1.0),
    "continuous": (0.0, 0.0, 0.0, 0.0),
}


class VocDataset(DetectionDataset):
    """A Pascal VOC folder: ``Annotations``, ``JPEGImages`` and ``ImageSets/Main``.

    A folder that holds XML files and images side by side (``root/*.xml``, or
    ``root/<split>/*.xml``) is read too.

    VOC counts pixels from 1 and includes the last one, so the file's (xmin, ymin, xmax, ymax)
    covers the continuous box (xmin - 1, ymin - 1, xmax, ymax). A box with xmax <= xmin or ymax <=
    ymin counts as one without area: by that convention xmax = xmin would be a pixel wide, but where
    it occurs it is a slip of the mouse.

    The image of ``Annotations/a.xml`` is ``JPEGImages/a.<any image suffix>``, else what
    ``<filename>`` names inside of ``JPEGImages``; ``<folder>`` and ``<path>`` are never looked at,
    they describe the annotator's machine. A ``<size>`` that is missing or 0 is taken from the
    image. ``image_id`` is the place in the split's list, from 1 on; ``area`` is width times height;
    ``difficult`` objects are ``ignored``.

    Args:
        root: The folder.
        split: Name of a list in ``ImageSets/Main`` (or of a folder of XML files); "val" and "valid"
            are one. None takes all annotations.
        class_names: The classes; label k is ``class_names[k]``. None takes all names that occur in
            the annotations of *all* splits, sorted, so that the labels of the splits agree.
        on_error: "raise" stops at the first broken record with a DatasetError that names it. "skip"
            leaves out broken objects, and images without a usable annotation file or image file,
            and lists them in ``problems``.
        coordinates: "voc" as above; "zero_based": pixels counted from 0, the last one included;
            "continuous": the numbers are corners in continuous coordinates.
        duplicate_iou: Two objects of one class with at least this IoU are one object given twice,
            which is a broken record; None takes both.
        verify_images: Open every image when the data set is opened and compare its size with the
            annotation's (the head of the file only, about 0.05 ms each).

    Raises:
        DatasetError: No such folder or split, or a broken record and ``on_error`` is "raise".
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str | None = None,
        *,
        class_names: Sequence[str] | None = None,
        on_error: OnError = "raise",
        coordinates: Coordinates = "voc",
        duplicate_iou: float | None = None,
        verify_images: bool = True,
    ) -> None:
        if coordinates not in _TO_CONTINUOUS:
            raise ValueError(
                f"VocDataset: coordinates must be one of {', '.join(_TO_CONTINUOUS)}, "
                f"got {coordinates!r}"
            )
        log = ProblemLog(on_error)
        layout = find_voc_layout(Path(root), split)
        stems = list(_read_stems(layout, split, log))
        annotations = _parse_all(layout, stems, log, scan_others=class_names is None)
        if class_names is None:
            names = sorted({name for a in annotations.values() for name in a.class_names})
        else:
            names = list(class_names)
        reader = _Reader(
            layout,
            {n: k for k, n in enumerate(names)},
            log,
            coordinates,
            duplicate_iou,
            verify_images,
        )
        for image_id, stem in enumerate(stems, start=1):
            if stem in annotations:
                reader.add(image_id, stem, annotations[stem])
        records = reader.builder.build()
        log.require_images(root, len(records.image_ids))
        super().__init__(
            records,
            names,
            range(1, len(names) + 1),
            layout.images,
            on_error=on_error,
            problems=log.problems,
            source=f"{root}" if split is None else f"{root} ({split})",
        )


@dataclass(frozen=True)
class VocLayout:
    """Where the parts of a VOC data set are; ``split_list`` is None if its folder is the split."""

    annotations: Path
    images: Path
    split_list: Path | None
    class_folders: tuple[Path, ...]


def find_voc_layout(root: Path, split: str | None) -> VocLayout:
    """Finds annotations, images and split list of a VOC folder.

    Raises:
        DatasetError: The folder or the split is not there; the message lists the splits that are.
    """
    if split is not None and Path(split).name != split:
        raise DatasetError(f"split must be a plain name, got {split!r}")
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder")
    annotations, images, lists = (
        root / "Annotations",
        root / "JPEGImages",
        root / "ImageSets" / "Main",
    )
    if annotations.is_dir():
        if not images.is_dir():
            raise DatasetError(f"{root} has Annotations but no folder JPEGImages")
        if split is None:
            return VocLayout(annotations, images, None, (annotations,))
        files = [lists / f"{name}.txt" for name in split_names(split)]
        split_list = next((file for file in files if file.is_file()), None)
        if split_list is None:
            known = sorted(path.stem for path in lists.glob("*.txt"))
            raise SplitError(
                f"{lists} has no {split}.txt; its splits are {', '.join(known) or 'none'}"
            )
        return VocLayout(annotations, images, split_list, (annotations,))
    folders = [root] if split is None else [root / name for name in split_names(split)]
    folder = next((folder for folder in folders if any(folder.glob("*.xml"))), None)
    if folder is None:
        raise (DatasetError if split is None else SplitError)(
            f"{root} has no folder Annotations, and {folders[0]} holds no XML files"
        )
    siblings = (
        (folder,) if split is None else tuple(p for p in sorted(root.iterdir()) if p.is_dir())
    )
    return VocLayout(folder, folder, None, siblings)


def _read_stems(layout: VocLayout, split: str | None, log: ProblemLog) -> Iterator[str]:
    """Stems of the annotation files of the split, in its order."""
    if layout.split_list is None:
        yield from sorted(path.stem for path in layout.annotations.glob("*.xml"))
        return
    seen = set()
    lines = layout.split_list.read_text(encoding="utf-8-sig").splitlines()
    for number, line in enumerate(lines, start=1):
        stem = line.strip()
        if not stem:
            continue
        # The lists of single classes (aeroplane_train.txt) have a second column, -1, 0 or 1, which
        # may as well be the end of a name ("img 1").
        words = stem.rsplit(maxsplit=1)
        if words[-1] in ("-1", "0", "1") and not os.path.isfile(layout.annotations / f"{stem}.xml"):
            stem = words[0]
        if stem in seen:
            log.report(layout.split_list, f"line {number}", f"{stem} is listed twice")
            continue
        seen.add(stem)
        yield stem
    if not seen:
        log.report(layout.split_list, "", "the list is empty")


@dataclass
class _Object:
    name: str
    corners: tuple[str | None, ...] | None
    difficult: str


@dataclass
class _Annotation:
    filename: str
    size: tuple[str, str]  # height, width
    objects: list[_Object]

    @property
    def class_names(self) -> set[str]:
        return {o.name for o in self.objects if o.name}


def _parse_all(
    layout: VocLayout, stems: Sequence[str], log: ProblemLog, *, scan_others: bool
) -> dict[str, _Annotation]:
    """The annotations of ``stems``, and (for their class names) those that other splits have."""
    annotations = {}
    for stem in stems:
        try:
            path = resolve_inside(layout.annotations, f"{stem}.xml")
        except DatasetError as error:
            log.report(layout.split_list or layout.annotations, f"entry {stem!r}", str(error))
            continue
        try:
            annotations[stem] = _parse(path)
        except DatasetError as error:
            log.report(path, "", str(error))
    if scan_others:
        for path in sorted(p for folder in layout.class_folders for p in folder.glob("*.xml")):
            if path.parent != layout.annotations or path.stem not in annotations:
                try:
                    # The key cannot be a stem of this split: a stem is no absolute path.
                    annotations[os.path.abspath(path)] = _parse(path)
                except DatasetError:
                    continue  # not of this split: met when its own split is read
    return annotations


def _parse(path: Path) -> _Annotation:
    """Reads one XML file.

    Raises:
        DatasetError: It is missing, empty, not XML, no VOC annotation, or contains entity
            declarations (with which a file of a few bytes can fill the memory, or read other
            files).
    """
    try:
        root = SafeElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise DatasetError("the annotation file does not exist") from None
    except ParseError as error:
        empty = path.stat().st_size == 0
        raise DatasetError("the file is empty" if empty else f"not valid XML: {error}") from error
    except DefusedXmlException as error:
        raise DatasetError(f"XML with entity declarations is refused: {error}") from error
    except (OSError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise DatasetError(f"cannot be read: {error}") from error
    if root.tag != "annotation":
        raise DatasetError(f"not a VOC annotation: its root is <{root.tag}>, not <annotation>")
    return _Annotation(
        filename=_text(root, "filename"),
        size=(_text(root, "size/height"), _text(root, "size/width")),
        objects=[
            _Object(
                name=_text(element, "name"),
                corners=_corners(element.find("bndbox")),
                difficult=_text(element, "difficult"),
            )
            for element in root.findall("object")
        ],
    )


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _corners(bndbox: Element | None) -> tuple[str | None, ...] | None:
    if bndbox is None:
        return None
    return tuple(bndbox.findtext(side) for side in ("xmin", "ymin", "xmax", "ymax"))


class _Reader:
    """Turns parsed annotations into records."""

    def __init__(
        self,
        layout: VocLayout,
        labels: dict[str, int],
        log: ProblemLog,
        coordinates: Coordinates,
        duplicate_iou: float | None,
        verify_images: bool,
    ) -> None:
        self.layout = layout
        self.labels = labels
        self.log = log
        self.shift = _TO_CONTINUOUS[coordinates]
        self.duplicate_iou = duplicate_iou
        self.verify_images = verify_images
        self.builder = RecordBuilder()
        self._annotation_id = 0
        self._used: set[str] = set()
        self._images = {
            Path(entry.name).stem: entry.name
            for entry in sorted(os.scandir(layout.images), key=lambda entry: entry.name)
            if Path(entry.name).suffix.lower() in IMAGE_SUFFIXES
        }

    def add(self, image_id: int, stem: str, annotation: _Annotation) -> None:
        file = self.layout.annotations / f"{stem}.xml"
        name = self._images.get(stem) or annotation.filename or f"{stem}.jpg"
        try:
            if name in self._used:
                raise DatasetError(f"an earlier annotation file is of the same image {name}")
            size = find_image(
                self.layout.images, name, _parse_size(annotation.size), verify=self.verify_images
            )
        except DatasetError as error:
            self.log.report(file, "", str(error))
            return
        self._used.add(name)
        boxes: list[Box] = []
        for number, item in enumerate(annotation.objects, start=1):
            record = f"object {number} ({item.name or 'without a name'})"
            self._annotation_id += 1
            try:
                boxes.append(self._box(item, size, boxes))
            except DatasetError as error:
                self.log.report(file, record, str(error))
        self.builder.add(image_id, size, name, boxes)

    def _box(self, item: _Object, size: tuple[int, int], earlier: Sequence[Box]) -> Box:
        if item.name not in self.labels:
            raise DatasetError(f"unknown class {item.name!r}")
        x1, y1, x2, y2 = _parse_corners(item.corners)
        if x2 <= x1 or y2 <= y1:
            raise DatasetError(
                f"box has no area: xmin {x1:g}, ymin {y1:g}, xmax {x2:g}, ymax {y2:g}"
            )
        dx1, dy1, dx2, dy2 = self.shift
        x, y = x1 + dx1, y1 + dy1
        width, height = x2 + dx2 - x, y2 + dy2 - y
        if problem := find_box_problem((x, y, width, height), size):
            raise DatasetError(problem)
        box = Box(
            xywh=(x, y, width, height),
            label=self.labels[item.name],
            area=width * height,
            difficult=item.difficult == "1",
            annotation_id=self._annotation_id,
        )
        twin = find_duplicate(box, earlier, self.duplicate_iou)
        if twin is not None:
            raise DatasetError(
                f"repeats an earlier object of its class (IoU of at least {self.duplicate_iou})"
            )
        return box


def _parse_size(size: tuple[str, str]) -> tuple[int, int] | None:
    """The declared (height, width); None if it is missing or 0, which some tools write."""
    if size in (("", ""), ("0", "0")):
        return None
    try:
        height, width = int(float(size[0])), int(float(size[1]))
    except (ValueError, OverflowError):
        height = width = -1
    if height <= 0 or width <= 0:
        raise DatasetError(
            f"declared width {size[1]!r} and height {size[0]!r} are not positive numbers"
        )
    return height, width


def _parse_corners(corners: tuple[str | None, ...] | None) -> tuple[float, float, float, float]:
    if corners is None:
        raise DatasetError("has no <bndbox>")
    try:
        x1, y1, x2, y2 = (float(text) for text in corners if text is not None)
    except ValueError:
        raise DatasetError(
            f"xmin, ymin, xmax, ymax must be four numbers, got {list(corners)}"
        ) from None
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        raise DatasetError(f"box [{x1}, {y1}, {x2}, {y2}] is not finite")
    return x1, y1, x2, y2
