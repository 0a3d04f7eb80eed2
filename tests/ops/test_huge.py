# SPDX-License-Identifier: Apache-2.0
"""More than 2^31 numbers in one tensor: what 32-bit indices would get wrong.

Each takes gigabytes, so HYPOTHESIS_PROFILE=thorough alone runs them, where the memory is free.
"""

import os
from pathlib import Path

import pytest
import torch

from pydet import ops

MANY = 2**31
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


def available_gib() -> float:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return kib / 2**20


def needs(gib: float):
    """Skips where there is less memory, or where nobody asked for tests of this size."""
    reason = "needs HYPOTHESIS_PROFILE=thorough"
    if THOROUGH:
        reason = f"needs {gib} GiB of memory, got {available_gib():.1f}"
    return pytest.mark.skipif(not THOROUGH or available_gib() < gib + 1, reason=reason)


@needs(8.2)
def test_box_iou():
    """[65536, 32770]: the last rows lie beyond 2^31 numbers."""
    boxes1, boxes2 = torch.zeros(65_536, 4), torch.zeros(32_770, 4)
    boxes1[-1], boxes2[-1], boxes2[1] = (torch.tensor([0.0, 0, 2, y]) for y in (2, 1, 2))
    iou = ops.box_iou(boxes1, boxes2)
    assert iou.numel() > MANY
    assert iou[-1, -1] == 0.5 and iou[-1, 1] == 1
    assert iou[-1].sum() == 1.5 and iou[:-1].max() == 0


@needs(8.2)
def test_box_convert():
    boxes = torch.zeros(MANY // 4 + 3, 4, dtype=torch.float16)
    boxes[-1] = torch.tensor([1, 2, 4, 9])
    converted = ops.box_convert(boxes, "xyxy", "xywh")
    assert converted[-1].tolist() == [1, 2, 3, 7] and converted[-4:-1].eq(0).all()


@needs(2.1)
def test_masks_to_boxes():
    side = 46_342
    masks = torch.zeros(1, side, side, dtype=torch.bool)
    masks[0, -2, 5:-3] = True
    assert ops.masks_to_boxes(masks).tolist() == [[5, side - 2, side - 4, side - 2]]


@needs(4.2)
@pytest.mark.parametrize("loss", ["sigmoid_focal_loss", "softmax_focal_loss"])
def test_losses(loss):
    """Logits of 2^31 numbers whose last row, the only one that is not ignored, is not 0."""
    rows, classes = 2**15 + 1, 2**16
    inputs = torch.zeros(rows, classes, dtype=torch.float16)
    inputs[-1] = torch.linspace(-4, 4, classes)
    targets = torch.full((rows,), ops.IGNORED)
    targets[-1] = 7
    function = getattr(ops, loss)
    wanted = function(inputs[-1:].float(), targets[-1:], reduction="sum")
    result = function(inputs, targets, reduction="sum")
    torch.testing.assert_close(result.float(), wanted, rtol=1e-3, atol=0)


@needs(4.2)
@pytest.mark.parametrize("op", ["roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"])
def test_maps(op):
    """A region in the last cells of the last channel of the last image."""
    side = 2**14
    maps = torch.zeros(2, 4, side, side + 1, dtype=torch.float16)
    maps[1, 3, -20:, -20:] = 2.5
    low, high = side - 12.0, side - 4.0
    out = getattr(ops, op)(maps, torch.tensor([[1, low, low, high, high]]), 2, 1.0)
    assert out[0, -1, -1, -1] == 2.5
    assert out.sum() == (2.5 if op.startswith("ps") else 4 * 2.5)
