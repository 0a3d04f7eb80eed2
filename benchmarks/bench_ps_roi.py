# SPDX-License-Identifier: Apache-2.0
"""ps_roi_pool and ps_roi_align: the head of R-FCN, whose maps have 7 x 7 channels a class."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks._harness import Call, Case, peers
from benchmarks.bench_roi_pool import cells_bytes, random_rois, with_gradient
from pydet.ops import ps_roi_align, ps_roi_pool, roi_align

Pool = Callable[[Tensor], Tensor]


def eager_ps_roi_align(features: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """RoI align of all channels, then each bin's own picked: h w times the work."""
    aligned = roi_align(features, rois, size, scale, 2, aligned=True)
    bins = torch.arange(size * size, device=features.device).reshape(size, size)
    index = bins.expand(len(rois), features.shape[1] // (size * size), 1, size, size)
    return aligned.unflatten(1, (-1, size * size)).gather(2, index).squeeze(2)


def eager_ps_roi_pool(features: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """Means of one image's bins from sums over all cells above and to the left of each cell."""
    grouped = features[0].unflatten(0, (-1, size, size))[..., :-1, :-1]
    sums = torch.nn.functional.pad(grouped.double().cumsum(3).cumsum(4), (1, 0, 1, 0))
    steps = torch.arange(size + 1, device=rois.device)
    corners = (rois[:, 1:] * scale + 0.5).long()  # [R, 4]
    spans = []
    for axis, length in ((1, grouped.shape[3]), (0, grouped.shape[4])):
        start, extent = corners[:, axis, None], (corners[:, axis + 2] - corners[:, axis])[:, None]
        extent = extent.clamp(min=1)
        low = start + steps[:-1] * extent // size
        high = start - (-steps[1:] * extent // size)
        spans += [low.clamp(0, length), high.clamp(0, length)]  # [R, P] each
    top, bottom = (span[:, :, None] for span in spans[:2])
    left, right = (span[:, None, :] for span in spans[2:])
    row, column = steps[:-1, None], steps[:-1]  # the bin's own group of channels
    totals = (
        sums[:, row, column, bottom, right]
        - sums[:, row, column, top, right]
        - sums[:, row, column, bottom, left]
        + sums[:, row, column, top, left]
    )  # [C, R, P, P]
    cells = ((bottom - top) * (right - left)).clamp(min=1)
    return (totals / cells).to(features.dtype).transpose(0, 1)


def cases(device: torch.device) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    # 21 classes, stride 16, an 800 x 1216 image.
    features = torch.randn(1, 21 * 49, 50, 76, generator=generator).to(device).requires_grad_()
    for count in (10, 300, 1_000):
        yield from _cases(features, random_rois(count, 800.0, 1216.0, generator).to(device))


def _cases(features: Tensor, rois: Tensor) -> Iterator[Case]:
    # A bin reads one channel of 49.
    moved = cells_bytes(features[:, :21], rois, 1 / 16) + len(rois) * 21 * 49 * 4

    def case(name: str, ours: Pool, eager: Pool, theirs: Callable[..., Pool]) -> Iterator[Case]:
        def of(pool: Pool) -> Call:
            return partial(pool, features)

        yield Case(
            name=f"{name} {len(rois)} RoIs",
            pydet=of(ours),
            eager=of(eager),
            peers=peers(torchvision=lambda tv: of(theirs(tv))),
            num_bytes=moved,
            series=name,
            size=len(rois),
            time_eager=False,
        )
        yield Case(
            name=f"{name} {len(rois)} RoIs, with gradient",
            pydet=with_gradient(of(ours), features),
            eager=with_gradient(of(eager), features),
            peers=peers(torchvision=lambda tv: with_gradient(of(theirs(tv)), features)),
            num_bytes=2 * moved,
            series=f"{name}, with gradient",
            size=len(rois),
            time_eager=False,
        )

    yield from case(
        "ps_roi_pool",
        lambda x: ps_roi_pool(x, rois, 7, 1 / 16),
        lambda x: eager_ps_roi_pool(x, rois, 7, 1 / 16),
        lambda tv: lambda x: tv.ps_roi_pool(x, rois, 7, 1 / 16),
    )
    yield from case(
        "ps_roi_align",
        lambda x: ps_roi_align(x, rois, 7, 1 / 16, 2),
        lambda x: eager_ps_roi_align(x, rois, 7, 1 / 16),
        lambda tv: lambda x: tv.ps_roi_align(x, rois, 7, 1 / 16, 2),
    )
