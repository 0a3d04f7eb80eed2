# SPDX-License-Identifier: Apache-2.0
"""heatmap_focal_loss: a batch of heatmaps, forward and with its gradient."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._harness import Case, num_bytes
from benchmarks.bench_focal_loss import check, exponentials, forward, gradient, rival
from pydet.ops import heatmap_focal_loss


def _inputs(images: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits of an early network, and Gaussians of seven objects a class and image, about."""
    generator = torch.Generator().manual_seed(0)
    shape = (images, 80, 128, 128)
    logits = torch.randn(shape, generator=generator) - 3
    peaks = (torch.rand(shape, generator=generator) > 0.9995).float()
    kernel = torch.exp(-((torch.arange(9.0) - 4) ** 2) / 6)
    kernel = (kernel[:, None] * kernel).reshape(1, 1, 9, 9)
    around = F.conv2d(peaks.flatten(0, 1)[:, None], kernel, padding=4).reshape(shape)
    targets = torch.where(peaks == 1, peaks, around.clamp(max=0.9))
    return logits.to(device, dtype), targets.to(device, dtype)


def _eager(inputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
    p = inputs.sigmoid()
    peaks = -((1 - p) ** 2) * F.logsigmoid(inputs)
    others = -((1 - targets) ** 4) * p**2 * F.logsigmoid(-inputs)
    loss = torch.where(targets == 1, peaks, others)
    return loss.sum() if reduction == "sum" else loss


def cases(device: torch.device) -> Iterator[Case]:
    # CenterNet at 512 x 512: 80 maps of 128 x 128.
    for images, dtype in (
        (1, torch.float32),
        (4, torch.float32),
        (16, torch.float32),
        (16, torch.bfloat16),
    ):
        inputs, targets = _inputs(images, device, dtype)
        size = f"{images} x 80 x 128 x 128 {str(dtype).removeprefix('torch.')}"
        for name, make, reduction in (
            ("sum", forward, "sum"),
            ("none", forward, "none"),
            ("sum and gradient", gradient, "sum"),
        ):
            read = num_bytes(inputs, targets)
            moved = {"sum": read, "none": read + num_bytes(inputs)}.get(
                name, 2 * read + num_bytes(inputs)
            )
            yield Case(
                name=f"{name}, {size}",
                pydet=make(heatmap_focal_loss, inputs, targets, reduction),
                eager=make(_eager, inputs, targets, reduction),
                peers=rival(_eager, make, inputs, targets, reduction),
                num_bytes=moved,
                arithmetic=exponentials(inputs),
                check=check,
                series=name if dtype == torch.float32 else "",
                size=images if dtype == torch.float32 else 0,
            )
