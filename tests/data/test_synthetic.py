# SPDX-License-Identifier: Apache-2.0
"""The drawn data set: right boxes, deterministic, readable."""

import json
import math

import numpy as np
import pytest

from pydet.data import open_dataset, write_synthetic_dataset
from pydet.data.synthetic import _TYPICAL_COLORS, CLASS_NAMES, _draw_shape, _Painter


def test_it_opens_in_strict_mode_and_has_the_asked_size(tmp_path):
    write_synthetic_dataset(tmp_path, 20, 128, seed=1, val_fraction=0.25, max_object_size=64)
    train, val = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "val")
    assert (len(train), len(val)) == (15, 5)
    assert train.class_names == val.class_names == CLASS_NAMES
    assert not train.check(decode=True)
    assert train.num_clipped == 0
    ids = set(train.records.image_ids) | set(val.records.image_ids)
    assert len(ids) == 20
    for i in range(len(train)):
        image, target = train[i]
        height, width = image.shape[1:]
        assert max(height, width) == 128
        assert min(height, width) >= 96
        sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
        assert (sides <= 65).all()
        assert (sides >= 4).all()


def test_the_same_arguments_give_the_same_files(tmp_path):
    for name in ("a", "b"):
        write_synthetic_dataset(tmp_path / name, 6, 96, seed=3, max_object_size=48)
    write_synthetic_dataset(tmp_path / "c", 6, 96, seed=4, max_object_size=48)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 6 + 2
    for file in files:
        content = (tmp_path / "a" / file).read_bytes()
        assert content == (tmp_path / "b" / file).read_bytes()
        assert content != (tmp_path / "c" / file).read_bytes()


def test_more_images_do_not_change_the_earlier_ones(tmp_path):
    for name, count in (("a", 3), ("b", 5)):
        write_synthetic_dataset(tmp_path / name, count, 96, val_fraction=0, max_object_size=48)
    few, more = open_dataset(tmp_path / "a", "train"), open_dataset(tmp_path / "b", "train")
    for i in range(3):
        assert (few[i][0] == more[i][0]).all()
        assert few[i][1]["boxes"].tolist() == more[i][1]["boxes"].tolist()


@pytest.mark.parametrize("seed", range(8))
def test_boxes_are_tight_and_objects_visible(seed, monkeypatch):
    """Draws the objects in plain colours on black and finds them again by their pixels."""
    painter = _Painter(np.random.default_rng(seed), 256, 8, (20, 100))
    painter.num_objects = 8
    shown = np.full((painter.height, painter.width), -1)
    whole = {}

    def color(window, mask, label):
        # The window is a view into the canvas: its place follows from the addresses.
        offset = (window.__array_interface__["data"][0] - canvas_address) // 12
        top, left = divmod(offset, painter.width)
        number = len(whole)
        solid = mask >= 128
        shown[top : top + mask.shape[0], left : left + mask.shape[1]][solid] = number
        ys, xs = np.nonzero(solid)
        box = [left + xs.min(), top + ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        whole[number] = ([int(v) for v in box], int(solid.sum()))

    canvas = np.zeros((painter.height, painter.width, 3), np.float32)
    canvas_address = canvas.__array_interface__["data"][0]
    monkeypatch.setattr("pydet.data.synthetic._paint_background", lambda *_: canvas)
    monkeypatch.setattr(painter, "_color", color)
    _, objects = painter.paint()
    assert len(objects) == len(whole) >= 4
    for number, item in enumerate(objects):
        box, pixels = whole[number]
        assert item["bbox"] == box
        assert item["area"] == (shown == number).sum()
        assert item["area"] >= 0.6 * pixels


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_shapes_have_their_area(name):
    rng = np.random.default_rng(0)
    for diameter in (20.0, 61.5, 110.0):
        mask = _draw_shape(name, diameter, rng)
        assert mask.shape == (math.ceil(diameter),) * 2
        part = (mask / 255).sum() / diameter**2
        low, high = {
            "circle": (math.pi / 4, math.pi / 4),
            "ring": (math.pi / 4 * (1 - 0.65**2), math.pi / 4 * (1 - 0.45**2)),
            "square": (0.5, 0.5),
            "triangle": (3 * math.sqrt(3) / 16, 3 * math.sqrt(3) / 16),
            "star": (0.3086, 0.3086),  # 5 * 0.42 * sin(36 degrees) / 4
            "cross": (0.35, 0.55),
        }[name]
        assert low * 0.9 - 0.02 < part < high * 1.1 + 0.02


def test_classes_and_sizes_are_varied(tmp_path):
    write_synthetic_dataset(tmp_path, 80, 160, val_fraction=0, max_object_size=100)
    dataset = open_dataset(tmp_path, "train")
    counts = np.bincount(dataset.records.labels, minlength=6)
    assert counts.min() > 0.5 * counts.mean()
    sides = np.sqrt(dataset.records.boxes_xywh[:, 2:].prod(axis=1))
    assert (sides < 32).mean() > 0.15
    assert (sides > 64).mean() > 0.1
    per_image = np.diff(dataset.records.box_offsets)
    assert per_image.max() >= 7
    data = json.loads((tmp_path / "annotations" / "instances_train.json").read_text())
    assert [c["name"] for c in data["categories"]] == list(CLASS_NAMES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_images": 0}, "num_images must be positive"),
        ({"val_fraction": 1.5}, r"val_fraction in \[0, 1\]"),
        ({"image_size": 50}, "<= max_object_size <= image_size, got 20, 112, 50"),
        ({"min_object_size": 2}, "4 <= min_object_size"),
    ],
)
def test_arguments_that_make_no_sense(tmp_path, arguments, words):
    with pytest.raises(ValueError, match=words):
        write_synthetic_dataset(tmp_path, **arguments)


def test_upright_shapes():
    square = _draw_shape("square", 40, np.random.default_rng(0), max_turn=0) >= 128
    rows, columns = np.nonzero(square)
    assert square[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
    triangle = _draw_shape("triangle", 40, np.random.default_rng(0), max_turn=0) >= 128
    assert np.flatnonzero(triangle.any(axis=1))[0] == 0  # its tip is at the top


@pytest.mark.parametrize("seed", range(20))
def test_typical_colors_tell_the_class(seed):
    """The colour in the middle of an object is nearest to that of its class (rings are hollow)."""
    rng = np.random.default_rng(seed)
    picture, objects = _Painter(rng, 128, 1, (40, 64), 20, typical_colors=True).paint()
    pixels = np.asarray(picture).astype(float)
    for item in objects:
        label = item["category_id"] - 1
        x, y, width, height = item["bbox"]
        if CLASS_NAMES[label] == "ring" or x == 0 or y == 0:
            continue
        middle = pixels[y + height // 2 - 2 : y + height // 2 + 3, x + width // 2][:, None]
        distances = np.abs(middle.mean(axis=(0, 1)) - np.array(_TYPICAL_COLORS)).sum(axis=1)
        assert distances.argmin() == label
