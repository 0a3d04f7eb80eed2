# SPDX-License-Identifier: Apache-2.0
"""ps_roi_pool and ps_roi_align: the head of R-FCN, whose maps have 7 x 7 channels a class."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks._harness import Call, Case, num_bytes, peers
from benchmarks.bench_roi_pool import random_rois, with_gradient
from pydet.ops import ps_roi_align, ps_roi_pool, roi_align

Pool = Callable[[Tensor], Tensor]


def eager_ps_roi_align(features: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """RoI align of all channels, then each bin's own picked: h w times the work."""
    aligned = roi_align(features, rois, size, scale, 2, aligned=True)
    bins = torch.arange(size * size, device=features.device).reshape(size, size)
    index = bins.expand(len(rois), features.shape[1] // (size * size), 1, size, size)
    return aligned.unflatten(1, (-1, size * size)).gather(2, index).squeeze(2)


def eager_ps_roi_pool(features: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """Each bin cut out and averaged."""
    results = features.new_zeros(len(rois), features.shape[1] // (size * size), size, size)
    grouped = features.unflatten(1, (-1, size, size))[..., :-1, :-1]
    for r, (image, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (int(corner * scale + 0.5) for corner in corners)
        height, width = max(y2 - y1, 1), max(x2 - x1, 1)
        for ph in range(size):
            top, bottom = y1 + ph * height // size, y1 - (-(ph + 1) * height // size)
            for pw in range(size):
                left, right = x1 + pw * width // size, x1 - (-(pw + 1) * width // size)
                cells = grouped[int(image), :, ph, pw, top:bottom, left:right]
                if cells.numel():
                    results[r, :, ph, pw] = cells.mean((1, 2))
    return results


def cases(device: torch.device) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    # 21 classes, stride 16, an 800 x 1216 image.
    features = torch.randn(1, 21 * 49, 50, 76, generator=generator).to(device).requires_grad_()
    rois = random_rois(300, 800.0, 1216.0, generator).to(device)
    moved = num_bytes(features) + 300 * 21 * 49 * 4

    def case(name: str, ours: Pool, eager: Pool, theirs: Callable[..., Pool]) -> Iterator[Case]:
        def of(pool: Pool) -> Call:
            return partial(pool, features)

        yield Case(
            name=f"{name} forward",
            pydet=of(ours),
            eager=of(eager),
            peers=peers(torchvision=lambda tv: of(theirs(tv))),
            num_bytes=moved,
            time_eager=False,
        )
        yield Case(
            name=f"{name} forward, backward",
            pydet=with_gradient(of(ours), features),
            eager=with_gradient(of(eager), features),
            peers=peers(torchvision=lambda tv: with_gradient(of(theirs(tv)), features)),
            num_bytes=2 * moved,
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
