# SPDX-License-Identifier: Apache-2.0
"""Varifocal loss: classification scores that are to be the IoU of their boxes."""

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

_varifocal_loss = define_loss(
    f"varifocal_loss({ARGUMENTS}) -> Tensor",
    f"varifocal_loss_backward({BACKWARD}) -> Tensor",
    f"varifocal_loss_double_backward({DOUBLE_BACKWARD}) -> {THREE}",
)


def varifocal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 0.75,
    gamma: float = 2,
    reduction: str = "none",
) -> Tensor:
    """Varifocal loss: cross entropy with an IoU as the score, focal for negatives alone.

    With p = sigmoid(x) and a target q it is ``-q (q log(p) + (1 - q) log(1 - p))`` for q > 0 and
    ``-alpha p^gamma log(1 - p)`` for q = 0: positives weigh as much as their IoU, and only
    negatives are held down where they are easy.

    Args:
        inputs: [..., K] logits, of any shape; float16, bfloat16, float32 or float64.
        targets: As the inputs in shape, dtype (under autocast any; it is converted) and device: the
            IoU in (0, 1] that the predicted box of the right class has with its ground truth, 0 for
            all else. Numbers outside of [0, 1] are not refused, as that would read values back from
            a GPU, and mean nothing.
        alpha: Weight of the negatives, finite and at least 0.
        gamma: Exponent of the negatives' factor, finite and at least 0.
        reduction: "none"; "mean" over all elements; "sum"; "sum_per_image": over all dimensions but
            the first.

    Returns:
        [..., K], [] or [B] in the dtype of the inputs. Computed in float32 or better in one pass
        and rounded once; sums are accumulated in float64, in an order that depends on the shape
        alone. Under autocast the inputs are taken as they are and sums come as float32.

    Raises:
        TypeError: Not tensors, or dtypes that do not fit.
        ValueError: Shapes, devices, alpha, gamma or reduction that do not fit.

    Finite for logits of any finite size; an infinite logit gives 0 or infinity (its gradient is
    finite), a NaN in either argument gives NaN. Differentiable twice, in the inputs and in the
    targets (the step at q = 0 left out); only the two are saved. To train by it as the paper does,
    detach the targets.

    Source: Zhang et al., VarifocalNet: An IoU-aware Dense Object Detector (arXiv:2008.13367),
    equation 2. The paper normalises the sum by the number of positives: divide it by that.
    """
    op = "varifocal_loss"
    check_inputs(op, inputs, reduction)
    check_dense_targets(op, inputs, targets)
    check_not_negative(op, "alpha", alpha)
    check_not_negative(op, "gamma", gamma)
    loss: Tensor = _varifocal_loss(inputs, targets.to(inputs.dtype), alpha, gamma, reduction)
    return in_dtype_of(inputs, loss)
