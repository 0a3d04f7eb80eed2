# SPDX-License-Identifier: Apache-2.0
"""Candidates, suppression and lists of detections, against plain loops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pydet.postprocess import (
    PaddedDetections,
    at_least_float32,
    select_detections,
    to_list,
    top_candidates,
    top_candidates_per_class,
)
from pydet.structures import ImageBatch


@given(
    st.integers(0, 2**31),
    st.lists(st.integers(1, 12), min_size=1, max_size=3),
    st.integers(1, 5),
    st.integers(1, 20),
    st.sampled_from([0.0, 0.3, 0.9]),
)
def test_candidates_are_the_best_pairs_of_each_level(seed, counts, classes, most, threshold):
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts) * classes
    # A permutation: no two pairs score alike, so there is one right answer.
    logits = torch.randperm(2 * total, generator=generator).float().view(2, -1, classes)
    logits = (logits - total) / total * 3
    found = top_candidates(logits, counts, threshold, most)
    width = sum(min(most, count * classes) for count in counts)
    assert found.scores.shape == found.labels.shape == found.anchor_idxs.shape == (2, width)
    for b in range(2):
        expected, first = {}, 0
        for count in counts:
            pairs = [
                (float(logits[b, a, k].sigmoid()), a, k)
                for a in range(first, first + count)
                for k in range(classes)
            ]
            best = sorted(pairs, reverse=True)[:most]
            expected |= {(a, k): score for score, a, k in best if score > threshold}
            first += count
        rows = zip(found.scores[b], found.anchor_idxs[b], found.labels[b], strict=True)
        got = {(int(a), int(k)): float(s) for s, a, k in rows if s > -math.inf}
        # A sigmoid's last bit depends on its place in the tensor (vector or remainder).
        assert got == pytest.approx(expected, abs=1e-6)


def test_a_nan_logit_is_no_candidate():
    logits = torch.tensor([[[math.nan, 2.0], [1.0, 0.0]]])
    found = top_candidates(logits, [2], 0.05, 4)
    kept = found.scores[0] > -math.inf
    assert not found.scores.isnan().any()
    assert (0, 0) not in zip(
        found.anchor_idxs[0][kept].tolist(), found.labels[0][kept].tolist(), strict=True
    )


@given(
    st.integers(0, 2**31),
    st.integers(0, 12),
    st.integers(1, 5),
    st.integers(1, 20),
    st.sampled_from([0.0, 0.1, 0.9]),
)
def test_candidates_per_class_are_the_best_anchors_of_each(seed, anchors, classes, most, threshold):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, anchors, classes + 1, generator=generator).double()
    found = top_candidates_per_class(logits, threshold, most)
    width = classes * min(most, anchors)
    assert found.scores.shape == found.labels.shape == found.anchor_idxs.shape == (2, width)
    for b in range(2):
        expected = {}
        for k in range(classes):
            scores = []
            for a in range(anchors):
                exponentials = [math.exp(x) for x in logits[b, a].tolist()]
                scores.append((exponentials[k] / sum(exponentials), a))
            best = sorted(scores, reverse=True)[:most]
            expected |= {(a, k): score for score, a in best if score > threshold}
        rows = zip(found.scores[b], found.anchor_idxs[b], found.labels[b], strict=True)
        got = {(int(a), int(k)): float(s) for s, a, k in rows if s > -math.inf}
        assert got == pytest.approx(expected, abs=1e-12)


def test_background_is_no_candidate_and_takes_its_share_of_the_score():
    logits = torch.tensor([[[0.0, math.log(2.0), math.log(5.0)]]])  # 1/8, 2/8, background 5/8
    found = top_candidates_per_class(logits, 0.05, 4)
    assert found.labels.tolist() == [[0, 1]]
    torch.testing.assert_close(found.scores, torch.tensor([[0.125, 0.25]]))


@pytest.mark.parametrize("quality", [None, torch.full((1, 4), 0.5)])
def test_a_nan_logit_takes_no_place(quality):
    logits = torch.tensor([[[math.nan, 2.0], [1.0, 0.0], [math.nan, math.nan], [3.0, -1.0]]])
    found = top_candidates(logits, [4], 0.0, 2, quality)
    assert sorted(found.anchor_idxs[0].tolist()) == [1, 3]
    assert found.labels.tolist() == [[0, 0]]


def test_anchor_with_a_nan_is_no_candidate_and_takes_no_place():
    logits = torch.tensor([[[math.nan, 2.0, 0], [1.0, 0, 0], [0.5, 0.2, 0], [-math.inf, 1.0, 0]]])
    found = top_candidates_per_class(logits, 0.05, 2)
    assert not found.scores.isnan().any()
    assert found.anchor_idxs.tolist() == [[1, 2, 3, 2]]
    assert found.labels.tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("find", [top_candidates, top_candidates_per_class])
def test_candidates_are_traced_whole_for_all_sizes(find):
    def run(logits):
        return find(logits, *([[logits.shape[1]]] if find is top_candidates else []), 0.3, 5)

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="eager")
    for shape in [(2, 9, 4), (3, 30, 4)]:
        logits = torch.randn(shape)
        for a, b in zip(run(logits), compiled(logits), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_scores_are_at_least_float32(dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    logits = torch.zeros(1, 2, 2, dtype=dtype)
    for found in (top_candidates(logits, [2], 0.05, 4), top_candidates_per_class(logits, 0.05, 4)):
        assert found.scores.dtype == at_least_float32(logits).dtype == wide


def test_suppression_is_within_a_class_and_an_image(device):
    box, near, far = [0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]
    boxes = torch.tensor([[box, near, near, far], [near, box, far, far]], dtype=torch.float32)
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.5, 0.6, -math.inf, 0.01]])
    labels = torch.tensor([[0, 0, 1, 0], [2, 2, 0, 0]])
    found = select_detections(
        boxes.to(device),
        scores.to(device),
        labels.to(device),
        iou_threshold=0.5,
        max_detections=3,
        score_threshold=0.05,
    )
    assert found.counts.tolist() == [3, 1]
    assert found.labels.tolist() == [[0, 1, 0], [2, -1, -1]]
    assert found.boxes[0].tolist() == [box, near, far]
    assert found.boxes[1].tolist() == [box, [0] * 4, [0] * 4]
    torch.testing.assert_close(found.scores.cpu(), torch.tensor([[0.9, 0.7, 0.6], [0.6, 0.0, 0.0]]))


def test_boxes_return_to_the_pixels_of_their_image():
    detections = PaddedDetections(
        torch.tensor([[[10.0, 20, 30, 40], [0, 0, 0, 0]], [[1, 2, 3, 4], [5, 6, 7, 8]]]),
        torch.tensor([[0.9, 0.0], [0.8, 0.7]]),
        torch.tensor([[1, -1], [0, 2]]),
        torch.tensor([1, 2]),
    )
    batch = ImageBatch(torch.zeros(2, 3, 64, 64), ((50, 60), (64, 64)), ((100, 30), (64, 64)))
    first, second = to_list(detections, batch)
    assert first["boxes"].tolist() == [[5, 40, 15, 80]]
    assert first["labels"].tolist() == [1]
    assert second["boxes"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    torch.testing.assert_close(second["scores"], torch.tensor([0.8, 0.7]))
