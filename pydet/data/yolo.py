# SPDX-License-Identifier: Apache-2.0
"""Data sets in the text form of YOLO: a ``data.yaml``, and a text file of boxes for each image."""

import math
import os
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

import yaml

from pydet.data._paths import IMAGE_SUFFIXES, native_name, resolve_inside
from pydet.data._problems import DatasetError, OnError, ProblemLog
from pydet.data._splits import SplitError, split_names
from pydet.data.dataset import (
    Box,
    DetectionDataset,
    RecordBuilder,
    find_box_problem,
    find_duplicate,
    find_image,
)

_SPLITS = ("train", "val", "valid", "test")


class YoloDataset(DetectionDataset):
    """A folder with ``data.yaml`` (or ``dataset.yaml``) and a label file for each image.

    ``data.yaml`` has ``names``, a list or a map from 0 on, and for each split a folder of images or
    a text file with the path of an image in each line. Paths are relative to its ``path`` if it
    has one that is a folder below it, else to the file itself, and may not leave that folder. The
    label file of ``.../images/a.b.jpg`` is ``.../labels/a.b.txt``, else ``a.b.txt`` beside the
    image. A line of it is ``class x y width height``, the box's centre and size relative to the
    image's, or ``class x1 y1 x2 y2 x3 y3 ...``, a polygon, around which the box is drawn; an image
    without a label file, or with an empty one, has no objects. Label files never give the size of
    an image, so every image's head is read.

    ``image_id`` is the place in the split's list, or in the sorted folder, from 1 on; ``area`` is
    width times height.

    Args:
        root: The folder, or the YAML file in it.
        split: A split that the YAML file names; "val" and "valid" are one. None takes all of
            train, val and test.
        class_names: The classes; label k is ``class_names[k]``. Numbers in label files go by the
            names in the YAML file all the same. None takes those names.
        on_error: "raise" stops at the first broken record with a DatasetError that names it. "skip"
            leaves out broken lines and images that cannot be read, and lists them in ``problems``.
        duplicate_iou: Two objects of one class with at least this IoU are one object given twice,
            which is a broken record; None takes both.

    Raises:
        DatasetError: No such folder or split, a YAML file that is not understood, or a broken
            record and ``on_error`` is "raise".
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str | None = None,
        *,
        class_names: Sequence[str] | None = None,
        on_error: OnError = "raise",
        duplicate_iou: float | None = None,
    ) -> None:
        log = ProblemLog(on_error)
        file = find_yolo_file(Path(root))
        if file is None:
            raise DatasetError(f"{root} has no data.yaml or dataset.yaml")
        content = _read_yaml(file)
        file_names = _class_names(file, content)
        names = file_names if class_names is None else list(class_names)
        folder = _folder(file, content)
        images = [
            image
            for part in _parts(file, content, split)
            for image in _images(file, folder, part, log)
        ]
        reader = _Reader(folder, file_names, names, log, duplicate_iou)
        for image_id, image in enumerate(images, start=1):
            reader.add(image_id, image)
        records = reader.builder.build()
        log.require_images(root, len(records.image_ids))
        super().__init__(
            records,
            names,
            range(len(names)),
            folder,
            on_error=on_error,
            problems=log.problems,
            source=f"{root}" if split is None else f"{root} ({split})",
        )


def find_yolo_file(root: Path) -> Path | None:
    """The YAML file of a folder, or the file itself; None if there is none."""
    if root.suffix in (".yaml", ".yml"):
        return root if root.is_file() else None
    names = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
    return next((root / name for name in names if (root / name).is_file()), None)


def _read_yaml(file: Path) -> dict[str, Any]:
    """The keys of a file; each scalar stays text: a class may be called "no"."""
    try:
        with file.open("rb") as stream:
            content = yaml.load(stream, Loader=yaml.BaseLoader)
    except (OSError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())  # YAML's is of several lines
        raise DatasetError(f"{file} cannot be read: {reason}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{file} must be a map of keys, got {reprlib.repr(content)}")
    return content


def _is_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


def _class_names(file: Path, content: dict[str, Any]) -> list[str]:
    names = content.get("names", [])
    if isinstance(names, dict):
        if list(names) != [str(index) for index in range(len(names))]:
            raise DatasetError(f"{file}: names must be numbered 0, 1, 2, ..., got {list(names)}")
        names = list(names.values())
    if not names or not _is_texts(names):
        raise DatasetError(
            f"{file}: names must be a list of the classes, got {reprlib.repr(names)}"
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DatasetError(f"{file}: names must differ, got {', '.join(twice)} twice")
    count = content.get("nc", str(len(names)))
    if count != str(len(names)):
        raise DatasetError(
            f"{file}: nc must be the {len(names)} of names, got {reprlib.repr(count)}"
        )
    return names


def _folder(file: Path, content: dict[str, Any]) -> Path:
    """The folder that paths are relative to."""
    path = content.get("path", "")
    if isinstance(path, str) and path and not PurePosixPath(path).is_absolute():
        try:
            below = resolve_inside(file.parent, path) if path != "." else file.parent
        except DatasetError:
            return file.parent  # such as ../datasets/x, which describes another machine
        if below.is_dir():
            return below
    return file.parent


@dataclass(frozen=True)
class _Part:
    """One split: its name in the YAML file, and the folder or list that it names."""

    name: str
    path: str


def _parts(file: Path, content: dict[str, Any], split: str | None) -> list[_Part]:
    known = [name for name in _SPLITS if content.get(name)]
    if split is None:
        wanted = known
        if not known:
            raise DatasetError(f"{file} names no images: it has none of {', '.join(_SPLITS)}")
    else:
        wanted = [name for name in split_names(split) if name in known][:1]
        if not wanted:
            raise SplitError(
                f"{file} has no split {split!r}; its splits are {', '.join(known) or 'none'}"
            )
    parts = []
    for name in wanted:
        value = content[name]
        paths = [value] if isinstance(value, str) else value
        if not _is_texts(paths):
            raise DatasetError(
                f"{file}: {name} must be a path or a list of paths, got {reprlib.repr(value)}"
            )
        parts += [_Part(name, path) for path in paths]
    return parts


@dataclass(frozen=True)
class _Image:
    """An image by its path below the folder, and what names it: itself, or a line of a list."""

    name: str
    file: Path
    record: str


def _images(file: Path, folder: Path, part: _Part, log: ProblemLog) -> Iterator[_Image]:
    """The images of a split."""
    path = _resolve(folder, part.path, f"{file}, {part.name}")
    if path.is_dir():
        below = path.relative_to(folder)
        for found in sorted(path.rglob("*")):
            if found.suffix.lower() in IMAGE_SUFFIXES:
                yield _Image((below / found.relative_to(path)).as_posix(), found, "")
        return
    if path.suffix != ".txt" or not path.is_file():
        raise DatasetError(f"{file}: {part.name} must be a folder of images or a list, got {path}")
    seen = set()
    lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    for number, line in enumerate(lines, start=1):
        name = native_name(folder, line.strip()).removeprefix("./")
        if not name:
            continue
        if name in seen:
            log.report(path, f"line {number}", f"{name} is listed twice")
            continue
        seen.add(name)
        yield _Image(name, path, f"line {number}")
    if not seen:
        log.report(path, "", "the list is empty")


def _resolve(folder: Path, name: str, where: str) -> Path:
    """A path of the YAML file, below the folder.

    Exports often have ``../train/images``, one folder too many, where ``train/images`` is meant.
    """
    try:
        return resolve_inside(folder, name.removeprefix("./").removeprefix("../").rstrip("/"))
    except DatasetError as error:
        raise DatasetError(f"{where}: {error}") from None


class _Reader:
    """Turns images and their label files into records."""

    def __init__(
        self,
        folder: Path,
        file_names: Sequence[str],
        names: Sequence[str],
        log: ProblemLog,
        duplicate_iou: float | None,
    ) -> None:
        self.folder = folder
        self.file_names = file_names
        self.labels = {name: label for label, name in enumerate(names)}
        self.log = log
        self.duplicate_iou = duplicate_iou
        self.builder = RecordBuilder()
        self._annotation_id = 0

    def add(self, image_id: int, image: _Image) -> None:
        name = image.name
        try:
            size = find_image(self.folder, name, None, verify=True)
            path = resolve_inside(self.folder, _label_name(self.folder, name))
            lines = _read_lines(path)
        except DatasetError as error:
            self.log.report(image.file, image.record, str(error))
            return
        boxes: list[Box] = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            self._annotation_id += 1
            try:
                boxes.append(self._box(line.split(), size, boxes))
            except DatasetError as error:
                self.log.report(path, f"line {number}", str(error))
        self.builder.add(image_id, size, name, boxes)

    def _box(self, words: list[str], size: tuple[int, int], earlier: Sequence[Box]) -> Box:
        is_polygon = len(words) >= 7 and len(words) % 2 == 1
        if len(words) != 5 and not is_polygon:
            raise DatasetError(
                "must be a class and four numbers, or the corners of a polygon, "
                f"got {len(words)} words"
            )
        if not (words[0].isascii() and words[0].isdigit()) or len(words[0]) > 9:
            raise DatasetError(f"its class must be a number from 0 on, got {words[0]!r}")
        if int(words[0]) >= len(self.file_names):
            raise DatasetError(f"unknown class {words[0]}, of {len(self.file_names)}")
        name = self.file_names[int(words[0])]
        if name not in self.labels:
            raise DatasetError(f"unknown class {name!r}")
        try:
            numbers = [float(word) for word in words[1:]]
        except ValueError:
            raise DatasetError(f"must be a class and numbers, got {words}") from None
        if not all(map(math.isfinite, numbers)):
            raise DatasetError(f"box {words[1:]} is not finite")
        if is_polygon:  # of a data set for segmentation; the box is what is around it
            (x1, x2), (y1, y2) = ((min(n), max(n)) for n in (numbers[::2], numbers[1::2]))
            numbers = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
        x, y, width, height = numbers
        if max(abs(x), abs(y), width, height) > 2:
            raise DatasetError(f"box {words[1:]} must be relative to the image, in 0 ... 1")
        pixels_y, pixels_x = size
        xywh = (
            (x - width / 2) * pixels_x,
            (y - height / 2) * pixels_y,
            width * pixels_x,
            height * pixels_y,
        )
        if problem := find_box_problem(xywh, size):
            raise DatasetError(problem)
        box = Box(
            xywh=xywh,
            label=self.labels[name],
            area=xywh[2] * xywh[3],
            annotation_id=self._annotation_id,
        )
        if find_duplicate(box, earlier, self.duplicate_iou) is not None:
            raise DatasetError(
                f"repeats an earlier object of its class (IoU of at least {self.duplicate_iou})"
            )
        return box


def _label_name(folder: Path, name: str) -> str:
    """The label file of an image: in ``labels`` for ``images`` if that is there, or beside it."""
    path = PurePosixPath(name)
    text = f"{path.stem}.txt"
    parts = list(path.parent.parts)
    places = [index for index, part in enumerate(parts) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
        below = PurePosixPath(*parts)
        if (folder / below).is_dir():
            return str(below / text)
    return str(path.parent / text)


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"label file {path} cannot be read: {error}") from error
