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


def cells_bytes(features: Tensor, rois: Tensor, scale: float) -> int:
    """Bytes of the cells under the regions [R, 5], at most those of the map."""
    sides = ((rois[:, 3:] - rois[:, 1:3]) * scale).clamp(min=1)
    cells = int(sides.prod(1).sum().item())
    return min(num_bytes(features), cells * features.shape[1] * features.element_size())


def _spans(low: float, high: float, size: int, limit: int) -> list[tuple[int, int]]:
    """First cell and end of each bin; in float32, whose rounding is part of the definition."""
    start = int(low + 0.5)
    steps = torch.arange(size + 1, dtype=torch.float32)
    length = torch.tensor(max(int(high + 0.5) - start + 1, 1), dtype=torch.float32) / size
    firsts = ((steps[:-1] * length).floor() + start).clamp(0, limit)
    ends = ((steps[1:] * length).ceil() + start).clamp(0, limit)
    return [(int(first), int(end)) for first, end in zip(firsts, ends, strict=True)]


def _largest(x: Tensor, spans: list[tuple[int, int]], dim: int) -> tuple[Tensor, Tensor]:
    """Largest values of each span along `dim`, and where they are; -inf without a cell."""
    values, places = [], []
    for first, end in spans:
        if first < end:
            value, place = x.narrow(dim, first, end - first).max(dim)
        else:
            value = torch.full_like(x.select(dim, 0), -torch.inf)
            place = torch.zeros_like(value, dtype=torch.int64)
        values.append(value)
        places.append(place + first)
    return torch.stack(values, dim), torch.stack(places, dim)


def eager_roi_pool(features: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """Of one image, region by region: maxima of its rows of bins, then of their columns.

    That finds the cells; they are taken from the map all at once, because the gradient of each cut
    would be as large as the map.
    """
    height, width = features.shape[2:]
    cells = []
    for _, x1, y1, x2, y2 in (rois * rois.new_tensor([1] + [scale] * 4)).tolist():
        below, rows = _largest(features.detach()[0], _spans(y1, y2, size, height), 1)  # [C, P, W]
        values, columns = _largest(below, _spans(x1, x2, size, width), 2)  # [C, P, P]
        found = rows.gather(2, columns.clamp(max=width - 1)) * width + columns
        cells.append(torch.where(values == -torch.inf, -1, found))  # -1: a bin without a cell
    places = torch.stack(cells, 1).flatten(1)  # [C, R P P]
    pooled = features[0].flatten(1).gather(1, places.clamp(min=0))
    return torch.where(places < 0, 0, pooled).unflatten(1, (-1, size, size)).transpose(0, 1)


def with_gradient(pool: Call, features: Tensor) -> Call:
    """The call and its backward, whose incoming gradient is the result itself."""

    def call() -> Tensor:
        features.grad = None
        pooled = pool()
        pooled.backward(pooled.detach())
        assert features.grad is not None
        return features.grad

    return call


def _assert_sums_close(ours: Tensor, eager: Tensor) -> None:
    """The gradient of a cell is a sum over hundreds of bins, in another order."""
    torch.testing.assert_close(ours, eager, rtol=1e-5, atol=1e-5)


def cases(device: torch.device) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    # An 800 x 1216 image: FPN's P2 with 1000 proposals, and Faster R-CNN on conv4 with 300.
    for name, channels, stride, count, size in (
        ("fpn", 256, 4, 1, 7),
        ("fpn", 256, 4, 30, 7),
        ("fpn", 256, 4, 1000, 7),
        ("c4", 1024, 16, 300, 14),
    ):
        shape = (1, channels, 800 // stride, 1216 // stride)
        features = torch.randn(shape, generator=generator)
        rois = random_rois(count, 800.0, 1216.0, generator).to(device)
        moved = cells_bytes(features, rois, 1 / stride) + count * channels * size * size * 4
        for layout in (torch.contiguous_format, torch.channels_last):
            x = features.to(device).contiguous(memory_format=layout).detach().requires_grad_()
            letters = "NCHW" if layout == torch.contiguous_format else "NHWC"

            def ours(x=x, rois=rois, size=size, stride=stride) -> Tensor:
                return roi_pool(x, rois, size, 1 / stride)

            def eager(x=x, rois=rois, size=size, stride=stride) -> Tensor:
                return eager_roi_pool(x, rois, size, 1 / stride)

            def theirs(ops, x=x, rois=rois, size=size, stride=stride) -> Call:
                return lambda: ops.roi_pool(x, rois, size, 1 / stride)

            yield Case(
                name=f"{name} {count} RoIs {letters}",
                pydet=ours,
                eager=eager,
                peers=peers(torchvision=theirs),
                num_bytes=moved,
                series=f"roi_pool 7 x 7 {letters}" if name == "fpn" else "",
                size=count,
                time_eager=False,
            )
            yield Case(
                name=f"{name} {count} RoIs {letters}, with gradient",
                pydet=with_gradient(ours, x),
                eager=with_gradient(eager, x),
                peers=peers(
                    torchvision=lambda ops, x=x, theirs=theirs: with_gradient(theirs(ops), x)
                ),
                num_bytes=2 * moved,
                check=_assert_sums_close,
                series=f"roi_pool 7 x 7 {letters}, with gradient" if name == "fpn" else "",
                size=count,
                time_eager=False,
            )
