# SPDX-License-Identifier: Apache-2.0
"""roi_align and multiscale_roi_align: heads of Faster R-CNN on a pyramid and on a C4 trunk."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from benchmarks._harness import Call, Case, num_bytes, peers
from benchmarks.bench_roi_pool import cells_bytes
from pydet.ops import multiscale_roi_align, roi_align

Align = Callable[[Tensor], Tensor]


def _boxes(
    count: int, sides: tuple[float, float], device: torch.device, generator: torch.Generator
) -> Tensor:
    """[count, 5] of image 0, 800 x 1088 pixels, with sides that are uniform on a log scale."""
    low, high = torch.tensor(sides).log()
    side = (torch.rand(count, 2, generator=generator) * (high - low) + low).exp()
    corner = torch.rand(count, 2, generator=generator) * (torch.tensor([1088.0, 800.0]) - side)
    corner = corner.clamp(min=0)
    return torch.cat([torch.zeros(count, 1), corner, corner + side], 1).to(device)


def eager_roi_align(features: Tensor, boxes: Tensor, size: int, scale: float) -> Tensor:
    """Two samples a bin and axis by torch's own sampler; boxes within the one image."""
    height, width = features.shape[2:]
    start = boxes[:, 1:3] * scale
    extent = (boxes[:, 3:5] * scale - start).clamp(min=1)
    steps = (torch.arange(2 * size, device=boxes.device) + 0.5) / (2 * size)
    x = (start[:, :1] + extent[:, :1] * steps) * 2 / (width - 1) - 1
    y = (start[:, 1:] + extent[:, 1:] * steps) * 2 / (height - 1) - 1
    count = len(boxes)
    grid = torch.stack(
        [x[:, None].expand(-1, 2 * size, -1), y[:, :, None].expand(-1, -1, 2 * size)], dim=-1
    )
    # All boxes in one tall grid, so that the map is not repeated.
    sampled = grid_sample(
        features, grid.reshape(1, -1, 2 * size, 2), align_corners=True, padding_mode="border"
    )
    pooled = torch.nn.functional.avg_pool2d(sampled, 2)
    return pooled.reshape(features.shape[1], count, size, size).transpose(0, 1)


def _with_gradient(align: Align, features: Tensor) -> tuple[Tensor, Tensor]:
    leaf = features.detach().requires_grad_()
    result = align(leaf)
    result.backward(torch.ones_like(result))
    assert leaf.grad is not None
    return result.detach(), leaf.grad


def _assert_close(ours: Any, eager: Any) -> None:
    torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-3)


def _regions(
    features: Tensor, boxes: Tensor, layout: str, gradients: bool, series: str = ""
) -> Case:
    """7 x 7 bins of two by two samples on a map of stride 4."""

    def call(align: Callable[..., Tensor], *grid: int) -> Call:
        def of(x: Tensor) -> Tensor:
            return align(x, boxes, 7, 0.25, *grid)

        return (lambda: _with_gradient(of, features)) if gradients else (lambda: of(features))

    moved = cells_bytes(features, boxes, 0.25) + len(boxes) * features.shape[1] * 49 * 4
    shape = " x ".join(map(str, features.shape[1:]))
    return Case(
        name=f"{shape}, {len(boxes)} RoIs, 7 x 7, {layout}{', with gradient' * gradients}",
        pydet=call(roi_align, 2),
        eager=call(eager_roi_align),
        peers=peers(torchvision=lambda ops: call(ops.roi_align, 2)),
        num_bytes=(1 + gradients) * moved,
        check=_assert_close,
        series=series,
        size=len(boxes) if series else 0,
    )


def _single_level(device: torch.device, generator: torch.Generator) -> Iterator[Case]:
    features = torch.randn(1, 256, 200, 272, generator=generator).to(device)
    last = features.contiguous(memory_format=torch.channels_last)
    for count in (1, 16, 128, 512, 2_000):
        boxes = _boxes(count, (16, 256), device, generator)
        for layout, x in (("NCHW", features), ("NHWC", last)):
            yield _regions(x, boxes, layout, False, f"roi_align 7 x 7 {layout}")
            if count == 512:
                yield _regions(x, boxes, layout, True)


def _c4(device: torch.device, generator: torch.Generator) -> Iterator[Case]:
    features = torch.randn(1, 1024, 50, 84, generator=generator).to(device)
    boxes = _boxes(256, (64, 512), device, generator)
    size = num_bytes(boxes, features) + 256 * 1024 * 196 * 4
    # The adaptive grid has no short formula in torch; the other layout's path is the check.
    last = features.contiguous(memory_format=torch.channels_last)
    yield Case(
        name="1024 x 50 x 84, 256 RoIs, 14 x 14, adaptive",
        pydet=lambda: roi_align(features, boxes, 14, 1 / 16),
        eager=lambda: roi_align(last, boxes, 14, 1 / 16),
        peers=peers(torchvision=lambda ops: lambda: ops.roi_align(features, boxes, 14, 1 / 16)),
        num_bytes=size,
        time_eager=False,
    )
    yield Case(
        name="1024 x 50 x 84, 256 RoIs, 14 x 14, adaptive, with gradient",
        pydet=lambda: _with_gradient(lambda f: roi_align(f, boxes, 14, 1 / 16), features),
        eager=lambda: _with_gradient(lambda f: roi_align(f, boxes, 14, 1 / 16), last),
        peers=peers(
            torchvision=lambda ops: (
                lambda: _with_gradient(lambda f: ops.roi_align(f, boxes, 14, 1 / 16), features)
            )
        ),
        num_bytes=2 * size,
        check=_assert_close,
        time_eager=False,
    )


def _levels(device: torch.device, generator: torch.Generator) -> Iterator[Case]:
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    maps = [
        torch.randn(1, 256, int(800 * s), int(1088 * s), generator=generator).to(device)
        for s in scales
    ]
    boxes = _boxes(1000, (16, 700), device, generator)
    size = num_bytes(boxes, *maps) + 1000 * 256 * 49 * 4

    def eager(maps: list[Tensor]) -> Tensor:
        sides = (boxes[:, 3:] - boxes[:, 1:3]).prod(1).sqrt()
        levels = (4 + (sides / 224).log2() + 1e-6).floor().clamp(2, 5) - 2
        result = boxes.new_empty(len(boxes), 256, 7, 7)
        for level, (features, scale) in enumerate(zip(maps, scales, strict=True)):
            chosen = levels == level
            result[chosen] = eager_roi_align(features, boxes[chosen], 7, scale)
        return result

    planes, last = torch.contiguous_format, torch.channels_last
    for name, layout, result in (
        ("NCHW", planes, planes),
        ("NHWC", last, last),
        ("NHWC to NCHW", last, planes),  # for a head that flattens the regions
    ):
        xs = [x.contiguous(memory_format=layout) for x in maps]

        def ours(xs: list[Tensor], result: torch.memory_format = result) -> Tensor:
            return multiscale_roi_align(xs, boxes, 7, scales, 2, memory_format=result)

        def theirs(ops: Any) -> Callable[[list[Tensor]], Tensor]:
            pooler = ops.MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)

            def pool(maps: list[Tensor]) -> Tensor:
                named = {str(i): x for i, x in enumerate(maps)}
                return pooler(named, [boxes[:, 1:]], [(800, 1088)])  # type: ignore[no-any-return]

            return pool

        yield Case(
            name=f"4 levels, 1000 RoIs, 7 x 7, {name}",
            pydet=partial(ours, xs),
            eager=partial(eager, xs),
            peers=peers(torchvision=lambda ops, xs=xs: partial(theirs(ops), xs)),
            num_bytes=size,
            check=_assert_close,
        )
        yield Case(
            name=f"4 levels, 1000 RoIs, 7 x 7, {name}, with gradient",
            pydet=_with_gradients(ours, xs),
            eager=_with_gradients(eager, xs),
            peers=peers(torchvision=lambda ops, xs=xs: _with_gradients(theirs(ops), xs)),
            num_bytes=2 * size,
            check=_assert_close,
        )


def _with_gradients(pool: Callable[[list[Tensor]], Tensor], maps: list[Tensor]) -> Call:
    leaves = [x.detach().requires_grad_() for x in maps]
    return lambda: torch.autograd.grad(pool(leaves).sum(), leaves)


def cases(device: torch.device) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    yield from _single_level(device, generator)
    yield from _c4(device, generator)
    yield from _levels(device, generator)
