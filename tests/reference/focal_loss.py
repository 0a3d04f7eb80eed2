# SPDX-License-Identifier: Apache-2.0
"""Focal loss by its definition: FL = -alpha_t (1 - p_t)^gamma log(p_t), element by element.

For a target t between 0 and 1 the cross entropy is -t log(p) - (1 - t) log(1 - p), p_t is the
probability p t + (1 - p) (1 - t) and alpha_t the mean of the two weights. Lin et al.,
arXiv:1708.02002, equations 4 and 5.
"""

import math

BACKGROUND, IGNORED = -1, -2


def focal_loss(x, t, alpha, gamma):
    """Loss of one logit x with the target t in [0, 1]."""
    # log(p) = -log(1 + exp(-x)), and log(1 - p) the same of -x.
    log_p, log_other = -softplus(-x), -softplus(x)
    p, other = math.exp(log_p), math.exp(log_other)
    cross_entropy = -(t * log_p if t else 0.0) - ((1 - t) * log_other if t != 1 else 0.0)
    miss = p * (1 - t) + other * t  # 1 - p_t, without cancellation
    weight = 1.0 if alpha < 0 else alpha * t + (1 - alpha) * (1 - t)
    return weight * miss**gamma * cross_entropy


def focal_loss_of_labels(rows, labels, alpha, gamma):
    """Nested list of losses for rows of logits, and a label for each."""
    result = []
    for row, label in zip(rows, labels, strict=True):
        if label == IGNORED:
            result.append([0.0] * len(row))
        elif label == BACKGROUND or 0 <= label < len(row):
            result.append(
                [focal_loss(x, float(k == label), alpha, gamma) for k, x in enumerate(row)]
            )
        else:
            result.append([math.nan] * len(row))
    return result


def softplus(x):
    """log(1 + exp(x)), also where exp(x) overflows."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
