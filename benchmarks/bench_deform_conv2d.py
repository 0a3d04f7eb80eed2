# SPDX-License-Identifier: Apache-2.0
"""deform_conv2d: the 3 x 3 layers of a ResNet's last stages, with a mask."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks._harness import Call, Case, num_bytes, peers
from pydet.ops import deform_conv2d


def eager_deform_conv2d(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """As a user would write it: one grid_sample a tap, then a matrix product."""
    height, width = x.shape[2:]
    rows = torch.arange(height, device=x.device).reshape(1, height, 1)
    columns = torch.arange(width, device=x.device).reshape(1, 1, width)
    taps = []
    for k in range(9):
        y = rows + k // 3 - 1 + offset[:, 2 * k]
        position_x = columns + k % 3 - 1 + offset[:, 2 * k + 1]
        grid = torch.stack([(2 * position_x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
        sampled = torch.nn.functional.grid_sample(x, grid, align_corners=False)
        taps.append(sampled * mask[:, k : k + 1])
    return torch.einsum("bckhw,ock->bohw", torch.stack(taps, 2), weight.flatten(2))


def cases(device: torch.device) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    for channels, height, width in ((64, 10, 10), (256, 50, 76), (512, 25, 38)):
        shapes = {
            "x": (1, channels, height, width),
            "offset": (1, 18, height, width),
            "weight": (channels, channels, 3, 3),
            "mask": (1, 9, height, width),
        }
        leaves = {
            name: torch.randn(shape, generator=generator).to(device).requires_grad_()
            for name, shape in shapes.items()
        }
        x, offset, weight, mask = leaves.values()

        def with_gradient(call: Call, leaves: dict[str, Tensor] = leaves) -> Call:
            return lambda: torch.autograd.grad(call().sum(), list(leaves.values()))

        def native(
            op: Callable[..., Tensor],
            x: Tensor = x,
            offset: Tensor = offset,
            weight: Tensor = weight,
            mask: Tensor = mask,
        ) -> Call:
            return lambda: op(x, offset, weight, padding=1, mask=mask)

        def eager(
            x: Tensor = x, offset: Tensor = offset, weight: Tensor = weight, mask: Tensor = mask
        ) -> Tensor:
            return eager_deform_conv2d(x, offset, weight, mask)

        def close(ours: object, other: object) -> None:
            torch.testing.assert_close(ours, other, rtol=1e-3, atol=2e-2)

        # The matrix product alone; sampling its input comes to it.
        products = 9.0 * channels * channels * height * width
        moved = num_bytes(x, x, offset, weight, mask)
        yield Case(
            name=f"{channels} x {height} x {width} forward",
            pydet=native(deform_conv2d),
            eager=eager,
            peers=peers(torchvision=lambda tv, native=native: native(tv.deform_conv2d)),
            num_bytes=moved,
            check=close,
            arithmetic=("multiply-add", products),
        )
        yield Case(
            name=f"{channels} x {height} x {width} forward, backward",
            pydet=with_gradient(native(deform_conv2d)),
            eager=with_gradient(eager),
            peers=peers(
                torchvision=lambda tv, native=native, grad=with_gradient: grad(
                    native(tv.deform_conv2d)
                )
            ),
            num_bytes=2 * moved,
            check=close,
            arithmetic=("multiply-add", 3 * products),
        )
