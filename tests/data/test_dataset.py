# SPDX-License-Identifier: Apache-2.0
"""The packed data set: memory, indexing, pickling, loading in processes."""

import gc
import os
import pickle
from types import ModuleType

import pytest
import torch
from torch.utils.data import DataLoader

from pydet.data import DatasetError, open_dataset, summarize_problems
from pydet.data._problems import Problem, ProblemLog

from .helpers import coco_data, voc_object, voc_xml, write_coco, write_image, write_voc


def reachable_objects(root):
    """How many Python objects hang on one: what a forked process would have to copy."""
    seen, queue = {id(root)}, [root]
    while queue:
        for item in gc.get_referents(queue.pop()):
            if id(item) not in seen and not isinstance(item, type | ModuleType):
                seen.add(id(item))
                queue.append(item)
    return len(seen)


def voc_of(root, num_images, num_objects):
    objects = [voc_object("cat", (1 + i, 1, 8 + 3 * i, 8)) for i in range(num_objects)]
    return open_dataset(write_voc(root, {f"i{n}": voc_xml(objects) for n in range(num_images)}))


def test_more_images_are_not_more_python_objects(tmp_path):
    small, large = voc_of(tmp_path / "a", 2, 1), voc_of(tmp_path / "b", 100, 10)
    assert large.num_boxes == 1000
    assert reachable_objects(large.__dict__) == reachable_objects(small.__dict__)


def test_indices(tmp_path):
    dataset = open_dataset(write_coco(tmp_path))
    assert dataset[-1][1]["image_id"] == dataset[1][1]["image_id"] == 20
    assert dataset.image_path(-2).name == "a.jpg"
    for index in (2, -3):
        with pytest.raises(IndexError, match=r"0\.\.1, got"):
            dataset[index]
    assert len(list(dataset)) == 2  # iteration ends


@pytest.mark.parametrize("wrap", [list, torch.tensor])
def test_a_subset_is_a_data_set(tmp_path, wrap):
    objects = [[voc_object("cat", (1 + i, 1, 8 + 3 * i, 8)) for i in range(n)] for n in (2, 0, 3)]
    texts = {f"i{n}{'long' * n}": voc_xml(boxes) for n, boxes in enumerate(objects)}
    dataset = open_dataset(write_voc(tmp_path, texts))
    part = dataset.subset(wrap([2, -3]))
    assert len(part) == 2
    assert part.num_boxes == 5
    for new, old in ((0, 2), (1, 0)):
        assert part.image_path(new) == dataset.image_path(old)
        torch.testing.assert_close(part[new], dataset[old])
    truth = {a["id"]: a for a in dataset.to_coco()["annotations"]}
    assert all(truth[a["id"]] == a for a in part.to_coco()["annotations"])
    assert "2 of 3 images" in repr(part)
    assert len(dataset.subset([])) == dataset.subset([1]).num_boxes == 0
    with pytest.raises(IndexError, match=r"0\.\.2, got 3"):
        dataset.subset([3])
    with pytest.raises(ValueError, match="subset: indices must differ"):
        dataset.subset([0, -3])


def test_names_of_any_script(tmp_path):
    data = coco_data()
    data["images"][0]["file_name"] = "größe 猫.jpg"
    data["images"][1]["file_name"] = "folder/b.jpg"
    dataset = open_dataset(write_coco(tmp_path, data, ["größe 猫.jpg", "folder/b.jpg"]))
    assert [dataset.image_path(i).name for i in range(2)] == ["größe 猫.jpg", "b.jpg"]
    assert dataset[0][0].shape == dataset[1][0].shape == (3, 30, 40)


def test_file_names_that_are_not_utf8(tmp_path):
    """As in archives from the days of Latin-1."""
    root = write_voc(tmp_path, {"a": voc_xml([voc_object()])})
    name = os.fsdecode(b"M\xe4rz")
    try:
        (root / "JPEGImages" / "a.jpg").rename(root / "JPEGImages" / f"{name}.jpg")
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    (root / "Annotations" / "a.xml").rename(root / "Annotations" / f"{name}.xml")
    for verify in (True, False):
        dataset = open_dataset(root, verify_images=verify)
        assert dataset.image_path(0).stem == name
        assert dataset[0][0].shape == (3, 30, 40)


def test_a_sample_can_be_changed_without_changing_the_data_set(tmp_path):
    dataset = open_dataset(write_coco(tmp_path))
    target = dataset[0][1]
    for value in target.values():
        if isinstance(value, torch.Tensor):
            value.zero_()
    again = dataset[0][1]
    assert again["boxes"].any()
    assert again["labels"].any()
    assert again["area"].any()


def test_processes_give_the_same_samples(tmp_path):
    dataset = open_dataset(write_coco(tmp_path))
    copy = pickle.loads(pickle.dumps(dataset))
    loader = DataLoader(copy, batch_size=None, num_workers=2)
    for (image1, target1), (image2, target2) in zip(dataset, loader, strict=True):
        assert torch.equal(image1, image2)
        assert torch.equal(target1["boxes"], target2["boxes"])
        assert target1["image_id"] == target2["image_id"]


def test_repr_tells_what_it_is(tmp_path):
    dataset = open_dataset(write_coco(tmp_path))
    assert "2 images, 3 boxes, 2 classes, 0 problems" in repr(dataset)


def test_an_empty_data_set(tmp_path):
    write_image(tmp_path / "images" / "a.jpg")
    data = coco_data(images=[], annotations=[])
    dataset = open_dataset(write_coco(tmp_path, data))
    assert len(dataset) == dataset.num_boxes == dataset.num_clipped == 0
    assert dataset.to_coco()["images"] == []
    with pytest.raises(IndexError):
        dataset[0]


def test_problem_log():
    with pytest.raises(ValueError, match="on_error must be 'raise' or 'skip', got 'ignore'"):
        ProblemLog("ignore")
    with pytest.raises(DatasetError, match=r"^a\.xml, object 1: torn \(on_error='skip' leaves"):
        ProblemLog("raise").report("a.xml", "object 1", "torn")
    assert str(Problem("a.xml", "", "torn")) == "a.xml: torn"


def test_summary_of_problems():
    assert summarize_problems([]) == "no problems"
    problems = [Problem(f"{i}.xml", "", "torn") for i in range(5)]
    assert summarize_problems(problems, limit=2).splitlines() == [
        "5 broken records left out",
        "  0.xml: torn",
        "  1.xml: torn",
        "  ... and 3 more in 3 files",
    ]
