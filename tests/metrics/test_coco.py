# SPDX-License-Identifier: Apache-2.0
"""COCO's measures: the reference figures, and what is done differently from pycocotools by hand."""

import contextlib
import copy
import io
import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydet.metrics import coco_metrics

pytest.importorskip("pycocotools")

FIELDS = {
    "AP": "ap",
    "AP50": "ap50",
    "AP75": "ap75",
    "APs": "ap_small",
    "APm": "ap_medium",
    "APl": "ap_large",
    "AR1": "ar_1",
    "AR10": "ar_10",
    "AR100": "ar_max",
    "ARs": "ar_small",
    "ARm": "ar_medium",
    "ARl": "ar_large",
}


def by_pycocotools(ground_truth, results, max_detections=(1, 10, 100)):
    """The twelve figures as pycocotools itself gives them."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    truth.dataset = copy.deepcopy(ground_truth)
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "bbox")
        evaluation.params.maxDets = list(max_detections)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.fixture(scope="module")
def val2014(shared_dir):
    folder = shared_dir / "refdata" / "cocoapi"
    truth = json.loads((folder / "annotations" / "instances_val2014_100.json").read_text())
    results = json.loads(
        (folder / "results" / "instances_val2014_fakebbox100_results.json").read_text()
    )
    return folder, truth, results


def test_reference_figures(val2014):
    folder, truth, results = val2014
    metrics = coco_metrics(truth, results)
    line = next(
        line
        for line in (folder / "expected_pycocotools.txt").read_text().splitlines()
        if line.startswith("bbox")
    )
    expected = dict(re.findall(r"(\w+)=([\d.]+)", line))
    assert set(expected) == set(FIELDS)
    for name, field in FIELDS.items():
        assert f"{getattr(metrics, field):.6f}" == expected[name], name


def test_it_is_quiet_and_leaves_its_arguments_alone(val2014, capfd):
    _, truth, results = val2014
    before = copy.deepcopy((truth, results))
    coco_metrics(truth, results)
    assert capfd.readouterr() == ("", "")
    assert (truth, results) == before


def test_classes_and_curves(val2014):
    _, truth, results = val2014
    metrics = coco_metrics(truth, results)
    evaluation = by_pycocotools(truth, results)
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    assert np.array_equal(metrics.precision, precision)
    assert np.array_equal(metrics.recall, np.linspace(0, 1, 101))
    names = {c["id"]: c["name"] for c in truth["categories"]}
    assert [c.name for c in metrics.per_class] == [names[i] for i in sorted(names)]
    for k, entry in enumerate(metrics.per_class):
        if entry.num_objects == 0:
            assert math.isnan(entry.ap)
            assert (precision[:, :, k] == -1).all()
        else:
            assert entry.ap == pytest.approx(precision[:, :, k].mean())
            assert entry.ap50 == pytest.approx(precision[0, :, k].mean())
            assert entry.ap75 == pytest.approx(precision[5, :, k].mean())
    assert sum(c.num_objects for c in metrics.per_class) == 839 - 9
    assert sum(c.num_detections for c in metrics.per_class) == len(results)


@pytest.mark.parametrize("limit", [1, 2, 5, 100])
def test_limit_of_detections(val2014, limit):
    _, truth, results = val2014
    metrics = coco_metrics(truth, results, max_detections=limit)
    limits = (min(1, limit), min(10, limit), limit)
    evaluation = by_pycocotools(truth, results, limits).eval
    precision = evaluation["precision"][..., 0, 2]
    recall = evaluation["recall"][..., 0, 2]
    assert metrics.ap == pytest.approx(precision[precision > -1].mean())
    assert metrics.ar_max == pytest.approx(recall[recall > -1].mean())
    assert metrics.max_detections == limit


def truth_of(*annotations, num_images=1):
    return {
        "images": [{"id": i} for i in range(num_images)],
        "categories": [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": 0, "category_id": 5, "area": 400, "iscrowd": 0, **item}
            for i, item in enumerate(annotations)
        ],
    }


def result(box, score=0.9, category_id=5, image_id=0):
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}


BOX, FAR = [10, 10, 20, 20], [60, 60, 20, 20]


def test_an_annotation_with_the_id_0_can_be_found():
    metrics = coco_metrics(truth_of({"bbox": BOX}), [result(BOX)])
    assert metrics.ap == pytest.approx(1)


def test_no_results():
    metrics = coco_metrics(truth_of({"bbox": BOX}), [])
    assert metrics.ap == metrics.ap50 == metrics.ar_max == 0
    assert math.isnan(metrics.ap_large)
    assert math.isnan(metrics.per_class[1].ap)


@pytest.mark.parametrize(
    ("truth", "results"),
    [
        ({"images": [], "annotations": [], "categories": []}, []),
        ({"images": [{"id": 0}], "categories": []}, []),
        (truth_of(), []),
        (truth_of(), [result(BOX)]),
    ],
)
def test_no_ground_truth(truth, results):
    metrics = coco_metrics(truth, results)
    figures = metrics.as_dict()
    for field in FIELDS.values():
        assert math.isnan(getattr(metrics, field))
        assert figures[field] is None
    json.loads(json.dumps(figures, allow_nan=False))
    assert metrics.table()


def test_ignored_objects_are_neither_found_nor_missed():
    """Difficult objects of VOC; pycocotools alone would count them."""
    truth = truth_of({"bbox": BOX, "ignore": 1}, {"bbox": FAR})
    for results in ([result(FAR)], [result(BOX, 0.95), result(FAR)]):
        metrics = coco_metrics(truth, results)
        assert metrics.ap == pytest.approx(1)
        assert metrics.ar_max == 1
        assert metrics.per_class[0].num_objects == 1
    assert by_pycocotools(truth, [result(FAR)]).stats[0] < 1
    # Unlike a crowd it is one object: the second detection of it is false.
    metrics = coco_metrics(truth, [result(BOX, 0.95), result(BOX, 0.94), result(FAR)])
    assert metrics.ap == pytest.approx(0.5)


def test_crowds_swallow_any_number_of_detections():
    truth = truth_of({"bbox": BOX, "iscrowd": 1}, {"bbox": FAR})
    inside = [result([12 + i, 12, 4, 4], 0.95 - i / 100) for i in range(3)]
    metrics = coco_metrics(truth, [*inside, result(FAR)])
    assert metrics.ap == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_id": 3}, r"results\[1\] must be of an image of the ground truth, got .* id 3"),
        ({"category_id": 1}, r"results\[1\] must be of a category of the .*, got .* id 1"),
    ],
)
def test_results_that_do_not_belong(change, words):
    with pytest.raises(ValueError, match=words):
        coco_metrics(truth_of({"bbox": BOX}), [result(BOX), {**result(BOX), **change}])


def test_limit_below_one():
    with pytest.raises(ValueError, match="max_detections must be at least 1, got 0"):
        coco_metrics(truth_of(), [], max_detections=0)


def test_table_and_dict():
    metrics = coco_metrics(truth_of({"bbox": BOX}), [result(BOX), result(FAR, 0.1)])
    lines = metrics.table().splitlines()
    assert lines[1].split() == ["cat", "1", "2", "100.0", "100.0", "100.0", "100.0"]
    assert lines[2].split() == ["dog", "0", "0", "-", "-", "-", "-"]
    assert lines[3].split() == ["all", "1", "2", "100.0", "100.0", "100.0", "100.0"]
    assert lines[4] == "AP by size: small 100.0, medium -, large -"
    assert len({len(line) for line in lines[:4]}) == 1
    figures = metrics.as_dict()
    assert figures["ap"] == pytest.approx(1)
    assert figures["per_class"]["cat"]["num_detections"] == 2
    assert figures["per_class"]["dog"]["ap"] is None


lattice_box = st.tuples(*[st.integers(0, 30)] * 2, *[st.integers(1, 30)] * 2).map(list)


@given(
    objects=st.lists(
        st.tuples(st.integers(0, 1), st.sampled_from([5, 9]), lattice_box, st.booleans()),
        min_size=1,
        max_size=8,
    ),
    results=st.lists(
        st.tuples(st.integers(0, 1), st.sampled_from([5, 9]), lattice_box, st.integers(0, 8)),
        min_size=1,
        max_size=10,
    ),
)
def test_against_pycocotools_by_hand(objects, results):
    truth = truth_of(num_images=2)
    truth["annotations"] = [
        {
            "id": i + 1,
            "image_id": image,
            "category_id": category,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": int(crowd),
        }
        for i, (image, category, box, crowd) in enumerate(objects)
    ]
    found = [result(box, s / 8, category, image) for image, category, box, s in results]
    metrics = coco_metrics(truth, found)
    for figure, field in zip(by_pycocotools(truth, found).stats, FIELDS.values(), strict=True):
        ours = getattr(metrics, field)
        assert (math.isnan(ours) and figure == -1) or ours == pytest.approx(figure, abs=1e-12)
