# SPDX-License-Identifier: Apache-2.0
"""matrix_nms against the formula on [N, N] matrices, as its paper prints it."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks._harness import Case, num_bytes
from benchmarks.bench_nms import NUM_CLASSES, _clustered, _sparse
from pydet.ops import DecayedKeep, box_iou, matrix_nms

SIGMA, SCORE_THRESHOLD = 0.5, 0.001


def _eager(boxes: Tensor, scores: Tensor, idxs: Tensor | None, method: str) -> DecayedKeep:
    scores, order = scores.sort(descending=True, stable=True)
    iou = box_iou(boxes[order], boxes[order])
    if idxs is not None:
        iou *= idxs[order][:, None] == idxs[order]
    iou = iou.triu(diagonal=1)  # [better, worse]
    peaks = iou.amax(0)[:, None]
    if method == "linear":
        ratios = (1 - iou) / (1 - peaks)
    else:
        ratios = torch.exp(-(iou * iou - peaks * peaks) / SIGMA)
    decayed, second = (scores * ratios.amin(0)).sort(descending=True, stable=True)
    count = int((decayed > SCORE_THRESHOLD).sum())
    return DecayedKeep(order[second[:count]], decayed[:count])


def _assert_alike(ours: DecayedKeep, eager: DecayedKeep) -> None:
    torch.testing.assert_close(ours.scores, eager.scores, rtol=1e-4, atol=1e-6)


def cases(device: torch.device) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    for name, make in (("clustered", _clustered), ("sparse", _sparse)):
        for count in (10, 100, 1_000, 5_000):
            boxes, scores = (t.to(device) for t in make(count, generator))
            for method in ("linear", "gaussian"):
                yield Case(
                    name=f"matrix_nms {method} {name} {count}",
                    pydet=partial(matrix_nms, boxes, scores, None, method),
                    eager=partial(_eager, boxes, scores, None, method),
                    peers={},
                    num_bytes=num_bytes(boxes, scores) + 12 * count,
                    check=_assert_alike,
                    series=f"matrix_nms {method} {name}",
                    size=count,
                )
    boxes, scores = (t.to(device) for t in _clustered(5_000, generator))
    idxs = torch.randint(0, NUM_CLASSES, (5_000,), generator=generator).to(device)
    yield Case(
        name=f"matrix_nms gaussian 5000 x {NUM_CLASSES} classes",
        pydet=partial(matrix_nms, boxes, scores, idxs),
        eager=partial(_eager, boxes, scores, idxs, "gaussian"),
        peers={},
        num_bytes=num_bytes(boxes, scores, idxs) + 12 * 5_000,
        check=_assert_alike,
    )
