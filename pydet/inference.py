# SPDX-License-Identifier: Apache-2.0
"""Detect in images and evaluate on data sets: what a trained detector is for."""

import math
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pydet._sources import ImageSource, as_list, read
from pydet.data import DatasetError, DetectionDataset, read_image
from pydet.data._paths import IMAGE_SUFFIXES
from pydet.data.coco import NO_CLASS
from pydet.metrics import (
    CocoMetrics,
    VocMetrics,
    coco_metrics,
    to_coco_results,
    voc_metrics,
)
from pydet.metrics.results import check_dataset
from pydet.models import Detector
from pydet.structures import Detection, Target

_GRACE = 60  # seconds that readers go on after a SIGTERM


@torch.no_grad()  # not inference_mode: cached anchors must serve training, too
def detect(
    model: Detector,
    images: ImageSource | Sequence[ImageSource],
    *,
    batch_size: int = 8,
    device: torch.device | str | None = None,
) -> list[Detection]:
    """Detect objects in images of any sizes.

    Args:
        model: the detector; moved to `device` and put into evaluation mode.
        images: one or a sequence of RGB tensors [3, H, W], uint8 or floating in [0, 1]; arrays
            [H, W, 3], uint8 and RGB (OpenCV's are BGR: ``image[..., ::-1]``); images of Pillow; or
            paths of image files. Files are turned upright as their EXIF data say, images of Pillow
            are taken as they are. A tensor [B, 3, H, W] is B images.
        batch_size: images computed together.
        device: where; None: where the model is.

    Returns:
        A list, also of one image: one `Detection` an image, in their order, on the CPU; boxes in
        pixels of the image as given.

    Raises:
        DatasetError: a file is not an image that can be read; `detect_files` goes on instead.
        TypeError: what is given is no image.
        ValueError: an image has another shape, or `batch_size` is not positive.
    """
    device = _prepare("detect", model, device, batch_size)
    sources = as_list(images)
    detections: list[Detection] = []
    for start in range(0, len(sources), batch_size):
        batch = [
            read(source, f"images[{index}]")
            for index, source in enumerate(sources[start : start + batch_size], start)
        ]
        detections += _detect_batch(model, batch, device)
    return detections


@dataclass(frozen=True, eq=False)
class FileDetection:
    """What was found in one file.

    Attributes:
        path: the file.
        image: [3, H, W] uint8 RGB, as it was read; None if it could not be.
        detection: the objects; None if it could not be read.
        problem: why it could not be read; empty if it could.
    """

    path: Path
    image: Tensor | None = None
    detection: Detection | None = None
    problem: str = ""


@torch.no_grad()  # not inference_mode: cached anchors must serve training, too
def detect_files(
    model: Detector,
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    batch_size: int = 8,
    device: torch.device | str | None = None,
) -> Iterator[FileDetection]:
    """Detect objects in files, one after the other, with those that cannot be read named.

    Args:
        model: the detector; moved to `device` and put into evaluation mode.
        paths: image files, or one.
        batch_size: images computed together; more are never in memory.
        device: where; None: where the model is.

    Yields:
        One `FileDetection` a path, in their order.
    """
    device = _prepare("detect_files", model, device, batch_size)
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    for start in range(0, len(paths), batch_size):
        files = []
        for path in map(Path, paths[start : start + batch_size]):
            try:
                files.append(FileDetection(path, read_image(path)))
            except (DatasetError, OSError) as error:
                files.append(FileDetection(path, problem=str(error)))
        images = [file.image for file in files if file.image is not None]
        found = iter(_detect_batch(model, images, device) if images else ())
        for file in files:
            yield file if file.image is None else replace(file, detection=next(found))


def find_images(
    path: str | os.PathLike[str], *, leave_out: str | os.PathLike[str] | None = None
) -> list[Path]:
    """The image files of a folder and the folders in it, by name; or the one file given.

    Args:
        path: the folder or file.
        leave_out: a folder in it whose files are not wanted, such as one for results.

    Raises:
        FileNotFoundError: there is nothing, or no image in it.
    """
    root = Path(path)
    if root.is_file():
        return [root]
    files = (file for file in root.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    others = None if leave_out is None else Path(leave_out).resolve()
    found = sorted(f for f in files if f.is_file() and others not in f.resolve().parents)
    if not found:
        what = "holds no image file" if root.is_dir() else "is neither a file nor a folder"
        raise FileNotFoundError(f"detect: {root} {what}")
    return found


def _prepare(
    caller: str, model: Detector, device: torch.device | str | None, batch_size: int
) -> torch.device:
    if batch_size < 1:
        raise ValueError(f"{caller}: batch_size must be at least 1, got {batch_size}")
    if device is not None:
        model.to(device)
    model.eval()
    return next(model.parameters()).device


def _detect_batch(
    model: Detector, images: Sequence[Tensor], device: torch.device
) -> list[Detection]:
    # Resized one by one: images of a batch may differ in dtype, device and size.
    samples = [model.preprocessing.resize_sample(image.to(device), None) for image in images]
    if len({image.dtype for image, _ in samples}) > 1:
        samples = [
            (image.float() if image.is_floating_point() else image.float() / 255, target)
            for image, target in samples
        ]
    batch, _ = model.preprocessing.collate(samples)
    return _to_cpu(model(batch))


def _to_cpu(detections: Sequence[Detection]) -> list[Detection]:
    return [
        Detection(
            boxes=found["boxes"].cpu(), scores=found["scores"].cpu(), labels=found["labels"].cpu()
        )
        for found in detections
    ]


class _Images(Dataset[tuple[Tensor, Target]]):
    """Images of a data set, resized for the model by the process that reads them."""

    def __init__(self, dataset: DetectionDataset, indices: Sequence[int], resize: Any) -> None:
        self.dataset = dataset
        self.indices = indices
        self.resize = resize

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> tuple[Tensor, Target]:
        image, _ = self.dataset[self.indices[place]]
        sample: tuple[Tensor, Target] = self.resize(image, None)
        return sample


@torch.no_grad()  # not inference_mode: cached anchors must serve training, too
def collect_results(
    model: Detector,
    dataset: DetectionDataset,
    *,
    batch_size: int = 8,
    device: torch.device | str | None = None,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Detect in every image of a data set.

    Args:
        model: the detector; moved to `device` and put into evaluation mode.
        dataset: what to detect in; its annotations are not looked at.
        batch_size: images computed together.
        device: where; None: where the model is.
        workers: processes that read images; 0: this one.
        rank: of `world_size` processes, this one takes every `world_size`-th image from here.
        world_size: processes that share the work.
        progress: show a bar.

    Returns:
        Results in COCO format, with the data set's own image and category ids.

    Raises:
        TypeError, ValueError: as of `evaluate`.
    """
    check_dataset("evaluate", dataset)
    _check_classes(model, dataset)
    device = _prepare("collect_results", model, device, batch_size)
    indices = range(rank, len(dataset), world_size)
    loader: DataLoader[Any] = DataLoader(
        _Images(dataset, indices, model.preprocessing.resize_sample),
        batch_size=batch_size,
        collate_fn=model.preprocessing.collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # its seeds must not come from a training's generator
    )
    batches: Any = loader
    if progress:
        from tqdm import tqdm  # noqa: PLC0415

        batches = tqdm(loader, desc="detecting", unit="batch", leave=False, dynamic_ncols=True)
    detections: list[Detection] = []
    for images, _ in batches:
        detections += _to_cpu(model(images.to(device, non_blocking=True)))
    return to_coco_results(dataset, detections, indices)


def _check_classes(model: Detector, dataset: DetectionDataset) -> None:
    if model.class_names and tuple(model.class_names) != tuple(dataset.class_names):
        raise ValueError(
            f"evaluate: dataset must have the model's classes {list(model.class_names)}, "
            f"got {list(dataset.class_names)}"
        )
    if model.num_classes != len(dataset.class_names):
        raise ValueError(
            f"evaluate: dataset must have the model's {model.num_classes} classes, "
            f"got {len(dataset.class_names)}; class_names of the model tell which are which, "
            f"{NO_CLASS!r} a label that is none"
        )


def start_worker(_: int) -> None:
    """First act of a process that reads images: signals are its parent's to answer; one thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Service managers send SIGTERM to all processes of a group at once. The parent, who writes a
    # checkpoint then, fails if its readers die before; nor may they refuse to die for ever.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
    torch.set_num_threads(1)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How good detections are, by the measures of COCO and of Pascal VOC.

    Attributes:
        coco: the measures of MS COCO, by pycocotools.
        voc: average precision at IoU 0.5, by 11 points (VOC 2007) and by area (VOC 2010 and later).
        results: the detections, in COCO format.
    """

    coco: CocoMetrics
    voc: VocMetrics
    results: list[dict[str, Any]]

    def numbers(self) -> dict[str, float]:
        """The figures over all classes, flat; NaN where there is no ground truth to measure."""
        figures = {
            name: value
            for name, value in self.coco.as_dict().items()
            if name not in ("per_class", "max_detections")
        }
        figures |= {"voc_ap_11": self.voc.as_dict()["ap_11"]}
        figures |= {"voc_ap_area": self.voc.as_dict()["ap_area"]}
        return {name: math.nan if value is None else value for name, value in figures.items()}

    def as_dict(self) -> dict[str, Any]:
        """All figures, those of each class too, as JSON takes them."""
        return {"coco": self.coco.as_dict(), "voc": self.voc.as_dict()}

    def table(self) -> str:
        """The figures of each class and of all as text."""
        return f"COCO\n{self.coco.table()}\n\nPascal VOC, IoU 0.5\n{self.voc.table()}"

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw precision over recall at IoU 0.5, each class a curve."""
        from pydet.visualization import precision_recall_plot  # noqa: PLC0415

        curves = {c.name: self.coco.precision[0, :, k] for k, c in enumerate(self.coco.per_class)}
        precision_recall_plot(path, self.coco.recall, curves, title="IoU 0.5")


def evaluate_results(dataset: DetectionDataset, results: list[dict[str, Any]]) -> Evaluation:
    """Measure detections of a data set.

    Args:
        dataset: the ground truth.
        results: detections in COCO format, as `collect_results` gives them.

    Raises:
        TypeError: `dataset` is not a `DetectionDataset`.
    """
    check_dataset("evaluate", dataset)
    truth = dataset.to_coco()
    return Evaluation(coco_metrics(truth, results), voc_metrics(truth, results), results)


def evaluate(
    model: Detector,
    dataset: DetectionDataset,
    *,
    batch_size: int = 8,
    device: torch.device | str | None = None,
    workers: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Detect in every image of a data set and measure the detections.

    Args:
        model: the detector; moved to `device` and put into evaluation mode.
        dataset: images and ground truth; its labels must be the model's.
        batch_size: images computed together.
        device: where; None: where the model is.
        workers: processes that read images; 0: this one.
        progress: show a bar.

    Raises:
        TypeError: `dataset` is not a `DetectionDataset`.
        ValueError: the class names of model and data set differ, or, where the model has none,
            their number.
    """
    results = collect_results(
        model, dataset, batch_size=batch_size, device=device, workers=workers, progress=progress
    )
    return evaluate_results(dataset, results)
