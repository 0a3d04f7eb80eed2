# SPDX-License-Identifier: Apache-2.0
"""Pascal VOC folders: the conversion, every broken record, and the real data sets."""

import csv
from collections import Counter
from xml.etree import ElementTree

import pytest
import torch

from pydet.data import DatasetError, VocDataset, open_dataset

from .helpers import voc_object, voc_xml, write_image, write_voc


def test_boxes_become_continuous_and_labels_count_from_0(tmp_path):
    objects = [voc_object("dog", (1, 1, 40, 30)), voc_object("cat", (11, 6, 20, 25), difficult=1)]
    dataset = VocDataset(write_voc(tmp_path, {"a": voc_xml(objects)}), "train")
    assert dataset.class_names == ("cat", "dog")
    image, target = dataset[0]
    assert image.shape == (3, 30, 40)
    assert target["boxes"].dtype == torch.float32
    assert target["boxes"].tolist() == [[0, 0, 40, 30], [10, 5, 20, 25]]
    assert target["labels"].tolist() == [1, 0]
    assert target["labels"].dtype == torch.int64
    assert target["difficult"].tolist() == [False, True]
    assert target["ignored"].tolist() == [False, True]
    assert target["iscrowd"].tolist() == [False, False]
    assert target["area"].tolist() == [1200, 200]
    assert target["image_id"] == 1


@pytest.mark.parametrize(
    ("coordinates", "expected"),
    [
        ("voc", [10, 5, 20, 25]),
        ("zero_based", [11, 6, 21, 26]),
        ("continuous", [11, 6, 20, 25]),
    ],
)
def test_other_coordinates_have_a_name(tmp_path, coordinates, expected):
    root = write_voc(tmp_path, {"a": voc_xml([voc_object()])})
    dataset = VocDataset(root, coordinates=coordinates)
    assert dataset[0][1]["boxes"].tolist() == [expected]
    with pytest.raises(ValueError, match="coordinates must be one of voc, zero_based, continuous"):
        VocDataset(root, coordinates="pixels")


def test_labels_of_splits_agree_although_their_classes_differ(tmp_path):
    annotations = {"a": voc_xml([voc_object("dog")]), "b": voc_xml([voc_object("cat")])}
    root = write_voc(tmp_path, annotations, {"train": ["a"], "val": ["b 1"]})
    train, val = VocDataset(root, "train"), VocDataset(root, "val")
    assert train.class_names == val.class_names == ("cat", "dog")
    assert train[0][1]["labels"].tolist() == [1]
    assert val[0][1]["labels"].tolist() == [0]
    assert len(VocDataset(root)) == 2
    given = VocDataset(root, "train", class_names=["dog", "cat"])
    assert given[0][1]["labels"].tolist() == [0]


def test_names_may_end_like_the_second_column_of_a_list(tmp_path):
    texts = {name: voc_xml([voc_object()]) for name in ("img 1", "img", "img 2", "1")}
    root = write_voc(tmp_path, texts, {"train": [*texts], "cat_train": ["img 1 -1", "img  0"]})
    names = [VocDataset(root, "train").image_path(i).stem for i in range(4)]
    assert names == list(texts)
    listed = VocDataset(root, "cat_train")
    assert [listed.image_path(i).stem for i in range(2)] == ["img 1", "img"]


def test_an_image_without_objects_is_kept(tmp_path):
    dataset = VocDataset(write_voc(tmp_path, {"a": voc_xml()}), class_names=["cat"])
    image, target = dataset[0]
    assert image.shape == (3, 30, 40)
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == target["ignored"].shape == target["area"].shape == (0,)
    assert dataset.to_coco()["annotations"] == []


def test_objects_in_parts_are_not_objects(tmp_path):
    person = (
        "<object><name>person</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>30</xmax><ymax>28"
        "</ymax></bndbox><part><name>head</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>12"
        "</xmax><ymax>12</ymax></bndbox></part></object>"
    )
    dataset = VocDataset(write_voc(tmp_path, {"a": voc_xml([person])}))
    assert dataset.class_names == ("person",)
    assert dataset[0][1]["boxes"].tolist() == [[4, 4, 30, 28]]


def test_a_size_that_is_missing_or_0_comes_from_the_image(tmp_path):
    texts = {"a": voc_xml(width=0, height=0), "b": "<annotation></annotation>"}
    dataset = VocDataset(write_voc(tmp_path, texts))
    assert [dataset.image_size(i) for i in range(2)] == [(30, 40), (30, 40)]


def test_the_image_is_found_by_the_stem_and_never_by_folder_or_path(tmp_path):
    text = voc_xml(filename="another.png")
    root = write_voc(tmp_path, {"a.b.c": text})
    assert VocDataset(root).image_path(0).name == "a.b.c.jpg"


def test_an_image_of_another_name_is_found_by_filename(tmp_path):
    root = write_voc(tmp_path, {"a": voc_xml(filename="b.png")})
    (root / "JPEGImages" / "a.jpg").unlink()
    write_image(root / "JPEGImages" / "b.png")
    assert VocDataset(root).image_path(0).name == "b.png"


BROKEN_OBJECTS = {
    "zero area": (voc_object("cat", (9, 9, 9, 20)), "has no area"),
    "inverted": (voc_object("cat", (20, 20, 10, 25)), "has no area"),
    "not a number": (voc_object("cat", (1, 1, "nan", 9)), "is not finite"),
    "infinite": (voc_object("cat", (1, 1, "inf", 9)), "is not finite"),
    "text": (voc_object("cat", (1, 1, "wide", 9)), "must be four numbers"),
    "empty corner": (voc_object("cat", (1, 1, "", 9)), "must be four numbers"),
    "corner missing": (
        "<object><name>cat</name><bndbox><xmin>1</xmin></bndbox></object>",
        "must be four numbers",
    ),
    "no box": ("<object><name>cat</name></object>", "no <bndbox>"),
    "outside": (voc_object("cat", (41, 5, 60, 9)), r"outside of the image of 40 x 30"),
    "left of it": (voc_object("cat", (-9, 5, 0, 9)), r"outside of the image of 40 x 30"),
    "unknown class": (voc_object("cow", (1, 1, 9, 9)), "unknown class 'cow'"),
    "no class": (voc_object("", (1, 1, 9, 9)), "unknown class ''"),
    "duplicate": (voc_object("cat", (12, 6, 20, 25)), "repeats an earlier object"),
}


@pytest.mark.parametrize("case", BROKEN_OBJECTS)
def test_broken_objects(tmp_path, case):
    text, reason = BROKEN_OBJECTS[case]
    good = voc_object("cat", (11, 6, 20, 25))
    root = write_voc(tmp_path, {"a": voc_xml([good, text, voc_object("dog", (1, 1, 9, 9))])})
    names = ["cat", "dog"]
    with pytest.raises(DatasetError, match=rf"a\.xml, object 2 .*{reason}"):
        VocDataset(root, "train", class_names=names, duplicate_iou=0.9)
    dataset = VocDataset(root, "train", class_names=names, on_error="skip", duplicate_iou=0.9)
    assert len(dataset) == 1
    assert dataset.num_boxes == 2
    (problem,) = dataset.problems
    assert problem.file.endswith("a.xml")
    assert problem.record.startswith("object 2")


def test_duplicates_are_of_one_class_and_never_difficult(tmp_path):
    twins = [voc_object("cat", (1, 1, 20, 20)), voc_object("cat", (1, 1, 20, 20))]
    root = write_voc(tmp_path / "twins", {"a": voc_xml(twins)})
    assert VocDataset(root).num_boxes == 2
    hard = [voc_object("cat", (1, 1, 20, 20)), voc_object("cat", (1, 1, 20, 20), difficult=1)]
    root = write_voc(tmp_path / "hard", {"a": voc_xml(hard)})
    assert VocDataset(root, duplicate_iou=0.9).num_boxes == 2
    others = [voc_object("cat", (1, 1, 20, 20)), voc_object("dog", (1, 1, 20, 20))]
    root = write_voc(tmp_path / "others", {"a": voc_xml(others)})
    assert VocDataset(root, duplicate_iou=0.9).num_boxes == 2


BOMB = (
    '<!DOCTYPE b [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]>'
    "<annotation><filename>&b;</filename></annotation>"
)
THIEF = (
    '<!DOCTYPE b [<!ENTITY a SYSTEM "file:///etc/hostname">]>'
    "<annotation><filename>&a;</filename></annotation>"
)

BROKEN_FILES = {
    "empty": ("", "the file is empty"),
    "not XML": ("<annotation><size>", "not valid XML: .*line 1, column"),
    "binary": ("\0\1\2", "not valid XML"),
    "other XML": ("<svg></svg>", "root is <svg>"),
    "entity bomb": (BOMB, "entity declarations"),
    "external entity": (THIEF, "entity declarations"),
    "unknown encoding": ('<?xml version="1.0" encoding="klingon"?><annotation/>', "encoding"),
    "wrong size": (voc_xml(width=41), "declared 41 x 30 pixels, but the image has 40 x 30"),
    "sides swapped": (voc_xml(width=30, height=40), "sides are swapped"),
    "negative size": (voc_xml(width=-40), "not positive"),
    "size of words": (voc_xml(width="wide"), "not positive"),
}


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_broken_annotation_files(tmp_path, case):
    text, reason = BROKEN_FILES[case]
    root = write_voc(tmp_path, {"a": text, "b": voc_xml([voc_object()])})
    with pytest.raises(DatasetError, match=rf"(?s)a\.xml: .*{reason}"):
        VocDataset(root, "train")
    dataset = VocDataset(root, "train", on_error="skip")
    assert len(dataset) == 1
    assert dataset.image_path(0).stem == "b"
    assert dataset[0][1]["image_id"] == 2  # ids do not move when records are left out
    (problem,) = dataset.problems
    assert problem.file.endswith("a.xml")


def test_missing_files(tmp_path):
    texts = {"a": voc_xml(), "b": voc_xml(filename="b.jpg"), "c": voc_xml(filename="a.jpg")}
    root = write_voc(tmp_path, texts, {"train": ["a", "gone", "b", "a", "c"]})
    (root / "JPEGImages" / "c.jpg").unlink()
    (root / "JPEGImages" / "b.jpg").unlink()
    dataset = VocDataset(root, "train", on_error="skip")
    assert len(dataset) == 1
    assert [(p.file.rsplit("/")[-1], p.record) for p in dataset.problems] == [
        ("train.txt", "line 4"),
        ("gone.xml", ""),
        ("b.xml", ""),
        ("c.xml", ""),
    ]
    for problem, words in zip(
        dataset.problems,
        ("a is listed twice", "file does not exist", "b.jpg does not exist", "same image a.jpg"),
        strict=True,
    ):
        assert words in problem.reason


def test_missing_folders_and_splits_are_named(tmp_path):
    with pytest.raises(DatasetError, match="is not a folder"):
        VocDataset(tmp_path / "nothing")
    with pytest.raises(DatasetError, match="no folder Annotations"):
        VocDataset(tmp_path)
    root = write_voc(tmp_path / "voc", {"a": voc_xml()}, {"train": ["a"], "val": ["a"]})
    with pytest.raises(DatasetError, match=r"no test\.txt; its splits are train, val"):
        VocDataset(root, "test")
    with pytest.raises(DatasetError, match="plain name"):
        VocDataset(root, "../../secret")
    (root / "ImageSets" / "Main" / "none.txt").write_text("\n\n")
    for on_error in ("raise", "skip"):
        with pytest.raises(DatasetError, match=r"none\.txt: the list is empty"):
            VocDataset(root, "none", on_error=on_error)


@pytest.mark.parametrize(
    "name", ["../../outside.jpg", "/etc/hostname", "..\\..\\outside.jpg", "C:\\outside.jpg", ".."]
)
def test_file_names_cannot_leave_the_image_folder(tmp_path, name):
    write_image(tmp_path / "outside.jpg")
    root = write_voc(tmp_path / "voc", {"a": voc_xml(filename=name)})
    (root / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(DatasetError, match=r"a\.xml: .*(leads outside|not a file name)"):
        VocDataset(root)


def test_links_cannot_leave_the_image_folder(tmp_path):
    write_image(tmp_path / "outside.jpg")
    root = write_voc(tmp_path / "voc", {"a": voc_xml()})
    image = root / "JPEGImages" / "a.jpg"
    image.unlink()
    image.symlink_to(tmp_path / "outside.jpg")
    for verify in (True, False):
        with pytest.raises(DatasetError, match="link that leads outside"):
            VocDataset(root, verify_images=verify)


def test_the_image_folder_itself_may_be_a_link(tmp_path):
    root = write_voc(tmp_path / "voc", {"a": voc_xml()})
    (root / "JPEGImages").rename(tmp_path / "elsewhere")
    (root / "JPEGImages").symlink_to(tmp_path / "elsewhere")
    assert len(VocDataset(root)) == 1


@pytest.mark.parametrize("stem", ["../Annotations2/evil", "/etc/passwd"])
def test_split_lists_cannot_leave_the_annotation_folder(tmp_path, stem):
    root = write_voc(tmp_path, {"a": voc_xml()}, {"train": [stem]})
    (root / "Annotations2").mkdir()
    (root / "Annotations2" / "evil.xml").write_text(voc_xml())
    with pytest.raises(DatasetError, match=r"train\.txt, entry .*leads outside"):
        VocDataset(root, "train")


def test_xml_files_beside_their_images(tmp_path):
    for split, name in (("train", "dog"), ("valid", "cat")):
        write_image(tmp_path / split / "a.jpg")
        (tmp_path / split / "a.xml").write_text(voc_xml([voc_object(name)]))
    dataset = open_dataset(tmp_path, "train")
    assert dataset.class_names == ("cat", "dog")
    assert dataset[0][1]["labels"].tolist() == [1]
    assert len(VocDataset(tmp_path / "valid")) == 1


# ---------------------------------------------------------------------------- real data


def short(problem):
    return problem.file.rsplit("BloodImage_", 1)[1][:5], problem.record


ZERO_AREA = {("00338", "object 13 (RBC)"), ("00343", "object 4 (RBC)")}
TWICE = {"00020", "00100", "00251", "00403", "00104", "00331", "00284"}


def test_bccd_counts_and_broken_records(shared_dir):
    root = shared_dir / "data" / "bccd"
    expected = {
        "train": (205, {"RBC": 2382 - 1 - 4, "WBC": 214, "Platelets": 209}),
        "val": (87, {"RBC": 968 - 1 - 2, "WBC": 87, "Platelets": 83}),
        "test": (72, {"RBC": 805 - 1, "WBC": 71, "Platelets": 69}),
    }
    zero_area, twice = set(), set()
    for split, (num_images, counts) in expected.items():
        dataset = open_dataset(root, split, on_error="skip", duplicate_iou=0.9)
        assert dataset.class_names == ("Platelets", "RBC", "WBC")
        assert len(dataset) == num_images
        names = (dataset.class_names[label] for label in dataset.records.labels)
        assert Counter(names) == counts
        assert dataset.num_clipped == 0
        for problem in dataset.problems:
            if "no area" in problem.reason:
                zero_area.add(short(problem))
            else:
                assert "repeats an earlier object" in problem.reason
                twice.add(short(problem)[0])
    assert zero_area == ZERO_AREA
    assert twice == TWICE


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("train", r"BloodImage_00\d+\.xml, object \d+ \(RBC\): repeats"),
        ("val", r"BloodImage_00104\.xml, object 14 \(RBC\): repeats"),
        ("test", r"BloodImage_00284\.xml, object 2 \(RBC\): repeats"),
    ],
)
def test_bccd_in_strict_mode_names_file_and_record(shared_dir, split, words):
    with pytest.raises(DatasetError, match=words):
        open_dataset(shared_dir / "data" / "bccd", split, duplicate_iou=0.9)


def test_bccd_zero_area_in_strict_mode(shared_dir):
    root = shared_dir / "data" / "bccd"
    with pytest.raises(DatasetError, match=r"BloodImage_00343\.xml, object 4 \(RBC\).*no area"):
        VocDataset(root, "train")


def test_bccd_folder_and_path_are_not_used(shared_dir):
    root = shared_dir / "data" / "bccd"
    dataset = VocDataset(root, on_error="skip")
    paths = {dataset.image_path(i).name: i for i in range(len(dataset))}
    for number in ("00171", "00178", "00228"):  # their <folder> is RBC
        image, target = dataset[paths[f"BloodImage_{number}.jpg"]]
        assert image.shape == (3, 480, 640)
        assert len(target["boxes"]) > 0


def test_bccd_boxes_equal_those_of_the_csv(shared_dir):
    root = shared_dir / "data" / "bccd"
    dataset = VocDataset(root, on_error="skip")
    wanted = Counter()
    with (root / "test.csv").open() as file:
        for row in csv.DictReader(file):
            x1, y1, x2, y2 = (int(row[side]) for side in ("xmin", "ymin", "xmax", "ymax"))
            if x2 > x1:
                name = row["filename"].removesuffix(".jpg")
                wanted[name, row["cell_type"], (x1 - 1, y1 - 1, x2, y2)] += 1
    found = Counter()
    for i in range(len(dataset)):
        target = dataset.target(i)
        for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            key = tuple(int(v) for v in box)
            found[dataset.image_path(i).stem, dataset.class_names[label], key] += 1
    assert found == wanted


def test_boxes_beyond_the_border_are_clipped_and_counted(shared_dir):
    root = shared_dir / "refdata" / "voc_outside"
    dataset = open_dataset(root, on_error="skip")
    assert len(dataset) == 6
    assert len(dataset.problems) == 6  # those without an image file
    assert all("does not exist" in p.reason for p in dataset.problems)
    for i in range(len(dataset)):
        image, target = dataset[i]
        assert image.shape == (3, 600, 800)
        assert (target["boxes"] >= 0).all()
        assert (target["boxes"] <= torch.tensor([800, 600, 800, 600])).all()
    everything = VocDataset(root, verify_images=False)  # does not miss the images
    assert len(everything) == 12
    beyond = sum(
        int(box.findtext("xmax")) == 801 or int(box.findtext("ymax")) == 601
        for file in root.glob("*.xml")
        for box in ElementTree.parse(file).iter("bndbox")
    )
    assert everything.num_clipped == beyond > 0
