# SPDX-License-Identifier: Apache-2.0
"""VGG-16: Simonyan & Zisserman, arXiv 1409.1556, table 1, configuration D.

Three parts: the trunk :class:`VGG16`, and what detectors make of its classifier's two hidden
layers: :class:`VGGBoxHead` keeps them as they are, for regions of 7 x 7 (Fast and Faster R-CNN);
:class:`VGGAtrousHead` makes convolutions of them (SSD). The names of parameters of the first two
are torchvision's, also those of its variant with batch normalisation.

Map sizes are halved and rounded up by each pooling, as in Caffe, where the detectors of the papers
were trained, and as in a ResNet. torchvision rounds down: sizes that 16 divides give the same maps.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pydet.layers.norm import Norm, make_norm

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions; table 1, D
_REGION = 7  # height and width of what the classifier sees: 224 / 2**5


class VGG16(nn.Module):
    """The thirteen 3x3 convolutions and the four poolings between them.

    Args:
        norm: After each convolution: "none" (the paper), "batch" (torchvision's ``vgg16_bn``),
            "frozen" or "group".
        norm_eps: Added to variances.
        frozen_stages: How many stages do not learn: 0 none, 1 conv1_1 and conv1_2, ... 5. Fast
            R-CNN, section 4.5: 2. Their batch statistics are fixed too.
        width: Channels of every layer relative to the paper's.

    Attributes:
        channels: Of each map by level: ``{2: 256, 3: 512, 4: 512}`` for a width of 1.

    Raises:
        ValueError: An unknown norm or number of stages, or a width that leaves no channel.
    """

    def __init__(
        self,
        *,
        norm: Norm = "none",
        norm_eps: float = 1e-5,
        frozen_stages: int = 0,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if frozen_stages not in range(6):
            raise ValueError(f"VGG16: frozen_stages must be 0 ... 5, got {frozen_stages!r}")
        self.frozen_stages = frozen_stages
        self.features = nn.Sequential()
        self.channels: dict[int, int] = {}
        inputs = 3
        for level, (channels, count) in enumerate(_STAGES):
            outputs = scaled_channels(channels, width)
            if level > 0:
                self.features.append(nn.MaxPool2d(2, 2, ceil_mode=True))
            for _ in range(count):
                self.features.append(nn.Conv2d(inputs, outputs, 3, padding=1))
                if norm != "none":
                    self.features.append(make_norm(norm, outputs, norm_eps))
                self.features.append(nn.ReLU(inplace=True))
                inputs = outputs
            if level >= 2:
                self.channels[level] = outputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # He et al., arXiv 1502.01852: keeps the variance of gradients through rectifiers.
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        for layer in self._frozen():
            layer.requires_grad_(False)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """Maps by level, ``{2: conv3_3, 3: conv4_3, 4: conv5_3}``, each after its rectifier.

        That of level l is [B, channels[l], ceil(H/2**l), ceil(W/2**l)].
        """
        maps: dict[int, Tensor] = {}
        x, level = images, 0
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                if level in self.channels:
                    maps[level] = x
                level += 1
            x = layer(x)
        maps[level] = x
        return maps

    def train(self, mode: bool = True) -> "VGG16":
        """As nn.Module.train, but frozen stages keep their statistics."""
        super().train(mode)
        for layer in self._frozen():
            layer.eval()
        return self

    def _frozen(self) -> Iterator[nn.Module]:
        stage = 1
        for layer in self.features:
            stage += isinstance(layer, nn.MaxPool2d)
            if stage > self.frozen_stages:
                return
            yield layer


class VGGBoxHead(nn.Sequential):
    """fc6 and fc7: the classifier without its last layer, on regions of 7 x 7.

    Args:
        in_channels: Of the regions.
        channels: Of both layers (the paper: 4096).
        dropout: Probability of a zero after each of them (the paper: 0.5).
    """

    def __init__(
        self, in_channels: int = 512, channels: int = 4096, *, dropout: float = 0.5
    ) -> None:
        super().__init__(
            nn.Linear(in_channels * _REGION**2, channels),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(channels, channels),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
        )
        self.channels = channels
        for module in self:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)  # section 3.1
                nn.init.zeros_(module.bias)

    def forward(self, regions: Tensor) -> Tensor:
        """[R, channels] of regions [R, in_channels, 7, 7], rows before columns as in the paper."""
        return super().forward(regions.flatten(1))  # type: ignore[no-any-return, no-untyped-call]

    def copy_classifier(self, state: Mapping[str, Tensor]) -> None:
        """Takes the weights of a classifier's hidden layers: fc6 "0.*" and fc7 "3.*"."""
        self.load_state_dict(state)


class VGGAtrousHead(nn.Module):
    """pool5, conv6 and conv7 of SSD (Liu et al., arXiv 1512.02325, section 3), stride unchanged.

    The pooling is 3x3 with stride 1 instead of 2x2 with stride 2; conv6 has holes ("à trous") to
    see as far as fc6 did.

    Args:
        in_channels: Of the map.
        channels: Of both convolutions (SSD: 1024, a quarter of the classifier's).
        norm: After each of them ("none" in the paper).
    """

    def __init__(
        self, in_channels: int = 512, channels: int = 1024, *, norm: Norm = "none"
    ) -> None:
        super().__init__()
        self.channels = channels
        self.pool5 = nn.MaxPool2d(3, 1, 1)
        self.conv6 = nn.Conv2d(in_channels, channels, 3, padding=6, dilation=6)
        self.norm6 = make_norm(norm, channels)
        self.conv7 = nn.Conv2d(channels, channels, 1)
        self.norm7 = make_norm(norm, channels)
        for conv in (self.conv6, self.conv7):
            nn.init.xavier_uniform_(conv.weight)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] of a map [B, in_channels, H, W]."""
        x = F.relu(self.norm6(self.conv6(self.pool5(x))), inplace=True)
        return F.relu(self.norm7(self.conv7(x)), inplace=True)

    @torch.no_grad()
    def copy_classifier(self, state: Mapping[str, Tensor]) -> None:
        """Takes the weights of a classifier's hidden layers, thinned out.

        fc6 is a convolution of 7 x 7. Of its rows and columns every third is kept (0, 3, 6: as far
        apart as the dilation of 6 places them in a map of twice the resolution), and of the
        channels of both as many as there is room for, evenly spaced ("subsample parameters",
        section 3; Chen et al., arXiv 1412.7062, section 3.1).

        Args:
            state: By the names of :class:`VGGBoxHead`: fc6 "0.*" [4096, 512 · 7 · 7] and [4096],
                fc7 "3.*" [4096, 4096] and [4096].

        Raises:
            ValueError: Layers of another shape than the head can be made of.
        """
        fc6, fc7 = state["0.weight"], state["3.weight"]
        inputs, hidden = self.conv6.in_channels, fc6.shape[0]
        if fc6.shape[1] != inputs * _REGION**2 or fc7.shape != (hidden, hidden):
            raise ValueError(
                f"copy_classifier: fc6 and fc7 must be [C, {inputs * _REGION**2}] and [C, C], "
                f"got {list(fc6.shape)} and {list(fc7.shape)}"
            )
        if hidden % self.channels:
            raise ValueError(
                f"copy_classifier: fc6 must have a multiple of {self.channels} channels, "
                f"got {hidden}"
            )
        step = hidden // self.channels
        window = fc6.view(hidden, inputs, _REGION, _REGION)
        assert self.conv6.bias is not None and self.conv7.bias is not None
        self.conv6.weight.copy_(window[::step, :, ::3, ::3])
        self.conv6.bias.copy_(state["0.bias"][::step])
        self.conv7.weight.copy_(fc7[::step, ::step, None, None])
        self.conv7.bias.copy_(state["3.bias"][::step])


def scaled_channels(channels: int, width: float) -> int:
    """The paper's number of channels times a width, at least one.

    Raises:
        ValueError: A width that is not positive and finite.
    """
    if not 0 < width < float("inf"):
        raise ValueError(f"VGG16: width must be positive and finite, got {width}")
    return max(1, round(channels * width))
