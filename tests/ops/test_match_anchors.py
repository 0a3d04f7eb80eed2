# SPDX-License-Identifier: Apache-2.0
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pydet import ops
from tests.conftest import needs_cuda
from tests.ops.instruction_sets import assert_same_digest
from tests.reference.match_anchors import match_anchors as reference
from tests.strategies import (
    DTYPES,
    any_boxes,
    lattice_box,
    lattice_boxes,
    lattice_threshold,
    tensor_of_boxes,
    valid_boxes,
)

BACKGROUND, IGNORED = ops.BACKGROUND, ops.IGNORED


def thresholds():
    """(foreground, background) on the lattice, or the papers' own, which floats do not meet."""
    pairs = st.tuples(lattice_threshold(), lattice_threshold()).map(lambda p: (max(p), min(p)))
    return pairs | st.sampled_from([(0.5, 0.4), (0.7, 0.3), (0.5, 0.5), (0.6, 0.1)])


def arithmetic(dtype):
    return np.float64 if dtype == torch.float64 else np.float32


def check(anchors, gt_boxes, fg, bg, low_quality, ignored=None, best_anchors=False):
    """Compares with the reference, which must give the very same indices and bits."""
    gt_ignored = None if ignored is None else torch.tensor(ignored, dtype=torch.bool)
    matches = ops.match_anchors(
        anchors,
        gt_boxes,
        fg,
        bg,
        low_quality,
        best_anchor_for_each_gt=best_anchors,
        gt_ignored=gt_ignored,
    )
    with np.errstate(all="ignore"):
        idxs, ious = reference(
            anchors.double().tolist(),
            gt_boxes.double().tolist(),
            fg,
            bg,
            low_quality,
            ignored,
            arithmetic(anchors.dtype),
            best_anchors,
        )
    assert matches.matched_idxs.tolist() == idxs
    assert matches.matched_ious.tolist() == [float(value) for value in ious]


def random_boxes(count, *, size=400.0, side=80.0, seed=0, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 4, generator=generator, dtype=torch.float64)
    low, sides = corners[:, :2] * size, corners[:, 2:] * side + 1
    return torch.cat([low, low + sides], dim=1).to(device=device, dtype=dtype)


# --- against the reference ---------------------------------------------------------------------


def test_worked_example(device):
    anchors = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 1, 1]], device=device)
    matches = ops.match_anchors(anchors, anchors[:1], 0.7, 0.4)
    assert matches.matched_idxs.tolist() == [0, IGNORED, BACKGROUND]
    assert matches.matched_ious.tolist() == [1.0, 0.5, 0.0625]
    assert matches.matched_idxs.dtype == torch.int64


@given(lattice_boxes(), lattice_boxes(), thresholds(), st.booleans(), st.sampled_from(DTYPES[:2]))
def test_is_exact_on_integers(anchors, gt_boxes, limits, low_quality, dtype):
    a, gt = tensor_of_boxes(anchors, dtype), tensor_of_boxes(gt_boxes, dtype)
    check(a, gt, *limits, low_quality)
    whole = ops.match_anchors(a.long(), gt.long(), *limits, low_quality)
    wide = ops.match_anchors(a.double(), gt.double(), *limits, low_quality)
    assert torch.equal(whole.matched_idxs, wide.matched_idxs)
    assert torch.equal(whole.matched_ious, wide.matched_ious.float())


@given(
    any_boxes(), any_boxes(), thresholds(), st.booleans(), st.booleans(), st.sampled_from(DTYPES)
)
def test_any_coordinates(anchors, gt_boxes, limits, low_quality, best_anchors, dtype):
    a, gt = tensor_of_boxes(anchors, dtype), tensor_of_boxes(gt_boxes, dtype)
    check(a, gt, *limits, low_quality, best_anchors=best_anchors)


@given(
    valid_boxes(1, 40),
    valid_boxes(1),
    thresholds(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(DTYPES),
)
def test_ordinary_boxes(anchors, gt_boxes, limits, low_quality, best_anchors, dtype):
    a, gt = tensor_of_boxes(anchors, dtype), tensor_of_boxes(gt_boxes, dtype)
    check(a, gt, *limits, low_quality, best_anchors=best_anchors)


@given(
    lattice_boxes(1, 24, 16),
    st.lists(st.tuples(lattice_box(16), st.booleans()), max_size=8),
    thresholds(),
    st.booleans(),
    st.booleans(),
)
def test_ignored_ground_truth(anchors, gt_boxes, limits, low_quality, best_anchors):
    boxes, ignored = [box for box, _ in gt_boxes], [crowd for _, crowd in gt_boxes]
    a, gt = tensor_of_boxes(anchors), tensor_of_boxes(boxes)
    check(a, gt, *limits, low_quality, ignored, best_anchors)


@given(lattice_boxes(1, 40), lattice_boxes(), thresholds(), st.sampled_from(DTYPES[:2]))
def test_best_anchors_are_exact_on_integers(anchors, gt_boxes, limits, dtype):
    """The rule of SSD, on lattices with many ties and equal boxes."""
    a, gt = tensor_of_boxes(anchors, dtype), tensor_of_boxes(gt_boxes, dtype)
    check(a, gt, *limits, False, best_anchors=True)
    matches = ops.match_anchors(a, gt, *limits, best_anchor_for_each_gt=True)
    quality = ops.box_iou(a, gt).nan_to_num(nan=0.0, neginf=0.0, posinf=0.0)
    for g in range(len(gt)):  # every ground truth that is overlapped has its anchor, or lost it
        if quality[:, g].max() > 0:
            assert matches.matched_idxs[quality[:, g].argmax()] >= g


def test_best_anchor_by_hand(device):
    anchors = torch.tensor(
        [[0.0, 0, 8, 8], [0, 0, 4, 4], [0, 0, 4, 4], [20, 20, 24, 24], [40, 40, 44, 44]],
        device=device,
    )
    gt = torch.tensor(
        [
            [0.0, 0, 2, 2],  # 0.25 with the anchors 1 and 2: the first gets it
            [20, 20, 24, 28],  # 0.5 with the anchor 3, as
            [20, 16, 24, 24],  # this, which comes later
            [70, 70, 80, 80],  # overlaps nothing: gets none
            [0, 0, 8, 7],  # 0.875 with the anchor 0, over the threshold
        ],
        device=device,
    )
    matches = ops.match_anchors(anchors, gt, 0.75, 0.75, best_anchor_for_each_gt=True)
    assert matches.matched_idxs.tolist() == [4, 0, -1, 2, -1]
    assert matches.matched_ious.tolist() == pytest.approx([0.875, 16 / 56, 16 / 56, 0.5, 0])
    crowd = torch.tensor([False, False, True, False, False], device=device)
    matches = ops.match_anchors(
        anchors, gt, 0.75, 0.75, best_anchor_for_each_gt=True, gt_ignored=crowd
    )
    assert matches.matched_idxs.tolist() == [4, 0, -1, 1, -1]  # the anchor 3 lies in the crowd


def test_worked_table_of_priors(device):
    """Seven priors and three ground truths; boxes that have the table's best overlaps."""
    wide = {"dtype": torch.float64, "device": device}
    gt = torch.tensor([[0, 0, 100, 100], [300, 0, 400, 100], [600, 0, 700, 100]], **wide)
    priors = torch.tensor(
        [
            [0, 0, 75, 100],  # 0.75 with the first
            [150, 0, 250, 100],  # nothing
            [0, 0, 5, 100],  # 0.05
            [300, 0, 303, 100],  # 0.03 with the second
            [300, 0, 388, 100],  # 0.88
            [600, 0, 665, 100],  # 0.65 with the third
            [600, 0, 668, 100],  # 0.68
        ],
        **wide,
    )
    for best in (False, True):
        matches = ops.match_anchors(priors, gt, 0.5, 0.5, best_anchor_for_each_gt=best)
        assert matches.matched_idxs.tolist() == [0, -1, -1, -1, 1, 2, 2]
        expected = [0.75, 0, 0.05, 0.03, 0.88, 0.65, 0.68]
        assert matches.matched_ious.tolist() == pytest.approx(expected)
    # With a higher threshold only the best prior of each ground truth is left.
    matches = ops.match_anchors(priors, gt, 0.95, 0.95, best_anchor_for_each_gt=True)
    assert matches.matched_idxs.tolist() == [0, -1, -1, -1, 1, -1, 2]


def test_crowd_by_hand(device):
    """Half of an anchor's own area in a crowd: ignored; foreground and low-quality ones are not."""
    crowd, gt = [0.0, 0, 10, 10], [4.0, 0, 8, 4]
    anchors = [
        [8, 0, 12, 4],  # half in the crowd
        [9, 0, 13, 4],  # a quarter
        [4, 0, 8, 4],  # equal to the ground truth
        [2, 2, 2, 2],  # no area
        [50, 50, 60, 60],
    ]
    matches = ops.match_anchors(
        torch.tensor(anchors, device=device, dtype=torch.float32),
        torch.tensor([crowd, gt], device=device),
        0.5,
        0.4,
        gt_ignored=torch.tensor([True, False], device=device),
    )
    assert matches.matched_idxs.tolist() == [IGNORED, BACKGROUND, 1, BACKGROUND, BACKGROUND]
    assert matches.matched_ious.tolist() == [0, 0, 1, 0, 0]


@given(
    lattice_boxes(0, 12, 16),
    st.lists(st.lists(st.tuples(lattice_box(16), st.booleans()), max_size=5), max_size=4),
    thresholds(),
    st.booleans(),
    st.booleans(),
)
def test_batch_equals_single_images(anchors, images, limits, low_quality, best):
    a = tensor_of_boxes(anchors)
    offsets = torch.tensor([0, *np.cumsum([len(image) for image in images])]).long()
    packed = [entry for image in images for entry in image]
    gt = tensor_of_boxes([box for box, _ in packed])
    ignored = torch.tensor([crowd for _, crowd in packed], dtype=torch.bool)
    rule = {"best_anchor_for_each_gt": best}
    batch = ops.match_anchors(
        a, gt, *limits, low_quality, **rule, gt_ignored=ignored, offsets=offsets
    )
    assert batch.matched_idxs.shape == batch.matched_ious.shape == (len(images), len(anchors))
    for b in range(len(images)):
        part = slice(int(offsets[b]), int(offsets[b + 1]))
        single = ops.match_anchors(
            a, gt[part], *limits, low_quality, **rule, gt_ignored=ignored[part]
        )
        assert torch.equal(batch.matched_idxs[b], single.matched_idxs)
        assert torch.equal(batch.matched_ious[b], single.matched_ious)


@pytest.mark.parametrize("rule", [{}, {"low_quality": True}, {"best": True}])
@pytest.mark.parametrize("num_anchors", [0, 1, 130, pytest.param(3000, marks=pytest.mark.large)])
def test_each_image_with_anchors_of_its_own(num_anchors, rule, device):
    """[B, A, 4]: what comes of the images one by one, rows of NaN (padding) among them."""
    counts = (0, 7, 30)
    gt = random_boxes(sum(counts), seed=1, device=device)
    anchors = random_boxes(3 * num_anchors, seed=2, device=device).reshape(3, num_anchors, 4)
    anchors[:, num_anchors // 2 : num_anchors // 2 + 3] = math.nan
    offsets = torch.tensor([0, *np.cumsum(counts)], device=device)
    arguments = {
        "fg_iou_threshold": 0.5,
        "bg_iou_threshold": 0.3,
        "allow_low_quality_matches": rule.get("low_quality", False),
        "best_anchor_for_each_gt": rule.get("best", False),
    }
    ignored = torch.arange(len(gt), device=device) % 9 == 2
    batch = ops.match_anchors(anchors, gt, **arguments, gt_ignored=ignored, offsets=offsets)
    assert batch.matched_idxs.shape == (3, num_anchors)
    for b, own in enumerate(anchors):
        part = slice(int(offsets[b]), int(offsets[b + 1]))
        single = ops.match_anchors(own, gt[part], **arguments, gt_ignored=ignored[part])
        assert torch.equal(batch.matched_idxs[b], single.matched_idxs)
        assert torch.equal(batch.matched_ious[b], single.matched_ious)


@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize("num_gt", [0, 1, 7, 300])
@pytest.mark.parametrize(
    "num_anchors", [0, 1, 127, 128, 129, 257, pytest.param(1500, marks=pytest.mark.large)]
)
def test_sizes(num_anchors, num_gt, low_quality):
    """Around the sizes of blocks and tiles."""
    for dtype in DTYPES[:2]:
        check(
            random_boxes(num_anchors, dtype=dtype),
            random_boxes(num_gt, dtype=dtype, seed=1),
            0.5,
            0.4,
            low_quality,
            best_anchors=not low_quality,
        )


@pytest.mark.parametrize("low_quality", [False, True])
def test_no_ground_truth_is_background(device, low_quality):
    anchors = random_boxes(5, device=device)
    for gt in (anchors[:0], anchors[:2] * math.nan):
        matches = ops.match_anchors(anchors, gt, 0.0, 0.0, low_quality)
        assert matches.matched_idxs.tolist() == [BACKGROUND] * 5
        assert matches.matched_ious.tolist() == [0] * 5
    crowd = torch.ones(5, dtype=torch.bool, device=device)
    matches = ops.match_anchors(anchors, anchors, 0.5, 0.4, low_quality, gt_ignored=crowd)
    assert matches.matched_idxs.tolist() == [IGNORED] * 5


def test_nan(device):
    """A ground truth with a NaN counts for nothing, also not for the low-quality rule."""
    anchors = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 1], [9, 9, 10, 10]], device=device)
    for column in range(4):
        broken = torch.tensor([[0.0, 0, 4, 1]], device=device)
        broken[0, column] = math.nan
        gt = torch.cat([broken, torch.tensor([[0.0, 0, 4, 4]], device=device)])
        matches = ops.match_anchors(anchors, gt, 0.5, 0.4, True)
        assert matches.matched_idxs.tolist() == [1, BACKGROUND, BACKGROUND]
        odd = anchors.clone()
        odd[0, column] = math.nan
        matches = ops.match_anchors(odd, gt[1:], 0.9, 0.4, True)
        assert matches.matched_idxs.tolist() == [BACKGROUND, 0, BACKGROUND]
        assert matches.matched_ious.tolist() == [0, 0.25, 0]


def test_low_quality_quirk(device):
    """A ground truth that nothing overlaps ties with every anchor at 0, as in torchvision."""
    anchors = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 1], [90, 90, 99, 99]], device=device)
    gt = torch.tensor([[0.0, 0, 4, 4], [500, 500, 600, 600]], device=device)
    assert ops.match_anchors(anchors, gt, 0.5, 0.4, True).matched_idxs.tolist() == [0, 0, 0]
    without_area = torch.tensor([[0.0, 0, 4, 4], [2, 2, 2, 2]], device=device)
    matches = ops.match_anchors(anchors, without_area, 0.5, 0.4, True)
    assert matches.matched_idxs.tolist() == [0, 0, 0]


def test_an_anchor_gets_its_own_best_back(device):
    """The anchor is the best of ground truth 1, but overlaps ground truth 0 more."""
    anchors = torch.tensor([[0.0, 0, 10, 10]], device=device)
    gt = torch.tensor([[0.0, 0, 6, 10], [6.0, 0, 10, 10]], device=device)
    assert ops.match_anchors(anchors, gt, 0.9, 0.4, True).matched_idxs.tolist() == [0]


def test_ties_in_many_blocks(device):
    """Anchors that tie with one ground truth stand far apart in the list."""
    anchors = torch.zeros(5000, 4, device=device)
    anchors[:, 2:] = 1
    places = [0, 127, 128, 3000, 4999]
    anchors[places] = torch.tensor([10.0, 10, 14, 14], device=device)
    gt = torch.tensor([[10.0, 10, 14, 24], [0, 0, 1, 1]], device=device)
    idxs = ops.match_anchors(anchors, gt, 0.9, 0.4, True).matched_idxs
    assert (idxs == 0).nonzero().flatten().tolist() == places
    assert (idxs == 1).sum() == 5000 - len(places)


DIGEST = """
import hashlib, torch
from pydet import ops
g = torch.Generator().manual_seed(5)
digest = hashlib.sha256()
for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    c = torch.rand(3000, 4, generator=g, dtype=torch.float64) * 100
    c[:, 2:] += c[:, :2]
    boxes = c.to(dtype)
    for low in (False, True):
        best = {"best_anchor_for_each_gt": not low}
        for result in ops.match_anchors(boxes[100:], boxes[:100], 0.5, 0.4, low, **best):
            digest.update(result.numpy().tobytes())
print(ops._library.extension.cpu_isa(), digest.hexdigest())
"""


@pytest.mark.large
def test_instruction_sets_give_the_same():
    assert_same_digest(DIGEST)


@pytest.mark.large
@pytest.mark.parametrize("rule", ["low quality", "SSD"])
def test_never_a_matrix(rule):
    """10,000 ground truths: the matrix of pairs would take 800 MB here."""
    anchors, gt = random_boxes(20_000, size=4000), random_boxes(10_000, size=4000, seed=1)
    low_quality = rule == "low quality"
    before = peak_memory()
    matches = ops.match_anchors(
        anchors, gt, 0.5, 0.4, low_quality, best_anchor_for_each_gt=not low_quality
    )
    assert peak_memory() - before < 32 << 20
    assert matches.matched_idxs.max() > 9000
    part = torch.randperm(20_000, generator=torch.Generator().manual_seed(0))[:200]
    iou = ops.box_iou(anchors[part], gt)
    assert torch.equal(matches.matched_ious[part], iou.max(dim=1).values)


@pytest.mark.large
@pytest.mark.parametrize("best", [False, True])
def test_many_images(best):
    """64 images of 100 boxes each; the first and the last as if they were alone."""
    anchors, gt = random_boxes(2_000), random_boxes(6400, seed=1)
    offsets = torch.arange(65) * 100
    rule = {"best_anchor_for_each_gt": best}
    batch = ops.match_anchors(anchors, gt, 0.5, 0.4, True, **rule, offsets=offsets)
    assert batch.matched_idxs.shape == (64, 2_000)
    for b in (0, 63):
        part = gt[100 * b : 100 * (b + 1)]
        single = ops.match_anchors(anchors, part, 0.5, 0.4, True, **rule)
        assert torch.equal(batch.matched_idxs[b], single.matched_idxs)
        assert torch.equal(batch.matched_ious[b], single.matched_ious)


def peak_memory():
    """Highest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc/self/status")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


@needs_cuda
def test_cuda_clamps_offsets():
    """Offsets cannot be checked without waiting for the device; they never read outside."""
    anchors = random_boxes(50, device="cuda")
    for values in ([0, 99], [-5, 3], [3, 1], [7, 7]):
        offsets = torch.tensor(values, device="cuda")
        matches = ops.match_anchors(
            anchors,
            anchors[:5],
            0.5,
            0.4,
            True,
            best_anchor_for_each_gt=True,
            offsets=offsets,
        )
        assert matches.matched_idxs.max() < 5


# --- against torchvision -----------------------------------------------------------------------


@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_equals_torchvision(dtype, low_quality):
    """torchvision's Matcher on box_iou. Degenerate boxes are left out: its IoU is NaN there."""
    utils = pytest.importorskip("torchvision.models.detection._utils", exc_type=ImportError)
    matcher = utils.Matcher(0.5, 0.4, low_quality)
    from torchvision.ops import box_iou

    for seed in range(20):
        anchors = random_boxes(4000, dtype=dtype, seed=2 * seed)
        gt = random_boxes(1 + 3 * seed, dtype=dtype, seed=2 * seed + 1)
        if seed % 2:  # on a small lattice, with many ties
            anchors, gt = (anchors / 40).round(), (gt / 40).round()
            anchors[:, 2:] = torch.maximum(anchors[:, 2:], anchors[:, :2] + 1)
            gt[:, 2:] = torch.maximum(gt[:, 2:], gt[:, :2] + 1)
        matches = ops.match_anchors(anchors, gt, 0.5, 0.4, low_quality)
        matrix = box_iou(gt, anchors)
        assert torch.equal(matches.matched_idxs, matcher(matrix))
        assert torch.equal(matches.matched_ious, matrix.max(dim=0).values)


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("lattice", [False, True])
def test_best_anchors_equal_torchvision(dtype, lattice):
    """torchvision's SSDMatcher, where each ground truth overlaps an anchor; ties first to last."""
    utils = pytest.importorskip("torchvision.models.detection._utils", exc_type=ImportError)
    matcher = utils.SSDMatcher(0.5)
    from torchvision.ops import box_iou

    for seed in range(20):
        anchors = random_boxes(4000, dtype=dtype, seed=2 * seed)
        gt = random_boxes(1 + 3 * seed, dtype=dtype, seed=2 * seed + 1)
        if lattice:
            anchors, gt = (anchors / 40).round(), (gt / 40).round()
            anchors[:, 2:] = torch.maximum(anchors[:, 2:], anchors[:, :2] + 1)
            gt[:, 2:] = torch.maximum(gt[:, 2:], gt[:, :2] + 1)
        matrix = box_iou(gt, anchors)
        gt = gt[matrix.max(dim=1).values > 0]
        matches = ops.match_anchors(anchors, gt, 0.5, 0.5, best_anchor_for_each_gt=True)
        assert torch.equal(matches.matched_idxs, matcher(box_iou(gt, anchors)))


# --- gradient ----------------------------------------------------------------------------------


def test_no_gradient(device):
    anchors = random_boxes(5, device=device).requires_grad_()
    matches = ops.match_anchors(anchors, anchors, 0.5, 0.4)
    assert not matches.matched_idxs.requires_grad
    assert not matches.matched_ious.requires_grad


# --- errors ------------------------------------------------------------------------------------

BOXES = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"anchors": [[0, 0, 1, 1]]}, TypeError, "anchors must be a tensor, got list"),
        (
            {"anchors": torch.zeros(2, 3, 4)},
            ValueError,
            r"anchors must have shape \[A, 4\], or \[B, A, 4\] with .*, got \[2, 3, 4\]",
        ),
        (
            {"anchors": torch.zeros(2, 3, 4), "offsets": torch.tensor([0, 1, 2, 3])},
            ValueError,
            r"anchors must have shape .*, got \[2, 3, 4\]",
        ),
        ({"anchors": BOXES[0]}, ValueError, r"anchors must have shape .*, got \[4\]"),
        (
            {"gt_boxes": torch.zeros(3, 5)},
            ValueError,
            r"gt_boxes must have shape \[G, 4\], got \[3, 5\]",
        ),
        ({"gt_boxes": BOXES.double()}, TypeError, "gt_boxes must have the dtype of anchors"),
        ({"gt_boxes": BOXES.to("meta")}, ValueError, "gt_boxes must be on the device of anchors"),
        ({"fg_iou_threshold": "0.5"}, TypeError, "fg_iou_threshold must be a number, got str"),
        ({"fg_iou_threshold": math.nan}, ValueError, "fg_iou_threshold must be a number, got nan"),
        (
            {"bg_iou_threshold": 0.6},
            ValueError,
            r"bg_iou_threshold must be at most fg_iou_threshold \(0.5\), got 0.6",
        ),
        ({"gt_ignored": [True]}, TypeError, "gt_ignored must be a tensor, got list"),
        ({"gt_ignored": BOXES[:, 0]}, TypeError, "gt_ignored must have a dtype of bool, got"),
        (
            {"gt_ignored": torch.zeros(2, dtype=torch.bool)},
            ValueError,
            r"gt_ignored must have shape \[G\] of gt_boxes, got \[2\]",
        ),
        ({"offsets": torch.tensor([0.0, 3])}, TypeError, "offsets must have a dtype of int64, got"),
        ({"offsets": torch.tensor(3)}, ValueError, r"offsets must have shape \[B \+ 1\], got \[\]"),
        ({"offsets": torch.tensor([0, 2])}, ValueError, r"offsets must rise from 0 .*\(3\), got"),
        ({"offsets": torch.tensor([1, 3])}, ValueError, "offsets must rise from 0"),
        ({"offsets": torch.tensor([0, 5, 2, 3])}, ValueError, "offsets must rise from 0"),
    ],
)
def test_errors(change, error, message):
    arguments = {
        "anchors": BOXES,
        "gt_boxes": BOXES,
        "fg_iou_threshold": 0.5,
        "bg_iou_threshold": 0.4,
    }
    with pytest.raises(error, match="^match_anchors: " + message):
        ops.match_anchors(**{**arguments, **change})


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(5, 3), BOXES, None, None),
        (torch.zeros(2, 2, 4), BOXES, None, None),
        (BOXES, BOXES.double(), None, None),
        (BOXES.int(), BOXES.int(), None, None),
        (BOXES, BOXES, torch.zeros(2, dtype=torch.bool), None),
        (BOXES, BOXES, torch.zeros(3), None),
        (BOXES, BOXES, None, torch.tensor([0, 3], dtype=torch.int32)),
        (BOXES, BOXES, None, torch.tensor(0)),
        (BOXES, BOXES, None, torch.tensor([0, 4])),
        (torch.zeros(2, 3, 4), BOXES, None, torch.tensor([0, 3])),
        (torch.zeros(0, 3, 4), BOXES, None, torch.tensor([0, 3])),
    ],
)
def test_the_kernel_protects_itself(arguments):
    """What passes by the Python function still cannot read outside of a buffer."""
    anchors, gt_boxes, ignored, offsets = arguments
    with pytest.raises((ValueError, TypeError, RuntimeError), match="match_anchors"):
        torch.ops.pydet.match_anchors(anchors, gt_boxes, 0.5, 0.4, True, True, ignored, offsets)
