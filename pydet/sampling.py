# SPDX-License-Identifier: Apache-2.0
"""Random samples of anchors and proposals, drawn for the whole batch at once on its device."""

from typing import NamedTuple

import torch
from torch import Tensor


class Samples(NamedTuple):
    """What was drawn of each image, foreground first. S = min(count, N) places."""

    idxs: Tensor  # [B, S] int64
    taken: Tensor  # [B, S] bool; False where too few were to be had: then the index is any
    foreground: Tensor  # [B, S] bool, only where taken


def sample_balanced(
    foreground: Tensor, background: Tensor, count: int, max_fg_fraction: float
) -> Samples:
    """Draws ``count`` items of each image, foreground up to a fraction of them.

    Background fills what foreground leaves. Each subset of the possible size is as likely as any
    other. The draw is by the device's default generator of torch, so :func:`torch.manual_seed`
    repeats it, and on a CPU an image's draw does not depend on how many items are appended.

    Args:
        foreground: [B, N] bool.
        background: [B, N] bool. An item that is neither is never drawn.
        count: Of each image.
        max_fg_fraction: The most foreground is count · fraction, rounded down.

    Source: Girshick, Fast R-CNN, section 2.3; Ren et al., Faster R-CNN, section 3.1.3.
    """
    batch, num = foreground.shape
    # By item, then image. Keys are in [0, 1); the lowest number that is not drawn is -1.
    keys = torch.rand(num, batch, device=foreground.device).t()
    fg_keys = keys.masked_fill(~foreground, -1.0)
    chosen = fg_keys.topk(min(int(count * max_fg_fraction), num), dim=1)
    ranks = keys.masked_fill(~background, -1.0)
    above = torch.where(chosen.values >= 0, chosen.values + 2, ranks.gather(1, chosen.indices))
    ranks = ranks.scatter(1, chosen.indices, above)  # foreground that was chosen: 2 and more
    values, idxs = ranks.topk(min(count, num), dim=1)
    return Samples(idxs, values >= 0, values >= 2)
