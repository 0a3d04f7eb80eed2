# SPDX-License-Identifier: Apache-2.0
"""roi_pool: regions of one level of a pyramid, and of a single stride-16 map."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks._harness import Call, Case, num_bytes, peers
from pydet.ops import roi_pool


def random_rois(count: int, height: float, width: float, generator: torch.Generator) -> Tensor:
    """[count, 5] boxes in one image, sides 20 to 400 pixels, small ones more often."""
    sides = torch.exp(torch.rand(count, 2, generator=generator) * 3 + 3)
    centres = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    corners = torch.cat([centres - sides / 2, centres + sides / 2], 1).clamp(min=0)
    corners = torch.minimum(corners, torch.tensor([width, height] * 2))
    return torch.cat([torch.zeros(count, 1), corners], 1)


def eager_roi_pool(features: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """As a user would write it: each region cut out and given to adaptive max pooling."""
    results = []
    for image, x1, y1, x2, y2 in (rois * torch.tensor([1] + [scale] * 4)).tolist():
        first, last = (int(y1 + 0.5), int(x1 + 0.5)), (int(y2 + 0.5), int(x2 + 0.5))
        region = features[int(image), :, first[0] : last[0] + 1, first[1] : last[1] + 1]
        region = torch.nn.functional.pad(
            region,
            (
                0,
                last[1] + 1 - first[1] - region.shape[2],
                0,
                last[0] + 1 - first[0] - region.shape[1],
            ),
            value=-torch.inf,
        )
        results.append(torch.nn.functional.adaptive_max_pool2d(region, size))
    pooled = torch.stack(results)
    return torch.where(pooled == -torch.inf, 0.0, pooled)


def with_gradient(pool: Call, features: Tensor) -> Call:
    """The call and its backward, whose incoming gradient is the result itself."""

    def call() -> Tensor:
        features.grad = None
        pooled = pool()
        pooled.backward(pooled.detach())
        assert features.grad is not None
        return features.grad

    return call


def cases(device: torch.device) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    # An 800 x 1216 image: FPN's P2 with 1000 proposals, and Faster R-CNN on conv4 with 300.
    for name, channels, stride, count, size in (
        ("fpn", 256, 4, 1000, 7),
        ("c4", 1024, 16, 300, 14),
    ):
        shape = (1, channels, 800 // stride, 1216 // stride)
        features = torch.randn(shape, generator=generator)
        rois = random_rois(count, 800.0, 1216.0, generator).to(device)
        moved = num_bytes(features) + count * channels * size * size * 4
        for layout in (torch.contiguous_format, torch.channels_last):
            x = features.to(device).contiguous(memory_format=layout).requires_grad_()
            letters = "NCHW" if layout == torch.contiguous_format else "NHWC"

            def ours(x=x, rois=rois, size=size, stride=stride) -> Tensor:
                return roi_pool(x, rois, size, 1 / stride)

            def eager(x=x, rois=rois, size=size, stride=stride) -> Tensor:
                return eager_roi_pool(x, rois, size, 1 / stride)

            def theirs(ops, x=x, rois=rois, size=size, stride=stride) -> Call:
                return lambda: ops.roi_pool(x, rois, size, 1 / stride)

            yield Case(
                name=f"{name} {letters} forward",
                pydet=ours,
                eager=eager,
                peers=peers(torchvision=theirs),
                num_bytes=moved,
                time_eager=False,
            )
            yield Case(
                name=f"{name} {letters} forward, backward",
                pydet=with_gradient(ours, x),
                eager=with_gradient(eager, x),
                peers=peers(
                    torchvision=lambda ops, x=x, theirs=theirs: with_gradient(theirs(ops), x)
                ),
                num_bytes=2 * moved,
                time_eager=False,
            )
