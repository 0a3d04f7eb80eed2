# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies of boxes, scores and labels, for all property tests.

Where something is decided (suppressed, matched) tests draw from a *lattice*: integer coordinates in
[0, 1024) and thresholds that are multiples of 1/8. Areas (< 2^20) and unions (< 2^21) are then
exact in float32, and a quotient of two such integers that is not equal to the threshold is at least
2^-24 away from it, while floats below 1 are at most 2^-24 apart: the rounded quotient falls on the
right side. So each decision has one right answer and results must be equal, not close.
"""

import math

import torch
from hypothesis import strategies as st

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

LATTICE = 1024


def lattice_box(size: int = LATTICE, *, degenerate: bool = True):
    """One box (x1, y1, x2, y2) of integers in [0, size), as floats."""
    least = 0 if degenerate else 1

    def corners(draw_from):
        (x1, w), (y1, h) = draw_from
        return (float(x1), float(y1), float(min(x1 + w, size - 1)), float(min(y1 + h, size - 1)))

    side = st.integers(0, size - 2).flatmap(
        lambda start: st.tuples(st.just(start), st.integers(least, size - 1 - start))
    )
    return st.tuples(side, side).map(corners)


def lattice_boxes(
    min_count: int = 0, max_count: int = 24, size: int | None = None, *, degenerate: bool = True
):
    """Lists of boxes on a lattice; a small one makes many overlaps, ties and equal boxes."""
    sizes = st.sampled_from([4, 16, LATTICE]) if size is None else st.just(size)
    return sizes.flatmap(
        lambda s: st.lists(
            lattice_box(s, degenerate=degenerate), min_size=min_count, max_size=max_count
        )
    )


def coordinate(*, special: bool = True):
    """A coordinate of any kind: ordinary, negative, huge, tiny, infinite or NaN."""
    ordinary = st.floats(-2000, 2000, width=32)
    if not special:
        return ordinary
    return ordinary | st.sampled_from(
        [math.nan, math.inf, -math.inf, 1e30, -1e30, 1e-30, 0.0, -0.0]
    )


def any_boxes(min_count: int = 0, max_count: int = 12, *, special: bool = True):
    """Lists of boxes with arbitrary coordinates, inverted and degenerate ones among them."""
    return st.lists(
        st.tuples(*[coordinate(special=special)] * 4), min_size=min_count, max_size=max_count
    )


def valid_boxes(min_count: int = 0, max_count: int = 12):
    """Lists of ordinary boxes with arbitrary float coordinates and a positive area."""
    box = st.tuples(
        st.floats(-500, 500, width=32),
        st.floats(-500, 500, width=32),
        st.floats(0.125, 500, width=32),
        st.floats(0.125, 500, width=32),
    ).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
    return st.lists(box, min_size=min_count, max_size=max_count)


def lattice_threshold():
    """An IoU threshold that is a multiple of 1/8."""
    return st.integers(0, 8).map(lambda eighths: eighths / 8)


def tensor_of_boxes(boxes, dtype=torch.float32, device="cpu"):
    """[N, 4] from a list of boxes, also from an empty one."""
    return torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4).to(device=device, dtype=dtype)


def layouts(tensor):
    """The same values in memory layouts that a kernel must not care about, with a name each."""
    yield "contiguous", tensor
    if tensor.dim() >= 2:
        yield "transposed", tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    padded = torch.empty(
        (*tensor.shape[:-1], 2 * tensor.shape[-1]), dtype=tensor.dtype, device=tensor.device
    )
    padded[..., ::2] = tensor
    yield "strided", padded[..., ::2]
    flat = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    flat[1:] = tensor.reshape(-1)
    yield "offset", flat[1:].view(tensor.shape)
