# SPDX-License-Identifier: Apache-2.0
"""COCO files: ids, flags, every broken record, and the real files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pydet.data import CocoDataset, DatasetError, VocDataset, open_dataset

from .helpers import coco_data, write_coco, write_image


def with_annotation(**changes):
    """The data with a fourth annotation, a good one but for the changes."""
    item = {"id": 4, "image_id": 20, "category_id": 7, "bbox": [20, 5, 10, 10], "area": 90}
    return coco_data(annotations=[*coco_data()["annotations"], {**item, **changes}])


def with_image(**changes):
    item = {"id": 30, "file_name": "c.jpg", "width": 40, "height": 30}
    return coco_data(images=[*coco_data()["images"], {**item, **changes}])


def test_ids_with_gaps_become_labels_and_are_kept_for_results(tmp_path):
    dataset = CocoDataset(write_coco(tmp_path), tmp_path / "images")
    assert dataset.class_names == ("cat", "dog")
    assert dataset.category_ids == (3, 7)
    image, target = dataset[0]
    assert image.shape == (3, 30, 40)
    assert target["boxes"].tolist() == [[1, 2, 11, 14.5], [5, 5, 25, 25]]
    assert target["boxes"].dtype == torch.float32
    assert target["labels"].tolist() == [1, 0]
    assert target["area"].tolist() == [90, 300]
    assert target["image_id"] == 10
    assert not target["ignored"].any()


def test_class_names_decide_the_order_of_the_labels(tmp_path):
    file = write_coco(tmp_path)
    dataset = CocoDataset(file, tmp_path / "images", class_names=["dog", "cat"])
    assert dataset.category_ids == (7, 3)
    assert dataset[0][1]["labels"].tolist() == [0, 1]
    with pytest.raises(DatasetError, match=r"no category named 'cow'; it has dog, cat"):
        CocoDataset(file, tmp_path / "images", class_names=["cow"])
    with pytest.raises(DatasetError, match=r"category id 7 is not among the given class names"):
        CocoDataset(file, tmp_path / "images", class_names=["cat"])


def test_slashes_of_windows(tmp_path):
    data = coco_data()
    for item in data["images"]:
        item["file_name"] = "train\\" + item["file_name"]
    (tmp_path / "annotations").mkdir()
    file = tmp_path / "annotations" / "instances_all.json"
    file.write_text(json.dumps(data))
    for name in ("a.jpg", "b.jpg"):
        write_image(tmp_path / "images" / "train" / name)
    dataset = CocoDataset(file)
    assert dataset.image_path(0) == tmp_path / "images" / "train" / "a.jpg"
    assert dataset[0][0].shape == (3, 30, 40)
    assert dataset.check() == []
    assert dataset.to_coco()["images"] == data["images"]


def test_crowd_and_ignore_are_ignored_but_told_apart(tmp_path):
    data = coco_data()
    data["annotations"][0]["iscrowd"] = 1
    data["annotations"][1]["ignore"] = 1
    dataset = CocoDataset(write_coco(tmp_path, data), tmp_path / "images")
    target = dataset[0][1]
    assert target["ignored"].tolist() == [True, True]
    assert target["iscrowd"].tolist() == [True, False]
    truth = dataset.to_coco()["annotations"]
    assert [(a["iscrowd"], a["ignore"]) for a in truth] == [(1, 0), (0, 1), (0, 0)]


def test_images_without_annotations_are_kept(tmp_path):
    write_image(tmp_path / "images" / "c.jpg")
    dataset = CocoDataset(write_coco(tmp_path, with_image()), tmp_path / "images")
    assert len(dataset) == 3
    image, target = dataset[2]
    assert image.shape == (3, 30, 40)
    assert target["boxes"].shape == (0, 4)
    no_annotations = coco_data()
    del no_annotations["annotations"]  # as in the files of test sets
    file = write_coco(tmp_path, no_annotations)
    assert CocoDataset(file, tmp_path / "images").num_boxes == 0


def test_area_and_size_may_be_missing(tmp_path):
    data = coco_data()
    del data["annotations"][0]["area"]
    del data["images"][0]["width"], data["images"][0]["height"]
    dataset = CocoDataset(write_coco(tmp_path, data), tmp_path / "images")
    assert dataset[0][1]["area"].tolist() == [125, 300]
    assert dataset.image_size(0) == (30, 40)
    assert CocoDataset(
        write_coco(tmp_path, data), tmp_path / "images", verify_images=False
    ).image_size(0) == (30, 40)


def test_annotations_without_an_id_get_a_free_one(tmp_path):
    data = coco_data()
    del data["annotations"][0]["id"]
    data["annotations"][1]["id"] = None
    dataset = CocoDataset(write_coco(tmp_path, data), tmp_path / "images")
    assert dataset.records.annotation_ids.tolist() == [4, 5, 3]


def test_to_coco_gives_back_what_was_read(tmp_path):
    data = with_annotation(bbox=[35.125, 20.0625, 30, 30])  # reaches beyond the border
    dataset = CocoDataset(write_coco(tmp_path, data), tmp_path / "images")
    assert dataset.num_clipped == 1
    assert dataset[1][1]["boxes"][1].tolist() == [35.125, 20.0625, 40, 30]
    truth = dataset.to_coco()
    assert truth["images"] == data["images"]
    assert sorted(truth["categories"], key=str) == sorted(data["categories"], key=str)
    plain = [
        {k: a[k] for k in ("id", "image_id", "category_id", "bbox", "area")}
        for a in truth["annotations"]
    ]
    assert plain == data["annotations"]


def test_annotations_keep_their_image_whatever_their_order(tmp_path):
    data = coco_data()
    data["annotations"] = [data["annotations"][i] for i in (2, 0, 1)]
    dataset = CocoDataset(write_coco(tmp_path, data), tmp_path / "images")
    assert dataset.records.annotation_ids.tolist() == [1, 2, 3]
    assert dataset[1][1]["boxes"].tolist() == [[0, 0, 8, 8]]


BROKEN_ANNOTATIONS = {
    "zero width": ({"bbox": [1, 2, 0, 5]}, "has no area: its width is 0"),
    "tiny width": ({"bbox": [1, 2, 1e-30, 5]}, "has no area: its width is 1e-30"),
    "barely inside": ({"bbox": [-5, 2, 5.001, 5]}, "outside of the image of 40 x 30"),
    "negative height": ({"bbox": [1, 2, 5, -5]}, "has no area"),
    "not a number": ({"bbox": [float("nan"), 2, 5, 5]}, "not finite"),
    "infinite": ({"bbox": [1, 2, float("inf"), 5]}, "not finite"),
    "too large for a float": ({"bbox": [10**400, 2, 5, 5]}, "fit a float"),
    "outside": ({"bbox": [40, 2, 5, 5]}, "outside of the image of 40 x 30"),
    "above": ({"bbox": [1, -9, 5, 9]}, "outside of the image of 40 x 30"),
    "three numbers": ({"bbox": [1, 2, 3]}, "must be four numbers"),
    "text": ({"bbox": ["1", 2, 3, 4]}, "must be four numbers"),
    "true": ({"bbox": [True, 2, 3, 4]}, "must be four numbers"),
    "no box": ({"bbox": None}, "must be four numbers"),
    "unknown image": ({"image_id": 99}, "no image with the id 99"),
    "image of words": ({"image_id": "a.jpg"}, "no image with the id a.jpg"),
    "unknown class": ({"category_id": 5}, "category id 5 does not exist"),
    "class of words": ({"category_id": "cat"}, "category id cat does not exist"),
    "id given twice": ({"id": 3}, "annotation id 3 is given twice"),
    "id of words": ({"id": "x"}, "must be an integer"),
    "negative area": ({"area": -1}, "area must be"),
    "area beyond floats": ({"area": 10**400}, "area must be"),
    "area of words": ({"area": "big"}, "area must be"),
    "duplicate": ({"category_id": 3, "bbox": [0, 0, 8, 8.5]}, "repeats annotation 3"),
}


@pytest.mark.parametrize("case", BROKEN_ANNOTATIONS)
def test_broken_annotations(tmp_path, case):
    changes, reason = BROKEN_ANNOTATIONS[case]
    file = write_coco(tmp_path, with_annotation(**changes))
    with pytest.raises(DatasetError, match=rf"train\.json, annotations\[3\] \(id .*{reason}"):
        CocoDataset(file, tmp_path / "images", duplicate_iou=0.9)
    dataset = CocoDataset(file, tmp_path / "images", on_error="skip", duplicate_iou=0.9)
    assert len(dataset) == 2
    assert dataset.num_boxes == 3
    (problem,) = dataset.problems
    assert problem.record.startswith("annotations[3]")


def test_what_is_given_twice_counts_twice(tmp_path):
    """By default: the measures of a data set are those of its file."""
    changes, _ = BROKEN_ANNOTATIONS["duplicate"]
    dataset = CocoDataset(write_coco(tmp_path, with_annotation(**changes)), tmp_path / "images")
    assert dataset.num_boxes == 4
    assert len(dataset.to_coco()["annotations"]) == 4
    assert sum(len(target["boxes"]) for _, target in dataset) == 4


BROKEN_IMAGES = {
    "missing file": ({}, "c.jpg does not exist"),
    "not an image": ({"file_name": "c.txt"}, "is no image"),
    "id given twice": ({"id": 20}, "image id 20 is given twice"),
    "file given twice": ({"file_name": "a.jpg"}, "file name 'a.jpg' is given twice"),
    "no id": ({"id": None}, "must have an integer 'id'"),
    "id too large": ({"id": 2**70}, "must have an integer 'id'"),
    "no name": ({"file_name": None}, "and a 'file_name'"),
    "empty name": ({"file_name": ""}, "is not a file name"),
    "wrong size": ({"file_name": "d.jpg", "width": 44}, "declared 44 x 30 pixels"),
    "negative size": ({"file_name": "d.jpg", "width": -40}, "must be positive integers"),
    "size of words": ({"file_name": "d.jpg", "width": "40"}, "must be positive integers"),
    "half a size": ({"file_name": "d.jpg", "width": None}, "must be positive integers"),
    "climbs out": ({"file_name": "../secret.jpg"}, "leads outside"),
    "climbs out by backslash": ({"file_name": "..\\secret.jpg"}, "leads outside"),
    "absolute": ({"file_name": "/etc/hostname"}, "leads outside"),
    "link": ({"file_name": "link.jpg"}, "link that leads outside"),
}


@pytest.mark.parametrize("case", BROKEN_IMAGES)
def test_broken_images(tmp_path, case):
    changes, reason = BROKEN_IMAGES[case]
    file = write_coco(tmp_path, with_image(**changes))
    write_image(tmp_path / "images" / "d.jpg")
    write_image(tmp_path / "secret.jpg")
    (tmp_path / "images" / "c.txt").write_text("no image")
    (tmp_path / "images" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(DatasetError, match=rf"train\.json, images\[2\] .*{reason}"):
        CocoDataset(file, tmp_path / "images")
    dataset = CocoDataset(file, tmp_path / "images", on_error="skip")
    assert len(dataset) == 2
    assert dataset.num_boxes == 3
    assert [p.record.split()[0] for p in dataset.problems] == ["images[2]"]


def test_annotations_of_an_image_that_is_left_out_go_with_it(tmp_path):
    dataset = CocoDataset(
        write_coco(tmp_path, images=["a.jpg"]), tmp_path / "images", on_error="skip"
    )
    assert len(dataset) == 1
    assert dataset.num_boxes == 2
    assert len(dataset.problems) == 1


BROKEN_FILES = {
    "empty": ("", r"train\.json is empty"),
    "not JSON": ('{"images": [],\n "annotations": [}', r"line 2, column 18: not valid JSON"),
    "cut off": ('{"images": [', "line 1, column 13"),
    "a list": ("[]", "must hold a list 'images'"),
    "no categories": ('{"images": []}', "must hold a list 'categories'"),
    "annotations of another kind": (
        '{"images": [], "categories": [], "annotations": {}}',
        "must hold a list 'annotations'",
    ),
    "deep": ("[" * 100_000, "cannot be read as JSON"),
}


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("case", BROKEN_FILES)
def test_broken_files_are_always_an_error(tmp_path, case, on_error):
    text, reason = BROKEN_FILES[case]
    file = write_coco(tmp_path, coco_data())
    file.write_text(text)
    with pytest.raises(DatasetError, match=reason):
        CocoDataset(file, tmp_path / "images", on_error=on_error)


def test_text_that_is_not_utf8(tmp_path):
    file = write_coco(tmp_path)
    file.write_bytes(b'{"images": "\xff\xfe\xff"}')
    with pytest.raises(DatasetError, match="cannot be read as JSON"):
        CocoDataset(file, tmp_path / "images")


@pytest.mark.parametrize(
    ("category", "reason"),
    [
        ({"id": 7, "name": "cow"}, "category id is given twice"),
        ({"id": "8", "name": "cow"}, "integer 'id'"),
        ({"id": 8}, "must have a 'name'"),
        ("cow", "integer 'id'"),
    ],
)
def test_broken_categories(tmp_path, category, reason):
    data = coco_data(categories=[*coco_data()["categories"], category])
    file = write_coco(tmp_path, data)
    with pytest.raises(DatasetError, match=rf"categories\[2\].*{reason}"):
        CocoDataset(file, tmp_path / "images")
    dataset = CocoDataset(file, tmp_path / "images", on_error="skip")
    assert dataset.class_names == ("cat", "dog")
    assert len(dataset.problems) == 1


def test_two_categories_of_one_name_are_one_class(tmp_path):
    """Exports of Roboflow have a category 0 of the project's name."""
    data = coco_data()
    data["categories"] = [{"id": 3, "name": "cat"}, *data["categories"]]
    data["categories"][-1]["id"] = 9
    data["annotations"][1]["category_id"] = 9
    file = write_coco(tmp_path, data)
    with pytest.raises(DatasetError, match=r"categories\[2\] \(id 9\): the name 'cat' is given"):
        CocoDataset(file, tmp_path / "images")
    for names, labels in ((None, [1, 0]), (["dog", "cat"], [0, 1])):
        dataset = CocoDataset(file, tmp_path / "images", class_names=names, on_error="skip")
        assert sorted(dataset.class_names) == ["cat", "dog"]
        assert sorted(dataset.category_ids) == [3, 7]
        assert dataset[0][1]["labels"].tolist() == labels
        assert dataset.num_boxes == 3
        (problem,) = dataset.problems
        assert "its objects are the first's" in problem.reason


def test_labels_that_are_no_class(tmp_path):
    """The labels of torchvision's COCO models are the ids less one, with gaps."""
    names = ["N/A", "N/A", "cat", "N/A", "N/A", "N/A", "dog", "N/A"]
    dataset = CocoDataset(write_coco(tmp_path), tmp_path / "images", class_names=names)
    assert dataset.class_names == tuple(names)
    assert dataset.category_ids == (None, None, 3, None, None, None, 7, None)
    assert dataset[0][1]["labels"].tolist() == [6, 2]
    assert [c["id"] for c in dataset.to_coco()["categories"]] == [3, 7]
    with pytest.raises(DatasetError, match=r"no category named 'n/a'; .*'N/A' stands for a label"):
        CocoDataset(write_coco(tmp_path), tmp_path / "images", class_names=["cat", "dog", "n/a"])


@pytest.mark.parametrize("key", ["images", "annotations"])
def test_records_that_are_no_objects(tmp_path, key):
    data = coco_data()
    data[key].append("text")
    file = write_coco(tmp_path, data)
    with pytest.raises(DatasetError, match=rf"{key}\[\d\]"):
        CocoDataset(file, tmp_path / "images")
    assert len(CocoDataset(file, tmp_path / "images", on_error="skip").problems) == 1


def test_a_data_set_of_which_nothing_is_left_is_an_error(tmp_path):
    file = write_coco(tmp_path, images=["c.jpg"])
    with pytest.raises(
        DatasetError, match=r"no image can be used; 2 problems, the first: .*a\.jpg"
    ):
        CocoDataset(file, tmp_path / "images", on_error="skip")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DatasetError, match=r"gone\.json does not exist"):
        CocoDataset(tmp_path / "gone.json", tmp_path)
    with pytest.raises(DatasetError, match=r"gone is not a folder"):
        CocoDataset(write_coco(tmp_path), tmp_path / "gone")


def test_an_image_that_changed_since_is_met_when_it_is_read(tmp_path):
    file = write_coco(tmp_path)
    strict = CocoDataset(file, tmp_path / "images")
    lenient = CocoDataset(file, tmp_path / "images", on_error="skip")
    path = tmp_path / "images" / "b.jpg"
    Image.fromarray(np.zeros((10, 10, 3), np.uint8)).save(path)
    for dataset in (strict, lenient):
        assert "10 x 10" in dataset.check()[0].reason
        assert dataset.check()[0].file == str(path)
    with pytest.raises(DatasetError, match=r"b\.jpg.*declared 40 x 30"):
        strict[1]
    path.write_bytes(b"damaged")
    with pytest.raises(DatasetError, match=r"b\.jpg.*cannot be decoded"):
        strict[1]
    with pytest.warns(UserWarning, match=r"b\.jpg is left out"):
        image, target = lenient[1]
    assert image.shape == (3, 30, 40)
    assert not image.any()
    assert target["boxes"].tolist() == [[0, 0, 40, 30]]
    assert target["ignored"].tolist() == [True]
    assert target["image_id"] == 20
    path.unlink()
    assert "b.jpg" in strict.check()[0].file
    with pytest.raises(DatasetError, match=r"b\.jpg"):
        strict[1]


def test_check_decodes_pixels_on_demand(tmp_path):
    file = write_coco(tmp_path)
    dataset = CocoDataset(file, tmp_path / "images")
    assert dataset.check() == dataset.check(decode=True) == []
    path = tmp_path / "images" / "a.jpg"
    path.write_bytes(path.read_bytes()[:-12])
    assert dataset.check() == []
    (problem,) = dataset.check(decode=True)
    assert problem.file == str(path)
    assert "truncated" in problem.reason


# ---------------------------------------------------------------------------- real files


def test_val2014_keeps_ids_crowds_and_areas(shared_dir):
    file = shared_dir / "refdata" / "cocoapi" / "annotations" / "instances_val2014_100.json"
    dataset = CocoDataset(file, file.parent, verify_images=False)
    data = json.loads(file.read_text())
    assert len(dataset) == 100
    assert dataset.num_boxes == 839
    assert int(dataset.records.iscrowd.sum()) == 9
    assert len(dataset.class_names) == 80
    assert max(dataset.category_ids) == 90
    wanted = {a["id"]: a for a in data["annotations"]}
    truth = dataset.to_coco()
    assert len(truth["annotations"]) == len(wanted)
    for item in truth["annotations"]:
        source = wanted[item["id"]]
        for key in ("image_id", "category_id", "bbox", "area", "iscrowd"):
            assert item[key] == source[key]
    names = {c["id"]: c["name"] for c in data["categories"]}
    for k, category_id in enumerate(dataset.category_ids):
        assert dataset.class_names[k] == names[category_id]
    gaps = [names.get(label + 1, "N/A") for label in range(90)]  # of torchvision's models
    dataset = CocoDataset(file, file.parent, class_names=gaps, verify_images=False)
    assert dataset.category_ids == tuple(k + 1 if k + 1 in names else None for k in range(90))
    assert dataset.to_coco()["annotations"] == truth["annotations"]


def test_voc_and_coco_forms_of_the_same_boxes_agree(shared_dir):
    folder = shared_dir / "refdata" / "formats" / "gts"
    voc = VocDataset(
        folder / "pascalvoc_format", coordinates="continuous", verify_images=False, on_error="skip"
    )
    found = {
        voc.image_path(i).stem: sorted(
            (voc.class_names[label], *(round(v) for v in box))
            for box, label in zip(
                voc.target(i)["boxes"].tolist(), voc.target(i)["labels"].tolist(), strict=True
            )
        )
        for i in range(len(voc))
    }
    assert sum(map(len, found.values())) == 273
    for name in ("coco_format_v1/instances_default.json", "coco_format_v2/instances_v2.json"):
        coco = open_dataset(folder / name, image_folder=folder, verify_images=False)
        assert len(coco) == len(voc) == 100
        for i in range(len(coco)):
            target = coco.target(i)
            boxes = sorted(
                (coco.class_names[label], *(round(v) for v in box))
                for box, label in zip(
                    target["boxes"].tolist(), target["labels"].tolist(), strict=True
                )
            )
            assert boxes == found[coco.image_path(i).stem]
