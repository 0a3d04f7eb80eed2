# SPDX-License-Identifier: Apache-2.0
"""Normalisation by name: batch, frozen batch, group, or none; and that of SSD."""

import math
from typing import Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pydet.postprocess import at_least_float32

Norm = Literal["none", "batch", "frozen", "group"]
NORMS: tuple[Norm, ...] = ("none", "batch", "frozen", "group")
_GROUPS = 32  # Wu & He, Group Normalization, section 4: 32 groups


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with fixed statistics and a fixed affine part.

    y = (x - mean) / sqrt(var + eps) * weight + bias, all four of them buffers: what detectors use
    that start from ImageNet weights, whose batches are too small for statistics of their own.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        scale, shift = _scale_and_shift(self)
        # In the dtype of x: a product with float32 would turn a bfloat16 map into float32. Not
        # F.batch_norm, which would keep x for the backward pass; and in one pass over it.
        scale, shift = scale.to(x.dtype), shift.to(x.dtype)
        return torch.addcmul(shift[:, None, None], x, scale[:, None, None])

    def extra_repr(self) -> str:  # noqa: D102
        return f"{self.weight.shape[0]}, eps={self.eps}"


def conv_norm(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(conv(x))``, where the norm's statistics are fixed by less work.

    Then either the maps or the weights have to be scaled: whatever is smaller is, and scaled
    weights make one convolution of both. Hooks of the two modules are not called then.
    """
    if not (_is_fixed(norm) and _are_weights_smaller(conv, x)):
        return norm(conv(x))  # type: ignore[no-any-return]
    scale, shift = _scale_and_shift(norm)
    weight = (conv.weight * scale[:, None, None, None]).to(conv.weight.dtype)
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    return conv._conv_forward(x, weight, shift.to(weight.dtype))  # type: ignore[no-any-return]


def _is_fixed(norm: nn.Module) -> TypeGuard[FrozenBatchNorm2d | nn.BatchNorm2d]:
    is_batch_norm = isinstance(norm, nn.BatchNorm2d)
    return isinstance(norm, FrozenBatchNorm2d) or (is_batch_norm and not norm.training)


def _are_weights_smaller(conv: nn.Conv2d, x: Tensor) -> bool:
    """Than the maps that come of x; taken for granted where its size is left open (export)."""
    if torch.compiler.is_compiling():
        return True
    positions = x.shape[0] * x.shape[2] * x.shape[3] // (conv.stride[0] * conv.stride[1])
    return conv.weight.numel() < positions * conv.out_channels


def _scale_and_shift(norm: FrozenBatchNorm2d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """[C] each, in float32 at least: what the norm with its fixed statistics does to a map."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (at_least_float32(norm.running_var) + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


class L2Norm(nn.Module):
    """Gives the vector of channels at each location a length that is learnt, channel by channel.

    Liu et al., ParseNet, arXiv 1506.04579, section 3.3; SSD needs it (arXiv 1512.02325, section
    3.1), because its first map has larger values than the others.

    Args:
        channels: Of the maps.
        scale: First length.
    """

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), float(scale)))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W], in the dtype of x; a location of zeros stays one."""
        # In float32: squares of half precision may be infinite, and the least length rounds to 0.
        return (F.normalize(at_least_float32(x), dim=1) * self.weight[:, None, None]).to(x.dtype)


def make_norm(norm: Norm, channels: int, eps: float = 1e-5) -> nn.Module:
    """The normalisation layer of that name for maps of ``channels`` channels.

    Raises:
        ValueError: An unknown name.
    """
    if norm == "none":
        return nn.Identity()
    if norm == "batch":
        return nn.BatchNorm2d(channels, eps=eps)
    if norm == "frozen":
        return FrozenBatchNorm2d(channels, eps=eps)
    if norm == "group":
        # At least two channels a group: a map of one location has nothing else to average over.
        return nn.GroupNorm(math.gcd(_GROUPS, max(1, channels // 2)), channels, eps=eps)
    raise ValueError(f"make_norm: norm must be one of {', '.join(NORMS)}, got {norm!r}")
