# SPDX-License-Identifier: Apache-2.0
"""Transforms: pixels and boxes stay together, nothing random but torch's generator."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pydet.data import (
    Compose,
    PhotometricDistortion,
    RandomHorizontalFlip,
    RandomIoUCrop,
    RandomScaleJitter,
    RandomVerticalFlip,
    RandomZoomOut,
    ResizeFixed,
    ResizeShortSide,
    build_transform,
)
from pydet.data.augmentation import adjust_colors, crop
from pydet.data.transforms import resize, select_boxes

EVERY = [
    ResizeShortSide([20, 45], 60),
    ResizeFixed(33, 57),
    RandomHorizontalFlip(),
    RandomVerticalFlip(),
    PhotometricDistortion(),
    RandomIoUCrop(),
    RandomScaleJitter(40, 50, 0.5, 2.0),
    RandomZoomOut(3.0),
]
GEOMETRIC = [t for t in EVERY if not isinstance(t, PhotometricDistortion)]


@st.composite
def samples(draw, max_boxes=5):
    """An image of noise and a target with every key, boxes on whole pixels inside of it."""
    height, width = draw(st.integers(8, 60)), draw(st.integers(8, 60))
    boxes = []
    for _ in range(draw(st.integers(0, max_boxes))):
        x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        x2, y2 = draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, height))
        boxes.append([x1, y1, x2, y2])
    count = len(boxes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    target = {
        "boxes": boxes,
        "labels": torch.arange(count),
        "ignored": torch.rand(count, generator=generator) < 0.3,
        "image_id": 7,
        "area": (boxes[:, 2:] - boxes[:, :2]).prod(dim=1),
        "iscrowd": torch.arange(count) % 2 == 0,
        "difficult": torch.arange(count) % 3 == 0,
        "extra": torch.arange(count * 2).reshape(count, 2),
    }
    return image, target


seeds = st.integers(0, 2**31)


@pytest.mark.parametrize("transform", EVERY, ids=repr)
@given(sample=samples(), seed=seeds)
def test_boxes_stay_inside_and_rows_stay_together(transform, sample, seed):
    image, target = sample
    before = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in target.items()}
    pixels = image.clone()
    torch.manual_seed(seed)
    changed, result = transform(image, target)
    # The arguments are as they were.
    assert torch.equal(image, pixels)
    for key, value in before.items():
        same = torch.equal(target[key], value) if isinstance(value, torch.Tensor) else True
        assert same, key
    # The result is an image, and its boxes lie in it.
    assert changed.dtype == torch.uint8
    assert changed.is_contiguous()
    height, width = changed.shape[1:]
    boxes = result["boxes"]
    assert boxes.dtype == torch.float32
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([width, height, width, height]) + 1e-3).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    # Every row belongs to the box that it belonged to; labels are the row numbers.
    rows = result["labels"]
    for key in ("ignored", "iscrowd", "difficult", "extra"):
        assert torch.equal(result[key], before[key][rows])
    assert result["image_id"] == 7
    resizes = isinstance(transform, ResizeShortSide | ResizeFixed | RandomScaleJitter)
    assert set(result) == set(before) | ({"sized"} if resizes else set())
    assert result.get("sized", (height, width)) == (height, width)
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    torch.testing.assert_close(result["area"], sides, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("transform", EVERY, ids=repr)
@given(sample=samples(), seed=seeds)
def test_the_same_seed_gives_the_same_result_and_no_other_generator_matters(
    transform, sample, seed
):
    torch.manual_seed(seed)
    image1, target1 = transform(*sample)
    random.seed(seed + 1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(seed)
    image2, target2 = transform(*sample)
    assert torch.equal(image1, image2)
    assert torch.equal(target1["boxes"], target2["boxes"])
    # Nothing else was drawn from.
    state = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    transform(*sample)
    assert state == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002


def painted(height=60, width=80, box=(20, 12, 48, 44)):
    """A black image with one white box."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    x1, y1, x2, y2 = box
    image[:, y1:y2, x1:x2] = 255
    target = {"boxes": torch.tensor([box], dtype=torch.float32), "labels": torch.tensor([0])}
    return image, target


@pytest.mark.parametrize("transform", GEOMETRIC, ids=repr)
def test_pixels_are_where_the_box_says(transform):
    for seed in range(60):
        torch.manual_seed(seed)
        if isinstance(transform, RandomZoomOut | RandomScaleJitter):
            transform.fill = (0, 0, 0)
        image, target = transform(*painted())
        if not len(target["boxes"]):
            assert isinstance(transform, RandomScaleJitter)  # the others keep one object at least
            continue
        x1, y1, x2, y2 = target["boxes"][0].tolist()
        white = (image[0] > 127).float()
        ys, xs = torch.nonzero(white, as_tuple=True)
        # Resampling may move the edge of the white box by half a pixel.
        assert xs.min() == pytest.approx(x1, abs=0.51)
        assert ys.min() == pytest.approx(y1, abs=0.51)
        assert xs.max() + 1 == pytest.approx(x2, abs=0.51)
        assert ys.max() + 1 == pytest.approx(y2, abs=0.51)


@pytest.mark.parametrize("flip", [RandomHorizontalFlip(1.0), RandomVerticalFlip(1.0)], ids=repr)
@given(sample=samples())
def test_flipping_twice_changes_nothing(flip, sample):
    image, target = flip(*flip(*sample))
    assert torch.equal(image, sample[0])
    assert torch.equal(target["boxes"], sample[1]["boxes"])


def test_flips():
    image, target = painted()
    flipped, result = RandomHorizontalFlip(1.0)(image, target)
    assert result["boxes"].tolist() == [[80 - 48, 12, 80 - 20, 44]]
    assert torch.equal(flipped, image[:, :, torch.arange(79, -1, -1)])
    flipped, result = RandomVerticalFlip(1.0)(image, target)
    assert result["boxes"].tolist() == [[20, 60 - 44, 48, 60 - 12]]
    assert torch.equal(flipped, image[:, torch.arange(59, -1, -1)])
    same, result = RandomHorizontalFlip(0.0)(image, target)
    assert same is image
    assert result is target


@pytest.mark.parametrize("flip", [RandomHorizontalFlip, RandomVerticalFlip])
def test_flips_happen_as_often_as_they_should(flip):
    torch.manual_seed(0)
    image, target = painted()
    transform = flip(0.3)
    count = sum(transform(image, target)[0] is not image for _ in range(2000))
    assert 500 < count < 700  # 600 expected, standard deviation 20


@pytest.mark.parametrize(
    ("size", "max_size", "shape", "expected"),
    [
        (60, None, (120, 200), (60, 100)),
        (60, 80, (120, 200), (48, 80)),
        (60, 80, (200, 120), (80, 48)),
        (120, None, (120, 200), (120, 200)),
        (240, 300, (120, 200), (180, 300)),
        (7, None, (10, 11), (7, 8)),
        (4, 4, (4, 400), (1, 4)),
    ],
)
def test_sizes_of_resize_short_side(size, max_size, shape, expected):
    boxes = torch.tensor([[0.0, 0.0, shape[1], shape[0]]])
    image = torch.zeros(3, *shape, dtype=torch.uint8)
    resized, target = ResizeShortSide(size, max_size)(image, {"boxes": boxes})
    assert resized.shape[1:] == expected
    # The box of the whole image stays the box of the whole image, however the size was rounded.
    torch.testing.assert_close(
        target["boxes"], torch.tensor([[0.0, 0.0, expected[1], expected[0]]]), rtol=1e-6, atol=0
    )


def test_one_of_several_sizes_is_drawn():
    torch.manual_seed(0)
    image = torch.zeros(3, 50, 50, dtype=torch.uint8)
    transform = ResizeShortSide([20, 30, 40])
    sizes = {transform(image, {"boxes": torch.zeros(0, 4)})[0].shape[1] for _ in range(60)}
    assert sizes == {20, 30, 40}


@given(sample=samples(), height=st.integers(1, 90), width=st.integers(1, 90))
def test_resize_keeps_the_mean_and_the_range(sample, height, width):
    image, target = sample
    resized, result = resize(image, target, (height, width))
    assert resized.shape == (3, height, width)
    exact = torch.nn.functional.interpolate(
        image[None].double(), size=(height, width), mode="bilinear", antialias=True
    )[0]
    # Each direction rounds to whole numbers, with weights of 16 bits (less than 0.02 for 255).
    assert (resized - exact).abs().max() <= 2 * (0.5 + 0.02)
    assert resized.min() >= image.min()
    assert resized.max() <= image.max()
    scale = torch.tensor([width / image.shape[2], height / image.shape[1]]).repeat(2)
    torch.testing.assert_close(result["boxes"], target["boxes"] * scale, rtol=1e-6, atol=1e-6)


def test_colours_change_as_they_should():
    image = torch.tensor([[[200, 100]], [[100, 100]], [[50, 100]]], dtype=torch.uint8)
    assert torch.equal(adjust_colors(image, 0, 1, 1, 0), image)
    assert torch.equal(adjust_colors(image, 20, 1, 1, 0), image + 20)
    assert torch.equal(adjust_colors(image, 0, 0.5, 1, 0), image // 2)
    assert adjust_colors(image, 200, 1.5, 1, 0)[:, 0, 0].tolist() == [255, 255, 255]
    assert adjust_colors(image, -90, 1, 1, 0)[:, 0, 0].tolist() == [110, 10, 0]
    grey = adjust_colors(image, 0, 1, 0, 0)
    luma = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert grey[:, 0, 0].tolist() == [luma] * 3
    # A grey pixel has no hue to turn, and a full turn changes nothing.
    turned = adjust_colors(image, 0, 1, 1, 1.0)
    assert turned[:, 0, 1].tolist() == [100, 100, 100]
    assert turned[:, 0, 0].tolist() != [200, 100, 50]
    assert torch.equal(adjust_colors(image, 0, 1, 1, 2 * torch.pi), image)


@pytest.mark.parametrize(("degrees", "channel"), [(120, 1), (-120, 2)])
def test_a_third_of_a_turn_makes_red_green_or_blue(degrees, channel):
    image = torch.tensor([[[180]], [[60]], [[60]]], dtype=torch.uint8)
    for sign in (1, -1):
        turned = adjust_colors(image, 0, 1, 1, sign * torch.pi * degrees / 180)
        assert turned.flatten().argmax() in (1, 2)
    red_to = {
        int(adjust_colors(image, 0, 1, 1, s * 2 * torch.pi / 3).flatten().argmax()) for s in (1, -1)
    }
    assert red_to == {1, 2}


def test_photometric_distortion_leaves_boxes_and_sometimes_everything():
    torch.manual_seed(0)
    image, target = painted()
    results = [PhotometricDistortion()(image, target) for _ in range(400)]
    assert all(result[1] is target for result in results)
    unchanged = sum(result[0] is image for result in results)
    assert 10 < unchanged < 45  # one in sixteen: 25 expected, standard deviation 5
    assert PhotometricDistortion(p=0.0)(image, target)[0] is image


def test_crop_keeps_objects_by_their_centre_and_ignored_ones_by_any_part():
    image = torch.arange(3 * 40 * 50).reshape(3, 40, 50).remainder(251).to(torch.uint8)
    target = {
        "boxes": torch.tensor(
            [
                [5.0, 5, 20, 20],  # centre inside: cut
                [0, 0, 12, 12],  # centre outside
                [0, 0, 12, 12],  # the same, but ignored
                [0, 0, 9, 9],  # ignored and wholly outside
                [20, 20, 25, 25],  # inside
            ]
        ),
        "labels": torch.arange(5),
        "ignored": torch.tensor([False, False, True, True, False]),
        "area": torch.tensor([100.0, 144, 144, 81, 25]),
    }
    cut, result = crop(image, target, (10, 10, 40, 30))
    assert torch.equal(cut, image[:, 10:30, 10:40])
    assert result["labels"].tolist() == [0, 2, 4]
    assert result["boxes"].tolist() == [[0, 0, 10, 10], [0, 0, 2, 2], [10, 10, 15, 15]]
    # The box of 225 square pixels held an object of 100; 100 of the 225 are left.
    torch.testing.assert_close(result["area"], torch.tensor([100 * 100 / 225, 4.0, 25.0]))


@given(sample=samples(), seed=seeds, min_iou=st.sampled_from([0.0, 0.1, 0.5, 0.9]))
def test_iou_crop_obeys_its_demand(sample, seed, min_iou):
    image, target = sample
    height, width = image.shape[1:]
    torch.manual_seed(seed)
    cut, result = RandomIoUCrop([min_iou])(image, target)
    if cut is image:
        return
    assert 0.3 * height - 1 <= cut.shape[1] <= height
    assert 0.3 * width - 1 <= cut.shape[2] <= width
    assert 0.5 <= cut.shape[2] / cut.shape[1] <= 2
    objects = ~target["ignored"]
    if objects.any():
        kept = result["labels"][~result["ignored"]]
        assert len(kept) > 0
    # Find the patch by its pixels (noise: there is one place only, if it is large enough).
    places = [
        (x, y)
        for y in range(height - cut.shape[1] + 1)
        for x in range(width - cut.shape[2] + 1)
        if torch.equal(image[:, y : y + cut.shape[1], x : x + cut.shape[2]], cut)
    ]
    assert places
    if len(places) == 1 and objects.any():
        (x, y) = places[0]
        best = 0.0
        for x1, y1, x2, y2 in target["boxes"][objects].tolist():
            inner_w = max(0.0, min(x2, x + cut.shape[2]) - max(x1, x))
            inner_h = max(0.0, min(y2, y + cut.shape[1]) - max(y1, y))
            inner = inner_w * inner_h
            union = (x2 - x1) * (y2 - y1) + cut.shape[1] * cut.shape[2] - inner
            best = max(best, inner / union)
        assert best >= min_iou - 1e-6


def test_iou_crop_often_leaves_the_image_and_often_does_not():
    torch.manual_seed(0)
    sample = painted()
    shapes = [tuple(RandomIoUCrop()(*sample)[0].shape) for _ in range(300)]
    whole = sum(shape == (3, 60, 80) for shape in shapes)
    assert 300 / 7 * 0.6 < whole < 240
    assert len(set(shapes)) > 50
    assert RandomIoUCrop([1.0])(*sample)[0] is sample[0]


def test_zoom_out_keeps_the_image_and_fills_the_rest():
    torch.manual_seed(1)
    image, target = painted()
    canvas, result = RandomZoomOut(4.0, fill=(1, 2, 3), p=1.0)(image, target)
    assert 60 < canvas.shape[1] <= 240
    assert canvas.shape[2] / canvas.shape[1] == pytest.approx(80 / 60, rel=0.02)
    left = int(result["boxes"][0, 0]) - 20
    top = int(result["boxes"][0, 1]) - 12
    assert torch.equal(canvas[:, top : top + 60, left : left + 80], image)
    canvas[:, top : top + 60, left : left + 80] = torch.tensor([1, 2, 3]).view(3, 1, 1)
    for channel, value in zip(canvas, (1, 2, 3), strict=True):
        assert (channel == value).all()


def test_scale_jitter_has_one_size_and_keeps_the_aspect_ratio():
    torch.manual_seed(0)
    white = torch.full((3, 60, 80), 255, dtype=torch.uint8)
    boxes = {"boxes": torch.tensor([[30.0, 20.0, 50.0, 40.0]])}  # in the middle, 20 x 20
    sides = []
    for _ in range(100):
        image, target = RandomScaleJitter(48, 64, 0.5, 1.5, fill=(0, 0, 0))(white, boxes)
        assert image.shape == (3, 48, 64)
        x1, y1, x2, y2 = target["boxes"][0].tolist()
        sides.append(x2 - x1)
        assert y2 - y1 == pytest.approx(x2 - x1, rel=0.06)  # as exact as whole pixels allow
        scale = (x2 - x1) / (20 * 0.8)
        # Larger than the result: no canvas is left. Smaller: it has its share.
        part = (image[0] > 0).float().mean().item()
        assert part == pytest.approx(min(1.0, scale) ** 2, abs=0.06)
    assert 0.45 * 16 < min(sides) < 0.6 * 16
    assert 1.4 * 16 < max(sides) < 1.55 * 16


def test_any_callable_works_in_a_transforms_place():
    def invert(image, target):
        return 255 - image, target

    image, target = painted()
    changed, result = Compose([invert, RandomHorizontalFlip(1.0), invert])(image, target)
    assert torch.equal(changed, image.flip(2))
    assert result["boxes"].tolist() == [[32, 12, 60, 44]]


def test_rows_that_do_not_fit_the_boxes_are_named():
    target = {"boxes": torch.zeros(3, 4), "original_size": torch.tensor([480, 640])}
    with pytest.raises(ValueError, match=r"original_size must have one row .* 3 boxes, got \[2\]"):
        select_boxes(target, torch.tensor([0]))


def test_build_transform_from_tables():
    transform = build_transform(
        [
            {"name": "random_zoom_out", "max_ratio": 2.0, "p": 0.4},
            {"name": "random_iou_crop"},
            {"name": "resize_short_side", "size": [240, 256], "max_size": 400},
            {"name": "random_horizontal_flip"},
            {"name": "photometric_distortion", "hue": 9},
        ]
    )
    assert repr(transform) == (
        "Compose([RandomZoomOut(max_ratio=2.0, fill=(124, 116, 104), p=0.4), "
        f"{RandomIoUCrop()!r}, ResizeShortSide([240, 256], max_size=400), "
        f"RandomHorizontalFlip(p=0.5), {PhotometricDistortion(hue=9)!r}])"
    )
    torch.manual_seed(0)
    image, _ = transform(*painted())
    assert min(image.shape[1:]) in (240, 256) or max(image.shape[1:]) == 400


def test_numbers_and_lists_of_any_kind_are_taken():
    assert ResizeShortSide(np.int64(20)).sizes == (20,)
    assert ResizeShortSide(range(20, 50, 10), np.int64(60)).sizes == (20, 30, 40)
    assert RandomHorizontalFlip(np.float32(0.5)).p == 0.5
    assert RandomIoUCrop(np.array([0.5, 0.0])).min_ious == (0.5, 0.0)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            {"name": "random_horizontal_flop"},
            r"specs\[1\]: name must be a known transform, got 'random_horizontal_flop'; "
            r"did you mean 'random_horizontal_flip'\?",
        ),
        ({}, r"specs\[1\]: name must be a known transform, got None; known are photometric"),
        (
            {"name": "random_zoom_out", "ratio": 2},
            r"specs\[1\]: random_zoom_out must have arguments among max_ratio, fill, p, got 'rat",
        ),
        ({"name": "resize_fixed", "height": 3}, r"specs\[1\]: resize_fixed: .*'width'"),
        ({"name": "random_horizontal_flip", "p": 2}, r"specs\[1\]: .*p must lie in \[0, 1\], got"),
        ({"name": "resize_fixed", "height": 0, "width": 5}, "size must be positive, got 0 x 5"),
        ({"name": "resize_short_side", "size": 0}, "size must be positive, got 0"),
        ({"name": "resize_short_side", "size": 5, "max_size": 0}, "max_size must be positive"),
        ({"name": "random_zoom_out", "max_ratio": 0.5}, "max_ratio must be at least 1, got 0.5"),
        ({"name": "random_scale_jitter", "height": 0, "width": 9}, "positive, got 0 x 9"),
        (
            {"name": "random_scale_jitter", "height": 9, "width": 9, "min_scale": 2},
            r"0 < min_scale <= max_scale, got 2, 1\.5",
        ),
        (
            {"name": "random_horizontal_flip", "p": "a"},
            "RandomHorizontalFlip: p must be a number, got 'a'",
        ),
        ({"name": "random_vertical_flip", "p": True}, "p must be a number, got True"),
        ({"name": "random_vertical_flip", "p": [0.5]}, r"p must be a number, got \[0\.5\]"),
        (
            {"name": "resize_fixed", "height": 48.5, "width": 5},
            r"ResizeFixed: height must be a whole number, got 48\.5",
        ),
        ({"name": "resize_short_side", "size": "9"}, "size must be a list of numbers, got '9'"),
        ({"name": "resize_short_side", "size": 9.5}, r"size\[0\] must be a whole number, got 9"),
        ({"name": "resize_short_side", "size": [9, "a"]}, r"size\[1\] must be a whole number, got"),
        ({"name": "resize_short_side", "size": []}, r"size must not be empty, got \(\)"),
        (
            {"name": "resize_short_side", "size": 9, "max_size": "a"},
            "ResizeShortSide: max_size must be a whole number, got 'a'",
        ),
        ({"name": "random_zoom_out", "max_ratio": "a"}, "max_ratio must be a number, got 'a'"),
        ({"name": "random_zoom_out", "max_ratio": math.inf}, "max_ratio must be finite, got inf"),
        ({"name": "random_zoom_out", "fill": 9}, "fill must be a list of numbers, got 9"),
        ({"name": "random_zoom_out", "fill": [1, 2]}, r"fill must have 3 numbers, got \(1, 2\)"),
        (
            {"name": "random_zoom_out", "fill": [0, 255, 256]},
            r"fill must be numbers in 0 \.\.\. 255",
        ),
        (
            {"name": "random_zoom_out", "fill": [1, 2, 0.5]},
            r"fill\[2\] must be a whole number, got",
        ),
        (
            {"name": "random_scale_jitter", "height": 9, "width": "a"},
            "RandomScaleJitter: width must be a whole number, got 'a'",
        ),
        (
            {"name": "random_scale_jitter", "height": 9, "width": 9, "max_scale": "a"},
            "max_scale must be a number, got 'a'",
        ),
        ({"name": "random_iou_crop", "min_ious": "abc"}, "min_ious must be a list of numbers, got"),
        ({"name": "random_iou_crop", "max_aspect_ratio": "a"}, "max_aspect_ratio must be a number"),
        ({"name": "random_iou_crop", "trials": 2.5}, r"trials must be a whole number, got 2\.5"),
        ({"name": "photometric_distortion", "hue": "a"}, "hue must be a number, got 'a'"),
        (
            {"name": "photometric_distortion", "saturation": 2},
            "PhotometricDistortion: saturation must be a list of numbers, got 2",
        ),
        ({"name": "random_iou_crop", "min_scale": 0}, "0 < min_scale <= max_scale <= 1, got 0"),
        (
            {"name": "photometric_distortion", "contrast": [1.5, 0.5]},
            r"contrast must be \(lowest, highest\) >= 0, got \(1\.5, 0\.5\)",
        ),
    ],
)
def test_build_transform_says_what_is_wrong(spec, words):
    with pytest.raises(ValueError, match=words):
        build_transform([{"name": "random_iou_crop"}, spec])
