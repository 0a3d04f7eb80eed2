# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pydet import ops
from tests.ops.instruction_sets import outputs_by_set
from tests.ops.test_nms import class_lists, random_boxes
from tests.reference.soft_nms import soft_nms as reference
from tests.strategies import (
    DTYPES,
    any_boxes,
    lattice_boxes,
    lattice_threshold,
    tensor_of_boxes,
    valid_boxes,
)

INT64 = torch.iinfo(torch.int64)
METHODS = ("linear", "gaussian")


def cases(boxes):
    """Strategy of (boxes, scores, classes): scores on eighths with ties, special ones among."""
    special = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -1.0])
    score = st.integers(0, 8).map(lambda eighths: eighths / 8) | special
    return boxes.flatmap(
        lambda b: st.tuples(
            st.just(b), st.lists(score, min_size=len(b), max_size=len(b)), class_lists(len(b))
        )
    )


def tensors(case, dtype=torch.float32):
    boxes, scores, classes = case
    return (
        tensor_of_boxes(boxes, dtype),
        torch.tensor(scores, dtype=dtype),
        torch.tensor(classes, dtype=torch.int64),
    )


def floats(values):
    return [float(value) for value in values]


# --- against the reference ---------------------------------------------------------------------


def test_worked_example(device):
    """IoU 1/2 halves the second score ('linear'); 'gaussian': exp(-(1/2)^2 / (1/2))."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 0, 30, 10]], device=device)
    scores = torch.tensor([0.75, 0.5, 0.5], device=device)
    keep, decayed = ops.soft_nms(boxes, scores)
    assert (keep.tolist(), decayed.tolist()) == ([0, 2, 1], [0.75, 0.5, 0.25])
    keep, decayed = ops.soft_nms(boxes, scores, "gaussian")
    assert keep.tolist() == [0, 2, 1]
    assert decayed[2].item() == pytest.approx(0.5 * math.exp(-0.5), rel=1e-6)
    # The boundary: an overlap that equals the threshold decays (equation 2), one below does not.
    assert ops.soft_nms(boxes, scores, iou_threshold=0.5).scores.tolist() == [0.75, 0.5, 0.25]
    above = math.nextafter(0.5, 1)
    assert ops.soft_nms(boxes, scores, iou_threshold=above).scores.tolist() == [0.75, 0.5, 0.5]


@given(cases(lattice_boxes()), lattice_threshold(), st.sampled_from([0.0, 0.001, 0.125, 0.5]))
def test_linear_is_exact_on_integers(case, threshold, score_threshold):
    """Every step rounds once, in float32, so picks and scores are equal and not only close."""
    boxes, scores, idxs = tensors(case)
    exact = {"score_threshold": score_threshold, "number": np.float32}
    with np.errstate(invalid="ignore"):  # infinity times 0
        keep, decayed = reference(case[0], case[1], "linear", threshold, **exact)
        by_class = reference(case[0], case[1], "linear", threshold, **exact, idxs=case[2])
    result = ops.soft_nms(boxes, scores, "linear", threshold, score_threshold=score_threshold)
    assert (result.keep.tolist(), result.scores.tolist()) == (keep, floats(decayed))
    result = ops.batched_soft_nms(
        boxes, scores, idxs, "linear", threshold, score_threshold=score_threshold
    )
    assert result.keep.tolist() == by_class[0]
    assert result.scores.tolist() == floats(by_class[1])


@given(cases(lattice_boxes(size=128)), lattice_threshold(), st.sampled_from(DTYPES))
def test_every_dtype_is_exact(case, threshold, dtype):
    """Half precision is rounded once, at the end."""
    boxes, scores, idxs = tensors(case, dtype)
    number = np.float64 if dtype == torch.float64 else np.float32
    least = torch.tensor(0.001, dtype=dtype).item()
    with np.errstate(invalid="ignore"):
        keep, decayed = reference(
            case[0], case[1], "linear", threshold, 0.5, least, case[2], number=number
        )
    result = ops.batched_soft_nms(boxes, scores, idxs, "linear", threshold)
    assert result.keep.tolist() == keep
    assert torch.equal(result.scores, torch.tensor(floats(decayed), dtype=torch.float64).to(dtype))


@given(cases(valid_boxes()), st.sampled_from([0.1, 0.5, 2.0]), st.sampled_from(METHODS))
def test_arbitrary_boxes(case, sigma, method):
    """By box, so that scores that are almost equal may be picked in another order."""
    boxes, scores, idxs = tensors(case, torch.float64)
    scores = scores.nan_to_num(0.5, 1.0, 0.0) + torch.arange(len(scores)) / 1000
    arguments = {"sigma": sigma, "score_threshold": 0.0, "iou_threshold": 0.0}
    keep, decayed = reference(boxes.tolist(), scores.tolist(), method, idxs=case[2], **arguments)
    result = ops.batched_soft_nms(boxes, scores, idxs, method, **arguments)
    wanted = torch.zeros(len(boxes), dtype=torch.float64)
    got = wanted.clone()
    wanted[keep] = torch.tensor(floats(decayed), dtype=torch.float64)
    got[result.keep] = result.scores
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)
    assert result.scores.diff().le(0).all()


@given(cases(any_boxes()), st.sampled_from(METHODS))
def test_any_coordinates(case, method):
    """What has no finite positive area keeps its score and changes no other."""
    boxes, scores, _ = tensors(case, torch.float64)
    keep, decayed = reference(case[0], case[1], method, 0.0)
    result = ops.soft_nms(boxes, scores, method, 0.0)
    wanted = dict(zip(keep, floats(decayed), strict=True))
    got = dict(zip(result.keep.tolist(), result.scores.tolist(), strict=True))
    for index, score in (wanted | got).items():
        # Rounding may turn a score at the threshold.
        assert got.get(index, 0.001) == pytest.approx(wanted.get(index, 0.001), rel=1e-9), score


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [60, 900])
@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 65, 130])
def test_sizes(device, count, size, method):
    """Counts around the leaves of the tree."""
    boxes, scores, idxs = random_boxes(count, size=size, device=device, dtype=torch.float64)
    for classes in (None, idxs):
        keep, decayed = reference(
            boxes.tolist(),
            scores.tolist(),
            method,
            idxs=None if classes is None else classes.tolist(),
        )
        if classes is None:
            result = ops.soft_nms(boxes, scores, method)
        else:
            result = ops.batched_soft_nms(boxes, scores, classes, method)
        assert result.keep.tolist() == keep
        assert result.scores.tolist() == pytest.approx(floats(decayed), rel=1e-12)


def one_pick_at_a_time(boxes, scores, method, iou_threshold=0.3, sigma=0.5, score_threshold=0.001):
    """The loop that a user writes in torch: for sizes that the reference is too slow for."""
    scores, keep, decayed = scores.clone(), [], []
    areas = ops.box_area(boxes)
    while True:
        best = scores.max(0)
        if not best.values > score_threshold:
            return keep, decayed
        index = int((scores == best.values).nonzero()[0])
        keep.append(index)
        decayed.append(best.values.item())
        iou = ops.box_iou(boxes[index : index + 1], boxes)[0]
        assert areas[index] > 0
        if method == "linear":
            weight = torch.where(iou >= iou_threshold, 1 - iou, 1.0)
        else:
            weight = torch.exp(-(iou * iou) / sigma)
        scores = scores * weight
        scores[index] = -1


@pytest.mark.large
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [300, 2000, 100_000])
def test_large(device, size, method):
    """More than one node and root of the tree; crowds and boxes that hardly meet."""
    count = 2500 if size < 100_000 else 1500
    boxes, _, _ = random_boxes(count, size=size, device=device, dtype=torch.float64)
    boxes[7] += 1e9  # one far away from all others
    generator = torch.Generator().manual_seed(1)
    scores = torch.randperm(count, generator=generator).double().to(device) / count
    keep, decayed = one_pick_at_a_time(boxes, scores, method)
    result = ops.soft_nms(boxes, scores, method)
    assert result.keep.tolist() == keep
    assert result.scores.tolist() == pytest.approx(decayed, rel=1e-12)


@pytest.mark.large
def test_roots(device):
    """More than 32 768 boxes, each hidden by one neighbour alone, so that the answer is known."""
    count = 40_000
    places = torch.arange(count, device=device)
    x, y = places % 200 * 20.0, places // 200 * 20.0
    pairs = torch.stack([x, y, x + 8, y + 8], 1).repeat(2, 1)
    scores = torch.cat([torch.full((count,), 0.75), torch.full((count,), 0.5)]).to(device)
    pairs[count:, 2] -= 4  # the IoU with the first of the pair is 1/2
    keep, decayed = ops.soft_nms(pairs, scores)
    assert torch.equal(keep, torch.arange(2 * count, device=device))
    assert decayed[:count].eq(0.75).all() and decayed[count:].eq(0.25).all()


# --- padded form -------------------------------------------------------------------------------


@given(
    st.lists(cases(lattice_boxes(5, 5)), min_size=1, max_size=3),
    lattice_threshold(),
    st.integers(0, 7),
    st.booleans(),
)
def test_padded_form(batch, threshold, max_output, classes):
    """Its rows are the single form's first max_output results."""
    boxes, scores, idxs = (torch.stack(part) for part in zip(*map(tensors, batch), strict=True))
    idxs = idxs if classes else None
    result = ops.batched_soft_nms(boxes, scores, idxs, "linear", threshold, max_output=max_output)
    for b in range(len(batch)):
        if idxs is None:
            keep, decayed = ops.soft_nms(boxes[b], scores[b], "linear", threshold)
        else:
            keep, decayed = ops.batched_soft_nms(boxes[b], scores[b], idxs[b], "linear", threshold)
        count = min(max_output, len(keep))
        assert result.counts[b].item() == count
        assert torch.equal(result.keep[b, :count], keep[:count])
        assert torch.equal(result.scores[b, :count], decayed[:count])
        assert result.keep[b, count:].eq(-1).all() and result.scores[b, count:].eq(0).all()


@pytest.mark.large
@pytest.mark.parametrize("method", METHODS)
def test_early_exit(device, method):
    boxes, scores, idxs = random_boxes(3, 2000, size=900, device=device)
    whole = ops.batched_soft_nms(boxes, scores, idxs, method, max_output=2000)
    for max_output in (1, 10, 500):
        part = ops.batched_soft_nms(boxes, scores, idxs, method, max_output=max_output)
        assert torch.equal(part.keep, whole.keep[:, :max_output])
        assert torch.equal(part.scores, whole.scores[:, :max_output])


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0,), (2, 3, 4), (0, 0)])
def test_leading_dimensions(device, shape):
    boxes, scores, idxs = random_boxes(*shape, device=device)
    for classes in (idxs, None):
        result = ops.batched_soft_nms(boxes, scores, classes, max_output=2)
        assert result.keep.shape == result.scores.shape == (*shape[:-1], 2)
        assert result.counts.shape == shape[:-1]
        if boxes.numel() == 0:
            assert result.keep.eq(-1).all() and result.scores.eq(0).all()
            assert result.counts.eq(0).all()


# --- ties, NaN and edges -----------------------------------------------------------------------


def test_ties_go_by_index(device):
    boxes = torch.tensor([[0.0, 0, 4, 4]], device=device).repeat(500, 1)
    boxes[:, ::2] += torch.arange(500, device=device)[:, None] * 10
    scores = torch.full((500,), 0.5, device=device)
    assert ops.soft_nms(boxes, scores).keep.tolist() == list(range(500))
    # All in one place: linear decay by an IoU of 1 leaves nothing of the others.
    same = boxes[:1].repeat(500, 1)
    keep, decayed = ops.soft_nms(same, scores)
    assert (keep.tolist(), decayed.tolist()) == ([0], [0.5])


def test_what_takes_no_part(device):
    """NaN, negative and too small scores; a box with NaN, and one without area, stand apart."""
    whole = [0.0, 0, 10, 10]
    boxes = torch.tensor(
        [whole, whole, whole, [math.nan, 0, 10, 10], [10, 10, 0, 0], [0, 0, math.inf, 10]],
        device=device,
    )
    scores = torch.tensor([math.nan, -1.0, 0.001, 0.25, 0.75, 0.5], device=device)
    keep, decayed = ops.soft_nms(boxes, scores)
    assert (keep.tolist(), decayed.tolist()) == ([4, 5, 3], [0.75, 0.5, 0.25])


def test_infinite_scores(device):
    """An infinite score stays infinite, or is gone where it is multiplied by 0."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 10]], device=device)
    scores = torch.full((3,), math.inf, device=device)
    keep, decayed = ops.soft_nms(boxes, scores)
    assert (keep.tolist(), decayed.tolist()) == ([0, 1], [math.inf, math.inf])


def test_classes_without_offsets(device):
    """Boxes at negative coordinates, where offsets by class make them overlap."""
    boxes = torch.tensor([[-50.0, -50, 10, 10], [-61, -61, -1, -1]], device=device)
    scores = torch.tensor([0.9, 0.8], device=device)
    idxs = torch.tensor([0, 1], device=device)
    assert torch.equal(ops.batched_soft_nms(boxes, scores, idxs).scores, scores)


@pytest.mark.large
def test_many_classes(device):
    """9418 classes in float16: no box changes another."""
    count = 9418
    boxes = torch.tensor([[0.0, 0, 9, 9]], device=device, dtype=torch.float16).repeat(count, 1)
    scores = torch.full((count,), 0.5, device=device, dtype=torch.float16)
    step = (INT64.max - INT64.min) // count
    idxs = torch.tensor([INT64.min + step * i for i in range(count)], device=device)
    keep, decayed = ops.batched_soft_nms(boxes, scores, idxs)
    assert torch.equal(keep, torch.arange(count, device=device))
    assert decayed.eq(0.5).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.bool, torch.float32])
def test_classes_of_other_dtypes(device, dtype):
    boxes, scores, idxs = random_boxes(200, device=device)
    idxs = idxs % 2
    wanted = ops.batched_soft_nms(boxes, scores, idxs)
    result = ops.batched_soft_nms(boxes, scores, idxs.to(dtype))
    assert torch.equal(result.keep, wanted.keep) and torch.equal(result.scores, wanted.scores)


def test_extreme_sigmas(device):
    """The smallest numbers divide by nothing: all that overlap goes, the others stay."""
    boxes = torch.tensor([[0.0, 0, 9, 9], [1, 0, 10, 9], [20, 0, 29, 9]], device=device)
    scores = torch.tensor([0.75, 0.5, 0.25], device=device)
    assert ops.soft_nms(boxes, scores, "gaussian", sigma=1e-300).keep.tolist() == [0, 2]
    assert torch.equal(ops.soft_nms(boxes, scores, "gaussian", sigma=1e300).scores, scores)


# --- errors ------------------------------------------------------------------------------------

BOXES, SCORES, IDXS = torch.zeros(3, 4), torch.zeros(3), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([[0, 0, 1, 1]], SCORES), {}, TypeError, "boxes must be a tensor, got list"),
        ((BOXES[None], SCORES[None]), {}, ValueError, r"boxes must have shape .*, got \[1, 3, 4\]"),
        ((BOXES, SCORES.double()), {}, TypeError, "scores must have the dtype of boxes"),
        ((BOXES, SCORES[:2]), {}, ValueError, r"scores must have shape .*, got \[2\]"),
        ((BOXES, SCORES, "hard"), {}, ValueError, "method must be one of 'linear', 'gaussian'"),
        ((BOXES, SCORES), {"iou_threshold": 2}, ValueError, r"iou_threshold must be in \[0, 1\]"),
        ((BOXES, SCORES), {"sigma": 0}, ValueError, "sigma must be positive and finite, got 0"),
        ((BOXES, SCORES), {"sigma": math.inf}, ValueError, "sigma must be positive and finite"),
        ((BOXES, SCORES), {"sigma": "1"}, TypeError, "sigma must be a number, got str"),
        (
            (BOXES, SCORES),
            {"score_threshold": -0.1},
            ValueError,
            "score_threshold must be at least 0, got -0.1",
        ),
        (
            (BOXES, SCORES),
            {"score_threshold": math.nan},
            ValueError,
            "score_threshold must be at least 0, got nan",
        ),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match="^soft_nms: " + message):
        ops.soft_nms(*arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((BOXES, SCORES, None), {}, TypeError, "idxs must be a tensor, got None"),
        ((BOXES, SCORES, IDXS[:2]), {}, ValueError, r"idxs must have shape .*, got \[2\]"),
        ((BOXES, SCORES, IDXS), {"max_output": -1}, ValueError, "max_output must be at least 0"),
        ((BOXES, SCORES, IDXS), {"max_output": 1.0}, TypeError, "max_output must be an integer"),
    ],
)
def test_errors_of_batched_soft_nms(arguments, options, error, message):
    with pytest.raises(error, match="^batched_soft_nms: " + message):
        ops.batched_soft_nms(*arguments, **options)


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(3, 5), SCORES, None, 0, 0.5, 0.5, 0.0),
        (BOXES[None], SCORES[None], None, 0, 0.5, 0.5, 0.0),
        (BOXES, SCORES[:2], None, 0, 0.5, 0.5, 0.0),
        (BOXES.int(), SCORES.int(), None, 0, 0.5, 0.5, 0.0),
        (BOXES, SCORES, IDXS.int(), 0, 0.5, 0.5, 0.0),
        (BOXES, SCORES, IDXS, 2, 0.5, 0.5, 0.0),
        (BOXES, SCORES, IDXS, 0, 0.5, 0.0, 0.0),
        (BOXES, SCORES, IDXS, 0, 0.5, 0.5, -1.0),
    ],
)
def test_the_kernel_protects_itself(arguments):
    with pytest.raises((ValueError, TypeError, RuntimeError), match="soft_nms"):
        torch.ops.pydet.soft_nms(*arguments)
    with pytest.raises(ValueError, match="soft_nms_padded: max_output must be at least 0, got -1"):
        torch.ops.pydet.soft_nms_padded(BOXES, SCORES, None, 0, 0.5, 0.5, 0.0, -1)


@pytest.mark.large
def test_every_instruction_set_gives_the_same_bits():
    code = """
import torch
from pydet import ops
from tests.ops.test_nms import random_boxes

boxes, scores, idxs = random_boxes(800, size=300)
for method in ("linear", "gaussian"):
    keep, decayed = ops.batched_soft_nms(boxes, scores, idxs, method)
    print(keep.tolist(), decayed.view(torch.int32).tolist())
"""
    assert len(set(outputs_by_set(code).values())) == 1
