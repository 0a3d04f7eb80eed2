# SPDX-License-Identifier: Apache-2.0
"""ResNet-18/34/50/101/152: He et al., arXiv 1512.03385, table 1; and 10, one block a stage.

Differs from the paper as all of today's weights do ("v1.5"): where a bottleneck halves the size,
its 3x3 convolution has the stride, not its first 1x1. The names of parameters are torchvision's.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pydet.layers.norm import FrozenBatchNorm2d, Norm, conv_norm, make_norm

DEPTHS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}  # blocks of C2 ... C5, paper's table 1, which does not have the first
_WIDTHS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (figure 5, left)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, norm: Norm, eps: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = make_norm(norm, width, eps)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = make_norm(norm, width, eps)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, width, stride, norm, eps)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y = self.relu(conv_norm(self.conv1, self.bn1, x))
        y = conv_norm(self.conv2, self.bn2, y)
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)  # type: ignore[no-any-return]

    @property
    def last_norm(self) -> nn.Module:
        """The normalisation before the addition."""
        return self.bn2


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (figure 5, right)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, norm: Norm, eps: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = make_norm(norm, width, eps)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = make_norm(norm, width, eps)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = make_norm(norm, width * self.expansion, eps)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, width * self.expansion, stride, norm, eps)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y = self.relu(conv_norm(self.conv1, self.bn1, x))
        y = self.relu(conv_norm(self.conv2, self.bn2, y))
        y = conv_norm(self.conv3, self.bn3, y)
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)  # type: ignore[no-any-return]

    @property
    def last_norm(self) -> nn.Module:
        """The normalisation before the addition."""
        return self.bn3


class ResNet(nn.Module):
    """A residual network without its classifier.

    Args:
        depth: 10, 18, 34, 50, 101 or 152.
        norm: "batch", "frozen" (fixed statistics, for weights of ImageNet) or "group".
        norm_eps: Added to variances. Files of torchvision from before its version 0.9 need 0.
        frozen_stages: How many stages do not learn: 0 none, 1 the stem, 2 the stem and C2, ... 5.
            Their batch statistics are fixed too.
        zero_init_residual: Whether each block begins as the identity (Goyal et al., arXiv
            1706.02677, section 5.1).

    Attributes:
        channels: Of each map by level: ``{2: 256, 3: 512, 4: 1024, 5: 2048}`` for depth 50.

    Raises:
        ValueError: An unknown depth, norm or number of stages.
    """

    def __init__(
        self,
        depth: int,
        *,
        norm: Norm = "batch",
        norm_eps: float = 1e-5,
        frozen_stages: int = 0,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            known = ", ".join(map(str, DEPTHS))
            raise ValueError(f"ResNet: depth must be one of {known}, got {depth!r}")
        if norm == "none":
            raise ValueError("ResNet: norm must be 'batch', 'frozen' or 'group', got 'none'")
        if frozen_stages not in range(6):
            raise ValueError(f"ResNet: frozen_stages must be 0 ... 5, got {frozen_stages!r}")
        block = BasicBlock if depth < 50 else Bottleneck
        self.frozen_stages = frozen_stages
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = make_norm(norm, 64, norm_eps)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = 64
        self.channels: dict[int, int] = {}
        for level, width, count in zip(range(2, 6), _WIDTHS, DEPTHS[depth], strict=True):
            blocks = nn.Sequential()
            for index in range(count):
                stride = 2 if index == 0 and level > 2 else 1
                blocks.append(block(inputs, width, stride, norm, norm_eps))
                inputs = width * block.expansion
            self.add_module(f"layer{level - 1}", blocks)
            self.channels[level] = inputs
        self._initialize(zero_init_residual)
        for stage in self._frozen():
            stage.requires_grad_(False)

    def forward(self, images: Tensor, last_level: int = 5) -> dict[int, Tensor]:
        """Maps by level, ``{2: C2, ..., 5: C5}``: Cl is [B, channels[l], ceil(H/2**l), ...].

        Levels above ``last_level`` are left out.
        """
        x = self.maxpool(self.relu(conv_norm(self.conv1, self.bn1, images)))
        maps: dict[int, Tensor] = {}
        for level in range(2, last_level + 1):
            x = self.get_submodule(f"layer{level - 1}")(x)
            maps[level] = x
        return maps

    def train(self, mode: bool = True) -> "ResNet":
        """As nn.Module.train, but frozen stages keep their statistics."""
        super().train(mode)
        for stage in self._frozen():
            stage.eval()
        return self

    def _frozen(self) -> Iterator[nn.Module]:
        if self.frozen_stages > 0:
            yield self.conv1
            yield self.bn1
        for stage in range(2, self.frozen_stages + 1):
            yield self.get_submodule(f"layer{stage - 1}")

    def _initialize(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # He et al., arXiv 1502.01852: keeps the variance of gradients through rectifiers.
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
                last = module.last_norm
                assert isinstance(last, nn.BatchNorm2d | nn.GroupNorm | FrozenBatchNorm2d)
                with torch.no_grad():
                    last.weight.zero_()


class _Shortcut(nn.Sequential):
    """The projection (option B of the paper), where size or channels change."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm, eps: float) -> None:
        conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        super().__init__(conv, make_norm(norm, outputs, eps))

    def forward(self, x: Tensor) -> Tensor:
        conv, norm = self
        assert isinstance(conv, nn.Conv2d)
        return conv_norm(conv, norm, x)


def _shortcut(inputs: int, outputs: int, stride: int, norm: Norm, eps: float) -> _Shortcut | None:
    changes = stride != 1 or inputs != outputs
    return _Shortcut(inputs, outputs, stride, norm, eps) if changes else None
