# SPDX-License-Identifier: Apache-2.0
"""nms and batched_nms: boxes in clusters around objects, boxes that hardly meet, classes."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks._harness import Case, num_bytes, peers
from pydet.ops import batched_nms, box_iou, nms

IOU_THRESHOLD = 0.5
NUM_CLASSES = 80
# Above this the loop over rows of IoUs takes seconds a call; it still checks the result.
MOST_TIMED_EAGERLY = 5_000


def _clustered(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A detector's output: 25 boxes around each object, in a square of 1333 pixels."""
    objects = torch.randint(0, max(1, count // 25), (count,), generator=generator)
    corners = torch.rand(count, 2, generator=generator)[objects] * 1333
    sides = (torch.rand(count, 2, generator=generator) * 128 + 16)[objects]
    corners += torch.randn(count, 2, generator=generator) * sides * 0.1
    sides *= torch.exp(torch.randn(count, 2, generator=generator) * 0.1)
    return torch.cat([corners, corners + sides], 1), torch.rand(count, generator=generator)


def _sparse(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Boxes of side 5 in 1000 x 1000 pixels: most are kept."""
    corners = torch.rand(count, 2, generator=generator) * 1000
    return torch.cat([corners, corners + 5], 1), torch.rand(count, generator=generator)


def _eager(boxes: Tensor, scores: Tensor, idxs: Tensor | None = None) -> Tensor:
    """The definition, one row of IoUs for each kept box."""
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order]
    idxs = None if idxs is None else idxs[order]
    hidden = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    keep = []
    for i in range(len(boxes)):
        if hidden[i]:
            continue
        keep.append(i)
        hides = box_iou(boxes[i : i + 1], boxes[i + 1 :])[0] > IOU_THRESHOLD
        hidden[i + 1 :] |= hides if idxs is None else hides & (idxs[i + 1 :] == idxs[i])
    return order[keep]


def _assert_equal(ours: Tensor, eager: Tensor) -> None:
    assert torch.equal(ours, eager), "other boxes are kept"


def _rows(keep: Tensor, counts: Tensor) -> list[list[int]]:
    return [row[:count].tolist() for row, count in zip(keep, counts, strict=True)]


def cases(device: torch.device) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    for name, make in (("clustered", _clustered), ("sparse", _sparse)):
        for count in (10, 100, 1_000, 5_000, 20_000, 100_000):
            boxes, scores = (t.to(device) for t in make(count, generator))
            yield Case(
                name=f"nms {name} {count}",
                pydet=partial(nms, boxes, scores, IOU_THRESHOLD),
                eager=partial(_eager, boxes, scores),
                peers=peers(
                    torchvision=lambda ops, b=boxes, s=scores: partial(ops.nms, b, s, IOU_THRESHOLD)
                ),
                num_bytes=num_bytes(boxes, scores) + 8 * count,
                check=_assert_equal,
                time_eager=count <= MOST_TIMED_EAGERLY,
                series=f"nms {name}",
                size=count,
            )
    yield from _batched_cases(device, generator)


def _batched_cases(device: torch.device, generator: torch.Generator) -> Iterator[Case]:
    boxes, scores = (t.to(device) for t in _clustered(20_000, generator))
    idxs = torch.randint(0, NUM_CLASSES, (20_000,), generator=generator).to(device)
    yield Case(
        name=f"batched_nms 20000 x {NUM_CLASSES} classes",
        pydet=partial(batched_nms, boxes, scores, idxs, IOU_THRESHOLD),
        eager=partial(_eager, boxes, scores, idxs),
        peers=peers(
            torchvision=lambda ops: partial(ops.batched_nms, boxes, scores, idxs, IOU_THRESHOLD)
        ),
        num_bytes=num_bytes(boxes, scores, idxs) + 8 * 20_000,
        check=_assert_equal,
        time_eager=False,
    )
    images, count = 8, 5_000
    made = [_clustered(count, generator) for _ in range(images)]
    many = torch.stack([b for b, _ in made]).to(device)  # [B, N, 4]
    many_scores = torch.stack([s for _, s in made]).to(device)  # [B, N]
    many_idxs = torch.randint(0, NUM_CLASSES, (images, count), generator=generator).to(device)
    # Classes of different images are made different classes, as callers of torchvision do.
    apart = many_idxs + NUM_CLASSES * torch.arange(images, device=device)[:, None]
    padded = partial(batched_nms, many, many_scores, many_idxs, IOU_THRESHOLD, max_output=count)
    flat = (many.flatten(0, 1), many_scores.flatten(), apart.flatten(), IOU_THRESHOLD)
    yield Case(
        name=f"batched_nms {images} x {count} x {NUM_CLASSES} classes",
        pydet=padded,
        eager=lambda: [
            _eager(b, s, i).tolist() for b, s, i in zip(many, many_scores, many_idxs, strict=True)
        ],
        peers=peers(torchvision=lambda ops: partial(ops.batched_nms, *flat)),
        num_bytes=num_bytes(many, many_scores, many_idxs) + 8 * images * count,
        check=lambda ours, eager: _assert_rows_equal(_rows(*ours), eager),
        time_eager=False,
    )


def _assert_rows_equal(ours: list[list[int]], eager: list[list[int]]) -> None:
    assert ours == eager, "other boxes are kept"
