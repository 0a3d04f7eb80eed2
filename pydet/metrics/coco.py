# SPDX-License-Identifier: Apache-2.0
"""The measures of MS COCO, computed by pycocotools."""

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_AREAS = ("all", "small", "medium", "large")  # the order of COCOeval's area ranges


@dataclass(frozen=True)
class ClassMetrics:
    """Measures of one class; NaN where it has no ground truth."""

    name: str
    num_objects: int  # ground truth, ignored ones not counted
    num_detections: int
    ap: float
    ap50: float
    ap75: float
    ar: float


@dataclass(frozen=True)
class CocoMetrics:
    """The twelve figures of COCO, those of each class, and the curves.

    All figures lie in [0, 1]; NaN says that there is no ground truth to measure with (pycocotools:
    -1). AP without a number is the mean over the IoU thresholds 0.5, 0.55, ..., 0.95. Small is an
    area below 32², large one from 96² on. The ``max_detections`` best-scored detections of an image
    and class count.

    Attributes:
        ap: Average precision.
        ap50: At IoU 0.5.
        ap75: At IoU 0.75.
        ap_small: For small objects.
        ap_medium: For medium objects.
        ap_large: For large objects.
        ar_1: Average recall with 1 detection an image and class.
        ar_10: With 10.
        ar_max: With ``max_detections`` (100: COCO's AR100).
        ar_small: Like ar_max, for small objects.
        ar_medium: For medium objects.
        ar_large: For large objects.
        max_detections: See above.
        per_class: One entry a class, in the order of the category ids.
        precision: [10, 101, K] precision at each IoU threshold and recall; -1 where a class has no
            ground truth.
        recall: [101] the recalls 0, 0.01, ..., 1 of ``precision``.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar_1: float
    ar_10: float
    ar_max: float
    ar_small: float
    ar_medium: float
    ar_large: float
    max_detections: int
    per_class: tuple[ClassMetrics, ...]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]

    def as_dict(self) -> dict[str, Any]:
        """All figures as JSON: None instead of NaN, curves left out."""
        figures: dict[str, Any] = {
            name: _json(getattr(self, name))
            for name in self.__dataclass_fields__
            if name not in ("per_class", "precision", "recall")
        }
        figures["per_class"] = {
            c.name: {k: _json(v) for k, v in vars(c).items() if k != "name"} for c in self.per_class
        }
        return figures

    def table(self) -> str:
        """One line a class, and the figures of all classes below, as text."""
        width = max([len(c.name) for c in self.per_class] + [len("class")])
        lines = [f"{'class':<{width}}  objects  detections     AP   AP50   AP75     AR"]
        for c in self.per_class:
            figures = "  ".join(_percent(v) for v in (c.ap, c.ap50, c.ap75, c.ar))
            lines.append(
                f"{c.name:<{width}}  {c.num_objects:>7}  {c.num_detections:>10}  {figures}"
            )
        figures = "  ".join(_percent(v) for v in (self.ap, self.ap50, self.ap75, self.ar_max))
        objects = sum(c.num_objects for c in self.per_class)
        detections = sum(c.num_detections for c in self.per_class)
        lines.append(f"{'all':<{width}}  {objects:>7}  {detections:>10}  {figures}")
        by_area = ", ".join(
            f"{name} {_percent(value).strip()}"
            for name, value in (
                ("small", self.ap_small),
                ("medium", self.ap_medium),
                ("large", self.ap_large),
            )
        )
        lines.append(f"AP by size: {by_area}")
        return "\n".join(lines)


def coco_metrics(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    max_detections: int = 100,
) -> CocoMetrics:
    """Average precision and recall as COCO defines them, by pycocotools, without its printing.

    Three things differ from calling pycocotools by hand. ``ignore`` of an annotation is honoured:
    such an object (VOC's difficult ones) is neither found nor missed; pycocotools overwrites the
    flag with ``iscrowd``. Annotations are numbered afresh, because pycocotools takes one with the
    id 0 for none. And no results, or no ground truth, are no error.

    Args:
        ground_truth: A COCO dict: ``images``, ``annotations``, ``categories``; see
            :meth:`pydet.data.DetectionDataset.to_coco`.
        results: COCO results: ``image_id``, ``category_id``, ``bbox`` [x, y, width, height],
            ``score``.
        max_detections: How many detections of an image and class count, the best-scored first.

    Raises:
        ImportError: pycocotools is not installed.
        ValueError: A result names an image or category that the ground truth does not have, or
            ``max_detections`` is below 1.
    """
    if max_detections < 1:
        raise ValueError(f"coco_metrics: max_detections must be at least 1, got {max_detections}")
    try:
        from pycocotools.coco import COCO  # noqa: PLC0415
        from pycocotools.cocoeval import COCOeval  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(
            "coco_metrics: pycocotools must be installed (pip install 'pydet[train]')"
        ) from error

    class Evaluation(COCOeval):  # type: ignore[misc]
        def _prepare(self) -> None:
            super()._prepare()
            for objects in self._gts.values():
                for item in objects:
                    item["ignore"] = int(bool(item["iscrowd"] or item["pydet_ignore"]))

    truth, found = COCO(), COCO()
    truth.dataset = _number_ground_truth(ground_truth)
    found.dataset = {
        "images": truth.dataset["images"],
        "categories": truth.dataset["categories"],
        "annotations": _number_results(results, truth.dataset),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found.createIndex()
        evaluation = Evaluation(truth, found, iouType="bbox")
        evaluation.params.maxDets = [
            min(1, max_detections),
            min(10, max_detections),
            max_detections,
        ]
        evaluation.evaluate()
        evaluation.accumulate()
    return _collect(evaluation, truth.dataset, results, max_detections)


def _number_ground_truth(ground_truth: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "images": list(ground_truth["images"]),
        "categories": sorted(ground_truth["categories"], key=lambda c: int(c["id"])),
        "annotations": [
            {
                "id": i,
                "image_id": item["image_id"],
                "category_id": item["category_id"],
                "bbox": item["bbox"],
                "area": item.get("area", item["bbox"][2] * item["bbox"][3]),
                "iscrowd": int(item.get("iscrowd", 0)),
                "pydet_ignore": int(item.get("ignore", 0)),
            }
            for i, item in enumerate(ground_truth.get("annotations", []), start=1)
        ],
    }


def _number_results(
    results: Sequence[Mapping[str, Any]], dataset: Mapping[str, Any]
) -> list[dict[str, Any]]:
    images = {item["id"] for item in dataset["images"]}
    categories = {item["id"] for item in dataset["categories"]}
    numbered = []
    for i, item in enumerate(results, start=1):
        if item["image_id"] not in images:
            raise ValueError(
                f"coco_metrics: results[{i - 1}] must be of an image of the ground truth, got the "
                f"image id {item['image_id']}"
            )
        if item["category_id"] not in categories:
            raise ValueError(
                f"coco_metrics: results[{i - 1}] must be of a category of the ground truth, got "
                f"the category id {item['category_id']}"
            )
        box = [float(v) for v in item["bbox"]]
        numbered.append(
            {
                "id": i,
                "image_id": item["image_id"],
                "category_id": item["category_id"],
                "bbox": box,
                "score": float(item["score"]),
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
        )
    return numbered


def _collect(
    evaluation: Any,
    dataset: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    max_detections: int,
) -> CocoMetrics:
    precision = evaluation.eval["precision"]  # [10, 101, K, 4 areas, 3 counts]
    recall = evaluation.eval["recall"]  # [10, K, 4 areas, 3 counts]
    iou50, iou75 = 0, 5
    objects = {c["id"]: 0 for c in dataset["categories"]}
    detections = dict.fromkeys(objects, 0)
    for item in dataset["annotations"]:
        if not (item["iscrowd"] or item["pydet_ignore"]):
            objects[item["category_id"]] += 1
    for item in results:
        detections[item["category_id"]] += 1
    per_class = tuple(
        ClassMetrics(
            name=str(category["name"]),
            num_objects=objects[category["id"]],
            num_detections=detections[category["id"]],
            ap=_mean(precision[:, :, k, 0, 2]),
            ap50=_mean(precision[iou50, :, k, 0, 2]),
            ap75=_mean(precision[iou75, :, k, 0, 2]),
            ar=_mean(recall[:, k, 0, 2]),
        )
        for k, category in enumerate(dataset["categories"])
    )
    by_area = {
        f"{figure}_{area}": _mean(values[..., a, 2])
        for figure, values in (("ap", precision), ("ar", recall))
        for a, area in enumerate(_AREAS)
        if area != "all"
    }
    return CocoMetrics(
        ap=_mean(precision[..., 0, 2]),
        ap50=_mean(precision[iou50, ..., 0, 2]),
        ap75=_mean(precision[iou75, ..., 0, 2]),
        ar_1=_mean(recall[..., 0, 0]),
        ar_10=_mean(recall[..., 0, 1]),
        ar_max=_mean(recall[..., 0, 2]),
        **by_area,
        max_detections=max_detections,
        per_class=per_class,
        precision=precision[..., 0, 2].copy(),
        recall=np.asarray(evaluation.params.recThrs),
    )


def _mean(values: NDArray[np.float64]) -> float:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else math.nan


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _percent(value: float) -> str:
    return "    -" if math.isnan(value) else f"{100 * value:5.1f}"
