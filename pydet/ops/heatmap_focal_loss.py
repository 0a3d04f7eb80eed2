# SPDX-License-Identifier: Apache-2.0
"""Penalty-reduced focal loss of heatmaps: objects as points."""

from torch import Tensor

from pydet.ops._checks import check_not_negative
from pydet.ops._losses import (
    ARGUMENTS,
    BACKWARD,
    DOUBLE_BACKWARD,
    THREE,
    check_dense_targets,
    check_inputs,
    define_loss,
    in_dtype_of,
)

_heatmap_focal_loss = define_loss(
    f"heatmap_focal_loss({ARGUMENTS}) -> Tensor",
    f"heatmap_focal_loss_backward({BACKWARD}) -> Tensor",
    f"heatmap_focal_loss_double_backward({DOUBLE_BACKWARD}) -> {THREE}",
)


def heatmap_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 2,
    beta: float = 4,
    reduction: str = "none",
) -> Tensor:
    """Focal loss of heatmaps whose targets are peaks of 1 with a slope around them.

    With p = sigmoid(x) and a target t it is ``-(1 - p)^alpha log(p)`` at a peak (t = 1) and
    ``-(1 - t)^beta p^alpha log(1 - p)`` elsewhere: near a peak a high score is hardly wrong.

    Args:
        inputs: [B, K, H, W] logits of the heatmaps, or any other shape; float16, bfloat16, float32
            or float64.
        targets: As the inputs in shape, dtype (under autocast any; it is converted) and device:
            exactly 1 at the centre of each object, less around it (a Gaussian), 0 far from all.
            Numbers outside of [0, 1] are not refused, as that would read values back from a GPU,
            and mean nothing.
        alpha: Exponent of the focal factor, finite and at least 0.
        beta: Exponent of the penalty's reduction, finite and at least 0.
        reduction: "none"; "mean" over all elements; "sum"; "sum_per_image": over all dimensions but
            the first.

    Returns:
        [B, K, H, W] as the inputs, [] or [B] in the dtype of the inputs. Computed in float32 or
        better in one pass and rounded once; sums are accumulated in float64, in an order that
        depends on the shape alone. Under autocast the inputs are taken as they are and sums come as
        float32.

    Raises:
        TypeError: Not tensors, or dtypes that do not fit.
        ValueError: Shapes, devices, alpha, beta or reduction that do not fit.

    Finite for logits of any finite size, without the clamp of p to [1e-4, 1 - 1e-4] that published
    code has, and with the gradient that it cuts off. An infinite logit gives 0 or infinity (its
    gradient is finite), a NaN in either argument gives NaN. Differentiable twice, in the inputs and
    in the targets (the step at t = 1 left out); only the two are saved.

    Source: Zhou et al., Objects as Points (arXiv:1904.07850), equation 1; Law and Deng, CornerNet
    (arXiv:1808.01244), equation 1, which divide the sum by the number of objects.
    """
    op = "heatmap_focal_loss"
    check_inputs(op, inputs, reduction)
    check_dense_targets(op, inputs, targets)
    check_not_negative(op, "alpha", alpha)
    check_not_negative(op, "beta", beta)
    loss: Tensor = _heatmap_focal_loss(inputs, targets.to(inputs.dtype), alpha, beta, reduction)
    return in_dtype_of(inputs, loss)
