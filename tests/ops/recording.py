# SPDX-License-Identifier: Apache-2.0
"""Runs a case and keeps which native ops of pydet it called."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ops.cases import OpCase


def with_gradient(case: OpCase, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leaves that ask for a gradient, where the case has one."""
    return {
        name: tensor.detach().clone().requires_grad_(name in case.gradients)
        for name, tensor in tensors.items()
    }


def weights_like(result: Tensor) -> Tensor:
    """Weights of a sum that tell its elements apart: 1/8 to 1, in a fixed pattern."""
    count = torch.arange(result.numel(), device=result.device, dtype=torch.float64)
    return ((count * 37 % 8 + 1) / 8).reshape(result.shape)


class Recorder(TorchDispatchMode):
    """Keeps the first call of each of pydet's native ops, and the order of derivative it served."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[Any, tuple[int, Any, Any]] = {}
        self.order = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "pydet":
            self.calls.setdefault(func, (self.order, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def record(case: OpCase, device: torch.device | str = "cpu") -> dict[Any, tuple[int, Any, Any]]:
    """The native ops that a case calls: for its results and for all derivatives that it has."""
    tensors = with_gradient(case, case.tensors(4, device=device))
    leaves = [tensors[name] for name in case.gradients]
    with Recorder() as recorder:
        results = [result for result in case.run(**tensors) if result.requires_grad]
        for recorder.order in (1, 2) if leaves else ():
            total = sum((result * weights_like(result).to(result)).sum() for result in results)
            grads = torch.autograd.grad(total, leaves, create_graph=True, allow_unused=True)
            results = [grad for grad in grads if grad is not None and grad.requires_grad]
            if not results:
                break
    return recorder.calls
