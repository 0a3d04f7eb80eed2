# SPDX-License-Identifier: Apache-2.0
"""Focal losses: classification losses for very many easy negatives."""

import math
from typing import Any

import torch
from torch import Tensor

from pydet.ops._checks import (
    FLOATING,
    check_choice,
    check_dtype,
    check_number,
    check_same_device,
    check_same_dtype,
    check_tensor,
)
from pydet.ops._library import define

REDUCTIONS = ("none", "mean", "sum", "sum_per_image")


def _fake(inputs: Tensor, targets: Tensor, alpha: float, gamma: float, reduction: str) -> Tensor:
    if reduction == "none":
        return inputs.new_empty(inputs.shape)
    dtype = torch.float64 if inputs.dtype == torch.float64 else torch.float32
    return inputs.new_empty(inputs.shape[:1] if reduction == "sum_per_image" else (), dtype=dtype)


_sigmoid_focal_loss_backward = define(
    "sigmoid_focal_loss_backward(Tensor grad_loss, Tensor inputs, Tensor targets, float alpha, "
    "float gamma, str reduction, bool wrt_targets) -> Tensor",
    fake=lambda grad_loss, inputs, *_: inputs.new_empty(inputs.shape),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, targets, *ctx.numbers = inputs
    ctx.save_for_backward(logits, targets)


def _backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
    grads = [
        _sigmoid_focal_loss_backward(grad_loss, *ctx.saved_tensors, *ctx.numbers, wrt_targets)
        if ctx.needs_input_grad[wrt_targets]
        else None
        for wrt_targets in (False, True)
    ]
    return (*grads, None, None, None)


_sigmoid_focal_loss = define(
    "sigmoid_focal_loss(Tensor inputs, Tensor targets, float alpha, float gamma, str reduction)"
    " -> Tensor",
    fake=_fake,
    backward=_backward,
    save=_save,
)


def _check_targets(op: str, inputs: Tensor, targets: Any) -> None:
    check_tensor(op, "targets", targets)
    check_same_device(op, "targets", targets, "inputs", inputs)
    if targets.is_floating_point():
        check_same_dtype(op, "targets", targets, "inputs", inputs)
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
            in [0, 1] that each logit should have, in the dtype of the inputs (under autocast any;
            it is converted). Or int64 labels [...]: the class of each row of K logits, -1 for
            background (all K are negatives), -2 for an ignored row (loss and gradient 0, whatever
            its logits). Any other label is an error: values are not read back from a GPU to raise
            it, so the loss and the gradient of that row are NaN, on the CPU too.
        alpha: Weight of the positives, in [0, 1]; negatives weigh 1 - alpha. Below 0: no weights.
        gamma: Exponent of the modulating factor, at least 0.
        reduction: "none"; "mean" over all elements, ignored rows counted; "sum"; "sum_per_image":
            over all dimensions but the first.

    Returns:
        [..., K], [] or [B] in the dtype of the inputs. Computed in float32 or better in one pass
        and rounded once; sums are accumulated in float64, in an order that depends on the shape
        alone. Under autocast the inputs are taken as they are and sums come as float32.

    Raises:
        TypeError: Not tensors, or dtypes that do not fit.
        ValueError: Shapes, devices, alpha, gamma or reduction that do not fit.

    Finite for logits of any finite size. An infinite logit gives 0 on the right side, infinity on
    the wrong one (the gradient is finite on both); a NaN gives NaN. Losses below 1e-38 may be 0.
    Differentiable once, in the inputs and in floating targets; only the two are saved.

    Source: Lin et al., Focal Loss for Dense Object Detection (arXiv:1708.02002), equations 4, 5.
    The paper normalises the sum by the number of anchors assigned to a ground truth: divide it by
    that.
    """
    op = "sigmoid_focal_loss"
    check_tensor(op, "inputs", inputs)
    check_dtype(op, "inputs", inputs, FLOATING)
    _check_targets(op, inputs, targets)
    check_number(op, "alpha", alpha, "in [0, 1], or below 0 for none", lambda a: a <= 1)
    check_number(op, "gamma", gamma, "finite and at least 0", lambda g: 0 <= g < math.inf)
    check_choice(op, "reduction", reduction, REDUCTIONS)
    if reduction == "sum_per_image" and inputs.dim() == 0:
        raise ValueError(f"{op}: inputs must have shape [B, ...] for sum_per_image, got []")
    if targets.is_floating_point():
        targets = targets.to(inputs.dtype)
    loss: Tensor = _sigmoid_focal_loss(inputs, targets, alpha, gamma, reduction)
    if torch.is_autocast_enabled(inputs.device.type):
        return loss
    return loss.to(inputs.dtype)
