# SPDX-License-Identifier: Apache-2.0
"""Focal loss of classes that exclude each other."""

from typing import Any

import torch
from torch import Tensor

from pydet.ops._checks import (
    FLOATING,
    check_dtype,
    check_integer,
    check_not_negative,
    check_number,
    check_same_device,
    check_shape,
    check_tensor,
)
from pydet.ops._library import define
from pydet.ops._losses import check_inputs, in_dtype_of, loss_like
from pydet.ops.match_anchors import IGNORED

_ARGUMENTS = (
    "Tensor inputs, Tensor targets, float alpha, Tensor? class_weights, float gamma, "
    "str reduction, int? background_index, int ignore_index"
)

_double_backward = define(
    "softmax_focal_loss_double_backward(Tensor grad_grad, Tensor grad_loss, "
    f"{_ARGUMENTS}) -> (Tensor, Tensor)",
    fake=lambda grad_grad, grad_loss, inputs, *_: (
        grad_loss.new_empty(grad_loss.shape),
        inputs.new_empty(inputs.shape),
    ),
)


def _save_both(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_loss, logits, targets, alpha, class_weights, *ctx.rest = inputs
    ctx.alpha = alpha
    ctx.save_for_backward(grad_loss, logits, targets, class_weights)


def _run_double(ctx: Any, grad_grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_loss, logits, targets, class_weights = ctx.saved_tensors
    grads = _double_backward(
        grad_grad, grad_loss, logits, targets, ctx.alpha, class_weights, *ctx.rest
    )
    return (*grads, *[None] * 7)


_backward = define(
    f"softmax_focal_loss_backward(Tensor grad_loss, {_ARGUMENTS}) -> Tensor",
    fake=lambda grad_loss, inputs, *_: inputs.new_empty(inputs.shape),
    backward=_run_double,
    save=_save_both,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, targets, alpha, class_weights, *ctx.rest = inputs
    ctx.alpha = alpha
    ctx.save_for_backward(logits, targets, class_weights)


def _run_backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
    logits, targets, class_weights = ctx.saved_tensors
    grad = _backward(grad_loss, logits, targets, ctx.alpha, class_weights, *ctx.rest)
    return (grad, *[None] * 7)


_softmax_focal_loss = define(
    f"softmax_focal_loss({_ARGUMENTS}) -> Tensor",
    fake=lambda inputs, targets, alpha, class_weights, gamma, reduction, *_: loss_like(
        inputs, targets.shape, reduction
    ),
    backward=_run_backward,
    save=_save,
)


def _check_targets(op: str, inputs: Tensor, targets: Any) -> None:
    if inputs.dim() == 0:
        raise ValueError(f"{op}: inputs must have shape [..., C], got []")
    check_tensor(op, "targets", targets)
    check_dtype(op, "targets", targets, (torch.int64,))
    wanted = inputs.shape[:-1]
    check_shape(
        op, "targets", targets, f"{list(wanted)}, that of inputs without C", lambda s: s == wanted
    )
    check_same_device(op, "targets", targets, "inputs", inputs)


def _check_alpha(op: str, inputs: Tensor, alpha: Any) -> None:
    if not isinstance(alpha, Tensor):
        check_number(op, "alpha", alpha, "in [0, 1], or below 0 for none", lambda a: a <= 1)
        return
    check_dtype(op, "alpha", alpha, FLOATING)
    wanted = inputs.shape[-1:]
    check_shape(op, "alpha", alpha, f"{list(wanted)}, one weight a class", lambda s: s == wanted)
    check_same_device(op, "alpha", alpha, "inputs", inputs)


def softmax_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float | Tensor = 0.25,
    gamma: float = 2,
    reduction: str = "none",
    *,
    background_index: int | None = -1,
    ignore_index: int = IGNORED,
) -> Tensor:
    """Focal loss of classes of which one is right, ``-alpha_t (1 - p_t)^gamma log(p_t)``.

    p_t is the softmax of the logits at the target. With gamma = 0 and alpha < 0 it is the cross
    entropy.

    Example: with K = 20 classes a head has C = 21 logits, the last for the background; the targets
    are 0 ... 19, BACKGROUND (-1) and IGNORED (-2), as :func:`match_anchors` gives them.

    Args:
        inputs: [..., C] logits; float16, bfloat16, float32 or float64.
        targets: [...] int64, on the device of the inputs: the column of the right class, or -1 for
            that of the background, or ``ignore_index``. Any other number is an error: values are
            not read back from a GPU to raise it, so the loss and the gradient of that row are NaN,
            on the CPU too.
        alpha: Weight of all classes but the background, in [0, 1]; the background weighs 1 - alpha.
            Below 0: no weights. Or a tensor [C] of one weight a column, floating, on the device of
            the inputs, which gets no gradient.
        gamma: Exponent of the modulating factor, finite and at least 0.
        reduction: "none"; "mean" over all rows, ignored ones counted; "sum"; "sum_per_image":
            over all dimensions but the first.
        background_index: The column of the background, negative from the end; None where there is
            none, so that all classes weigh alpha and a target of -1 is an error.
        ignore_index: The target of rows that contribute nothing (loss and gradient 0, whatever
            their logits); it goes before every other meaning of that number.

    Returns:
        [...], [] or [B] in the dtype of the inputs. Computed in float32 or better, in one pass over
        the logits, and rounded once; sums are accumulated in float64, in an order that depends on
        the shape alone. Under autocast the inputs are taken as they are and sums come as float32.

    Raises:
        TypeError: Not tensors, or dtypes that do not fit.
        ValueError: Shapes, devices, alpha, gamma, reduction or indices that do not fit.

    Finite for logits of any finite size. Infinite logits give the limit: plus infinity at the
    target alone 0, elsewhere alone infinity, minus infinity a class that cannot be; the gradient is
    finite in each of these. Infinities of one sign that meet at the target, and a NaN, give NaN.
    Differentiable twice in the inputs; only inputs and targets (and a tensor alpha) are saved.

    Source: Lin et al., Focal Loss for Dense Object Detection (arXiv:1708.02002), equations 4 and 5,
    with the softmax in the place of the sigmoid.
    """
    op = "softmax_focal_loss"
    check_inputs(op, inputs, reduction)
    _check_targets(op, inputs, targets)
    _check_alpha(op, inputs, alpha)
    check_not_negative(op, "gamma", gamma)
    check_integer(op, "ignore_index", ignore_index)
    if background_index is not None:
        check_integer(op, "background_index", background_index)
        classes = inputs.shape[-1]
        if not -classes <= background_index < classes and classes > 0:
            raise ValueError(
                f"{op}: background_index must be a column of inputs ({classes} classes), "
                f"got {background_index}"
            )
    if reduction == "sum_per_image" and targets.dim() == 0:
        raise ValueError(f"{op}: inputs must have shape [B, ..., C] for sum_per_image, got [C]")
    class_weights = None
    if isinstance(alpha, Tensor):
        wide = torch.float64 if inputs.dtype == torch.float64 else torch.float32
        class_weights, alpha = alpha.detach().to(wide), -1.0
    loss: Tensor = _softmax_focal_loss(
        inputs, targets, alpha, class_weights, gamma, reduction, background_index, ignore_index
    )
    return in_dtype_of(inputs, loss)
