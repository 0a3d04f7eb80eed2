# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pydet import ops
from tests.ops.test_nms import class_lists, random_boxes
from tests.reference.weighted_boxes_fusion import weighted_boxes_fusion as reference
from tests.strategies import DTYPES, any_boxes, lattice_boxes, lattice_threshold, tensor_of_boxes

INT64 = torch.iinfo(torch.int64)


def cases(boxes):
    """Strategy of (boxes, scores, classes); scores on eighths, and some that take no part."""
    score = st.integers(-1, 8).map(lambda eighths: eighths / 8)
    score |= st.sampled_from([math.nan, math.inf])
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


def assert_equal(result, wanted):
    boxes, scores, labels = wanted
    assert result.labels.tolist() == labels
    assert result.scores.tolist() == [float(score) for score in scores]
    got = np.array(result.boxes.tolist()).reshape(-1, 4)
    np.testing.assert_array_equal(got, np.array(boxes, dtype=np.float64).reshape(-1, 4))


# --- against the reference ---------------------------------------------------------------------


def test_worked_example(device):
    """Two models agree on one box of class 3; one of them alone sees a box of class 4."""
    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 10], [20, 0, 28, 8]], device=device)
    scores = torch.tensor([0.75, 0.25, 0.5], device=device)
    idxs = torch.tensor([3, 3, 4], device=device)
    result = ops.weighted_boxes_fusion(boxes, scores, idxs, 2)
    # 8 * 0.75 + 10 * 0.25 = 8.5; (0.75 + 0.25) / 2; one of two models: 0.5 / 2.
    assert result.boxes.tolist() == [[0, 0, 8, 8.5], [20, 0, 28, 8]]
    assert (result.scores.tolist(), result.labels.tolist()) == ([0.5, 0.25], [3, 4])
    result = ops.weighted_boxes_fusion(boxes, scores, idxs, 2, conf_type="max")
    assert result.scores.tolist() == [0.75, 0.5]
    # One model: two boxes of one cluster count once, or twice where that is allowed.
    result = ops.weighted_boxes_fusion(boxes, scores, idxs, 1)
    assert result.scores.tolist() == [0.5, 0.5]
    result = ops.weighted_boxes_fusion(boxes, scores, idxs, 1, allows_overflow=True)
    assert result.scores.tolist() == [1.0, 0.5]


def test_weights_of_models(device):
    """The second model counts three times: 0.75 * 1 and 0.25 * 3 are equal, of a weight of 4."""
    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 10]], device=device)
    scores = torch.tensor([0.75, 0.25], device=device)
    idxs = torch.zeros(2, dtype=torch.int64, device=device)
    models = torch.tensor([0, 1], device=device)
    result = ops.weighted_boxes_fusion(boxes, scores, idxs, 2, weights=[1, 3], models=models)
    assert result.boxes.tolist() == [[0, 0, 8, 9]]
    assert result.scores.tolist() == [0.75 * 2 / 4]
    result = ops.weighted_boxes_fusion(
        boxes, scores, idxs, 2, weights=[1, 3], models=models, conf_type="max"
    )
    assert result.scores.tolist() == [0.25]
    # Of no model; of a score that is infinite with its weight: both take no part.
    models = torch.tensor([2, 1], device=device)
    result = ops.weighted_boxes_fusion(boxes, scores, idxs, 2, weights=[1, 3], models=models)
    assert result.boxes.tolist() == boxes[1:].tolist()
    large = [1, 2.0**1023]
    result = ops.weighted_boxes_fusion(
        boxes.float(), scores.float() * 4, idxs, 2, weights=large, models=models
    )
    assert len(result.boxes) == 0


@given(
    cases(lattice_boxes()),
    lattice_threshold(),
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_equals_the_reference(case, threshold, num_models, by_best, overflow, dtype):
    """The same operations in the same order, each rounded once: equal, and not only close."""
    boxes, scores, idxs = tensors(case, dtype)
    number = np.float32 if dtype == torch.float32 else np.float64
    wanted = reference(
        case[0],
        case[1],
        case[2],
        num_models,
        threshold,
        by_best=by_best,
        overflow=overflow,
        number=number,
    )
    result = ops.weighted_boxes_fusion(
        boxes,
        scores,
        idxs,
        num_models,
        threshold,
        conf_type="max" if by_best else "avg",
        allows_overflow=overflow,
    )
    assert_equal(result, wanted)


@given(cases(any_boxes()), st.sampled_from(DTYPES))
def test_any_coordinates(case, dtype):
    """NaN, infinite, inverted and huge boxes; half precision is rounded once, at the end."""
    boxes, scores, idxs = tensors(case, dtype)
    number = np.float64 if dtype == torch.float64 else np.float32
    with np.errstate(all="ignore"):
        fused, fused_scores, labels = reference(
            boxes.double().tolist(), case[1], case[2], 2, number=number
        )
    result = ops.weighted_boxes_fusion(boxes, scores, idxs, 2)
    assert result.labels.tolist() == labels
    wanted = torch.tensor(np.array(fused, dtype=np.float64).reshape(-1, 4)).to(dtype)
    torch.testing.assert_close(result.boxes, wanted, rtol=0, atol=0, equal_nan=True)
    wanted = torch.tensor(np.array(fused_scores, dtype=np.float64)).to(dtype)
    assert torch.equal(result.scores, wanted)


@pytest.mark.parametrize("size", [60, 900])
@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 65, 200])
def test_sizes(device, count, size):
    """Counts around the blocks of clusters, with and without classes that part them."""
    boxes, scores, idxs = random_boxes(count, size=size, device=device)
    for classes in (idxs, torch.zeros_like(idxs)):
        wanted = reference(
            boxes.tolist(), scores.tolist(), classes.tolist(), 3, 0.5, number=np.float32
        )
        assert_equal(ops.weighted_boxes_fusion(boxes, scores, classes, 3, 0.5), wanted)


# --- padded form -------------------------------------------------------------------------------


@given(st.lists(cases(lattice_boxes(5, 5)), min_size=1, max_size=3), st.integers(0, 7))
def test_padded_form(batch, max_output):
    boxes, scores, idxs = (torch.stack(part) for part in zip(*map(tensors, batch), strict=True))
    result = ops.weighted_boxes_fusion(boxes, scores, idxs, 2, max_output=max_output)
    for b in range(len(batch)):
        single = ops.weighted_boxes_fusion(boxes[b], scores[b], idxs[b], 2)
        count = min(max_output, len(single.scores))
        assert result.counts[b].item() == count
        for padded, wanted, padding in (
            (result.boxes, single.boxes, 0),
            (result.scores, single.scores, 0),
            (result.labels, single.labels, -1),
        ):
            torch.testing.assert_close(
                padded[b, :count], wanted[:count], rtol=0, atol=0, equal_nan=True
            )
            assert padded[b, count:].eq(padding).all()


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0,), (2, 3, 4), (0, 0)])
def test_leading_dimensions(device, shape):
    boxes, scores, idxs = random_boxes(*shape, device=device)
    result = ops.weighted_boxes_fusion(boxes, scores, idxs, 2, max_output=2)
    assert result.boxes.shape == (*shape[:-1], 2, 4)
    assert result.scores.shape == result.labels.shape == (*shape[:-1], 2)
    assert result.counts.shape == shape[:-1]
    if boxes.numel() == 0:
        assert result.labels.eq(-1).all() and result.counts.eq(0).all()


# --- edges -------------------------------------------------------------------------------------


@pytest.mark.large
def test_many_classes_and_negative_coordinates(device):
    """9418 classes in float16, one box each, where offsets by class would make them overlap."""
    count = 9418
    boxes = torch.tensor([[-50.0, -50, -1, 9]], device=device, dtype=torch.float16)
    scores = torch.full((count,), 0.5, device=device, dtype=torch.float16)
    step = (INT64.max - INT64.min) // count
    idxs = torch.tensor([INT64.min + step * i for i in range(count)], device=device)
    result = ops.weighted_boxes_fusion(boxes.repeat(count, 1), scores, idxs, 1)
    assert torch.equal(result.labels, idxs)
    assert torch.equal(result.boxes, boxes.repeat(count, 1))


def test_a_box_joins_the_nearest_cluster(device):
    """IoU 0.6 with the first cluster, 0.8 with the second: the greater one takes it."""
    boxes = torch.tensor([[0.0, 0, 6, 10], [0, 2, 10, 10], [0, 0, 10, 10]], device=device)
    scores = torch.tensor([0.75, 0.5, 0.25], device=device)
    idxs = torch.zeros(3, dtype=torch.int64, device=device)
    result = ops.weighted_boxes_fusion(boxes, scores, idxs, 1)
    assert result.boxes[0].tolist() == [0, 0, 6, 10]
    assert result.boxes[1].tolist() == pytest.approx([0, 2 * 2 / 3, 10, 10])


# --- errors ------------------------------------------------------------------------------------

BOXES, SCORES, IDXS = torch.zeros(3, 4), torch.zeros(3), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([[0, 0, 1, 1]], SCORES, IDXS, 2), {}, TypeError, "boxes must be a tensor, got list"),
        ((BOXES, SCORES, None, 2), {}, TypeError, "idxs must be a tensor, got NoneType"),
        ((BOXES, SCORES, IDXS, 0), {}, ValueError, "num_models must be at least 1, got 0"),
        ((BOXES, SCORES, IDXS, 1.0), {}, TypeError, "num_models must be an integer, got float"),
        ((BOXES, SCORES, IDXS, 2, 1.5), {}, ValueError, r"iou_threshold must be in \[0, 1\]"),
        ((BOXES, SCORES, IDXS, 2, 0.5, -1), {}, ValueError, "score_threshold must be at least 0"),
        ((BOXES, SCORES, IDXS, 2), {"weights": [1, 1]}, TypeError, "weights and models must come"),
        (
            (BOXES, SCORES, IDXS, 2),
            {"weights": [1], "models": IDXS},
            ValueError,
            "weights must have 2 numbers, one a model, got 1",
        ),
        (
            (BOXES, SCORES, IDXS, 2),
            {"weights": [1, 0], "models": IDXS},
            ValueError,
            "weights must be positive and finite, got 0",
        ),
        (
            (BOXES, SCORES, IDXS, 1),
            {"weights": [1], "models": IDXS[:2]},
            ValueError,
            r"models must have shape \[3\], got \[2\]",
        ),
        (
            (BOXES, SCORES, IDXS, 1),
            {"weights": [1], "models": SCORES},
            TypeError,
            "models must be int64, got torch.float32",
        ),
        ((BOXES, SCORES, IDXS, 2), {"conf_type": "sum"}, ValueError, "conf_type must be one of"),
        ((BOXES, SCORES, IDXS, 2), {"max_output": -1}, ValueError, "max_output must be at least 0"),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match="^weighted_boxes_fusion: " + message):
        ops.weighted_boxes_fusion(*arguments, **options)


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(3, 5), SCORES, None, 0.5, 1, 1.0, False, False, 3),
        (BOXES, SCORES[:2], None, 0.5, 1, 1.0, False, False, 3),
        (BOXES, SCORES, IDXS.int(), 0.5, 1, 1.0, False, False, 3),
        (BOXES, SCORES, IDXS, 0.5, 0, 1.0, False, False, 3),
        (BOXES, SCORES, IDXS, 0.5, 1, 0.0, False, False, 3),
        (BOXES, SCORES, IDXS, 0.5, 1, 1.0, False, False, -1),
    ],
)
def test_the_kernel_protects_itself(arguments):
    with pytest.raises((ValueError, TypeError, RuntimeError), match="weighted_boxes_fusion"):
        torch.ops.pydet.weighted_boxes_fusion(*arguments)
