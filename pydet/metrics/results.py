# SPDX-License-Identifier: Apache-2.0
"""Detections in the COCO result format."""

from collections.abc import Iterable, Sequence
from typing import Any

from pydet.data.dataset import DetectionDataset
from pydet.structures import Detection


def to_coco_results(
    dataset: DetectionDataset,
    detections: Iterable[Detection],
    indices: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Writes detections as COCO results, with the image and category ids of the data set's files.

    Detections whose label is no class (see :class:`pydet.data.CocoDataset`) are left out.

    Args:
        dataset: Where the images came from.
        detections: One entry an image, boxes in the pixels of the image file.
        indices: The place in the data set of each entry; None if there is one for every image, in
            order.

    Returns:
        One dict a box: ``image_id``, ``category_id``, ``bbox`` [x, y, width, height] and ``score``.

    Raises:
        TypeError: The data set is not a :class:`pydet.data.DetectionDataset`.
        ValueError: There are more or fewer detections than images, or a label is none of the data
            set's.
    """
    check_dataset("to_coco_results", dataset)
    category_ids = dataset.category_ids
    places = range(len(dataset)) if indices is None else indices
    results = []
    detections = list(detections)
    if len(detections) != len(places):
        raise ValueError(
            f"to_coco_results: detections must have one entry for each of {len(places)} images, "
            f"got {len(detections)}"
        )
    for place, detection in zip(places, detections, strict=True):
        image_id = int(dataset.records.image_ids[place])
        boxes = detection["boxes"].detach().double().cpu()
        xywh = boxes.clone()
        xywh[:, 2:] -= boxes[:, :2]
        for box, score, label in zip(
            xywh.tolist(), detection["scores"].tolist(), detection["labels"].tolist(), strict=True
        ):
            if not 0 <= label < len(category_ids):
                raise ValueError(
                    "to_coco_results: detections must have labels in "
                    f"0 ... {len(category_ids) - 1}, got {label}"
                )
            if (category_id := category_ids[label]) is not None:
                results.append(
                    {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
                )
    return results


def check_dataset(caller: str, dataset: object) -> None:
    """Makes sure that a data set is one whose annotations can be measured with.

    Raises:
        TypeError: It is not a :class:`pydet.data.DetectionDataset`.
    """
    if not isinstance(dataset, DetectionDataset):
        raise TypeError(
            f"{caller}: dataset must be a DetectionDataset, got {type(dataset).__name__} "
            "(DetectionDataset.subset takes some images of one)"
        )
