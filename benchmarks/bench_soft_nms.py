# SPDX-License-Identifier: Apache-2.0
"""soft_nms and batched_soft_nms: the boxes of bench_nms, both kinds of decay.

The eager formula is the loop of mmcv's kernel (and of the paper's code) on torch tensors: in each
round the best box is found and the scores of all that are left are lowered.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks._harness import Case, num_bytes
from benchmarks.bench_nms import NUM_CLASSES, _clustered, _sparse
from pydet.ops import DecayedKeep, batched_soft_nms, box_iou, soft_nms

IOU_THRESHOLD, SIGMA, SCORE_THRESHOLD = 0.3, 0.5, 0.001
MOST_TIMED_EAGERLY = 1_000


def _eager(boxes: Tensor, scores: Tensor, method: str, idxs: Tensor | None = None) -> DecayedKeep:
    left = torch.arange(len(boxes), device=boxes.device)
    keep, decayed = [], []
    while True:
        chosen = scores > SCORE_THRESHOLD
        left, scores = left[chosen], scores[chosen]
        if len(left) == 0:
            break
        best = scores.argmax()
        index = left[best]
        keep.append(index)
        decayed.append(scores[best])
        iou = box_iou(boxes[index][None], boxes[left])[0]
        if idxs is not None:
            iou = iou * (idxs[left] == idxs[index])
        if method == "linear":
            weight = torch.where(iou >= IOU_THRESHOLD, 1 - iou, 1.0)
        else:
            weight = torch.exp(-(iou * iou) / SIGMA)
        scores = scores * weight
        scores[best] = 0
    return DecayedKeep(torch.stack(keep), torch.stack(decayed))


def _assert_alike(ours: DecayedKeep, eager: DecayedKeep) -> None:
    """The scores; where two are equal up to rounding either may come first."""
    assert len(ours.keep) == len(eager.keep), "not as many boxes"
    torch.testing.assert_close(ours.scores, eager.scores, rtol=1e-4, atol=1e-6)
    shared = torch.isin(ours.keep, eager.keep).float().mean().item()
    assert shared > 0.999, "other boxes are kept"


def cases(device: torch.device) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    for name, make in (("clustered", _clustered), ("sparse", _sparse)):
        for count in (10, 100, 1_000, 5_000, 20_000):
            boxes, scores = (t.to(device) for t in make(count, generator))
            for method in ("linear", "gaussian"):
                yield Case(
                    name=f"soft_nms {method} {name} {count}",
                    pydet=partial(soft_nms, boxes, scores, method),
                    eager=partial(_eager, boxes, scores, method),
                    peers={},
                    num_bytes=num_bytes(boxes, scores) + 12 * count,
                    check=_assert_alike,
                    time_eager=count <= MOST_TIMED_EAGERLY,
                    series=f"soft_nms {method} {name}",
                    size=count,
                )
    count = 5_000
    boxes, scores = (t.to(device) for t in _clustered(count, generator))
    idxs = torch.randint(0, NUM_CLASSES, (count,), generator=generator).to(device)
    for method in ("linear", "gaussian"):
        yield Case(
            name=f"batched_soft_nms {method} {count} x {NUM_CLASSES} classes",
            pydet=partial(batched_soft_nms, boxes, scores, idxs, method),
            eager=partial(_eager, boxes, scores, method, idxs),
            peers={},
            num_bytes=num_bytes(boxes, scores, idxs) + 12 * count,
            check=_assert_alike,
            time_eager=False,
        )
