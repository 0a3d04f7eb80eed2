# SPDX-License-Identifier: Apache-2.0
"""varifocal_loss: one image's locations, forward and with its gradient."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._harness import Case, num_bytes
from benchmarks.bench_focal_loss import check, exponentials, forward, gradient, rival
from pydet.ops import varifocal_loss


def _inputs(rows: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits of an early network, and targets of which one row in a hundred has one."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, 80, generator=generator) * 2 - 4
    targets = torch.zeros(rows, 80)
    positive = torch.arange(0, rows, 100)
    targets[positive, positive % 80] = torch.rand(len(positive), generator=generator)
    return logits.to(device, dtype), targets.to(device, dtype)


def _eager(inputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
    x, t = inputs.float(), targets.float()
    weight = torch.where(t > 0, t, 0.75 * x.sigmoid() ** 2)
    loss = F.binary_cross_entropy_with_logits(x, t, reduction="none") * weight
    return (loss.sum() if reduction == "sum" else loss).to(inputs.dtype)


def cases(device: torch.device) -> Iterator[Case]:
    # VFNet at 800 x 1333: 22,400 locations, 80 classes, and a batch of eight of them.
    for rows, dtype in (
        (10, torch.float32),
        (1_000, torch.float32),
        (22_400, torch.float32),
        (179_200, torch.float32),
        (179_200, torch.bfloat16),
    ):
        inputs, targets = _inputs(rows, device, dtype)
        size = f"{rows} x 80 {str(dtype).removeprefix('torch.')}"
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
                pydet=make(varifocal_loss, inputs, targets, reduction),
                eager=make(_eager, inputs, targets, reduction),
                peers=rival(_eager, make, inputs, targets, reduction),
                num_bytes=moved,
                arithmetic=exponentials(inputs),
                check=check,
                series=name if dtype == torch.float32 else "",
                size=rows if dtype == torch.float32 else 0,
            )
