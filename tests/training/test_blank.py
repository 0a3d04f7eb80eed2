# SPDX-License-Identifier: Apache-2.0
"""An image that cannot be decoded teaches nothing, whatever transforms make of it."""

import pytest
import torch

import pydet
from pydet.data import (
    Compose,
    RandomHorizontalFlip,
    RandomIoUCrop,
    RandomScaleJitter,
    RandomZoomOut,
    SeededView,
    open_dataset,
)
from tests.data.helpers import write_coco

SHORT_SIDE = {"resize": "short_side", "size": 96, "max_size": 160}
FIXED = {"resize": "fixed", "size": (300, 300), "size_divisor": 1}
SMALL_SSD = {"width": 0.125, "preprocessing": FIXED}
ONE_EACH = {"fpn_channels": 16, "head_convs": 1, "norm": "frozen", "preprocessing": SHORT_SIDE}
DETECTORS = [
    ("retinanet_resnet18_fpn", ONE_EACH),
    ("fcos_resnet18_fpn", ONE_EACH),
    ("ssd300_vgg16", SMALL_SSD),
    ("ssd300_vgg16", {**SMALL_SSD, "min_negatives": 3}),
    ("ssd300_focal_vgg16", SMALL_SSD),
    ("faster_rcnn_resnet18_fpn", {"fpn_channels": 16, "preprocessing": SHORT_SIDE}),
    ("faster_rcnn_vgg16", {"width": 0.0625, "box_channels": 8, "preprocessing": SHORT_SIDE}),
]
WITHOUT_SAMPLES = DETECTORS[:5]  # Faster R-CNN draws its anchors, others in another batch
RANDOM = Compose(
    [RandomZoomOut(3.0, p=0.7), RandomIoUCrop(), RandomHorizontalFlip(),
     RandomScaleJitter(80, 120, 0.3, 2.0)]
)  # fmt: skip


@pytest.fixture
def blanks(tmp_path):
    """A data set of one image, whose head alone is whole."""
    file = write_coco(tmp_path, images=["a.jpg"])
    path = tmp_path / "images" / "a.jpg"
    path.write_bytes(path.read_bytes()[:-20])
    return open_dataset(file, image_folder=tmp_path / "images", on_error="skip")


def build(name, options):
    torch.manual_seed(0)
    return pydet.create_model(name, 3, **options).train()


@pytest.mark.filterwarnings("ignore:.*left out of training")
@pytest.mark.parametrize("transform", [None, RANDOM])
@pytest.mark.parametrize(("name", "options"), DETECTORS)
def test_losses_of_blank_images_are_zero(blanks, name, options, transform):
    view = SeededView(blanks, transform)
    images, targets = zip(*(view[epoch, 0] for epoch in range(3)), strict=True)
    losses = build(name, options)(list(images), list(targets))
    assert {key: loss.item() for key, loss in losses.items()} == dict.fromkeys(losses, 0.0)
    sum(losses.values()).backward()


@pytest.mark.filterwarnings("ignore:.*left out of training")
@pytest.mark.parametrize(("name", "options"), WITHOUT_SAMPLES)
def test_another_image_of_the_batch_learns_as_if_alone(blanks, name, options):
    model = build(name, options)
    black, nothing = blanks[0]
    image = torch.randint(0, 256, black.shape, dtype=torch.uint8)
    target = {"boxes": torch.tensor([[4.0, 6, 24, 27]]), "labels": torch.tensor([1])}
    alone, both = model([image], [target]), model([black, image], [nothing, target])
    for key, loss in alone.items():
        assert loss > 0 or key == "loss_box"
        torch.testing.assert_close(both[key] * 2, loss, rtol=1e-4, atol=1e-6)
