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
from pydet.data.dataset import DetectionDataset, find_box_problem, find_duplicate, find_image
from pydet.data.records import Box, RecordBuilder

_SPLITS = ("train", "val", "valid", "test")


class YoloDataset(DetectionDataset):
    """A folder with ``data.yaml`` (or ``dataset.yaml``) and a label file for each image.

    ``data.yaml`` has ``names``, a list or a map from 0 on, and for each split a folder of images or
    a text file with the path of an image in each line. Paths are relative to its ``path``, absolute
    or seen from the file, if that is a folder, else to the file itself, and may not leave that
    folder. The folder of a split may be a symbolic link, and so may that of its labels.

    The label file of ``.../images/a.b.jpg`` is ``.../labels/a.b.txt``, else ``a.b.txt`` beside the
    image. A line of it is ``class x y width height``, the box's centre and size relative to the
    image's, or ``class x1 y1 x2 y2 x3 y3 ...``, a polygon, around which the box is drawn. An image
    without a label file, or with an empty one, has no objects; that no image has a label file at
    all is a broken record. Label files never give the size of an image, so every image's head is
    read.

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
        if images and not reader.num_label_files:
            places = " or ".join(str(folder / place) for place in _label_places(images[0].name))
            reason = f"none of the {len(images)} images has a label file, such as {places}"
            log.report(file, split or "", reason)
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
    """The folder that paths are relative to: the file's own if its ``path`` is of another machine.

    It may lie anywhere: whoever has a ``data.yaml`` of ultralytics expects that.
    """
    path = content.get("path")
    if isinstance(path, str) and os.path.isdir(file.parent / path):
        return file.parent / path
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
    """An image by its path below the folder, and what names it: itself, or a line of a list.

    The first ``depth`` parts of the path are the folder that it may not leave.
    """

    name: str
    file: Path
    record: str
    depth: int = 0


def _images(file: Path, folder: Path, part: _Part, log: ProblemLog) -> Iterator[_Image]:
    """The images of a split."""
    path = _resolve(folder, part.path, f"{file}, {part.name}")
    if path.is_dir():
        below = path.relative_to(folder) if path.is_relative_to(folder) else path
        for found in sorted(path.rglob("*")):
            if found.suffix.lower() in IMAGE_SUFFIXES:
                name = (below / found.relative_to(path)).as_posix()
                yield _Image(name, found, "", len(below.parts))
        return
    if path.suffix != ".txt" or not path.is_file():
        raise DatasetError(
            f"{file}: {part.name} must be a folder of images or a list, got {path}; paths are "
            "relative to its 'path', where that is a folder, and else to the file"
        )
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
        below = name.removeprefix("./").removeprefix("../").rstrip("/")
        return resolve_inside(folder, below, may_link=True)
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
        self.num_label_files = 0
        self._annotation_id = 0

    def add(self, image_id: int, image: _Image) -> None:
        try:
            within, below = _cut(PurePosixPath(image.name), image.depth)
            size = find_image(self.folder / within, below, None, verify=True)
            # "images" may have become "labels" in either part of the path.
            within, below = _cut(_label_file(self.folder, image.name), image.depth)
            path = resolve_inside(self.folder / within, below)
            lines = _read_lines(path)
        except DatasetError as error:
            self.log.report(image.file, image.record, str(error))
            return
        self.num_label_files += lines is not None
        boxes: list[Box] = []
        for number, line in enumerate(lines or (), start=1):
            if not line.strip():
                continue
            self._annotation_id += 1
            try:
                boxes.append(self._box(line.split(), size, boxes))
            except DatasetError as error:
                self.log.report(path, f"line {number}", str(error))
        self.builder.add(image_id, size, image.name, boxes)

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


def _cut(path: PurePosixPath, depth: int) -> tuple[PurePosixPath, str]:
    return PurePosixPath(*path.parts[:depth]), str(PurePosixPath(*path.parts[depth:]))


def _label_places(name: str) -> list[PurePosixPath]:
    """Where the label file of an image may be: in ``labels`` for ``images``, or beside it."""
    path = PurePosixPath(name)
    beside = path.parent / f"{path.stem}.txt"
    parts = list(beside.parts)
    places = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    if not places:
        return [beside]
    parts[places[-1]] = "labels"
    return [PurePosixPath(*parts), beside]


def _label_file(folder: Path, name: str) -> PurePosixPath:
    """The first of these places whose folder is there."""
    places = _label_places(name)
    return next((place for place in places if (folder / place.parent).is_dir()), places[-1])


def _read_lines(path: Path) -> list[str] | None:
    """The lines of a label file; None if there is none."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"label file {path} cannot be read: {error}") from error
