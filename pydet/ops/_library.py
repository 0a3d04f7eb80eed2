# SPDX-License-Identifier: Apache-2.0
"""Makes the functions of ``pydet._C`` operators of torch: the only module that touches either.

Each op calls :func:`define` once. What that registers under ``torch.ops.pydet`` has a kernel for
CPU and CUDA, a fake implementation (shapes without data: torch.compile, torch.export), a gradient
and an autocast rule.
"""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch.autograd import forward_ad

from pydet._build_info import MEND, find_module, misfit, read_build_info

_lib = torch.library.Library("pydet", "DEF")


def _load() -> tuple[ModuleType | None, str]:
    """The compiled module, or None and a sentence that says what is wrong and how to mend it."""
    file = find_module()
    if file is None:  # and no other copy of pydet may lend its own
        return None, f"pydet's compiled part (pydet._C) is not built. {MEND}."
    reason = misfit(read_build_info(file))
    if reason:
        return None, reason
    try:
        module = importlib.import_module("pydet._C")
    except ImportError as error:
        return None, f"pydet's compiled part does not load ({error}). {MEND}."
    return module, ""


extension, load_error = _load()


def _kernel(name: str) -> Callable[..., Any]:
    if hasattr(extension, name):
        return getattr(extension, name)  # type: ignore[no-any-return]
    reason = load_error or f"pydet's compiled part is older than this pydet. {MEND}."

    def missing(*_: Any) -> Any:
        raise ImportError(f"{name}: {reason}")

    return missing


def _refuse_derivative(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError(f"{ctx.op_name}: a derivative of this order is not implemented")


def _has_tangent(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_has_tangent, value))
    return isinstance(value, torch.Tensor) and forward_ad.unpack_dual(value).tangent is not None


def define(
    schema: str,
    *,
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    save: Callable[..., None] | None = None,
    differentiable: bool = True,
    autocast: torch.dtype | None = None,
) -> Any:
    """Registers one operator and returns it.

    Args:
        schema: Name and signature in torch's schema language; the name is that of the function in
            ``pydet._C``.
        fake: Gives outputs of the right shape, dtype and device from inputs without data.
        backward: ``backward(ctx, *grads)``: the gradient of each input. None for an op that has no
            formula; asking for its gradient then raises.
        save: ``save(ctx, inputs, output)``: keeps what the backward needs.
        differentiable: False for ops whose results carry no gradient at all (indices).
        autocast: The dtype that floating inputs take under autocast; None leaves them.
    """
    name = schema.split("(", maxsplit=1)[0]
    _lib.define(schema)
    kernel = _kernel(name)
    _lib.impl(name, kernel, "CPU")
    _lib.impl(name, kernel, "CUDA")
    torch.library.register_fake(f"pydet::{name}", fake, lib=_lib)
    if backward is None and differentiable:
        backward = _refuse_derivative

        def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.op_name = name

    if backward is not None:
        torch.library.register_autograd(f"pydet::{name}", backward, setup_context=save, lib=_lib)
    if autocast is not None:
        for device_type in ("cpu", "cuda"):
            torch.library.register_autocast(f"pydet::{name}", device_type, autocast, lib=_lib)
    operator = getattr(torch.ops.pydet, name).default
    if backward is None:
        return operator

    def call(*args: Any) -> Any:
        # Without a rule for it torch would drop the tangents, and say nothing.
        if forward_ad._current_level >= 0 and any(map(_has_tangent, args)):
            raise NotImplementedError(f"{name}: forward-mode derivatives are not implemented")
        return operator(*args)

    return call
