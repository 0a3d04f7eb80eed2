# SPDX-License-Identifier: Apache-2.0
"""Feature Pyramid Network: Lin et al., arXiv 1612.03144, section 3; P6 and P7 of RetinaNet.

Level l has a stride of 2**l pixels. Maps of the trunk are C2 ... C5, those of the pyramid P2 ...
P7::

    C5 -1x1-> M5 ------------3x3-> P5 -3x3/2-> P6 -relu, 3x3/2-> P7
              | x2
    C4 -1x1-> + = M4 --------3x3-> P4
              | x2
    C3 -1x1-> + = M3 --------3x3-> P3

P6 may also come from C5, or from P5 by pooling.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from pydet.layers.norm import Norm, make_norm

ExtraFrom = Literal["c5", "p5", "pool"]


class FPN(nn.Module):
    """Pyramid of maps that all have the same number of channels.

    Args:
        in_channels: Channels of the trunk's maps by level, as in ``{2: 256, ..., 5: 2048}``.
        levels: Consecutive levels of the pyramid, as in ``(3, 4, 5, 6, 7)``. Those beyond the
            trunk's last level are made by convolutions of stride 2, or by pooling.
        channels: Of every map of the pyramid (the paper: 256).
        norm: After each convolution ("none" in the paper).
        extra_from: What the first level beyond the trunk is made of: "c5", the trunk's last map
            (RetinaNet, arXiv 1708.02002, footnote 2); "p5", the pyramid's (torchvision, and
            detectors since); "pool", by taking every second pixel of the pyramid's (Faster R-CNN).

    Raises:
        ValueError: Levels that are not consecutive or not to be had from the trunk.
    """

    def __init__(
        self,
        in_channels: Mapping[int, int],
        levels: Sequence[int] = (3, 4, 5, 6, 7),
        channels: int = 256,
        *,
        norm: Norm = "none",
        extra_from: ExtraFrom = "p5",
    ) -> None:
        super().__init__()
        levels = tuple(levels)
        top = max(in_channels)
        inside = [level for level in levels if level <= top]
        if not inside or levels != tuple(range(levels[0], levels[0] + len(levels))):
            raise ValueError(
                "FPN: levels must be consecutive and begin at one of the trunk's "
                f"({', '.join(map(str, in_channels))}), got {levels}"
            )
        if not set(inside) <= set(in_channels):
            raise ValueError(f"FPN: levels must not begin below {min(in_channels)}, got {levels}")
        if extra_from not in ("c5", "p5", "pool"):
            raise ValueError(f"FPN: extra_from must be 'c5', 'p5' or 'pool', got {extra_from!r}")
        self.levels = levels
        self.channels = channels
        self.extra_from = extra_from
        self._top = top
        bias = norm == "none"
        self.lateral = nn.ModuleDict()
        self.output = nn.ModuleDict()
        # From the trunk's last map downwards, also where the pyramid itself ends below it.
        for level in range(levels[0], top + 1):
            lateral = nn.Conv2d(in_channels[level], channels, 1, bias=bias)
            self.lateral[str(level)] = nn.Sequential(lateral, make_norm(norm, channels))
            if level in inside:
                output = nn.Conv2d(channels, channels, 3, padding=1, bias=bias)
                self.output[str(level)] = nn.Sequential(output, make_norm(norm, channels))
        self.extra = nn.ModuleDict()
        if extra_from != "pool":
            source = in_channels[top] if extra_from == "c5" else channels
            for level in levels[len(inside) :]:
                conv = nn.Conv2d(source, channels, 3, stride=2, padding=1, bias=bias)
                self.extra[str(level)] = nn.Sequential(conv, make_norm(norm, channels))
                source = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)  # no rectifier follows: gain 1
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Mapping[int, Tensor]) -> list[Tensor]:
        """The pyramid's maps [B, channels, Hl, Wl], low stride first, of the trunk's by level."""
        merged: Tensor | None = None
        maps: list[Tensor] = []
        for level in range(self._top, self.levels[0] - 1, -1):
            lateral = self.lateral[str(level)](features[level])
            if merged is not None:
                # To the size of the finer map, which need not be twice that of the coarser.
                lateral += F.interpolate(merged, lateral.shape[-2:], mode="nearest")
            merged = lateral
            if level in self.levels:
                maps.insert(0, self.output[str(level)](merged))
        source = features[self._top] if self.extra_from == "c5" else maps[-1]
        for index, level in enumerate(self.levels[len(maps) :]):
            if self.extra_from == "pool":
                source = F.max_pool2d(source, 1, 2)  # every second cell, laid out alike
            else:
                source = self.extra[str(level)](source if index == 0 else F.relu(source))
            maps.append(source)
        return maps
