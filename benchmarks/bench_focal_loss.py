# SPDX-License-Identifier: Apache-2.0
"""sigmoid_focal_loss: one image's anchors, with dense targets and with labels, and its gradient."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._harness import Call, Case, compiled, num_bytes, peers
from pydet.ops import sigmoid_focal_loss

Loss = Callable[..., Tensor]


def _inputs(
    rows: int, classes: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of an early network, labels of which one in a hundred is an object, and one-hot."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, classes, generator=generator) * 2 - 4
    labels = torch.randint(0, classes, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) > 0.01] = -1
    dense = F.one_hot(labels + 1, classes + 1)[:, 1:]
    return logits.to(device, dtype), labels.to(device), dense.to(device, dtype)


def _eager(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2,
    reduction: str = "sum",
) -> Tensor:
    p = torch.sigmoid(inputs)
    cross_entropy = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    p_t = p * targets + (1 - p) * (1 - targets)
    loss = cross_entropy * (1 - p_t) ** gamma
    loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    return loss.sum() if reduction == "sum" else loss


def forward(loss: Loss, inputs: Tensor, targets: Tensor, reduction: str) -> Callable[[], Tensor]:
    return lambda: loss(inputs, targets, reduction=reduction)


def gradient(loss: Loss, inputs: Tensor, targets: Tensor, _: str) -> Callable[[], Tensor]:
    leaf = inputs.detach().clone().requires_grad_()

    def call() -> Tensor:
        return torch.autograd.grad(loss(leaf, targets, reduction="sum"), leaf)[0]

    return call


def rival(formula: Loss, make: Callable[..., Call], *args: object) -> dict[str, Call]:
    """torch.compile of the formula, for peers(); float32 alone, which is enough to compare with."""
    return {"compile": make(compiled(formula), *args)} if args[0].dtype == torch.float32 else {}


def exponentials(inputs: Tensor) -> tuple[str, float]:
    """What a sigmoid loss has to compute: an exponential and a logarithm, as dear as one."""
    return "exp", 2.0 * inputs.numel()


def check(ours: Tensor, eager: Tensor) -> None:
    # The formula adds up in the dtype and forms 1 - p_t by subtraction.
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 2e-2}[ours.dtype]
    torch.testing.assert_close(ours, eager, rtol=tolerance, atol=tolerance * 1e-2)


def cases(device: torch.device) -> Iterator[Case]:
    # RetinaNet at 800 x 1333 has 200,000 anchors and 80 classes.
    sizes = [
        (10, 80, torch.float32),
        (2_000, 80, torch.float32),
        (20_000, 80, torch.float32),
        (200_000, 80, torch.float32),
        (200_000, 80, torch.bfloat16),
    ]
    if device.type == "cuda":
        sizes.append((1_000_000, 80, torch.float32))
    for rows, classes, dtype in sizes:
        inputs, labels, dense = _inputs(rows, classes, device, dtype)
        series = dtype == torch.float32
        size = f"{rows} x {classes} {str(dtype).removeprefix('torch.')}"
        for form, targets in (("dense", dense), ("labels", labels)):
            read = num_bytes(inputs, targets)
            for name, make, reduction, moved in (
                ("sum", forward, "sum", read),
                ("none", forward, "none", read + num_bytes(inputs)),
                ("sum and gradient", gradient, "sum", 2 * read + num_bytes(inputs)),
            ):
                yield Case(
                    name=f"{name}, {form}, {size}",
                    pydet=make(sigmoid_focal_loss, inputs, targets, reduction),
                    eager=make(_eager, inputs, dense, reduction),
                    peers=peers(
                        torchvision=lambda ops, m=make, i=inputs, d=dense, r=reduction: m(
                            ops.sigmoid_focal_loss, i, d, r
                        )
                    )
                    | (rival(_eager, make, inputs, dense, reduction) if form == "dense" else {}),
                    arithmetic=exponentials(inputs),
                    series=f"sigmoid_focal_loss: {name}, {form}" if series else "",
                    size=rows,
                    num_bytes=moved,
                    check=check,
                )
