# SPDX-License-Identifier: Apache-2.0
"""encode_boxes and decode_boxes: all anchors of a batch, and the best thousand of each level."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks._harness import Case, compiled, num_bytes, peers
from pydet.ops import decode_boxes, encode_boxes

_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


def _boxes(count: int, device: torch.device, generator: torch.Generator) -> Tensor:
    """[count, 4] xyxy of sides 4 to 260 in a square of 1333 pixels."""
    corners = torch.rand(count, 2, generator=generator) * 1333
    sides = torch.rand(count, 2, generator=generator) * 256 + 4
    return torch.cat([corners, corners + sides], 1).to(device)


def _encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    size, size_a = boxes[:, 2:] - boxes[:, :2], anchors[:, 2:] - anchors[:, :2]
    centre, centre_a = boxes[:, :2] + 0.5 * size, anchors[:, :2] + 0.5 * size_a
    return torch.cat([(centre - centre_a) / size_a, (size / size_a).log()], 1)


def _decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    size = anchors[:, 2:] - anchors[:, :2]
    centre = deltas[:, :2] * size + anchors[:, :2] + 0.5 * size
    half = 0.5 * deltas[:, 2:].clamp(max=math.log(1000 / 16)).exp() * size
    return torch.cat([centre - half, centre + half], 1)


def _check(ours: Tensor, eager: Tensor) -> None:
    torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-3)


def _coder():
    from torchvision.models.detection._utils import BoxCoder

    return BoxCoder(_WEIGHTS)


def cases(device: torch.device) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    for count in (10, 1_000, 5_000, 201_600, 1_612_800):
        boxes, anchors = (_boxes(count, device, generator) for _ in range(2))
        deltas = torch.randn(count, 4, generator=generator).to(device) * 0.2
        yield Case(
            name=f"encode_boxes {count}",
            pydet=lambda b=boxes, a=anchors: encode_boxes(b, a),
            eager=lambda b=boxes, a=anchors: _encode(b, a),
            peers=peers(
                torchvision=lambda _, b=boxes, a=anchors: lambda: _coder().encode_single(b, a),
                compile=lambda _, b=boxes, a=anchors: lambda: compiled(_encode)(b, a),
            ),
            num_bytes=num_bytes(boxes, anchors, deltas),
            check=_check,
            series="encode_boxes",
            size=count,
        )
        yield Case(
            name=f"decode_boxes {count}",
            pydet=lambda d=deltas, a=anchors: decode_boxes(d, a),
            eager=lambda d=deltas, a=anchors: _decode(d, a),
            peers=peers(
                torchvision=lambda _, d=deltas, a=anchors: lambda: _coder().decode_single(d, a),
                compile=lambda _, d=deltas, a=anchors: lambda: compiled(_decode)(d, a),
            ),
            num_bytes=num_bytes(boxes, anchors, deltas),
            check=_check,
            series="decode_boxes",
            size=count,
        )
