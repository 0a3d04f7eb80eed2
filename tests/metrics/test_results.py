# SPDX-License-Identifier: Apache-2.0
"""From data set and detections to figures, with the data set's own ids."""

import json

import pytest
import torch
from torch.utils.data import Subset

from pydet.data import open_dataset
from pydet.metrics import coco_metrics, to_coco_results, voc_metrics
from tests.data.helpers import coco_data, voc_object, voc_xml, write_coco, write_voc


def perfect(dataset):
    """The ground truth as detections."""
    detections = []
    for i in range(len(dataset)):
        target = dataset.target(i)
        keep = ~target["ignored"]
        count = int(keep.sum())
        detections.append(
            {
                "boxes": target["boxes"][keep],
                "scores": torch.linspace(0.9, 0.5, count),
                "labels": target["labels"][keep],
            }
        )
    return detections


def test_results_have_the_ids_of_the_files(tmp_path):
    dataset = open_dataset(write_coco(tmp_path))
    results = to_coco_results(dataset, perfect(dataset))
    assert [(r["image_id"], r["category_id"], r["bbox"]) for r in results] == [
        (10, 7, [1, 2, 10, 12.5]),
        (10, 3, [5, 5, 20, 20]),
        (20, 3, [0, 0, 8, 8]),
    ]
    assert json.loads(json.dumps(results)) == results
    assert coco_metrics(dataset.to_coco(), results).ap == pytest.approx(1)
    pycoco = pytest.importorskip("pycocotools.coco").COCO()
    pycoco.dataset = coco_data()
    pycoco.createIndex()
    pycoco.loadRes(results)  # the form that pycocotools reads


def test_difficult_objects_of_voc_go_through(tmp_path):
    objects = [voc_object("cat", (1, 1, 20, 20)), voc_object("cat", (21, 1, 40, 20), difficult=1)]
    dataset = open_dataset(write_voc(tmp_path, {"a": voc_xml(objects)}))
    results = to_coco_results(dataset, perfect(dataset))
    assert len(results) == 1
    assert coco_metrics(dataset.to_coco(), results).ap == pytest.approx(1)
    assert voc_metrics(dataset.to_coco(), results).ap_11 == 1


def test_some_images_only(tmp_path):
    dataset = open_dataset(write_coco(tmp_path))
    results = to_coco_results(dataset, perfect(dataset)[1:], indices=[1])
    assert [r["image_id"] for r in results] == [20]
    with pytest.raises(ValueError, match="one entry for each of 2 images, got 1"):
        to_coco_results(dataset, perfect(dataset)[1:])


def test_labels_that_are_no_class_are_left_out(tmp_path):
    dataset = open_dataset(write_coco(tmp_path), class_names=["N/A", "cat", "dog"])
    found = perfect(dataset)
    found[0]["labels"][0] = 0
    results = to_coco_results(dataset, found)
    assert [r["category_id"] for r in results] == [3, 3]
    metrics = coco_metrics(dataset.to_coco(), results)
    assert [(c.name, c.num_objects, c.ap) for c in metrics.per_class] == [
        ("cat", 2, 1),
        ("dog", 1, 0),
    ]
    for label in (3, -1):
        found[0]["labels"][0] = label
        with pytest.raises(ValueError, match=rf"labels in 0 ... 2, got {label}"):
            to_coco_results(dataset, found)


def test_other_data_sets_are_refused(tmp_path):
    dataset = open_dataset(write_coco(tmp_path))
    with pytest.raises(TypeError, match=r"dataset must be a DetectionDataset, got Subset"):
        to_coco_results(Subset(dataset, [0]), perfect(dataset)[:1])


def test_nothing_found(tmp_path):
    dataset = open_dataset(write_coco(tmp_path))
    empty = {
        "boxes": torch.zeros(0, 4),
        "scores": torch.zeros(0),
        "labels": torch.zeros(0, dtype=torch.int64),
    }
    assert to_coco_results(dataset, [empty, empty]) == []


def test_real_data_finds_itself(shared_dir):
    dataset = open_dataset(shared_dir / "data" / "bccd", "test", on_error="skip")
    results = to_coco_results(dataset, perfect(dataset))
    metrics = coco_metrics(dataset.to_coco(), results)
    assert metrics.ap == pytest.approx(1)
    assert metrics.ar_max == 1
    assert voc_metrics(dataset.to_coco(), results).ap_area == 1
