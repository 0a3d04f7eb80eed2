# SPDX-License-Identifier: Apache-2.0
"""Recognising data sets by their layout."""

import json

import pytest

from pydet.data import CocoDataset, DatasetError, VocDataset, YoloDataset, open_dataset

from .helpers import coco_data, voc_object, voc_xml, write_coco, write_image, write_voc, write_yolo


def test_voc_folder(tmp_path):
    root = write_voc(tmp_path, {"a": voc_xml([voc_object()])})
    assert isinstance(open_dataset(root), VocDataset)
    assert len(open_dataset(str(root), "train", class_names=["dog", "cat"])) == 1
    with pytest.raises(DatasetError, match="image_folder is for COCO"):
        open_dataset(root, image_folder=root)


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_train.json", "train"),
        ("annotations/instances_train.json", "images/train"),
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/train.json", "train/images"),
        ("train.json", "train/images"),
        ("train.json", "train"),
        ("train.json", "images/train"),
        ("train.json", "images"),
        ("train.json", "."),
        ("train/_annotations.coco.json", "train"),
    ],
)
def test_coco_folders(tmp_path, annotations, images):
    for name in ("a.jpg", "b.jpg"):
        write_image(tmp_path / images / name)
    file = tmp_path / annotations
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text(json.dumps(coco_data()))
    for dataset in (
        open_dataset(tmp_path, "train"),
        open_dataset(tmp_path),
        open_dataset(file),
        open_dataset(file, "train"),
    ):
        assert isinstance(dataset, CocoDataset)
        assert len(dataset) == 2
        assert dataset[0][0].shape == (3, 30, 40)


def test_splits_do_not_mix(tmp_path):
    for split, names in (("train", ["a.jpg"]), ("val", ["b.jpg"])):
        data = coco_data()
        data["images"] = [i for i in data["images"] if i["file_name"] in names]
        ids = {i["id"] for i in data["images"]}
        data["annotations"] = [a for a in data["annotations"] if a["image_id"] in ids]
        write_image(tmp_path / split / names[0])
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(data))
    assert open_dataset(tmp_path, "train").image_path(0) == tmp_path / "train" / "a.jpg"
    assert open_dataset(tmp_path, "val").image_path(0) == tmp_path / "val" / "b.jpg"
    words = "annotations/instances_train.json, annotations/instances_val.json"
    with pytest.raises(DatasetError, match=rf"'test'; its JSON files: {words}$"):
        open_dataset(tmp_path, "test")
    with pytest.raises(DatasetError, match=rf"{words}; name a split"):
        open_dataset(tmp_path)


def test_yolo_folder(tmp_path):
    root = write_yolo(tmp_path, {"a": "0 0.5 0.5 0.5 0.5"})
    for path in (root, root / "data.yaml"):
        dataset = open_dataset(path, "train", class_names=["dog", "cat"])
        assert isinstance(dataset, YoloDataset)
        assert dataset[0][1]["labels"].tolist() == [1]
    with pytest.raises(DatasetError, match="image_folder is for COCO"):
        open_dataset(root, image_folder=root)


def test_nothing_known(tmp_path):
    with pytest.raises(DatasetError, match=r"no Pascal VOC folder .* JSON files: none"):
        open_dataset(tmp_path)
    with pytest.raises(DatasetError, match="does not exist"):
        open_dataset(tmp_path / "gone")


def test_without_its_images_the_first_missing_one_is_named(tmp_path):
    file = write_coco(tmp_path, images=[])
    with pytest.raises(DatasetError, match=r"images\[0\].*a\.jpg does not exist"):
        open_dataset(file)


def test_image_folder_wins(tmp_path):
    file = write_coco(tmp_path)
    for name in ("a.jpg", "b.jpg"):
        write_image(tmp_path / "other" / name)
    dataset = open_dataset(file, image_folder=tmp_path / "other")
    assert dataset.image_path(0) == tmp_path / "other" / "a.jpg"
