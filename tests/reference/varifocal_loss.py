# SPDX-License-Identifier: Apache-2.0
"""Varifocal loss by its definition: Zhang et al., arXiv:2008.13367, equation 2, of one logit."""

import math

from tests.reference.focal_loss import softplus


def varifocal_loss(x, q, alpha, gamma):
    """Loss of the logit x with the target q in [0, 1]."""
    log_p, log_other = -softplus(-x), -softplus(x)
    if q > 0:
        return -q * (q * log_p + ((1 - q) * log_other if q != 1 else 0.0))
    return -alpha * math.exp(log_p) ** gamma * log_other
