# SPDX-License-Identifier: Apache-2.0
"""Focal losses: classification losses for very many easy negatives."""

from typing import Any

import torch
from torch import Tensor

from pydet.ops._checks import (
    FLOATING,
    check_dtype,
    check_not_negative,
    check_number,
    check_same_device,
    check_tensor,
)
from pydet.ops._losses import (
    ARGUMENTS,
    BACKWARD,
    DOUBLE_BACKWARD,
    THREE,
    check_inputs,
    define_loss,
    in_dtype_of,
)

_sigmoid_focal_loss = define_loss(
    f"sigmoid_focal_loss({ARGUMENTS}) -> Tensor",
    f"sigmoid_focal_loss_backward({BACKWARD}) -> Tensor",
    f"sigmoid_focal_loss_double_backward({DOUBLE_BACKWARD}) -> {THREE}",
)


def _check_targets(op: str, inputs: Tensor, targets: Any) -> None:
    check_tensor(op, "targets", targets)
    check_same_device(op, "targets", targets, "inputs", inputs)
    if targets.is_floating_point():
        check_dtype(op, "targets", targets, FLOATING)
        fits = targets.shape == inputs.shape
    else:
        fits = targets.dtype == torch.int64 and targets.shape == inputs.shape[:-1]
        fits = fits and inputs.dim() > 0
    if not fits:
        raise (ValueError if targets.is_floating_point() else TypeError)(
            f"{op}: targets must be floating and of the shape of inputs {list(inputs.shape)}, "
            f"or int64 labels of the shape {list(inputs.shape[:-1])}, "
            f"got {targets.dtype} {list(targets.shape)}"
        )


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2,
    reduction: str = "none",
) -> Tensor:
    """Focal loss of independent logistic classes, ``-alpha_t (1 - p_t)^gamma log(p_t)``.

    Args:
        inputs: [..., K] logits; float16, bfloat16, float32 or float64.
        targets: One of two forms, on the device of the inputs. Floating: [..., K], the probability
            in [0, 1] that each logit should have; of two dtypes the one that torch promotes them to
            counts (under autocast that of the inputs). Or int64 labels [...]: the class of each row
            of K logits, -1 for background (all K are negatives), -2 for an ignored row (loss and
            gradient 0, whatever its logits). Any other label is an error: values are not read back
            from a GPU to raise it, so the loss and the gradient of that row are NaN, on the CPU
            too.
        alpha: Weight of the positives, in [0, 1]; negatives weigh 1 - alpha. Below 0: no weights.
        gamma: Exponent of the modulating factor, at least 0.
        reduction: "none"; "mean" over all elements, ignored rows counted; "sum"; "sum_per_image":
            over all dimensions but the first.

    Returns:
        [..., K], [] or [B] in the dtype of the inputs (promoted). Computed in float32 or better in
        one pass and rounded once; sums are accumulated in float64, in an order that depends on the
        shape alone. Under autocast the inputs are taken as they are and sums come as float32.

    Raises:
        TypeError: Not tensors, or dtypes that do not fit.
        ValueError: Shapes, devices, alpha, gamma or reduction that do not fit.

    Finite for logits of any finite size. An infinite logit gives 0 on the right side, infinity on
    the wrong one (the gradient is finite on both); a NaN gives NaN. Losses below 1e-38 may be 0.
    Differentiable twice, in the inputs and in floating targets; only the two are saved.

    Source: Lin et al., Focal Loss for Dense Object Detection (arXiv:1708.02002), equations 4, 5.
    The paper normalises the sum by the number of anchors assigned to a ground truth: divide it by
    that.
    """
    op = "sigmoid_focal_loss"
    check_inputs(op, inputs, reduction)
    _check_targets(op, inputs, targets)
    check_number(op, "alpha", alpha, "in [0, 1], or below 0 for none", lambda a: a <= 1)
    check_not_negative(op, "gamma", gamma)
    if targets.is_floating_point():
        if not torch.is_autocast_enabled(inputs.device.type):
            inputs = inputs.to(torch.promote_types(inputs.dtype, targets.dtype))
        targets = targets.to(inputs.dtype)
    loss: Tensor = _sigmoid_focal_loss(inputs, targets, alpha, gamma, reduction)
    return in_dtype_of(inputs, loss)
