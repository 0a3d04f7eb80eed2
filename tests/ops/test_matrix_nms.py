# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pydet import ops
from tests.ops.test_nms import random_boxes
from tests.ops.test_soft_nms import METHODS, cases, floats, tensors
from tests.reference.matrix_nms import matrix_nms as reference
from tests.strategies import DTYPES, any_boxes, lattice_boxes, valid_boxes

INT64 = torch.iinfo(torch.int64)


# --- against the reference ---------------------------------------------------------------------


def test_worked_example(device):
    """The third box meets the second (IoU 1/3), which the first has halved, and the first (1/3)."""
    boxes = torch.tensor(
        [[0.0, 0, 12, 2], [0, 0, 6, 2], [0, 0, 4, 2], [20, 0, 24, 2]], device=device
    )
    scores = torch.tensor([0.75, 0.5, 0.25, 0.5], device=device)
    keep, decayed = ops.matrix_nms(boxes, scores, method="linear")
    # Box 1: 1 - 1/2. Box 2: min((1 - 1/3) / 1, (1 - 2/3) / (1 - 1/2)) = 2/3.
    assert keep.tolist() == [0, 3, 1, 2]
    assert decayed.tolist() == pytest.approx([0.75, 0.5, 0.25, 0.25 * 2 / 3])
    keep, decayed = ops.matrix_nms(boxes, scores)
    wanted = {1: 0.5 * math.exp(-0.5), 2: 0.25 * math.exp(-(4 / 9 - 1 / 4) / 0.5)}
    wanted[2] = min(wanted[2], 0.25 * math.exp(-(1 / 9) / 0.5))
    got = dict(zip(keep.tolist(), decayed.tolist(), strict=True))
    assert got == pytest.approx({0: 0.75, 3: 0.5, **wanted}, rel=1e-6)


@given(cases(lattice_boxes()), st.sampled_from([0.0, 0.001, 0.125, 0.5]))
def test_linear_is_exact_on_integers(case, score_threshold):
    """Every step rounds once, in float32, so results are equal and not only close."""
    boxes, scores, idxs = tensors(case)
    for classes in (None, case[2]):
        with np.errstate(invalid="ignore"):  # infinity times 0
            keep, decayed = reference(
                case[0],
                case[1],
                "linear",
                score_threshold=score_threshold,
                idxs=classes,
                number=np.float32,
            )
        result = ops.matrix_nms(
            boxes,
            scores,
            None if classes is None else idxs,
            "linear",
            score_threshold=score_threshold,
        )
        assert (result.keep.tolist(), result.scores.tolist()) == (keep, floats(decayed))


@given(cases(lattice_boxes(size=128)), st.sampled_from(DTYPES))
def test_every_dtype_is_exact(case, dtype):
    boxes, scores, idxs = tensors(case, dtype)
    number = np.float64 if dtype == torch.float64 else np.float32
    least = torch.tensor(0.001, dtype=dtype).item()
    with np.errstate(invalid="ignore"):
        keep, decayed = reference(
            case[0], case[1], "linear", 0.5, least, idxs=case[2], number=number
        )
    result = ops.matrix_nms(boxes, scores, idxs, "linear")
    assert result.keep.tolist() == keep
    assert torch.equal(result.scores, torch.tensor(floats(decayed), dtype=torch.float64).to(dtype))


def by_box(count, keep, scores):
    result = torch.zeros(count, dtype=torch.float64)
    result[keep] = torch.as_tensor(floats(scores), dtype=torch.float64)
    return result


@given(
    cases(valid_boxes()) | cases(any_boxes()),
    st.sampled_from([0.1, 0.5, 2.0]),
    st.sampled_from(METHODS),
)
def test_arbitrary_boxes(case, sigma, method):
    boxes, scores, idxs = tensors(case, torch.float64)
    scores = scores.nan_to_num(0.5, 1.0, 0.0)
    keep, decayed = reference(boxes.tolist(), scores.tolist(), method, sigma, 0.0, case[2])
    result = ops.matrix_nms(boxes, scores, idxs, method, sigma, 0.0)
    torch.testing.assert_close(
        by_box(len(boxes), result.keep, result.scores),
        by_box(len(boxes), keep, decayed),
        rtol=1e-9,
        atol=1e-12,
    )
    assert result.scores.diff().le(0).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [60, 900])
@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 65, 130])
def test_sizes(device, count, size, method):
    boxes, scores, idxs = random_boxes(count, size=size, device=device, dtype=torch.float64)
    for classes in (None, idxs):
        keep, decayed = reference(
            boxes.tolist(),
            scores.tolist(),
            method,
            idxs=None if classes is None else classes.tolist(),
        )
        result = ops.matrix_nms(boxes, scores, classes, method)
        torch.testing.assert_close(
            by_box(count, result.keep.cpu(), result.scores.cpu()),
            by_box(count, keep, decayed),
            rtol=1e-12,
            atol=1e-12,
        )


def by_matrices(boxes, scores, idxs, method, sigma=0.5):
    """The formula on [N, N] matrices that a user writes: for sizes too large for the reference."""
    order = scores.argsort(descending=True, stable=True)
    iou = ops.box_iou(boxes[order], boxes[order]) * (idxs[order][:, None] == idxs[order])
    iou = iou.triu(diagonal=1)  # [better, worse]
    peaks = iou.amax(0)[:, None]
    if method == "linear":
        ratios = torch.where(peaks < 1, (1 - iou) / (1 - peaks), math.inf)
    else:
        ratios = torch.exp(-(iou * iou - peaks * peaks) / sigma)
    decayed = torch.empty_like(scores)
    decayed[order] = scores[order] * ratios.amin(0).clamp(max=1)
    return decayed


@pytest.mark.large
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [300, 20_000])
def test_large(device, size, method):
    boxes, scores, idxs = random_boxes(2500, size=size, device=device, dtype=torch.float64)
    boxes[7] += 1e9  # one far away from all others
    for classes in (idxs, torch.zeros_like(idxs)):
        result = ops.matrix_nms(boxes, scores, classes, method, score_threshold=0.0)
        got = torch.zeros_like(scores)
        got[result.keep] = result.scores
        wanted = by_matrices(boxes, scores, classes, method)
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-13)


# --- padded form -------------------------------------------------------------------------------


@given(
    st.lists(cases(lattice_boxes(5, 5)), min_size=1, max_size=3),
    st.integers(0, 7),
    st.booleans(),
    st.sampled_from(METHODS),
)
def test_padded_form(batch, max_output, classes, method):
    boxes, scores, idxs = (torch.stack(part) for part in zip(*map(tensors, batch), strict=True))
    result = ops.matrix_nms(boxes, scores, idxs if classes else None, method, max_output=max_output)
    for b in range(len(batch)):
        keep, decayed = ops.matrix_nms(boxes[b], scores[b], idxs[b] if classes else None, method)
        count = min(max_output, len(keep))
        assert result.counts[b].item() == count
        assert torch.equal(result.keep[b, :count], keep[:count])
        assert torch.equal(result.scores[b, :count], decayed[:count])
        assert result.keep[b, count:].eq(-1).all() and result.scores[b, count:].eq(0).all()


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0,), (2, 3, 4), (0, 0)])
def test_leading_dimensions(device, shape):
    boxes, scores, idxs = random_boxes(*shape, device=device)
    for classes in (idxs, None):
        result = ops.matrix_nms(boxes, scores, classes, max_output=2)
        assert result.keep.shape == result.scores.shape == (*shape[:-1], 2)
        assert result.counts.shape == shape[:-1]
        if boxes.numel() == 0:
            assert result.keep.eq(-1).all() and result.counts.eq(0).all()


# --- ties, NaN and edges -----------------------------------------------------------------------


def test_equal_boxes(device):
    """Copies of the best box are gone, and change no other: 'linear' leaves the best alone."""
    boxes = torch.tensor([[0.0, 0, 4, 4]], device=device).repeat(500, 1)
    scores = torch.full((500,), 0.5, device=device)
    keep, decayed = ops.matrix_nms(boxes, scores, method="linear")
    assert (keep.tolist(), decayed.tolist()) == ([0], [0.5])
    keep, decayed = ops.matrix_nms(boxes, scores, score_threshold=0.0)
    assert keep.tolist() == list(range(500))
    assert decayed[1:].tolist() == pytest.approx([0.5 * math.exp(-2)] * 499)


def test_what_takes_no_part(device):
    whole = [0.0, 0, 10, 10]
    boxes = torch.tensor(
        [whole, whole, whole, [math.nan, 0, 10, 10], [10, 10, 0, 0], [0, 0, math.inf, 10]],
        device=device,
    )
    scores = torch.tensor([math.nan, -1.0, 0.001, 0.25, 0.75, 0.5], device=device)
    keep, decayed = ops.matrix_nms(boxes, scores)
    assert (keep.tolist(), decayed.tolist()) == ([4, 5, 3], [0.75, 0.5, 0.25])


def test_many_classes_and_negative_coordinates(device):
    """9418 classes in float16, one box each, where offsets by class would make them overlap."""
    count = 9418
    boxes = torch.tensor([[-50.0, -50, -1, 9]], device=device, dtype=torch.float16)
    scores = torch.full((count,), 0.5, device=device, dtype=torch.float16)
    step = (INT64.max - INT64.min) // count
    idxs = torch.tensor([INT64.min + step * i for i in range(count)], device=device)
    keep, decayed = ops.matrix_nms(boxes.repeat(count, 1), scores, idxs)
    assert torch.equal(keep, torch.arange(count, device=device))
    assert decayed.eq(0.5).all()


# --- errors ------------------------------------------------------------------------------------

BOXES, SCORES, IDXS = torch.zeros(3, 4), torch.zeros(3), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([[0, 0, 1, 1]], SCORES), {}, TypeError, "boxes must be a tensor, got list"),
        ((BOXES[None], SCORES[None]), {}, ValueError, r"boxes must have shape .*, got \[1, 3, 4\]"),
        ((BOXES, SCORES.double()), {}, TypeError, "scores must have the dtype of boxes"),
        ((BOXES, SCORES, IDXS[:2]), {}, ValueError, r"idxs must have shape .*, got \[2\]"),
        ((BOXES, SCORES, None, "hard"), {}, ValueError, "method must be one of 'linear'"),
        ((BOXES, SCORES), {"sigma": 0}, ValueError, "sigma must be positive and finite, got 0"),
        ((BOXES, SCORES), {"score_threshold": -1}, ValueError, "score_threshold must be at least"),
        ((BOXES, SCORES), {"max_output": -1}, ValueError, "max_output must be at least 0, got -1"),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match="^matrix_nms: " + message):
        ops.matrix_nms(*arguments, **options)


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(3, 5), SCORES, None, 0, 0.5, 0.0),
        (BOXES[None], SCORES[None], None, 0, 0.5, 0.0),
        (BOXES, SCORES[:2], None, 0, 0.5, 0.0),
        (BOXES, SCORES, IDXS.int(), 0, 0.5, 0.0),
        (BOXES, SCORES, IDXS, 2, 0.5, 0.0),
        (BOXES, SCORES, IDXS, 0, 0.0, 0.0),
        (BOXES, SCORES, IDXS, 0, 0.5, -1.0),
    ],
)
def test_the_kernel_protects_itself(arguments):
    with pytest.raises((ValueError, TypeError, RuntimeError), match="matrix_nms"):
        torch.ops.pydet.matrix_nms(*arguments)
