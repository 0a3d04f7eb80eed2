# SPDX-License-Identifier: Apache-2.0
"""Checks of the configs of detectors: each names the config, the field, what it must be and is."""

from collections.abc import Sequence
from typing import Any


def refuse(config: Any, field: str, requirement: str, got: Any = None) -> ValueError:
    """The error for a field; ``got`` is by default its value."""
    got = repr(getattr(config, field)) if got is None else got
    return ValueError(f"{type(config).__name__}: {field} must {requirement}, got {got}")


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


def check_at_least(config: Any, field: str, least: float) -> None:
    """Raises ValueError for a field that is less than a number, or NaN."""
    if not getattr(config, field) >= least:
        raise refuse(config, field, f"be at least {least}")


def check_length(config: Any, field: str, length: int, what: str) -> None:
    """Raises ValueError for a field that is not None and has another length."""
    value = getattr(config, field)
    if value is not None and len(value) != length:
        raise refuse(config, field, f"be {length} {what}", len(value))
