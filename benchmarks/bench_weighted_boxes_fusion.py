# SPDX-License-Identifier: Apache-2.0
"""weighted_boxes_fusion against the loop of its authors' code on torch tensors."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks._harness import Case, num_bytes
from benchmarks.bench_nms import NUM_CLASSES, _clustered
from pydet.ops import FusedBoxes, box_iou, weighted_boxes_fusion

IOU_THRESHOLD = 0.55
MOST_TIMED_EAGERLY = 500


def _eager(boxes: Tensor, scores: Tensor, idxs: Tensor, num_models: int) -> FusedBoxes:
    fused = boxes.new_empty(0, 4)
    sums = boxes.new_empty(0, 4)
    weights, counts, labels = scores.new_empty(0), scores.new_empty(0), idxs.new_empty(0)
    for i in scores.argsort(descending=True, stable=True).tolist():
        overlaps = box_iou(boxes[i : i + 1], fused)[0] * (labels == idxs[i])
        best = overlaps.max(0) if len(overlaps) else None
        if best is not None and best.values > IOU_THRESHOLD:
            c = best.indices
            sums[c] += scores[i] * boxes[i]
            weights[c] += scores[i]
            counts[c] += 1
            fused[c] = sums[c] / weights[c]
            continue
        fused = torch.cat([fused, boxes[i : i + 1]])
        sums = torch.cat([sums, scores[i] * boxes[i : i + 1]])
        weights = torch.cat([weights, scores[i : i + 1]])
        counts = torch.cat([counts, counts.new_ones(1)])
        labels = torch.cat([labels, idxs[i : i + 1]])
    confidence = weights / counts * counts.clamp(max=num_models) / num_models
    confidence, order = confidence.sort(descending=True, stable=True)
    return FusedBoxes(fused[order], confidence, labels[order])


def _assert_alike(ours: FusedBoxes, eager: FusedBoxes) -> None:
    torch.testing.assert_close(ours.scores, eager.scores, rtol=1e-4, atol=1e-6)


def cases(device: torch.device) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    for count in (10, 100, 500, 5_000):
        boxes, scores = (t.to(device) for t in _clustered(count, generator))
        for num_classes in (1, NUM_CLASSES):
            idxs = torch.randint(0, num_classes, (count,), generator=generator).to(device)
            yield Case(
                name=f"weighted_boxes_fusion {count} x {num_classes} classes",
                pydet=partial(weighted_boxes_fusion, boxes, scores, idxs, 3, IOU_THRESHOLD),
                eager=partial(_eager, boxes, scores, idxs, 3),
                peers={},
                num_bytes=num_bytes(boxes, scores, idxs) + 28 * count,
                check=_assert_alike,
                time_eager=count <= MOST_TIMED_EAGERLY,
                series=f"weighted_boxes_fusion, {num_classes} classes",
                size=count,
            )
