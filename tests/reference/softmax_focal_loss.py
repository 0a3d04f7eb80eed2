# SPDX-License-Identifier: Apache-2.0
"""Softmax focal loss by its definition: FL = -alpha_t (1 - p_t)^gamma log(p_t), row by row.

p_t is the softmax of a row at the column t. Lin et al., arXiv:1708.02002, equations 4 and 5.
"""

import math

BACKGROUND = -1


def log_sum_exp(numbers):
    """log(sum of exp), also where exp overflows; minus infinity of nothing."""
    highest = max(numbers, default=-math.inf)
    if math.isinf(highest):
        return highest
    return highest + math.log(math.fsum(math.exp(x - highest) for x in numbers))


def softmax_focal_loss(row, target, alpha, gamma, background, ignored):
    """Loss of one row of logits; ``alpha`` is a number or one number a column."""
    if target == ignored:
        return 0.0
    column = background if target == BACKGROUND else target
    if column is None or not 0 <= column < len(row):
        return math.nan
    others = [x for j, x in enumerate(row) if j != column]
    log_all = log_sum_exp(row)
    log_p = row[column] - log_all
    miss = math.exp(log_sum_exp(others) - log_all)  # 1 - p_t, without cancellation
    if miss < 0.5:  # and so for log(p_t)
        log_p = math.log1p(-miss)
    if isinstance(alpha, list):
        weight = alpha[column]
    elif alpha < 0:
        weight = 1.0
    else:
        weight = 1 - alpha if column == background else alpha
    return -weight * miss**gamma * log_p
