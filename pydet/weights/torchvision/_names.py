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
_NEVER = -math.log((1 - 1e-6) / 1e-6)


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


def drop_background(state: State, ours: str, theirs: str, groups: int) -> State:
    """Takes class 0, the background, out of a layer whose rows are classes.

    Args:
        state: By pydet's names; it is changed.
        ours: What the layer's names begin with there; rows are [groups · classes, ...].
        theirs: Likewise in torchvision.
        groups: Anchors of a location.

    Returns:
        What was taken, [groups, ...], by torchvision's names.
    """
    dropped: State = {}
    for part in ("weight", "bias"):
        by_class = state[ours + part].unflatten(0, (groups, -1))
        state[ours + part] = by_class[:, 1:].flatten(0, 1).contiguous()
        dropped[theirs + part] = by_class[:, 0].contiguous()
    return dropped


def restore_background(state: State, dropped: State, ours: str, theirs: str, groups: int) -> None:
    """The inverse; what was not kept is made such that the background is never detected."""
    for part, never in (("weight", 0.0), ("bias", _NEVER)):
        by_class = state[ours + part].unflatten(0, (groups, -1))
        background = dropped.get(theirs + part)
        if background is None:
            background = torch.full_like(by_class[:, 0], never)
        state[ours + part] = torch.cat((background[:, None], by_class), 1).flatten(0, 1)
