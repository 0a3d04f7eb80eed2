# SPDX-License-Identifier: Apache-2.0
"""Checks of the configs of detectors: each names the config, the field, what it must be and is."""

import dataclasses
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin


def refuse(config: Any, field: str, requirement: str, got: Any = None) -> ValueError:
    """The error for a field; ``got`` is by default its value."""
    got = repr(getattr(config, field)) if got is None else got
    return ValueError(f"{type(config).__name__}: {field} must {requirement}, got {got}")


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of the type that a field is annotated with; of a choice, any of its type.

    What is no plain type, nor made of such, fits always.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return isinstance(value, tuple(map(type, parts)))
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is tuple:  # the length is the config's own to check
        if len(parts) == 2 and parts[1] is Ellipsis:
            return isinstance(value, tuple) and all(fits(item, parts[0]) for item in value)
        return isinstance(value, tuple) and all(map(fits, value, parts))
    if kind in (int, float):
        allowed = (int, float) if kind is float else int
        return isinstance(value, allowed) and not isinstance(value, bool)
    if kind in (bool, str, NoneType) or dataclasses.is_dataclass(kind):
        return isinstance(value, kind)
    return True


def describe(kind: Any) -> str:
    """An annotation in words."""
    if kind in (int, float, bool, str):
        return {int: "an integer", float: "a number", bool: "true or false", str: "a word"}[kind]
    return str(getattr(kind, "__name__", kind) if get_origin(kind) is None else kind)


def check_choice(config: Any, field: str, choices: Sequence[str]) -> None:
    """Raises ValueError for a field that is none of the choices."""
    if getattr(config, field) not in choices:
        named = list(map(repr, choices))
        either = " or ".join(named) if len(named) < 3 else f"one of {', '.join(named)}"
        raise refuse(config, field, f"be {either}")


def check_between(config: Any, field: str, low: float, high: float) -> None:
    """Raises ValueError for a field that does not lie between two numbers, both excluded."""
    if not low < getattr(config, field) < high:
        raise refuse(config, field, f"be between {low} and {high}")


def check_within(config: Any, field: str, low: float, high: float) -> None:
    """Raises ValueError for a field that does not lie between two numbers, both included."""
    if not low <= getattr(config, field) <= high:
        raise refuse(config, field, f"be in [{low}, {high}]")


def check_detection(config: Any) -> None:
    """Raises ValueError for fields that all detectors have, to choose their detections."""
    check_within(config, "score_threshold", 0, 1)
    check_within(config, "nms_iou_threshold", 0, 1)
    check_at_least(config, "max_detections", 1)


def check_at_least(config: Any, field: str, least: float) -> None:
    """Raises ValueError for a field that is less than a number, or NaN."""
    if not getattr(config, field) >= least:
        raise refuse(config, field, f"be at least {least}")


def check_length(config: Any, field: str, length: int, what: str) -> None:
    """Raises ValueError for a field that is not None and has another length."""
    value = getattr(config, field)
    if value is not None and len(value) != length:
        raise refuse(config, field, f"be {length} {what}", len(value))
