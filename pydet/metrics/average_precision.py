# SPDX-License-Identifier: Apache-2.0
"""Average precision by the rules of Pascal VOC (Everingham et al., IJCV 2010, section 4.2)."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pydet.ops.box_iou import box_iou

Array = NDArray[np.float64]


@dataclass(frozen=True)
class VocClassMetrics:
    """Measures of one class; NaN where it has no ground truth.

    Attributes:
        name: The class.
        num_objects: Ground truth, difficult objects not counted.
        num_detections: Detections, those of difficult objects not counted.
        ap_11: AP at 11 points (VOC 2007).
        ap_area: AP as area (VOC 2010 and later).
        precision: [D] precision after each counted detection, best score first.
        recall: [D] recall after each.
    """

    name: str
    num_objects: int
    num_detections: int
    ap_11: float
    ap_area: float
    precision: Array
    recall: Array


@dataclass(frozen=True)
class VocMetrics:
    """Mean AP over the classes that have ground truth (NaN if none has), and each class."""

    ap_11: float
    ap_area: float
    iou_threshold: float
    per_class: tuple[VocClassMetrics, ...]

    def as_dict(self) -> dict[str, Any]:
        """All figures as JSON: None instead of NaN, curves left out."""
        return {
            "ap_11": _json(self.ap_11),
            "ap_area": _json(self.ap_area),
            "iou_threshold": self.iou_threshold,
            "per_class": {
                c.name: {
                    "num_objects": c.num_objects,
                    "num_detections": c.num_detections,
                    "ap_11": _json(c.ap_11),
                    "ap_area": _json(c.ap_area),
                }
                for c in self.per_class
            },
        }

    def table(self) -> str:
        """One line a class, and the mean below, as text."""
        width = max([len(c.name) for c in self.per_class] + [len("class")])
        lines = [f"{'class':<{width}}  objects  detections  AP (11 points)  AP (area)"]
        rows = [
            (c.name, c.num_objects, c.num_detections, c.ap_11, c.ap_area) for c in self.per_class
        ]
        totals = (sum(row[1] for row in rows), sum(row[2] for row in rows))
        for name, objects, detections, ap_11, ap_area in [
            *rows,
            ("mean", *totals, self.ap_11, self.ap_area),
        ]:
            lines.append(
                f"{name:<{width}}  {objects:>7}  {detections:>10}  {_percent(ap_11):>14}  "
                f"{_percent(ap_area):>9}"
            )
        return "\n".join(lines)


def voc_metrics(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    iou_threshold: float = 0.5,
) -> VocMetrics:
    """Average precision by the rules of Pascal VOC, each class for itself.

    Detections are taken from the best score down (equal scores: as given). Each looks at the object
    of its image that it overlaps most. If that IoU is at least the threshold, the detection is true
    if the object has not been found before, else false (found twice); if the object is difficult,
    the detection does not count at all. Below the threshold it is false. IoU is that of continuous
    boxes, which for VOC's inclusive pixels is the IoU with the "+ 1" of the development kit.

    Args:
        ground_truth: A COCO dict, see :meth:`pydet.data.DetectionDataset.to_coco`; annotations
            with ``ignore`` or ``iscrowd`` are the difficult ones.
        results: COCO results: ``image_id``, ``category_id``, ``bbox`` [x, y, width, height],
            ``score``.
        iou_threshold: Least IoU of a true detection.

    Raises:
        ValueError: A result names an image or category that the ground truth does not have, or has
            a NaN score.
    """
    images = {item["id"] for item in ground_truth["images"]}
    categories = sorted(ground_truth["categories"], key=lambda c: int(c["id"]))
    known = {c["id"] for c in categories}
    for i, item in enumerate(results):
        if item["image_id"] not in images or item["category_id"] not in known:
            raise ValueError(
                f"voc_metrics: results[{i}] must be of an image and a category of the ground "
                f"truth, got image id {item['image_id']}, category id {item['category_id']}"
            )
        if math.isnan(item["score"]):
            raise ValueError(f"voc_metrics: results[{i}] must have a score, got NaN")
    objects = _group(ground_truth.get("annotations", []), "category_id")
    found = _group(results, "category_id")
    per_class = tuple(
        _measure_class(
            str(category["name"]),
            objects.get(category["id"], []),
            found.get(category["id"], []),
            iou_threshold,
        )
        for category in categories
    )
    return VocMetrics(
        ap_11=_mean([c.ap_11 for c in per_class]),
        ap_area=_mean([c.ap_area for c in per_class]),
        iou_threshold=iou_threshold,
        per_class=per_class,
    )


_Item = Mapping[str, Any]


def _group(items: Iterable[_Item], key: str) -> dict[Any, list[_Item]]:
    groups: dict[Any, list[_Item]] = defaultdict(list)
    for item in items:
        groups[item[key]].append(item)
    return groups


def _measure_class(
    name: str, objects: Sequence[_Item], found: Sequence[_Item], iou_threshold: float
) -> VocClassMetrics:
    found = sorted(found, key=lambda d: -float(d["score"]))  # stable: ties stay as given
    objects_of = _group(objects, "image_id")
    outcomes_of = {
        image_id: iter(
            match_detections(
                [d["bbox"] for d in detections],
                [o["bbox"] for o in objects_of.get(image_id, [])],
                [_is_difficult(o) for o in objects_of.get(image_id, [])],
                iou_threshold,
            )
        )
        for image_id, detections in _group(found, "image_id").items()
    }
    outcomes = [next(outcomes_of[d["image_id"]]) for d in found]
    is_true = np.array([o for o in outcomes if o is not None], dtype=np.bool_)
    num_objects = sum(not _is_difficult(o) for o in objects)
    precision, recall = precision_recall(is_true, num_objects)
    return VocClassMetrics(
        name=name,
        num_objects=num_objects,
        num_detections=len(is_true),
        ap_11=average_precision_11(precision, recall) if num_objects else math.nan,
        ap_area=average_precision_area(precision, recall) if num_objects else math.nan,
        precision=precision,
        recall=recall,
    )


def match_detections(
    detections: Sequence[Sequence[float]],
    objects: Sequence[Sequence[float]],
    difficult: Sequence[bool],
    iou_threshold: float,
) -> list[bool | None]:
    """Which detections of one class in one image are true.

    Args:
        detections: Boxes [x, y, width, height], best score first.
        objects: Boxes of the ground truth.
        difficult: For each object, whether it is neither to be found nor missed.
        iou_threshold: Least IoU of a true detection.

    Returns:
        For each detection True, False, or None if it does not count; see :func:`voc_metrics`.
    """
    if not objects or not detections:
        return [False] * len(detections)
    best_ious, best_objects = box_iou(_to_xyxy(detections), _to_xyxy(objects)).max(dim=1)
    taken = set()
    outcomes: list[bool | None] = []
    for iou, best in zip(best_ious.tolist(), best_objects.tolist(), strict=True):
        if not iou >= iou_threshold:
            outcomes.append(False)
        elif difficult[best]:
            outcomes.append(None)
        else:
            outcomes.append(best not in taken)
            taken.add(best)
    return outcomes


def precision_recall(is_true: NDArray[np.bool_], num_objects: int) -> tuple[Array, Array]:
    """Precision and recall after each detection.

    Args:
        is_true: [D] whether each detection is true, best score first.
        num_objects: Objects that could be found.

    Returns:
        Precision [D] and recall [D]; recall is NaN if there are no objects.
    """
    true = np.cumsum(is_true, dtype=np.float64)
    precision = true / np.arange(1, len(true) + 1)
    recall = true / num_objects if num_objects else np.full(len(true), math.nan)
    return precision, recall


def average_precision_11(precision: Array, recall: Array) -> float:
    """AP of VOC 2007: the mean over recalls 0, 0.1, ..., 1 of the best precision from there on.

    Args:
        precision: [D] after each detection, best score first.
        recall: [D] likewise, rising.
    """
    # i / 10 is the float nearest to the decimal, as a recall of 3 of 10 is; sums of 0.1 are not.
    points = [precision[recall >= i / 10] for i in range(11)]
    return float(np.mean([p.max() if p.size else 0.0 for p in points]))


def average_precision_area(precision: Array, recall: Array) -> float:
    """AP of VOC 2010 and later: the area below the curve, made monotonous.

    Args:
        precision: [D] after each detection, best score first.
        recall: [D] likewise, rising.
    """
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def _to_xyxy(boxes: Sequence[Sequence[float]]) -> torch.Tensor:
    xywh = torch.tensor([list(box) for box in boxes], dtype=torch.float64)
    return torch.cat((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), dim=1)


def _is_difficult(item: Mapping[str, Any]) -> bool:
    return bool(item.get("ignore", 0) or item.get("iscrowd", 0))


def _mean(values: Sequence[float]) -> float:
    valid = [v for v in values if not math.isnan(v)]
    return sum(valid) / len(valid) if valid else math.nan


def _json(value: float) -> float | None:
    return None if math.isnan(value) else value


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"
