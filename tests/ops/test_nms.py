# SPDX-License-Identifier: Apache-2.0
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pydet import ops
from tests.conftest import needs_cuda
from tests.ops.instruction_sets import outputs_by_set
from tests.reference.nms import centre_distance, iou_parts
from tests.reference.nms import nms as reference
from tests.strategies import (
    DTYPES,
    any_boxes,
    lattice_boxes,
    lattice_threshold,
    tensor_of_boxes,
    valid_boxes,
)

INT64 = torch.iinfo(torch.int64)


def score_lists(count):
    """Scores that every dtype holds exactly: many ties, signed zeros, infinities, NaN."""
    special = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0])
    score = st.integers(-8, 8).map(lambda eighths: eighths / 8) | special
    return st.lists(score, min_size=count, max_size=count)


def class_lists(count):
    """A few classes, the ends of int64 among them."""
    classes = st.sampled_from([0, 1, 2, -1, 256, INT64.min, INT64.max])
    return st.lists(classes, min_size=count, max_size=count)


def with_scores(boxes):
    """Strategy of (boxes, scores, classes) from a strategy of boxes."""
    return boxes.flatmap(lambda b: st.tuples(st.just(b), score_lists(len(b)), class_lists(len(b))))


def tensors(case, dtype=torch.float32):
    boxes, scores, classes = case
    return (
        tensor_of_boxes(boxes, dtype),
        torch.tensor(scores, dtype=dtype),
        torch.tensor(classes, dtype=torch.int64),
    )


def random_boxes(*shape, seed=0, size=200, dtype=torch.float32, device="cpu"):
    """Boxes on the lattice that overlap a lot, scores with ties, 7 classes."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, size, (*shape, 2), generator=generator)
    sides = torch.randint(1, 56, (*shape, 2), generator=generator)
    boxes = torch.cat([corners, corners + sides], dim=-1)
    scores = torch.randint(0, 1024, shape, generator=generator) / 1024
    idxs = torch.randint(-3, 4, shape, generator=generator)
    return boxes.to(device, dtype), scores.to(device, dtype), idxs.to(device)


def padded_reference(boxes, scores, idxs, threshold, max_output, score_threshold=-math.inf):
    rows, counts = [], []
    for b in range(len(boxes)):
        kept = reference(
            boxes[b].tolist(),
            scores[b].tolist(),
            threshold,
            None if idxs is None else idxs[b].tolist(),
            max_output,
            score_threshold,
        )
        rows.append(kept + [-1] * (max_output - len(kept)))
        counts.append(len(kept))
    return rows, counts


# --- against the reference ---------------------------------------------------------------------


def test_worked_example(device):
    """IoU of the first two: 90 / 110; of the first and the third: 50 / 150."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 1, 10, 11], [0, 5, 10, 15]], device=device)
    scores = torch.tensor([0.7, 0.9, 0.8], device=device)
    assert ops.nms(boxes, scores, 0.5).tolist() == [1, 2]
    assert ops.nms(boxes, scores, 0.25).tolist() == [1]
    assert ops.nms(boxes, scores, 0.9).tolist() == [1, 2, 0]
    idxs = torch.tensor([5, 5, 4], device=device)
    assert ops.batched_nms(boxes, scores, idxs, 0.25).tolist() == [1, 2]


@given(with_scores(lattice_boxes()), lattice_threshold())
def test_is_exact_on_integers(case, threshold):
    boxes, scores, idxs = tensors(case)
    assert ops.nms(boxes, scores, threshold).tolist() == reference(case[0], case[1], threshold)
    wanted = reference(case[0], case[1], threshold, case[2])
    assert ops.batched_nms(boxes, scores, idxs, threshold).tolist() == wanted


@given(with_scores(lattice_boxes(size=128)), lattice_threshold(), st.sampled_from(DTYPES))
def test_every_dtype_is_exact(case, threshold, dtype):
    """Integers below 128 are exact in bfloat16 too, and the IoU is taken in float32."""
    boxes, scores, idxs = tensors(case, dtype)
    wanted = reference(case[0], case[1], threshold, case[2])
    assert ops.batched_nms(boxes, scores, idxs, threshold).tolist() == wanted


@given(
    st.lists(with_scores(lattice_boxes(5, 5)), min_size=1, max_size=3),
    lattice_threshold(),
    st.integers(0, 7),
    st.sampled_from([-math.inf, -0.5, 0.0, 0.25, math.inf]),
    st.booleans(),
)
def test_padded_form(cases, threshold, max_output, score_threshold, classes):
    boxes, scores, idxs = (torch.stack(part) for part in zip(*map(tensors, cases), strict=True))
    result = ops.batched_nms(
        boxes,
        scores,
        idxs if classes else None,
        threshold,
        max_output=max_output,
        score_threshold=score_threshold,
    )
    wanted = padded_reference(
        boxes, scores, idxs if classes else None, threshold, max_output, score_threshold
    )
    assert (result.keep.tolist(), result.counts.tolist()) == wanted


@given(with_scores(any_boxes()), st.floats(0, 1))
def test_any_coordinates(case, threshold):
    """NaN, infinite, inverted and huge boxes; decisions that rounding could turn are left out."""
    boxes, scores, idxs = tensors(case, torch.float64)
    pairs = [iou_parts(a, b) for a in case[0] for b in case[0]]
    assume(all(p is None or abs(p[0] / p[1] - threshold) > 1e-12 for p in pairs))
    wanted = reference(case[0], case[1], threshold, case[2])
    assert ops.batched_nms(boxes, scores, idxs, threshold).tolist() == wanted


@given(with_scores(valid_boxes()), st.floats(0, 1), st.sampled_from(DTYPES))
def test_ordinary_boxes(case, threshold, dtype):
    boxes, scores, idxs = tensors(case, dtype)
    exact = boxes.double().tolist()
    pairs = [iou_parts(a, b) for a in exact for b in exact]
    assume(all(p is None or abs(p[0] / p[1] - threshold) > 1e-6 for p in pairs))
    wanted = reference(exact, case[1], threshold, case[2])
    assert ops.batched_nms(boxes, scores, idxs, threshold).tolist() == wanted


def test_worked_example_of_diou(device):
    """IoU 50 / 150; centres 5 apart in a box of diagonal 10 by 15: 1/3 - 25 / 325."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 5, 10, 15]], device=device)
    scores = torch.tensor([0.9, 0.8], device=device)
    exact = 1 / 3 - 25 / 325
    for threshold, kept in ((exact - 1e-9, 1), (exact + 1e-9, 2)):
        assert len(ops.nms(boxes, scores, threshold, overlap="diou")) == kept
        result = ops.batched_nms(boxes, scores, None, threshold, overlap="diou", max_output=2)
        assert result.counts.item() == kept
    assert len(ops.nms(boxes, scores, exact + 1e-9)) == 1


@given(with_scores(lattice_boxes()), lattice_threshold(), st.sampled_from(DTYPES))
def test_diou_is_exact_on_integers(case, threshold, dtype):
    exact = tensor_of_boxes(case[0], dtype).double().tolist()  # bfloat16 rounds some
    boxes, scores, idxs = tensors(case, dtype)
    wanted = reference(exact, case[1], threshold, overlap="diou")
    assert ops.nms(boxes, scores, threshold, overlap="diou").tolist() == wanted
    wanted = reference(exact, case[1], threshold, case[2], overlap="diou")
    assert ops.batched_nms(boxes, scores, idxs, threshold, overlap="diou").tolist() == wanted


@given(with_scores(any_boxes()), st.floats(0, 1))
def test_diou_of_any_coordinates(case, threshold):
    boxes, scores, _ = tensors(case, torch.float64)
    for a in case[0]:
        for b in case[0]:
            pair = iou_parts(a, b)
            assume(
                pair is None
                or abs(pair[0] / pair[1] - centre_distance(a, b) - Fraction(threshold)) > 1e-9
            )
    wanted = reference(case[0], case[1], threshold, overlap="diou")
    assert ops.nms(boxes, scores, threshold, overlap="diou").tolist() == wanted


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 64, 300])
def test_diou_of_many(device, count):
    boxes, scores, idxs = random_boxes(count, device=device)
    for threshold in (0.0, 0.25, 0.5):
        wanted = reference(
            boxes.tolist(), scores.tolist(), threshold, idxs.tolist(), overlap="diou"
        )
        keep = ops.batched_nms(boxes, scores, idxs, threshold, overlap="diou")
        assert keep.tolist() == wanted


def hidden_by(boxes, i, threshold, overlap):
    """[N]: whether box i hides each; exact in float64 on the lattice."""
    wide = boxes.double()
    iou = ops.box_iou(wide[i : i + 1], wide)[0]
    if overlap == "iou":
        return iou > threshold
    centres = (wide[:, :2] + wide[:, 2:]) / 2
    low = torch.minimum(wide[i, :2], wide[:, :2])
    diagonal = (torch.maximum(wide[i, 2:], wide[:, 2:]) - low).square().sum(1)
    return iou - (centres[i] - centres).square().sum(1) / diagonal > threshold + 1e-12


@pytest.mark.large
@pytest.mark.parametrize("overlap", ["iou", "diou"])
@pytest.mark.parametrize(
    ("count", "size"), [(4000, 700), (4000, 5000), (4000, 100_000), (9000, 300), (9000, 2000)]
)
def test_many_kept_boxes(device, count, size, overlap):
    """Crowds, sparse, one far from all others; the CPU kernel takes a tree above 2560 boxes."""
    boxes, scores, idxs = random_boxes(count, size=size, device=device)
    boxes[3] += 1e7
    boxes[11, 2] = math.nan
    boxes[12, 2] = boxes[12, 0]
    for classes in (None, idxs // 4):
        hidden = torch.zeros(count, dtype=torch.bool, device=boxes.device)
        wanted = []
        for i in scores.argsort(descending=True, stable=True).tolist():
            if hidden[i]:
                continue
            wanted.append(i)
            hides = hidden_by(boxes, i, 0.5, overlap)
            hidden |= hides if classes is None else hides & (classes == classes[i])
        if classes is None:
            keep = ops.nms(boxes, scores, 0.5, overlap=overlap)
        else:
            keep = ops.batched_nms(boxes, scores, classes, 0.5, overlap=overlap)
        assert keep.tolist() == wanted
        padded = ops.batched_nms(boxes, scores, classes, 0.5, overlap=overlap, max_output=1500)
        assert padded.keep.tolist() == (wanted + [-1] * 1500)[:1500]


@pytest.mark.parametrize("threshold", [0.0, 2.0**-40, 0.5, 1.0])
def test_any_scale(device, threshold):
    """The decisions stay the same, while no product leaves the normal numbers."""
    boxes, scores, _ = random_boxes(300, device=device)
    keep = ops.nms(boxes, scores, threshold).tolist()
    for scale in (2.0**-60, 2.0**-45, 2.0**50):
        assert ops.nms(boxes * scale, scores, threshold).tolist() == keep
    # So far from 0 that the shortest side is one unit in the last place.
    assert ops.nms(boxes + 2.0**23, scores, threshold).tolist() == keep


@pytest.mark.large
@pytest.mark.parametrize("scale", [1.0, 2.0**-60, 2.0**50])
@pytest.mark.parametrize("share", [2.0**-6, 0.25, 0.5, 0.875])
def test_many_at_the_threshold(device, share, scale):
    """Pairs whose IoU is exactly the threshold: nothing is hidden, nor lost by the search."""
    pairs = 5000
    places = torch.arange(pairs, device=device)
    corners = torch.stack([places % 100, places // 100], 1).repeat(1, 2) * 128.0
    whole = corners + torch.tensor([0.0, 0, 64, 64], device=device)
    part = whole.clone()  # the left, upper, right or lower end of the other
    end = places % 4
    cut = 64 * (1 - share)
    part[places, (end + 2) % 4] += torch.where(end < 2, -cut, cut)
    scores = torch.cat([places % 7 + 8.0, places % 7 + 0.0])
    order = scores.argsort(descending=True, stable=True)
    for pair in ([whole, part], [part, whole]):
        boxes = torch.cat(pair) * scale
        assert torch.equal(ops.nms(boxes, scores, share), order)
        assert torch.equal(ops.nms(boxes, scores, share - 2.0**-20), order[:pairs])


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 0.875, 1.0])
@pytest.mark.parametrize(
    "count", [0, 1, 31, 32, 33, 63, 64, 65, 300, 520, pytest.param(700, marks=pytest.mark.large)]
)
def test_sizes(device, count, threshold):
    """Counts around the words of bits and the switch to the radix sort."""
    boxes, scores, idxs = random_boxes(count, device=device)
    plain = reference(boxes.tolist(), scores.tolist(), threshold)
    assert ops.nms(boxes, scores, threshold).tolist() == plain
    by_class = reference(boxes.tolist(), scores.tolist(), threshold, idxs.tolist())
    assert ops.batched_nms(boxes, scores, idxs, threshold).tolist() == by_class


@pytest.mark.large
def test_large_equals_one_by_one(device):
    """Many images, classes and early exits against the single form, which is checked above."""
    boxes, scores, idxs = random_boxes(5, 6000, size=900, device=device)
    for max_output in (1, 100, 3000, 6000):
        result = ops.batched_nms(boxes, scores, idxs, 0.5, max_output=max_output)
        for b in range(5):
            wanted = ops.batched_nms(boxes[b], scores[b], idxs[b], 0.5)[:max_output]
            count = result.counts[b].item()
            assert count == len(wanted)
            assert torch.equal(result.keep[b, :count], wanted)
            assert result.keep[b, count:].eq(-1).all()


@pytest.mark.large
def test_classes_one_by_one(device):
    boxes, scores, idxs = random_boxes(6000, size=900, device=device)
    keep = ops.batched_nms(boxes, scores, idxs, 0.5)
    for label in range(-3, 4):
        (members,) = torch.where(idxs == label)
        wanted = members[ops.nms(boxes[members], scores[members], 0.5)]
        assert torch.equal(keep[idxs[keep] == label], wanted)
    assert scores[keep].diff().le(0).all()


@pytest.mark.large
def test_early_exit_that_comes_late(device):
    """The best 20000 boxes are one and the same: the output fills far behind the first try."""
    boxes = torch.tensor([[0.0, 0, 8, 8]]).repeat(20_010, 1)
    boxes[20_000:] += torch.arange(10)[:, None] * 10
    scores = torch.linspace(1, 0, len(boxes))
    result = ops.batched_nms(boxes.to(device), scores.to(device), None, 0.5, max_output=6)
    assert result.counts.item() == 6
    assert result.keep.tolist() == [0, 20_001, 20_002, 20_003, 20_004, 20_005]


def test_equal_boxes_and_scores_keep_the_first(device):
    boxes = torch.tensor([[0.0, 0, 4, 4]], device=device).repeat(1000, 1)
    scores = torch.full((1000,), 0.5, device=device)
    assert ops.nms(boxes, scores, 0.99).tolist() == [0]
    assert ops.nms(boxes, scores, 1.0).tolist() == list(range(1000))
    idxs = torch.arange(1000, device=device) // 10
    assert ops.batched_nms(boxes, scores, idxs, 0.5).tolist() == list(range(0, 1000, 10))


def test_nan_scores_rank_last(device):
    boxes = torch.tensor([[0.0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]], device=device)
    scores = torch.tensor([math.nan, -math.inf, 0.5], device=device)
    assert ops.nms(boxes, scores, 0.5).tolist() == [2, 1, 0]
    result = ops.batched_nms(boxes, scores, None, 0.5, max_output=3)
    assert result.keep.tolist() == [2, -1, -1]


def test_nan_and_degenerate_boxes_stand_apart(device):
    whole = [0.0, 0.0, 10.0, 10.0]
    odd = [[math.nan, 0, 10, 10], [0, 0, 0, 10], [10, 10, 0, 0], [0, 0, math.inf, 10]]
    boxes = torch.tensor([*odd, whole, whole, *odd], device=device)
    scores = torch.arange(len(boxes), 0, -1, device=device).float()
    assert ops.nms(boxes, scores, 0.0).tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]


def test_threshold_is_compared_as_given(device):
    """IoU 1/3 in float32 is above 1/3 in float64: torchvision compares so, and so does pydet."""
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 1, 2, 3]], device=device)
    scores = torch.tensor([0.9, 0.8], device=device)
    rounded = torch.tensor(1 / 3, dtype=torch.float32).item()
    assert rounded > 1 / 3
    assert ops.nms(boxes, scores, 1 / 3).tolist() == [0]
    assert ops.nms(boxes, scores, rounded).tolist() == [0, 1]
    assert ops.nms(boxes.double(), scores.double(), 1 / 3).tolist() == [0, 1]


def test_classes_without_offsets(device):
    """Boxes at negative coordinates, where offsets by class make them overlap (torchvision)."""
    boxes = torch.tensor([[-50.0, -50, 10, 10], [-61, -61, -1, -1]], device=device)
    scores = torch.tensor([0.9, 0.8], device=device)
    idxs = torch.tensor([0, 1], device=device)
    assert ops.batched_nms(boxes, scores, idxs, 0.5).tolist() == [0, 1]


def test_many_classes(device):
    """One class a box, as many as int64 holds apart: nothing hides anything."""
    boxes = torch.tensor([[0.0, 0, 9, 9]], device=device, dtype=torch.float16).repeat(5000, 1)
    scores = torch.linspace(1, 0, 5000, device=device).half()
    step = (INT64.max - INT64.min) // 5000
    idxs = torch.tensor([INT64.min + step * i for i in range(5000)], device=device)
    assert ops.batched_nms(boxes, scores, idxs, 0.5).tolist() == list(range(5000))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.bool, torch.float32])
def test_classes_of_other_dtypes(device, dtype):
    boxes, scores, idxs = random_boxes(200, device=device)
    idxs = idxs % 2
    wanted = ops.batched_nms(boxes, scores, idxs, 0.3)
    assert torch.equal(ops.batched_nms(boxes, scores, idxs.to(dtype), 0.3), wanted)
    if dtype.is_floating_point:
        assert torch.equal(ops.batched_nms(boxes, scores, idxs / -2, 0.3), wanted)


def test_score_threshold_is_rounded_as_torch_does(device):
    """0.1 in float32 and float16 is not 0.1; tensor > 0.1 compares in the tensor's dtype."""
    boxes = torch.tensor([[0.0, 0, 1, 1]], device=device)
    for dtype in DTYPES:
        scores = torch.tensor([0.1], device=device, dtype=dtype)
        result = ops.batched_nms(
            boxes.to(dtype), scores, None, 0.5, max_output=1, score_threshold=0.1
        )
        assert result.counts.item() == (scores > 0.1).sum().item() == 0


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0,), (2, 3, 4), (0, 0)])
def test_leading_dimensions(device, shape):
    boxes, scores, idxs = random_boxes(*shape, device=device)
    for classes in (idxs, None):
        result = ops.batched_nms(boxes, scores, classes, 0.5, max_output=2)
        assert result.keep.shape == (*shape[:-1], 2)
        assert result.counts.shape == shape[:-1]
        assert result.keep.dtype == result.counts.dtype == torch.int64
        flat = padded_reference(
            boxes.reshape(-1, shape[-1], 4) if boxes.numel() else [],
            scores.reshape(-1, shape[-1]) if boxes.numel() else [],
            None if classes is None or not boxes.numel() else idxs.reshape(-1, shape[-1]),
            0.5,
            2,
        )
        if boxes.numel():
            assert (result.keep.reshape(-1, 2).tolist(), result.counts.reshape(-1).tolist()) == flat
        else:
            assert result.keep.eq(-1).all() and result.counts.eq(0).all()


@given(with_scores(lattice_boxes(1)), lattice_threshold())
def test_equals_torchvision(case, threshold):
    """Everything but NaN scores, which torchvision ranks first."""
    torchvision_ops = pytest.importorskip(
        "torchvision.ops", reason="torchvision cannot be imported", exc_type=ImportError
    )
    boxes, scores, idxs = tensors(case)
    scores, idxs = scores.nan_to_num(0.5, math.inf, -math.inf), idxs % 3
    wanted = torchvision_ops.nms(boxes, scores, threshold)
    assert torch.equal(ops.nms(boxes, scores, threshold), wanted)
    wanted = torchvision_ops.batched_nms(boxes, scores, idxs, threshold)
    assert torch.equal(ops.batched_nms(boxes, scores, idxs, threshold), wanted)


@pytest.mark.large
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 1 / 3, 0.5, 0.7, 1.0])
def test_large_equals_torchvision(dtype, threshold):
    """Scores without ties: torchvision's loop over classes sorts those in no certain order."""
    torchvision_ops = pytest.importorskip(
        "torchvision.ops", reason="torchvision cannot be imported", exc_type=ImportError
    )
    boxes, _, idxs = random_boxes(3000, size=600, dtype=dtype)
    scores = torch.randperm(3000).to(dtype) / 4096
    boxes += torch.rand(3000, 4, dtype=dtype) * torch.tensor([-1, -1, 1, 1], dtype=dtype)
    wanted = torchvision_ops.nms(boxes, scores, threshold)
    assert torch.equal(ops.nms(boxes, scores, threshold), wanted)
    wanted = torchvision_ops.batched_nms(boxes, scores, idxs, threshold)
    assert torch.equal(ops.batched_nms(boxes, scores, idxs, threshold), wanted)


RUN_ISA = """
import torch
from pydet import _C, ops
from tests.ops.test_nms import random_boxes
for dtype in (torch.float32, torch.float64, torch.float16):
    boxes, scores, idxs = random_boxes(3000, size=500, dtype=dtype)
    for threshold in (0.0, 0.3, 1 / 3, 0.7):
        print(ops.nms(boxes, scores, threshold).tolist())
        print(ops.batched_nms(boxes, scores, idxs, threshold).tolist())
print(_C.cpu_isa())
"""


@pytest.mark.large
def test_instruction_sets_give_the_same_result():
    outputs = {}
    for isa, output in outputs_by_set(RUN_ISA).items():
        *outputs[isa], used = output.splitlines()
        assert isa != "portable" or used == "portable"
    assert outputs["portable"] == outputs["avx2"] == outputs["avx512"]
    assert len(outputs["portable"]) == 24


@needs_cuda
def test_cuda_equals_cpu():
    for dtype in DTYPES:
        boxes, scores, idxs = random_boxes(2, 5003, size=900, dtype=dtype)
        for threshold in (0.0, 0.3, 1 / 3, 0.7):
            on_cpu = ops.batched_nms(boxes, scores, idxs, threshold, max_output=5003)
            on_cuda = ops.batched_nms(
                boxes.cuda(), scores.cuda(), idxs.cuda(), threshold, max_output=5003
            )
            assert torch.equal(on_cuda.keep.cpu(), on_cpu.keep)
            assert torch.equal(on_cuda.counts.cpu(), on_cpu.counts)


# --- gradient ----------------------------------------------------------------------------------


def test_indices_carry_no_gradient(device):
    boxes, scores, idxs = random_boxes(20, device=device)
    boxes.requires_grad_()
    scores.requires_grad_()
    keep = ops.batched_nms(boxes, scores, idxs, 0.5)
    padded = ops.batched_nms(boxes, scores, idxs, 0.5, max_output=5)
    assert not (keep.requires_grad or padded.keep.requires_grad or padded.counts.requires_grad)
    (boxes[keep].sum() + scores[keep].sum()).backward()
    assert boxes.grad.sum() == 4 * len(keep)


# --- registration ------------------------------------------------------------------------------


def test_autocast(device):
    boxes, scores, idxs = random_boxes(50, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        keep = ops.batched_nms(boxes, scores.bfloat16(), idxs, 0.5)
    assert torch.equal(keep, ops.batched_nms(boxes, scores.bfloat16().float(), idxs, 0.5))


# --- errors ------------------------------------------------------------------------------------

BOXES, SCORES, IDXS = torch.zeros(3, 4), torch.zeros(3), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[0, 0, 1, 1]], SCORES, 0.5), TypeError, "boxes must be a tensor, got list"),
        ((torch.zeros(3, 5), SCORES, 0.5), ValueError, r"boxes must have shape .*, got \[3, 5\]"),
        ((BOXES[None], SCORES, 0.5), ValueError, r"boxes must have shape .*, got \[1, 3, 4\]"),
        ((BOXES.int(), SCORES.int(), 0.5), TypeError, "boxes must have a dtype of .*, got .*int32"),
        ((BOXES, 0.5, 0.5), TypeError, "scores must be a tensor, got float"),
        ((BOXES, SCORES.double(), 0.5), TypeError, "scores must have the dtype of boxes"),
        ((BOXES, SCORES[:2], 0.5), ValueError, r"scores must have shape .*, got \[2\]"),
        ((BOXES, SCORES[:, None], 0.5), ValueError, r"scores must have shape .*, got \[3, 1\]"),
        ((BOXES, SCORES.to("meta"), 0.5), ValueError, "scores must be on the device of boxes"),
        ((BOXES, SCORES, "0.5"), TypeError, "iou_threshold must be a number, got str"),
        ((BOXES, SCORES, 1.5), ValueError, r"iou_threshold must be in \[0, 1\], got 1.5"),
        ((BOXES, SCORES, -0.1), ValueError, r"iou_threshold must be in \[0, 1\], got -0.1"),
        ((BOXES, SCORES, math.nan), ValueError, r"iou_threshold must be in \[0, 1\], got nan"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(ValueError, match="nms: overlap must be one of"):
        ops.nms(BOXES, SCORES, 0.5, overlap="giou")
    with pytest.raises(error, match="^nms: " + message):
        ops.nms(*arguments)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((BOXES, SCORES, [0, 0, 1], 0.5), {}, TypeError, "idxs must be a tensor, got list"),
        ((BOXES, SCORES, None, 0.5), {}, TypeError, "idxs must be a tensor, got None"),
        ((BOXES, SCORES, IDXS[:2], 0.5), {}, ValueError, r"idxs must have shape .*, got \[2\]"),
        ((BOXES, SCORES, IDXS.to("meta"), 0.5), {}, ValueError, "idxs must be on the device"),
        ((BOXES[None], SCORES[None], IDXS[None], 0.5), {}, ValueError, "boxes must have shape"),
        (
            (BOXES, SCORES, IDXS, 0.5),
            {"score_threshold": 0.1},
            ValueError,
            "score_threshold must come with max_output, got 0.1",
        ),
        (
            (BOXES, SCORES, IDXS, 0.5),
            {"max_output": -1},
            ValueError,
            "max_output must be at least 0, got -1",
        ),
        (
            (BOXES, SCORES, IDXS, 0.5),
            {"max_output": 2.0},
            TypeError,
            "max_output must be an integer, got float",
        ),
        (
            (BOXES, SCORES, IDXS, 0.5),
            {"max_output": 2, "score_threshold": math.nan},
            ValueError,
            "score_threshold must be a number, got nan",
        ),
    ],
)
def test_errors_of_batched_nms(arguments, options, error, message):
    with pytest.raises(error, match="^batched_nms: " + message):
        ops.batched_nms(*arguments, **options)


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(3, 5), SCORES, None, 0.5),
        (BOXES[None], SCORES[None], None, 0.5),
        (BOXES, SCORES[:2], None, 0.5),
        (BOXES, SCORES.double(), None, 0.5),
        (BOXES.int(), SCORES.int(), None, 0.5),
        (BOXES, SCORES, IDXS[:2], 0.5),
        (BOXES, SCORES, IDXS.int(), 0.5),
    ],
)
def test_the_kernel_protects_itself(arguments):
    """What passes by the Python function still cannot read outside of a buffer."""
    with pytest.raises((ValueError, TypeError, RuntimeError), match="nms"):
        torch.ops.pydet.nms(*arguments, 0)


def test_the_padded_kernel_protects_itself():
    with pytest.raises(ValueError, match="nms: overlap must be 0 or 1, got 2"):
        torch.ops.pydet.nms(BOXES, SCORES, None, 0.5, 2)
    with pytest.raises(ValueError, match="nms_padded: max_output must be at least 0, got -1"):
        torch.ops.pydet.nms_padded(BOXES, SCORES, None, 0.5, -1, 0.0, 0)


# --- strides and dtypes ------------------------------------------------------------------------
