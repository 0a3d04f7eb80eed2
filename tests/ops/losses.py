# SPDX-License-Identifier: Apache-2.0
"""What the tests of the losses of logits share, above all of those with dense targets."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

REDUCTIONS = ("none", "mean", "sum", "sum_per_image")
# Rounding of one result to the dtype; for float32 also that of exp and log1p, a few units each.
RELATIVE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# Below the smallest normal number a result may be 0; float16 has a spacing of 2^-24 there.
ABSOLUTE = {torch.float64: 0, torch.float32: 2e-38, torch.float16: 6e-8, torch.bfloat16: 2e-38}
LOGITS = st.floats(-60, 60, width=16) | st.sampled_from([0.0, -0.0, 1e4, -1e4, 1e-4])

X = torch.zeros(5, 3)

# Arguments of the native ops that must not come as far as the kernels.
UNSAFE = [
    (X, X[:4], 1.0, 2.0, "none"),
    (X, torch.zeros(5, dtype=torch.int64), 1.0, 2.0, "none"),
    (X, X.double(), 1.0, 2.0, "none"),
    (X.int(), X.int(), 1.0, 2.0, "none"),
    (X, X, 1.0, 2.0, "avg"),
]


def wrong_arguments(second: str) -> list[tuple[Any, type[Exception], str]]:
    """Arguments, the error and its words; ``second`` is the name of the second number."""
    return [
        (([0.0], X), TypeError, "inputs must be a tensor, got list"),
        ((X.int(), X), TypeError, "inputs must have a dtype of .*, got torch.int32"),
        ((X, [0]), TypeError, "targets must be a tensor, got list"),
        ((X, X.long()), TypeError, "targets must have a dtype of .*, got torch.int64"),
        ((X, X.double()), TypeError, "targets must have the dtype of inputs"),
        ((X, X[:4]), ValueError, r"targets must have shape \[5, 3\] of inputs, got \[4, 3\]"),
        ((X, X.to("meta")), ValueError, "targets must be on the device of inputs"),
        ((X, X, -1), ValueError, "alpha must be finite and at least 0, got -1"),
        ((X, X, math.nan), ValueError, "alpha must be .*, got nan"),
        ((X, X, 1, math.inf), ValueError, f"{second} must be finite"),
        ((X, X, 1, "2"), TypeError, f"{second} must be a number, got str"),
        ((X, X, 1, 2, "avg"), ValueError, "reduction must be one of 'none', .*, got 'avg'"),
        (
            (X[0, 0], X[0, 0], 1, 2, "sum_per_image"),
            ValueError,
            r"inputs must have shape \[B, ...\]",
        ),
    ]


def assert_protected(name: str, arguments: tuple[Any, ...]) -> None:
    """The native op and its derivatives refuse what would read outside of a tensor."""
    native = torch.ops.pydet
    for op, before, after in (
        (getattr(native, name), (), ()),
        (getattr(native, f"{name}_backward"), (X,), (False,)),
        (getattr(native, f"{name}_double_backward"), (X, X), (False, True)),
    ):
        with pytest.raises((ValueError, TypeError, RuntimeError), match=name):
            op(*before, *arguments, *after)


def assert_reductions(loss: Callable[..., Tensor], wanted: Tensor, *arguments: Tensor) -> None:
    """``loss(*arguments)`` reduces ``wanted``, its elements in float64, in all four ways."""
    sums = {
        "none": wanted,
        "mean": wanted.mean(),
        "sum": wanted.sum(),
        "sum_per_image": wanted.reshape(len(wanted), -1).sum(1),
    }
    for reduction in REDUCTIONS:
        result = loss(*arguments, reduction=reduction)
        torch.testing.assert_close(result.double(), sums[reduction], rtol=2e-5, atol=1e-6)


def assert_saves_its_inputs_alone(
    loss: Callable[..., Tensor], inputs: Tensor, targets: Tensor
) -> None:
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.data_ptr()) or tensor, lambda tensor: tensor
    ):
        loss(inputs.requires_grad_(), targets, reduction="sum").backward()
    assert sorted(saved) == sorted([inputs.data_ptr(), targets.data_ptr()])
