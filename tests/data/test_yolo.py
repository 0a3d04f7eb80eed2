# SPDX-License-Identifier: Apache-2.0
"""YOLO folders: the conversion, every broken record, and a real data set."""

from collections import Counter

import pytest
import torch

from pydet.data import DatasetError, YoloDataset, open_dataset

from .helpers import write_image, write_yolo


def test_boxes_become_pixels(tmp_path):
    text = "1 0.5 0.5 1 1\n0 0.375 0.5 0.25 0.6"  # of 40 x 30 pixels
    dataset = YoloDataset(write_yolo(tmp_path, {"a": text}), "train")
    assert dataset.class_names == ("cat", "dog")
    image, target = dataset[0]
    assert image.shape == (3, 30, 40)
    torch.testing.assert_close(target["boxes"], torch.tensor([[0.0, 0, 40, 30], [10, 6, 20, 24]]))
    assert target["labels"].tolist() == [1, 0]
    assert target["area"].tolist() == [1200, 180]
    assert not target["ignored"].any()
    assert target["image_id"] == 1
    assert [c["id"] for c in dataset.to_coco()["categories"]] == [0, 1]  # as in the files


def test_label_files_that_are_empty_or_missing_mean_no_objects(tmp_path):
    root = write_yolo(tmp_path, {"a": "", "b": None, "c": "\n 0 0.5 0.5 0.5 0.5 \n\n"})
    dataset = YoloDataset(root)
    assert [len(dataset[i][1]["boxes"]) for i in range(3)] == [0, 0, 1]
    assert dataset.problems == []


def test_no_label_file_at_all_is_a_mistake(tmp_path):
    root = write_yolo(tmp_path, {"a": None, "b": None})
    words = (
        r"data\.yaml, train: none of the 2 images .*train/labels/a\.txt or .*train/images/a\.txt"
    )
    with pytest.raises(DatasetError, match=words):
        YoloDataset(root, "train")
    dataset = YoloDataset(root, "train", on_error="skip")
    assert len(dataset) == 2
    assert [problem.record for problem in dataset.problems] == ["train"]
    (root / "train" / "labels" / "a.txt").touch()
    assert YoloDataset(root, "train").num_boxes == 0


def test_file_names_may_have_dots_and_folders(tmp_path):
    root = write_yolo(tmp_path, {"a.jpg.rf.1": "0 0.5 0.5 0.5 0.5"})
    write_image(root / "train" / "images" / "deep" / "b.png")
    (root / "train" / "labels" / "deep").mkdir()
    (root / "train" / "labels" / "deep" / "b.txt").write_text("1 0.5 0.5 0.5 0.5")
    dataset = YoloDataset(root)
    assert [dataset.image_path(i).name for i in range(2)] == ["a.jpg.rf.1.jpg", "b.png"]
    assert [dataset[i][1]["labels"].tolist() for i in range(2)] == [[0], [1]]


def test_labels_beside_images(tmp_path):
    write_image(tmp_path / "pictures" / "a.jpg")
    (tmp_path / "pictures" / "a.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text("train: pictures\nnames: [cat]")
    assert YoloDataset(tmp_path).num_boxes == 1


def test_splits_and_their_lists(tmp_path):
    yaml = "train: train.txt\nval: valid/images\ntest:\nnames: [cat, dog]\n"
    write_yolo(tmp_path, {"a": "", "b": None, "c": None})
    root = write_yolo(tmp_path, {"v": "1 0.5 0.5 0.5 0.5"}, yaml, "valid")
    (root / "train.txt").write_text("./train/images/b.jpg\ntrain/images/a.jpg\n\n")
    train = YoloDataset(root, "train")
    assert [train.image_path(i).stem for i in range(2)] == ["b", "a"]
    for name in ("val", "valid"):
        assert YoloDataset(root, name).num_boxes == 1
    assert len(YoloDataset(root)) == 3
    with pytest.raises(DatasetError, match="no split 'test'; its splits are train, val"):
        YoloDataset(root, "test")


@pytest.mark.parametrize(
    "paths",
    [
        "train: ../train/images",  # one folder too many, as exports have it
        "path: ../datasets/cats\ntrain: train/images",
        "path: /data/cats\ntrain: ./train/images/",
        "path: .\ntrain: [train/images]",
        "train:\n  - train/images",
    ],
)
def test_paths_of_other_machines(tmp_path, paths):
    root = write_yolo(tmp_path, {"a": "0 0.5 0.5 0.5 0.5"}, paths + "\nnames: [cat]\n")
    assert YoloDataset(root, "train").num_boxes == 1


def test_paths_are_relative_to_the_path_of_the_file(tmp_path):
    write_yolo(tmp_path / "cats", {"a": "0 0.5 0.5 0.5 0.5"})
    file = tmp_path / "cats.yaml"
    file.write_text("path: cats\ntrain: train/images\nnames: [cat]")
    assert open_dataset(file, "train").num_boxes == 1


@pytest.mark.parametrize("path", ["{root}", "../data/cats", "../data"])
def test_the_path_of_the_file_may_lie_elsewhere(tmp_path, path):
    root = write_yolo(tmp_path / "data" / "cats", {"a": "0 0.5 0.5 0.5 0.5"})
    (root / "data.yaml").unlink()
    (tmp_path / "yaml").mkdir()
    file = tmp_path / "yaml" / "cats.yaml"
    below = "cats/train/images" if path == "../data" else "train/images"
    text = f"path: {path.format(root=root)}\nnames: [cat]\ntrain: "
    file.write_text(text + below)
    assert YoloDataset(file, "train").num_boxes == 1
    for other in ("../../yaml", "/etc"):
        file.write_text(text + other)
        with pytest.raises(DatasetError, match=r"cats\.yaml, train: .*leads outside"):
            YoloDataset(file, "train")
    (tmp_path / "secret.jpg").touch()
    (root / "secret.jpg").symlink_to(tmp_path / "secret.jpg")
    file.write_text(f"path: {root}\nnames: [cat]\ntrain: train.txt")
    for name in ("../secret.jpg", str(tmp_path / "secret.jpg"), "secret.jpg"):
        (root / "train.txt").write_text(name)
        with pytest.raises(DatasetError, match=r"train\.txt, line 1: .*leads outside"):
            YoloDataset(file, "train")


def test_a_path_of_another_machine_is_explained(tmp_path):
    root = write_yolo(tmp_path, {}, "path: /data/cats\ntrain: images\nnames: [cat]")
    words = r"train must be .* relative to its 'path', where that is a folder, and else to the file"
    with pytest.raises(DatasetError, match=words):
        YoloDataset(root)


def test_folders_of_a_split_may_be_links(tmp_path):
    root = write_yolo(tmp_path / "cats", {"a": "0 0.5 0.5 0.5 0.5"})
    write_image(tmp_path / "elsewhere" / "b.jpg")
    for name in ("images", "labels"):
        (root / "train" / name).rename(tmp_path / name)
        (root / "train" / name).symlink_to(tmp_path / name)
    for text in ("train/images", f"{root}/train/images"):
        (root / "data.yaml").write_text(f"train: {text}\nnames: [cat]")
        dataset = YoloDataset(root)
        assert dataset.num_boxes == 1
        assert dataset[0][0].shape == (3, 30, 40)
    # A single file that leads out of them may not.
    (tmp_path / "images" / "b.jpg").symlink_to(tmp_path / "elsewhere" / "b.jpg")
    with pytest.raises(DatasetError, match=r"'b\.jpg' is a link that leads outside"):
        YoloDataset(root)
    (tmp_path / "images" / "b.jpg").unlink()
    (tmp_path / "labels" / "a.txt").rename(tmp_path / "elsewhere" / "a.txt")
    (tmp_path / "labels" / "a.txt").symlink_to(tmp_path / "elsewhere" / "a.txt")
    with pytest.raises(DatasetError, match=r"'a\.txt' is a link that leads outside"):
        YoloDataset(root)


def test_an_absolute_folder_below_a_relative_one(tmp_path, monkeypatch):
    root = write_yolo(tmp_path / "cats", {"a": "0 0.5 0.5 0.5 0.5"})
    (root / "data.yaml").write_text(f"train: {root}/train/images\nnames: [cat]")
    monkeypatch.chdir(tmp_path)
    dataset = YoloDataset("cats")
    assert dataset.num_boxes == 1
    assert dataset[0][0].shape == (3, 30, 40)


def test_classes_of_another_order(tmp_path):
    root = write_yolo(tmp_path, {"a": "0 0.5 0.5 0.5 0.5"})
    assert YoloDataset(root, class_names=["dog", "cat"])[0][1]["labels"].tolist() == [1]
    with pytest.raises(DatasetError, match=r"a\.txt, line 1: unknown class 'cat'"):
        YoloDataset(root, class_names=["dog"])


BROKEN_LINES = {
    "too few": ("0 0.5 0.5 0.5", "corners of a polygon, got 4 words"),
    "half a point": ("0 0.1 0.1 0.2 0.1 0.2 0.2 0.3", "corners of a polygon, got 8 words"),
    "flat polygon": ("0 0.1 0.1 0.2 0.1 0.3 0.1", "has no area"),
    "polygon of nan": ("0 0.1 0.1 0.2 0.1 nan 0.2", "is not finite"),
    "text": ("0 0.5 0.5 wide 0.5", "class and numbers"),
    "class in words": ("cat 0.5 0.5 0.5 0.5", "class must be a number from 0 on, got 'cat'"),
    "class as float": ("0.0 0.5 0.5 0.5 0.5", "class must be a number"),
    "negative class": ("-1 0.5 0.5 0.5 0.5", "class must be a number"),
    "unknown class": ("2 0.5 0.5 0.5 0.5", "unknown class 2, of 2"),
    "nan": ("0 nan 0.5 0.5 0.5", "is not finite"),
    "infinite": ("0 0.5 0.5 inf 0.5", "is not finite"),
    "pixels": ("0 20 15 10 10", "must be relative to the image"),
    "zero area": ("0 0.5 0.5 0 0", "has no area"),
    "negative": ("0 0.5 0.5 -0.5 0.5", "has no area"),
    "outside": ("0 1.5 0.5 0.5 0.5", "outside of the image of 40 x 30"),
    "duplicate": ("0 0.5 0.5 0.5 0.51", "repeats an earlier object"),
}


@pytest.mark.parametrize("case", BROKEN_LINES)
def test_broken_lines(tmp_path, case):
    text, reason = BROKEN_LINES[case]
    root = write_yolo(tmp_path, {"a": f"0 0.5 0.5 0.5 0.5\n{text}\n1 0.25 0.25 0.5 0.5"})
    with pytest.raises(DatasetError, match=rf"a\.txt, line 2: .*{reason}"):
        YoloDataset(root, duplicate_iou=0.9)
    dataset = YoloDataset(root, on_error="skip", duplicate_iou=0.9)
    assert dataset.num_boxes == 2
    (problem,) = dataset.problems
    assert problem.record == "line 2"
    assert YoloDataset(root, on_error="skip").num_boxes == (3 if case == "duplicate" else 2)


def test_boxes_beyond_the_border_are_clipped_and_counted(tmp_path):
    dataset = YoloDataset(write_yolo(tmp_path, {"a": "0 0.9 0.5 0.4 0.5"}))
    assert dataset.num_clipped == 1
    assert dataset[0][1]["boxes"][0, 2] == 40


def test_broken_files(tmp_path):
    yaml = "train: train.txt\nnames: [cat, dog]\n"
    root = write_yolo(tmp_path, {"a": "", "b": None, "c": None}, yaml)
    names = ["a.jpg", "gone.jpg", "a.jpg", "b.jpg", "c.jpg", "../../x.jpg"]
    (root / "train.txt").write_text("\n".join(f"train/images/{name}" for name in names))
    (root / "train/images/b.jpg").write_bytes(b"no image")
    (root / "train/labels/c.txt").write_bytes(b"\xff\xfe0 1")
    with pytest.raises(DatasetError, match=r"train\.txt, line 3: .*a\.jpg is listed twice"):
        YoloDataset(root)
    dataset = YoloDataset(root, on_error="skip")
    assert len(dataset) == 1
    assert all(problem.file.endswith("train.txt") for problem in dataset.problems)
    found = {problem.record: problem.reason for problem in dataset.problems}
    for line, words in (
        (2, "does not exist"),
        (3, "listed twice"),
        (4, "b.jpg is no image"),
        (5, "c.txt cannot be read"),
        (6, "leads outside"),
    ):
        assert words in found.pop(f"line {line}")
    assert not found


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("", "must be a map of keys, got None"),
        ("- a", r"must be a map of keys, got \['a'\]"),
        ("train: train/images", "names must be a list"),
        ("train: train/images\nnames: cat", "names must be a list"),
        ("names: [cat]", "names no images"),
        ("train: train/images\nnames: [cat, cat]", "names must differ, got cat twice"),
        ("train: train/images\nnames: [cat]\nnc: 2", "nc must be the 1 of names, got '2'"),
        ("train: train/images\nnames: {1: cat}", "numbered 0, 1, 2"),
        ("train: {a: b}\nnames: [cat]", "train must be a path"),
        ("train: gone\nnames: [cat]", "must be a folder of images or a list"),
        ("train: data.yaml\nnames: [cat]", "must be a folder of images or a list"),
        ("train: ../../etc\nnames: [cat]", "leads outside"),
        ("train: /etc\nnames: [cat]", "leads outside"),
        ("train: train/images\nnames: [cat, [dog]]", "names must be a list"),
        ("train: train/images\nnames: [cat]\nnc: [1]", r"nc must be the 1 of names, got \['1'\]"),
        ("train: train/images\nnames: [cat", "cannot be read: .*line 2"),
        ("names: " + "[" * 100_000, "cannot be read: .*recursion"),
        ("names: \x00", "cannot be read"),
    ],
)
def test_broken_yaml(tmp_path, yaml, words):
    root = write_yolo(tmp_path, {"a": None}, yaml)
    for on_error in ("raise", "skip"):
        with pytest.raises(DatasetError, match=rf"data\.yaml.*{words}"):
            YoloDataset(root, on_error=on_error)


def test_polygons_become_boxes(tmp_path):
    root = write_yolo(tmp_path, {"a": "1 0.5 0.1 0.25 0.5 0.75 0.9 0.6 0.2"})
    boxes = YoloDataset(root)[0][1]["boxes"]
    assert boxes.tolist() == [pytest.approx([10, 3, 30, 27])]


def test_absolute_paths_inside_of_the_folder(tmp_path):
    root = write_yolo(tmp_path, {"a": "1 0.5 0.5 0.5 0.5"}, "train: train.txt\nnames: [cat, dog]")
    (root / "train.txt").write_text(f"{root}/train/images/a.jpg\n")
    dataset = YoloDataset(root)
    assert dataset.num_boxes == len(dataset) == 1
    (root / "data.yaml").write_text(f"train: {root}/train/images\nnames: [cat, dog]")
    assert YoloDataset(root).num_boxes == 1


def test_lists_with_the_slashes_of_windows(tmp_path):
    root = write_yolo(tmp_path, {"a": "1 0.5 0.5 0.5 0.5"}, "train: train.txt\nnames: [cat, dog]")
    (root / "train.txt").write_text(".\\train\\images\\a.jpg\n")
    dataset = YoloDataset(root)
    assert dataset.num_boxes == 1
    assert dataset[0][0].shape == (3, 30, 40)


def test_what_is_not_there(tmp_path):
    with pytest.raises(DatasetError, match=r"has no data\.yaml or dataset\.yaml"):
        YoloDataset(tmp_path)
    root = write_yolo(tmp_path, {}, "train: train.txt\nnames: [cat]")
    (root / "train.txt").write_text("\n")
    with pytest.raises(DatasetError, match=r"train\.txt: the list is empty"):
        YoloDataset(root)


def test_yaml_as_tools_write_it(tmp_path):
    root = write_yolo(tmp_path, {"a": "1 0.5 0.5 0.5 0.5"})
    (root / "data.yaml").write_text(
        "# made by hand\n---\n"
        "path: ../coco  # elsewhere\n"
        "train:\n- train/images\n"
        "names:\n"
        "  0: no\n"
        "  1: 'fire hydrant'  # red\n"
        '  2: "stop: sign"\n'
        "  3: 2024-01-01\n"
        "nc: 4\n"
        "download: |\n  several\n  lines\n"
        "roboflow:\n  license: CC BY 4.0\n  url: https://example.com/a,b\n",
        encoding="utf-8-sig",
    )
    dataset = YoloDataset(root)
    assert dataset.class_names == ("no", "fire hydrant", "stop: sign", "2024-01-01")
    assert dataset[0][1]["labels"].tolist() == [1]


# ---------------------------------------------------------------------------- real data


def test_aquarium_counts_and_broken_records(shared_dir):
    root = shared_dir / "data" / "aquarium"
    names = ("fish", "jellyfish", "penguin", "puffin", "shark", "starfish", "stingray")
    expected = {
        "train": (448, (1961, 385, 330, 175, 259, 78, 136)),
        "val": (127, (459, 155, 104, 74, 57, 27, 33)),
        "test": (63, (249, 154, 82, 35, 38, 11, 15)),
    }
    for split, (num_images, counts) in expected.items():
        dataset = open_dataset(root, split, on_error="skip")
        assert dataset.class_names == names
        assert len(dataset) == num_images
        problems = {(p.file.rsplit("IMG_", 1)[1][:4], p.record) for p in dataset.problems}
        assert problems == (
            {("2423", "line 17"), ("2570", "line 15")} if split == "test" else set()
        )
        found = Counter(dataset.records.labels.tolist())
        missing = {"test": {4: 2}}.get(split, {})
        assert [found[k] + missing.get(k, 0) for k in range(7)] == list(counts)
    with pytest.raises(DatasetError, match=r"IMG_2423_jpeg_jpg.*, line 17: .*no area"):
        open_dataset(root, "test")


def test_aquarium_lists_are_its_folders(shared_dir, tmp_path):
    root = shared_dir / "data" / "aquarium"
    listed = (root / "test.txt").read_text().split()
    dataset = open_dataset(root, "test", on_error="skip")
    names = [dataset.records.name(i) for i in range(len(dataset))]
    assert sorted(names) == sorted(listed)
