# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments; every error is ``<op>: <argument> must <requirement>, got <what came>``.

Only metadata (type, dtype, shape, device) is looked at, never values: reading a value back from a
GPU would make every call wait for it.
"""

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
NUMERIC = FLOATING + INTEGERS


def check_tensor(op: str, name: str, value: Any) -> None:
    """Refuses what is not a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")


def check_dtype(op: str, name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    """Refuses a dtype that is not in ``allowed``."""
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise TypeError(f"{op}: {name} must have a dtype of {names}, got {tensor.dtype}")


def check_same_dtype(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Refuses two tensors of different dtypes, except under autocast, which makes them alike."""
    if tensor.dtype != other.dtype and not torch.is_autocast_enabled(tensor.device.type):
        raise TypeError(
            f"{op}: {name} must have the dtype of {other_name} ({other.dtype}), got {tensor.dtype}"
        )


def check_same_device(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Refuses two tensors on different devices."""
    if tensor.device != other.device:
        raise ValueError(
            f"{op}: {name} must be on the device of {other_name} ({other.device}), "
            f"got {tensor.device}"
        )


def check_shape(
    op: str, name: str, tensor: Tensor, wanted: str, fits: Callable[[torch.Size], bool]
) -> None:
    """Refuses a shape that ``fits`` denies; ``wanted`` says it in letters, as in ``[N, 4]``."""
    if not fits(tensor.shape):
        raise ValueError(f"{op}: {name} must have shape {wanted}, got {list(tensor.shape)}")


def check_boxes(op: str, name: str, boxes: Any, shape: str = "[..., N, 4]") -> None:
    """Refuses what is not a tensor of boxes [..., N, 4], or [N, 4] where ``shape`` says so."""
    check_tensor(op, name, boxes)
    dim = boxes.dim()
    if dim < 2 or boxes.shape[-1] != 4 or (dim > 2 and not shape.startswith("[...")):
        raise ValueError(f"{op}: {name} must have shape {shape}, got {list(boxes.shape)}")


def check_number(
    op: str, name: str, value: Any, requirement: str, fits: Callable[[Any], bool]
) -> None:
    """Refuses what is not a number, and a number that ``fits`` denies (as it should NaN).

    A tensor [] on the CPU is one, too: to read it makes nothing wait.
    """
    if isinstance(value, bool) or not isinstance(value, Real):  # NumPy's numbers are such
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")
        if value.dim() or value.device.type != "cpu" or value.dtype not in NUMERIC:
            raise TypeError(
                f"{op}: {name} must be a number, or one in a tensor [] on the CPU, got a tensor "
                f"{list(value.shape)} of {value.dtype} on {value.device}"
            )
    if not fits(value):
        raise ValueError(f"{op}: {name} must be {requirement}, got {value}")


def check_not_negative(op: str, name: str, value: Any) -> None:
    """Refuses what is not a finite number of at least 0."""
    check_number(op, name, value, "finite and at least 0", lambda x: 0 <= x < math.inf)


def check_integer(op: str, name: str, value: Any) -> None:
    """Refuses what is not an integer."""
    if isinstance(value, bool) or not isinstance(value, Integral | torch.SymInt):
        raise TypeError(f"{op}: {name} must be an integer, got {type(value).__name__}")


def check_sides(op: str, name: str, value: Any, least: int) -> tuple[int, int]:
    """Refuses what is not one or two integers of at least ``least`` and gives (height, width)."""
    sides = value if isinstance(value, Sequence) else (value, value)
    if len(sides) != 2 or any(isinstance(s, bool) or not isinstance(s, Integral) for s in sides):
        raise TypeError(f"{op}: {name} must be an integer or a pair (height, width), got {value!r}")
    height, width = map(int, sides)
    if height < least or width < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {value}")
    return height, width


def check_choice(op: str, name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuses a word that is not one of ``choices``."""
    if value not in choices:
        words = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{op}: {name} must be one of {words}, got {value!r}")
