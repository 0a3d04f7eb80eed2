# SPDX-License-Identifier: Apache-2.0
"""Annotation files with anything in them give a usable data set, or an error that names them."""

import copy
import json
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pydet.data import CocoDataset, DatasetError, VocDataset, YoloDataset
from pydet.metrics import coco_metrics, voc_metrics

from .helpers import coco_data, voc_object, voc_xml, write_coco, write_voc, write_yolo

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.integers(-50, 50)
    | st.floats()
    | st.sampled_from(["", "a.jpg", "../a.jpg", "/", "\0", "cat", "1", "\ud800"])
)
values = scalars | st.lists(scalars, max_size=5) | st.dictionaries(st.just("id"), scalars)


def places(data, path=()):
    """Paths of all values in nested lists and dicts."""
    if path:
        yield path
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))
        else:
            yield (*path, key)


def check_usable(dataset):
    for i in range(len(dataset)):
        image, target = dataset[i]
        height, width = image.shape[1:]
        boxes = target["boxes"]
        assert torch.isfinite(boxes).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()
        assert ((target["labels"] >= 0) & (target["labels"] < len(dataset.class_names))).all()
        for key in ("labels", "ignored", "area", "iscrowd", "difficult"):
            assert target[key].shape == (len(boxes),)
    truth = dataset.to_coco()
    json.dumps(truth, allow_nan=False)
    assert len({a["id"] for a in truth["annotations"]}) == dataset.num_boxes
    for measure in (coco_metrics, voc_metrics):
        figure = measure(truth, []).per_class
        assert len(figure) == len(dataset.class_names)


@given(data=st.data())
def test_coco(tmp_path_factory, data):
    root = tmp_path_factory.getbasetemp() / "damaged-coco"
    content = copy.deepcopy(coco_data())
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(places(content))))
        parent = content
        for key in path[:-1]:
            parent = parent[key]
        if data.draw(st.booleans()):
            parent[path[-1]] = data.draw(values)
        elif isinstance(parent, dict):
            del parent[path[-1]]
        else:
            parent.append(copy.deepcopy(parent[path[-1]]))
        if not content:
            break
    file = write_coco(root, json.dumps(content))
    # NaN and infinity are written as Python writes them, which its reader accepts.
    try:
        CocoDataset(file, root / "images")
    except DatasetError as error:
        assert "train.json" in str(error)
    try:
        dataset = CocoDataset(file, root / "images", on_error="skip")
    except DatasetError as error:
        assert "train.json" in str(error)
        return
    check_usable(dataset)


words = st.sampled_from(
    ["", "0", "-1", "1e400", "nan", "inf", "12.5", "1_0", "a.jpg", "../b.jpg", "/", "cat", "\u0663"]
) | st.integers(-100, 100).map(str)


@given(data=st.data())
def test_voc(tmp_path_factory, data):
    root = tmp_path_factory.getbasetemp() / "damaged-voc"
    text = voc_xml([voc_object("cat", (1, 1, 20, 20)), voc_object("dog", (9, 9, 40, 30), 1)])
    for _ in range(data.draw(st.integers(1, 3))):
        tags = list(re.finditer(r"<(\w+)>([^<]*)</\1>", text))
        tag = data.draw(st.sampled_from(tags))
        if data.draw(st.booleans()):
            new = f"<{tag[1]}>{data.draw(words)}</{tag[1]}>"
        else:
            new = data.draw(st.sampled_from(["", tag[0] * 2, "<", "<odd/>", "&amp;", "&lol;"]))
        text = text[: tag.start()] + new + text[tag.end() :]
    write_voc(root, {"a": text, "b": voc_xml(filename="b.jpg")})
    try:
        VocDataset(root)
    except DatasetError as error:
        assert "a.xml" in str(error)
    check_usable(VocDataset(root, on_error="skip", class_names=["cat", "dog"]))
    assert len(VocDataset(root, on_error="skip", class_names=["cat", "dog"])) >= 1


@given(data=st.data())
def test_yolo(tmp_path_factory, data):
    root = tmp_path_factory.getbasetemp() / "damaged-yolo"
    yaml = "path: .\ntrain: train/images\nnc: 2\nnames:\n  0: cat\n  1: dog\n"
    texts = {"label": "0 0.5 0.5 0.25 0.25\n1 0.25 0.75 0.5 0.5", "yaml": yaml}
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.sampled_from(["label", "label", "yaml"]))
        parts = re.split(r"(\s)", texts[where])
        place = data.draw(st.integers(0, len(parts) - 1))
        odd = st.sampled_from(["", " ", "\n", "[", "{a", "'", "- x", "&a", "#", "\t", "..", "a: b"])
        parts[place] = data.draw(words | odd)
        texts[where] = "".join(parts)
    write_yolo(root, {"a": texts["label"], "b": "0 0.5 0.5 0.25 0.25"}, texts["yaml"])
    try:
        YoloDataset(root)
    except DatasetError as error:
        assert "a.txt" in str(error) or "data.yaml" in str(error)
    try:
        dataset = YoloDataset(root, on_error="skip")
    except DatasetError as error:
        assert "data.yaml" in str(error)
        return
    check_usable(dataset)
    assert len(dataset) == 2


@pytest.mark.parametrize("size", range(0, 700, 23))
def test_voc_files_that_are_cut_off(tmp_path, size):
    text = voc_xml([voc_object(), voc_object("dog", (1, 1, 40, 30))])
    root = write_voc(tmp_path, {"a": text[:size], "b": voc_xml(filename="b.jpg")})
    if size >= len(text):
        assert len(VocDataset(root)) == 2
        return
    with pytest.raises(DatasetError, match=r"a\.xml: (the file is empty|not valid XML)"):
        VocDataset(root)
    assert len(VocDataset(root, on_error="skip")) == 1


def test_areas_stay_finite(tmp_path):
    data = coco_data()
    data["annotations"][0]["area"] = math.nan
    file = write_coco(tmp_path, data)
    with pytest.raises(DatasetError, match="area must be a number of at least 0, got nan"):
        CocoDataset(file, tmp_path / "images")
