# SPDX-License-Identifier: Apache-2.0
"""softmax_focal_loss: the default boxes of SSD, RoIs, and the classes of YOLO9000."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._harness import Case, num_bytes
from benchmarks.bench_focal_loss import check, forward, gradient, rival
from pydet.ops import softmax_focal_loss


def _inputs(
    rows: int, classes: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Logits, and targets of which one in twenty is an object."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, classes, generator=generator) * 2
    targets = torch.randint(0, classes - 1, (rows,), generator=generator)
    targets[torch.rand(rows, generator=generator) > 0.05] = -1
    return logits.to(device, dtype), targets.to(device)


def _eager(inputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
    columns = torch.where(targets < 0, inputs.shape[-1] - 1, targets)
    log_p = F.log_softmax(inputs, dim=-1, dtype=torch.float32).gather(-1, columns[:, None])[:, 0]
    loss = -((1 - log_p.exp()) ** 2) * log_p
    loss = torch.where(targets < 0, 0.75, 0.25) * loss
    return (loss.sum() if reduction == "sum" else loss).to(inputs.dtype)


def cases(device: torch.device) -> Iterator[Case]:
    # A batch of 16 images of SSD300; 8 x 512 RoIs; one image's 845 boxes of YOLO9000.
    sizes = [
        (16 * 8732, 21, torch.float32),
        (10, 81, torch.float32),
        (1_000, 81, torch.float32),
        (8732, 81, torch.float32),
        (16 * 8732, 81, torch.float32),
        (16 * 8732, 81, torch.bfloat16),
        (8 * 512, 91, torch.float32),
        (845, 9419, torch.float32),
    ]
    for rows, classes, dtype in sizes:
        inputs, targets = _inputs(rows, classes, device, dtype)
        series = classes == 81 and dtype == torch.float32
        size = f"{rows} x {classes} {str(dtype).removeprefix('torch.')}"
        read = num_bytes(inputs, targets)
        for name, make, moved in (
            ("sum", forward, read),
            ("sum and gradient", gradient, 2 * read + num_bytes(inputs)),
        ):
            yield Case(
                name=f"{name}, {size}",
                pydet=make(softmax_focal_loss, inputs, targets, "sum"),
                eager=make(_eager, inputs, targets, "sum"),
                peers=rival(_eager, make, inputs, targets, "sum"),
                num_bytes=moved,
                arithmetic=("exp", inputs.numel()),
                check=check,
                series=f"{name}, {classes} classes" if series else "",
                size=rows,
            )
