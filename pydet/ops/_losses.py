# SPDX-License-Identifier: Apache-2.0
"""What the losses of single logits share: reductions, registration and the checks of arguments."""

from typing import Any

import torch
from torch import Tensor

from pydet.ops._checks import (
    FLOATING,
    check_choice,
    check_dtype,
    check_same_device,
    check_same_dtype,
    check_shape,
    check_tensor,
)
from pydet.ops._library import define

REDUCTIONS = ("none", "mean", "sum", "sum_per_image")

ARGUMENTS = "Tensor inputs, Tensor targets, float alpha, float gamma, str reduction"
BACKWARD = f"Tensor grad_loss, {ARGUMENTS}, bool wrt_targets"
DOUBLE_BACKWARD = f"Tensor grad_grad, {BACKWARD}, bool with_targets"
THREE = "(Tensor, Tensor, Tensor)"


def loss_like(inputs: Tensor, shape: Any, reduction: str) -> Tensor:
    """A loss without data; ``shape`` is that without a reduction. Sums are at least float32."""
    if reduction == "none":
        return inputs.new_empty(shape)
    dtype = torch.float64 if inputs.dtype == torch.float64 else torch.float32
    return inputs.new_empty(inputs.shape[:1] if reduction == "sum_per_image" else (), dtype=dtype)


def _fake_double(grad_grad: Tensor, grad_loss: Tensor, inputs: Tensor, *rest: Any) -> Any:
    with_targets = rest[-1]
    targets_shape = inputs.shape if with_targets else (0,)
    return (
        grad_loss.new_empty(grad_loss.shape),
        inputs.new_empty(inputs.shape),
        inputs.new_empty(targets_shape),
    )


def define_loss(forward: str, backward: str, double_backward: str) -> Any:
    """Registers a loss of inputs and targets, two numbers and a reduction, and its derivatives.

    Saves nothing beyond inputs and targets. Each derivative is one kernel a gradient asked for.
    """
    double = define(double_backward, fake=_fake_double)

    def save_both(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad_loss, logits, targets, *ctx.rest = inputs
        ctx.save_for_backward(grad_loss, logits, targets)

    def run_double(ctx: Any, grad_grad: Tensor) -> tuple[Tensor | None, ...]:
        with_targets = ctx.needs_input_grad[2]
        grads = double(grad_grad, *ctx.saved_tensors, *ctx.rest, with_targets)
        return (grads[0], grads[1], grads[2] if with_targets else None, None, None, None, None)

    once = define(
        backward,
        fake=lambda grad_loss, inputs, *_: inputs.new_empty(inputs.shape),
        backward=run_double,
        save=save_both,
    )

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        logits, targets, *ctx.rest = inputs
        ctx.save_for_backward(logits, targets)

    def run_once(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grads = [
            once(grad_loss, *ctx.saved_tensors, *ctx.rest, wrt_targets)
            if ctx.needs_input_grad[wrt_targets]
            else None
            for wrt_targets in (False, True)
        ]
        return (*grads, None, None, None)

    return define(
        forward,
        fake=lambda inputs, targets, alpha, gamma, reduction: loss_like(
            inputs, inputs.shape, reduction
        ),
        backward=run_once,
        save=save,
    )


def check_inputs(op: str, inputs: Any, reduction: Any) -> None:
    """Refuses what are no logits, and an unknown reduction or one that does not fit them."""
    check_tensor(op, "inputs", inputs)
    check_dtype(op, "inputs", inputs, FLOATING)
    check_choice(op, "reduction", reduction, REDUCTIONS)
    if reduction == "sum_per_image" and inputs.dim() == 0:
        raise ValueError(f"{op}: inputs must have shape [B, ...] for sum_per_image, got []")


def check_dense_targets(op: str, inputs: Tensor, targets: Any) -> None:
    """Refuses targets that are not one number for each logit, in the dtype of the logits."""
    check_tensor(op, "targets", targets)
    check_dtype(op, "targets", targets, FLOATING)
    check_same_dtype(op, "targets", targets, "inputs", inputs)
    check_same_device(op, "targets", targets, "inputs", inputs)
    wanted = inputs.shape
    check_shape(op, "targets", targets, f"{list(wanted)} of inputs", lambda shape: shape == wanted)


def in_dtype_of(inputs: Tensor, loss: Tensor) -> Tensor:
    """The loss as the user gets it: sums stay float32 under autocast alone."""
    if torch.is_autocast_enabled(inputs.device.type):
        return loss
    return loss.to(inputs.dtype)
