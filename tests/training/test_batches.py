# SPDX-License-Identifier: Apache-2.0
"""The sizes that images are learnt from in."""

import pytest
import torch

from pydet.data import (
    Compose,
    RandomHorizontalFlip,
    RandomScaleJitter,
    ResizeFixed,
    ResizeShortSide,
)
from pydet.preprocessing import Preprocessing
from pydet.training.batches import load_batches
from pydet.training.sampler import ImageStream, StreamBatchSampler

SHORT_SIDE = Preprocessing(resize="short_side", size=96, max_size=160, size_divisor=8)
FIXED = Preprocessing(resize="fixed", size=(64, 64), size_divisor=8)


class Squares(torch.utils.data.Dataset):
    """Grey images of 48 x 48 with one object."""

    def __len__(self):
        return 15

    def __getitem__(self, index):
        target = {"boxes": torch.tensor([[8.0, 16, 32, 40]]), "labels": torch.tensor([0])}
        return torch.full((3, 48, 48), 99, dtype=torch.uint8), target


def batches(preprocessing, transform, workers=0):
    dataset = Squares()
    sampler = StreamBatchSampler(ImageStream(len(dataset)), 2, num_steps=12)
    options = {"seed": 0, "workers": workers, "device": torch.device("cpu")}
    return list(load_batches(dataset, sampler, preprocessing, transform, **options))


def sizes(*arguments, **options):
    return {size for images, _ in batches(*arguments, **options) for size in images.sizes}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_detector_of_any_size_learns_from_the_sizes_drawn(workers):
    transform = Compose([ResizeShortSide([40, 56, 72]), RandomHorizontalFlip()])
    found = batches(SHORT_SIDE, transform, workers)
    assert {size for images, _ in found for size in images.sizes} == {
        (40, 40), (56, 56), (72, 72),
    }  # fmt: skip
    assert len({images.images.shape for images, _ in found}) == 3
    for images, targets in found:
        sides = targets.boxes[:, 2] - targets.boxes[:, 0]
        torch.testing.assert_close(sides, torch.tensor(images.sizes)[:, 0] / 2)


@pytest.mark.parametrize(
    ("transform", "expected"),
    [(ResizeFixed(40, 72), (40, 72)), (RandomScaleJitter(56, 80), (56, 80)), (None, (96, 96))],
)
def test_whoever_chooses_the_size_last_is_obeyed(transform, expected):
    assert sizes(SHORT_SIDE, transform) == {expected}


def test_a_size_that_a_later_transform_changes_is_not_the_chosen_one():
    transform = Compose([ResizeFixed(40, 40), _border])
    assert sizes(SHORT_SIDE, transform) == {(96, 96)}
    assert sizes(SHORT_SIDE, Compose([transform, ResizeFixed(72, 72)])) == {(72, 72)}


def _border(image, target):
    """A transform of somebody's own."""
    return torch.nn.functional.pad(image, (0, 8, 0, 8)), target


def test_a_detector_of_one_size_always_gets_it():
    assert sizes(FIXED, ResizeShortSide([40, 56, 72])) == {(64, 64)}
