# SPDX-License-Identifier: Apache-2.0
"""Focal loss of heatmaps by its definition: Zhou et al., arXiv:1904.07850, equation 1."""

import math

from tests.reference.focal_loss import softplus


def heatmap_focal_loss(x, t, alpha, beta):
    """Loss of the logit x with the target t in [0, 1]."""
    log_p, log_other = -softplus(-x), -softplus(x)
    if t == 1:
        return -(math.exp(log_other) ** alpha) * log_p
    return -((1 - t) ** beta) * math.exp(log_p) ** alpha * log_other
