# SPDX-License-Identifier: Apache-2.0
"""Names of torchvision's parameters and pydet's, as pairs of beginnings, which go both ways."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from pydet.weights._state import State

# (torchvision's, pydet's): beginnings of names, each up to a dot. No beginning may be that of
# another one on its side.
Pairs = Sequence[tuple[str, str]]

BACKBONE = ("backbone.body.", "backbone.")
# The logit of a class that is never an object: far below any threshold, near enough to learn.
NEVER = -math.log((1 - 1e-6) / 1e-6)


def is_old_fpn(state: Mapping[str, Tensor]) -> bool:
    """Whether a pyramid is in the layout before torchvision 0.13, as published files have it."""
    return any(name.startswith("backbone.fpn.inner_blocks.0.weight") for name in state)


def fpn_pairs(levels: Iterable[int], extra: Iterable[int], is_old: bool) -> list[tuple[str, str]]:
    """The pairs of a pyramid, whose blocks torchvision counts from 0.

    Args:
        levels: Those with a map of the trunk.
        extra: Those that are made by convolutions beyond it.
        is_old: See :func:`is_old_fpn`.
    """
    pairs = []
    for index, level in enumerate(levels):
        for theirs, ours in (("inner_blocks", "lateral"), ("layer_blocks", "output")):
            block, layer = f"backbone.fpn.{theirs}.{index}.", f"neck.{ours}.{level}."
            pairs.append((block, layer + "0.") if is_old else (block, layer))
    pairs += [(f"backbone.fpn.extra_blocks.p{level}.", f"neck.extra.{level}.0.") for level in extra]
    return pairs


def to_pydet(state: Mapping[str, Tensor], pairs: Pairs) -> State:
    """A state_dict by pydet's names; those that no pair knows stay as they are."""
    return {_replace(name, pairs) or name: value for name, value in state.items()}


def from_pydet(state: Mapping[str, Tensor], pairs: Pairs, title: str) -> State:
    """A state_dict by torchvision's names.

    Raises:
        ValueError: A name that no pair knows, or a pair without a name: the model has parts that
            torchvision's has not, or lacks some.
    """
    back = [(ours, theirs) for theirs, ours in pairs]
    renamed: State = {}
    for name, value in state.items():
        other = _replace(name, back)
        if other is None:
            raise ValueError(f"convert: the model must have {title}'s parts alone, got {name}")
        renamed[other] = value
    for theirs, ours in pairs:
        if not any(name.startswith(theirs) for name in renamed):
            raise ValueError(f"convert: the model must have all of {title}'s parts, got no {ours}*")
    return renamed


def _replace(name: str, pairs: Pairs) -> str | None:
    for begin, other in pairs:
        if name.startswith(begin):
            return other + name.removeprefix(begin)
    return None


def split_background(rows: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Takes the first of each group of rows away.

    Args:
        rows: [groups · classes, ...], classes with a background at 0.
        groups: Anchors of a location.

    Returns:
        The rest [groups · (classes - 1), ...], and what was taken [groups, ...].
    """
    by_class = rows.unflatten(0, (groups, -1))
    return by_class[:, 1:].flatten(0, 1).contiguous(), by_class[:, 0].contiguous()


def join_background(rows: Tensor, background: Tensor) -> Tensor:
    """The inverse of :func:`split_background`."""
    by_class = rows.unflatten(0, (background.shape[0], -1))
    return torch.cat((background[:, None], by_class), 1).flatten(0, 1)
