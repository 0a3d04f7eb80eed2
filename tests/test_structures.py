# SPDX-License-Identifier: Apache-2.0
"""Packed targets: offsets, clipping, invalid boxes counted, errors in words."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pydet.structures import ImageBatch, PackedTargets, Target, pack_targets


def target(boxes, labels=None, **extra) -> Target:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else torch.tensor(labels)
    return {"boxes": boxes, "labels": labels, **extra}


def test_images_own_consecutive_rows():
    packed = pack_targets(
        [target([[0, 0, 2, 3]], [4]), target([]), target([[1, 1, 5, 5], [2, 2, 3, 3]], [0, 7])],
        [(10, 10)] * 3,
    )
    assert len(packed) == 3
    assert packed.offsets.tolist() == [0, 1, 1, 3]
    assert packed.labels.tolist() == [4, 0, 7]
    assert packed.boxes.tolist() == [[0, 0, 2, 3], [1, 1, 5, 5], [2, 2, 3, 3]]
    assert packed.boxes.dtype == torch.float32
    assert packed.ignored.tolist() == [False] * 3
    assert packed.num_invalid == 0


def test_boxes_are_clipped_to_their_own_image():
    packed = pack_targets(
        [target([[-5, -5, 50, 50]]), target([[-5, -5, 50, 50]])], [(20, 30), (40, 10)]
    )
    assert packed.boxes.tolist() == [[0, 0, 30, 20], [0, 0, 10, 40]]
    assert packed.image_sizes.tolist() == [[20, 30], [40, 10]]
    unlimited = pack_targets([target([]), target([])])
    assert unlimited.image_sizes.tolist() == [[math.inf, math.inf]] * 2


def test_ignored_boxes_are_marked():
    packed = pack_targets(
        [
            target([[0, 0, 1, 1]]),
            target([[0, 0, 1, 1], [0, 0, 2, 2]], ignored=torch.tensor([True, False])),
        ]
    )
    assert packed.ignored.tolist() == [False, True, False]


@pytest.mark.parametrize(
    "box",
    [
        [3, 3, 3, 8],  # no width
        [3, 3, 8, 3],  # no height
        [8, 3, 3, 8],  # inverted
        [math.nan, 3, 8, 8],
        [0, 0, math.inf, 8],
        [20, 3, 30, 8],  # to the right of the image
        [-9, -9, 0, 0],  # touches the corner
    ],
)
def test_invalid_box_becomes_nan_and_is_counted(box):
    packed = pack_targets([target([box, [1, 1, 4, 4]])], [(10, 20)])
    assert packed.boxes[0].isnan().all()
    assert packed.boxes[1].tolist() == [1, 1, 4, 4]
    assert packed.num_invalid == 1
    assert packed.offsets.tolist() == [0, 2]


@given(st.lists(st.lists(st.tuples(*[st.floats(width=32)] * 4), max_size=4), max_size=4))
def test_any_floats_give_boxes_inside_or_nan(images):
    packed = pack_targets([target(boxes) for boxes in images], [(100, 200)] * len(images))
    nan = packed.boxes.isnan().any(1)
    assert packed.boxes[nan].isnan().all()
    assert packed.num_invalid == nan.sum()
    good = packed.boxes[~nan]
    assert (good[:, 2:] > good[:, :2]).all()
    assert ((good >= 0) & (good <= torch.tensor([200, 100, 200, 100]))).all()
    assert packed.offsets.diff().tolist() == [len(boxes) for boxes in images]


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        ({"boxes": torch.zeros(1, 4)}, TypeError, "'boxes' and 'labels'"),
        ([], TypeError, "got list"),
        ({"boxes": [[0, 0, 1, 1]], "labels": torch.zeros(1).long()}, TypeError, "be a tensor"),
        (
            {"boxes": torch.zeros(1, 5), "labels": torch.zeros(1).long()},
            ValueError,
            r"shape \[G, 4\], got \[1, 5\]",
        ),
        ({"boxes": torch.zeros(1, 4), "labels": torch.zeros(1)}, TypeError, "integers"),
        ({"boxes": torch.zeros(2, 4), "labels": torch.zeros(1).long()}, ValueError, "one entry"),
        (
            {
                "boxes": torch.zeros(1, 4),
                "labels": torch.zeros(1).long(),
                "ignored": torch.zeros(2).bool(),
            },
            ValueError,
            r"\['ignored'\] must have shape \[1\]",
        ),
    ],
)
def test_wrong_targets_are_refused_by_name(bad, error, words):
    with pytest.raises(error, match=rf"pack_targets: targets\[1\].*{words}"):
        pack_targets([target([]), bad])


def test_number_of_targets_must_be_that_of_images():
    with pytest.raises(ValueError, match="one for each of the 2 images, got 1"):
        pack_targets([target([])], [(1, 1), (1, 1)])


def test_label_out_of_range_is_refused_with_its_image():
    packed = pack_targets([target([]), target([[0, 0, 1, 1]], [2]), target([[0, 0, 1, 1]], [3])])
    packed.check_labels(4)
    with pytest.raises(ValueError, match=r"labels must be in 0 \.\.\. 2 .* got 3 in image 2"):
        packed.check_labels(3)
    negative = pack_targets([target([[0, 0, 1, 1]], [-1])])
    with pytest.raises(ValueError, match="got -1 in image 0"):
        negative.check_labels(3)


def test_image_batch_checks_its_parts():
    with pytest.raises(ValueError, match=r"shape \[B, 3, H, W\]"):
        ImageBatch(torch.zeros(1, 1, 4, 4), ((4, 4),), ((4, 4),))
    with pytest.raises(ValueError, match="sizes must have one entry"):
        ImageBatch(torch.zeros(2, 3, 4, 4), ((4, 4),), ((4, 4),))


def test_values_by_image():
    packed = pack_targets([target([[0, 0, 1, 1]]), target([]), target([[0, 0, 2, 2]] * 2)])
    assert packed.by_image(torch.tensor([5, 6, 7]), -1).tolist() == [
        [5, -1, -1],
        [-1, -1, -1],
        [6, 7, -1],
    ]
    assert packed.by_image(packed.boxes, math.nan).shape == (3, 3, 4)
    assert pack_targets([target([])] * 2).by_image(torch.zeros(0, 4), 0).shape == (2, 0, 4)


def test_original_scale_is_x_then_y():
    batch = ImageBatch(torch.zeros(1, 3, 64, 64), ((50, 40),), ((100, 120),))
    assert batch.original_scale().tolist() == [[3, 2, 3, 2]]


def test_to_moves_every_tensor(device):
    packed = pack_targets([target([[0, 0, 1, 1]])]).to(device)
    assert isinstance(packed, PackedTargets)
    parts = [getattr(packed, field.name) for field in dataclasses.fields(packed)]
    assert all(part.device.type == device.type for part in parts)
    batch = ImageBatch(torch.zeros(1, 3, 4, 4), ((4, 4),), ((4, 4),)).to(device)
    assert batch.images.device.type == device.type
