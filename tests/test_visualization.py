# SPDX-License-Identifier: Apache-2.0
"""Pictures and plots: boxes where they belong, labels inside of the picture, files that open."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pydet.visualization import (
    class_color,
    draw_boxes,
    loss_plot,
    precision_recall_plot,
    running_mean,
    side_by_side,
    tile,
)

BLACK = torch.zeros(3, 100, 160, dtype=torch.uint8)


def pixels(picture):
    return np.asarray(picture).astype(int)


def where(picture, color):
    return (pixels(picture) == color).all(axis=-1)


def test_a_box_is_outlined_where_it_is():
    boxes = torch.tensor([[40.0, 30.0, 90.0, 80.0]])
    picture = draw_boxes(BLACK, boxes, torch.tensor([3]), class_names="abcd")
    assert picture.size == (160, 100)
    hit = where(picture, class_color(3))
    ys, xs = np.nonzero(hit[30:])  # the label is above
    assert (xs.min(), xs.max() + 1, ys.max() + 31) == (40, 90, 80)
    assert hit[30, 40:90].all()
    assert hit[79, 40:90].all()
    assert hit[30:80, 40].all()
    assert hit[30:80, 89].all()
    assert not hit[35:75, 45:85].any()
    assert hit[15:30, 40:45].any()  # the ground of the label
    assert not BLACK.any()


def test_enlarging_moves_the_boxes_along():
    boxes = torch.tensor([[40.0, 30.0, 90.0, 80.0]])
    picture = draw_boxes(BLACK, boxes, torch.tensor([0]), scale=2.5)
    assert picture.size == (400, 250)
    hit = where(picture, class_color(0))
    assert hit[199, 100:225].all()
    assert hit[75:200, 100].all()


def test_ignored_boxes_are_grey():
    boxes = torch.tensor([[10.0, 30.0, 60.0, 80.0], [80.0, 30.0, 130.0, 80.0]])
    picture = draw_boxes(BLACK, boxes, torch.tensor([0, 0]), ignored=torch.tensor([True, False]))
    assert not where(picture, class_color(0))[:, :70].any()
    assert where(picture, class_color(0))[:, 70:].any()


corner = st.floats(-300, 500) | st.sampled_from([float("nan"), float("inf"), -float("inf")])


@given(
    boxes=st.lists(st.tuples(corner, corner, corner, corner), max_size=6),
    height=st.integers(1, 60),
    width=st.integers(1, 60),
)
def test_any_box_can_be_drawn_on_any_picture(boxes, height, width):
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    count = len(boxes)
    picture = draw_boxes(
        image,
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.arange(count),
        torch.linspace(1, 0, count),
    )
    assert picture.size == (width, height)


def test_labels_keep_out_of_each_others_way():
    boxes = torch.tensor([[40.0, 40.0, 120.0, 90.0], [40.0, 40.0, 120.0, 90.0]])
    picture = draw_boxes(BLACK, boxes, torch.tensor([0, 1]), class_names=["mm", "mm"])
    for label in (0, 1):
        hit = where(picture, class_color(label))
        assert hit.sum() > 100


def test_colours_of_classes_differ():
    colors = [class_color(k) for k in range(24)]
    for i, a in enumerate(colors):
        for b in colors[:i]:
            assert sum(abs(x - y) for x, y in zip(a, b, strict=True)) > 30
    assert all(0 <= v <= 255 for color in map(class_color, range(200)) for v in color)


def test_side_by_side_leaves_out_low_scores():
    target = {"boxes": torch.tensor([[10.0, 30, 60, 80]]), "labels": torch.tensor([0])}
    detection = {
        "boxes": torch.tensor([[10.0, 30, 60, 80], [80.0, 30, 130, 80]]),
        "scores": torch.tensor([0.9, 0.2]),
        "labels": torch.tensor([1, 2]),
    }
    picture = side_by_side(BLACK, target, detection, class_names=["a", "b", "c"])
    middle = picture.width // 2
    truth, found = pixels(picture)[:, :middle], pixels(picture)[:, middle:]
    assert (truth == class_color(0)).all(axis=-1).any()
    assert (found == class_color(1)).all(axis=-1).any()
    assert not (pixels(picture) == class_color(2)).all(axis=-1).any()
    assert picture.width >= 2 * 480  # small images are enlarged


def test_tile():
    sheet = tile([Image.new("RGB", (10, 20), "red")] * 5, 2)
    assert sheet.size == (2 * 10 + 3 * 6, 3 * 20 + 4 * 6)
    assert where(sheet, (255, 0, 0)).sum() == 5 * 200
    with pytest.raises(ValueError, match="got 0 and 2"):
        tile([], 2)


def test_running_mean():
    values = np.array([1.0, 3.0, 5.0, np.nan, 7.0, np.inf, 9.0])
    assert running_mean(values, 1)[:3].tolist() == [1, 3, 5]
    assert running_mean(values, 2).tolist() == [1, 2, 4, 5, 7, 7, 9]
    assert np.isnan(running_mean(np.array([np.nan]), 3)).all()


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_plots_are_written(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    recall = np.linspace(0, 1, 101)
    curves = {"cat": 1 - recall, "dog": np.full(101, -1.0), "cow": np.full(101, np.nan)}
    precision_recall_plot(tmp_path / "new" / f"pr.{suffix}", recall, curves, title="a title")
    precision_recall_plot(tmp_path / f"none.{suffix}", recall, {})
    precision_recall_plot(tmp_path / f"many.{suffix}", recall, {str(k): recall for k in range(80)})
    loss_plot(tmp_path / f"loss.{suffix}", range(4), {"loss": [3.0, 2.0, float("nan"), 1.0]})
    loss_plot(tmp_path / f"empty.{suffix}", [], {"loss": []})
    loss_plot(tmp_path / f"nothing.{suffix}", [], {})
    files = list(tmp_path.rglob(f"*.{suffix}"))
    assert len(files) == 6
    for file in files:
        assert file.stat().st_size > 1000
        if suffix == "png":
            assert Image.open(file).size == (840, 600)


def test_matplotlib_is_imported_for_plots_only():
    code = "import sys, pydet.visualization; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
