# SPDX-License-Identifier: Apache-2.0
"""What the losses of several detectors have in common, for the whole batch and without waiting.

Letters: B images.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Normalizer = Literal["image", "batch"]
NORMALIZERS = ("image", "batch")


def foreground_smooth_l1(
    pred_deltas: Tensor, target_deltas: Tensor, foreground: Tensor, beta: float = 1.0
) -> Tensor:
    """Smooth L1 of the foreground's deltas, the sum over the four of each: [...], 0 elsewhere.

    Args:
        pred_deltas: [..., 4]
        target_deltas: [..., 4], finite everywhere; in its dtype the loss is computed.
        foreground: [...] bool.
        beta: Where it becomes linear; 0: L1.

    Source: Girshick, Fast R-CNN, arXiv 1504.08083, equation 3.
    """
    # where, not indices: how many are foreground is known to the device alone.
    pred = torch.where(foreground[..., None], pred_deltas.to(target_deltas.dtype), target_deltas)
    return F.smooth_l1_loss(pred, target_deltas, reduction="none", beta=beta).sum(-1)


def per_foreground(sums: Tensor, num_foreground: Tensor, normalizer: Normalizer) -> Tensor:
    """The images' sums of a loss, divided by what is foreground.

    Args:
        sums: [B]
        num_foreground: [B]
        normalizer: "image": each sum is divided by its image's number, at least 1, then the mean
            over images is taken; "batch": all sums by the number of the batch, at least 1, which
            depends on how images are spread over devices.
    """
    if normalizer == "batch":
        return sums.sum() / num_foreground.sum().clamp(min=1)
    return (sums / num_foreground.clamp(min=1)).mean()
