# SPDX-License-Identifier: Apache-2.0
"""The operators of ONNX."""

from typing import Any

VERSION = 18


def opset() -> Any:
    """Functions that add an operator to the graph which is being made."""
    from onnxscript import opset18  # noqa: PLC0415

    return opset18


def ints(op: Any, *values: int) -> Any:
    """A constant [n] of int64."""
    return op.Constant(value_ints=list(values))
