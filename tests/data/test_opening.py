# SPDX-License-Identifier: Apache-2.0
"""Recognising data sets by their layout."""

import json

import pytest

from pydet.commands._common import open_part
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


@pytest.mark.parametrize("split", ["val", "trainval", "nonexistent"])
def test_a_file_is_no_other_split_than_its_name_tells(tmp_path, split):
    file = write_coco(tmp_path)
    with pytest.raises(DatasetError, match=f"one file, .* by its name not the split {split!r}"):
        open_dataset(file, split)
    file.rename(tmp_path / "instances_trainval2012.json")
    assert len(open_dataset(tmp_path / "instances_trainval2012.json", "trainval")) == 2
    with pytest.raises(
        DatasetError, match=r"'train'; its JSON files: instances_trainval2012\.json"
    ):
        open_dataset(tmp_path, "train")


def test_a_file_beside_is_no_split(tmp_path):
    write_coco(tmp_path)
    (tmp_path / "val_predictions.json").write_text("[]")
    assert open_part(str(tmp_path), "", "val", "raise", everything=False) is None


def _voc_lists(root):
    write_voc(root, {"a": voc_xml([voc_object()])}, {"train": ["a"], "valid": ["a"]})


def _voc_folders(root):
    for split in ("train", "valid"):
        write_image(root / split / "a.jpg")
        (root / split / "a.xml").write_text(voc_xml([voc_object()]))


def _coco_folders(root):
    for split in ("train", "valid"):
        for name in ("a.jpg", "b.jpg"):
            write_image(root / split / name)
        (root / split / "_annotations.coco.json").write_text(json.dumps(coco_data()))


def _yolo_folders(root):
    yaml = "train: train/images\nvalid: valid/images\nnames: [cat, dog]\n"
    for split in ("train", "valid"):
        write_yolo(root, {"a": "0 0.5 0.5 0.5 0.5"}, yaml, split)


@pytest.mark.parametrize("write", [_voc_lists, _voc_folders, _coco_folders, _yolo_folders])
def test_val_and_valid_are_one(tmp_path, write):
    write(tmp_path)
    validation = open_part(str(tmp_path), "", "val", "raise", everything=False)
    asked = open_dataset(tmp_path, "valid")
    assert validation.image_path(0) == asked.image_path(0)
    assert validation.num_boxes == asked.num_boxes > 0
    with pytest.raises(DatasetError):
        open_dataset(tmp_path, "test")
    assert open_part(str(tmp_path), "", "test", "raise", everything=False) is None


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
