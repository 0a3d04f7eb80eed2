# SPDX-License-Identifier: Apache-2.0
"""A detector small enough to test trainings with; register it by importing this module.

One box a cell of an 8-pixel grid, two convolutions. It has what makes resuming hard: dropout (the
state of torch's generator) and, if asked for, batch normalisation (running statistics).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pydet.models import Detector, register_model
from pydet.models._registry import override
from pydet.postprocess import PaddedDetections
from pydet.preprocessing import Preprocessing
from pydet.structures import PackedTargets

STRIDE = 8


@dataclass(frozen=True)
class TinyConfig:
    channels: int = 8
    dropout: float = 0.1
    batch_norm: bool = False
    nan_at: int = -1  # the loss of batches with this many boxes is NaN
    preprocessing: Preprocessing = field(
        default_factory=lambda: Preprocessing(resize="fixed", size=(32, 32))
    )


class TinyDetector(Detector):
    def __init__(self, config: TinyConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        norm = nn.BatchNorm2d if config.batch_norm else lambda c: nn.GroupNorm(2, c)
        self.trunk = nn.Sequential(
            nn.Conv2d(3, config.channels, STRIDE, STRIDE),
            norm(config.channels),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Conv2d(config.channels, config.channels, 3, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Conv2d(config.channels, num_classes + 4, 1)

    def predict(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))  # [B, K + 4, H / 8, W / 8]

    def losses(self, output: Tensor, targets: PackedTargets) -> dict[str, Tensor]:
        counts = targets.offsets.diff()  # [B]
        image = torch.repeat_interleave(torch.arange(len(counts)), counts)
        valid = targets.boxes.isfinite().all(1) & ~targets.ignored
        boxes, labels, image = targets.boxes[valid], targets.labels[valid], image[valid]
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        x, y = (centers / STRIDE).long().unbind(1)
        logits, codes = output.split([self.num_classes, 4], dim=1)
        truth = torch.zeros_like(logits)
        truth[image, labels, y, x] = 1
        per_image = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(
            (1, 2, 3)
        )
        found = codes[image, :, y, x]  # [N, 4]
        wanted = (boxes - centers.repeat(1, 2)) / STRIDE
        loss_box = F.smooth_l1_loss(found, wanted, reduction="none").sum() / len(counts)
        if len(labels) == self.config.nan_at:
            loss_box = loss_box * float("nan")
        return {"loss_cls": per_image.mean(), "loss_box": loss_box}

    def decode(self, output: Tensor, image_sizes: Tensor) -> PaddedDetections:
        logits, codes = output.split([self.num_classes, 4], dim=1)
        scores, labels = logits.sigmoid().flatten(2).max(1)  # [B, H W]
        height, width = output.shape[2:]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centers = (torch.stack([x, y, x, y]) + 0.5) * STRIDE  # [4, H, W]
        boxes = (centers + codes * STRIDE).flatten(2).transpose(1, 2)  # [B, H W, 4]
        scores, order = scores.sort(dim=1, descending=True)
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        counts = torch.full((len(output),), height * width)
        return PaddedDetections(boxes.float(), scores.float(), labels.gather(1, order), counts)


@register_model
def tiny(num_classes: int, **overrides: object) -> TinyDetector:
    return TinyDetector(override(TinyConfig(), overrides), num_classes)
