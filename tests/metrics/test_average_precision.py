# SPDX-License-Identifier: Apache-2.0
"""Average precision of Pascal VOC: worked examples, the definition, published figures."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydet.metrics import (
    average_precision_11,
    average_precision_area,
    precision_recall,
    voc_metrics,
)
from tests.reference import average_precision as reference


def truth(objects, num_images=1, names=("thing",)):
    """A COCO dict of (image, box xyxy, difficult[, class])."""
    return {
        "images": [{"id": i} for i in range(num_images)],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(names)],
        "annotations": [
            {
                "id": i,
                "image_id": image,
                "category_id": rest[0] + 1 if rest else 1,
                "bbox": xywh(box),
                "ignore": int(difficult),
            }
            for i, (image, box, difficult, *rest) in enumerate(objects)
        ],
    }


def found(detections):
    """COCO results of (image, box xyxy, score[, class])."""
    return [
        {
            "image_id": image,
            "category_id": rest[0] + 1 if rest else 1,
            "bbox": xywh(box),
            "score": score,
        }
        for image, box, score, *rest in detections
    ]


def xywh(box):
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]


def from_ranks(ranks, num_objects):
    return precision_recall(np.array(ranks, dtype=bool), num_objects)


# ------------------------------------------------------------------ worked examples


def test_four_objects_all_found_first():
    assert average_precision_11(*from_ranks([True] * 4, 4)) == 1
    assert average_precision_area(*from_ranks([True] * 4, 4)) == 1


def test_four_objects_with_a_false_detection_in_the_second_rank():
    """Precision 1 at recall <= 0.25 (3 points), 0.75 at recall <= 0.75 (5 points), 0 beyond."""
    precision, recall = from_ranks([True, False, True, True], 4)
    assert precision.tolist() == [1, 1 / 2, 2 / 3, 3 / 4]
    assert recall.tolist() == [0.25, 0.25, 0.5, 0.75]
    assert average_precision_11(precision, recall) == pytest.approx((3 + 0.75 * 5) / 11)
    assert average_precision_area(precision, recall) == pytest.approx(0.25 + 0.75 * 0.5)


def test_a_recall_that_is_exactly_a_point_reaches_it():
    for count in range(1, 11):  # 3 / 10 is the same float as 0.3, the sum 0.1 + 0.2 is not
        precision, recall = from_ranks([True] * count, 10)
        assert average_precision_11(precision, recall) == pytest.approx((count + 1) / 11)


def test_no_detection_and_no_object():
    precision, recall = from_ranks([], 4)
    assert average_precision_11(precision, recall) == 0
    assert average_precision_area(precision, recall) == 0
    _, recall = from_ranks([True], 0)
    assert math.isnan(recall[0])


# ------------------------------------------------------------------ the rules

BOX, FAR = (10, 10, 30, 30), (50, 50, 70, 70)


def test_an_object_is_found_once():
    metrics = voc_metrics(truth([(0, BOX, False)]), found([(0, BOX, 0.9), (0, BOX, 0.8)]))
    assert metrics.per_class[0].precision.tolist() == [1, 0.5]
    assert metrics.ap_11 == metrics.ap_area == 1


def test_the_better_score_finds_it_even_if_it_fits_less():
    shifted = (12, 10, 32, 30)
    metrics = voc_metrics(truth([(0, BOX, False)]), found([(0, BOX, 0.8), (0, shifted, 0.9)]))
    assert metrics.per_class[0].precision.tolist() == [1, 0.5]


def test_a_detection_looks_only_at_the_object_it_overlaps_most():
    """Its best object is taken; that it also overlaps another by half does not help."""
    other = (10, 10, 30, 45)
    results = found([(0, BOX, 0.9), (0, BOX, 0.8)])
    metrics = voc_metrics(truth([(0, BOX, False), (0, other, False)]), results)
    assert metrics.per_class[0].precision.tolist() == [1, 0.5]
    assert metrics.per_class[0].recall.tolist() == [0.5, 0.5]


def test_difficult_objects_are_neither_found_nor_missed():
    objects = [(0, BOX, True), (0, FAR, False)]
    metrics = voc_metrics(truth(objects), found([(0, BOX, 0.9), (0, BOX, 0.8), (0, FAR, 0.7)]))
    (thing,) = metrics.per_class
    assert (thing.num_objects, thing.num_detections) == (1, 1)
    assert metrics.ap_11 == metrics.ap_area == 1
    crowd = truth([(0, BOX, False), (0, FAR, False)])
    crowd["annotations"][0]["iscrowd"] = 1
    assert voc_metrics(crowd, found([(0, BOX, 0.9), (0, FAR, 0.7)])).ap_area == 1


def test_the_threshold_itself_counts():
    half = (10, 10, 30, 50)  # IoU with BOX is 400/800
    objects, results = truth([(0, BOX, False)]), found([(0, half, 0.9)])
    assert voc_metrics(objects, results).ap_area == 1
    assert voc_metrics(objects, results, iou_threshold=0.51).ap_area == 0


def test_images_and_classes_do_not_mix():
    objects = truth([(0, BOX, False, 0), (1, FAR, False, 1)], 2, ("cat", "dog"))
    wrong = found([(1, BOX, 0.9, 0), (1, FAR, 0.8, 0), (0, FAR, 0.7, 1)])
    metrics = voc_metrics(objects, wrong)
    assert [c.ap_area for c in metrics.per_class] == [0, 0]
    right = found([(0, BOX, 0.9, 0), (1, FAR, 0.8, 1)])
    assert voc_metrics(objects, right).ap_area == 1


def test_classes_without_objects_do_not_enter_the_mean():
    objects = truth([(0, BOX, False, 0)], 1, ("cat", "dog"))
    metrics = voc_metrics(objects, found([(0, BOX, 0.9, 0), (0, FAR, 0.9, 1)]))
    assert metrics.ap_11 == metrics.ap_area == 1
    assert math.isnan(metrics.per_class[1].ap_11)
    assert metrics.per_class[1].num_detections == 1
    assert metrics.as_dict()["per_class"]["dog"]["ap_11"] is None
    nothing = voc_metrics(truth([]), [])
    assert math.isnan(nothing.ap_11)
    assert nothing.as_dict()["ap_area"] is None
    assert voc_metrics(truth([(0, BOX, False)]), []).ap_11 == 0


def test_table():
    objects = truth([(0, BOX, False, 0)], 1, ("cat", "dinosaur"))
    lines = voc_metrics(objects, found([(0, BOX, 0.9, 0)])).table().splitlines()
    assert lines[1].split() == ["cat", "1", "1", "100.0", "100.0"]
    assert lines[2].split() == ["dinosaur", "0", "0", "-", "-"]
    assert lines[3].split() == ["mean", "1", "1", "100.0", "100.0"]
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_id": 9}, r"results\[0\] must be of an image and a category .* image id 9"),
        ({"category_id": 9}, "category id 9"),
        ({"score": math.nan}, r"results\[0\] must have a score, got NaN"),
    ],
)
def test_results_that_do_not_belong_to_the_ground_truth(change, words):
    with pytest.raises(ValueError, match=words):
        voc_metrics(truth([(0, BOX, False)]), [{**found([(0, BOX, 0.9)])[0], **change}])


# ------------------------------------------------------------------ the definition

small_box = st.tuples(
    st.integers(0, 6), st.integers(0, 6), st.integers(1, 5), st.integers(1, 5)
).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
objects_strategy = st.lists(st.tuples(st.integers(0, 1), small_box, st.booleans()), max_size=8)
detections_strategy = st.lists(
    st.tuples(st.integers(0, 1), small_box, st.integers(0, 4).map(lambda s: s / 4)), max_size=14
)


@given(objects=objects_strategy, detections=detections_strategy, eighths=st.integers(1, 8))
def test_against_the_definition(objects, detections, eighths):
    results = reference.outcomes(objects, detections, eighths / 8)
    num_objects = sum(not difficult for _, _, difficult in objects)
    metrics = voc_metrics(truth(objects, 2), found(detections), iou_threshold=eighths / 8)
    (thing,) = metrics.per_class
    assert thing.num_objects == num_objects
    assert thing.num_detections == sum(result is not None for result in results)
    if num_objects == 0:
        assert math.isnan(metrics.ap_11)
        return
    points = reference.curve(results, num_objects)
    assert thing.recall.tolist() == [float(r) for r, _ in points]
    assert thing.precision.tolist() == [float(p) for _, p in points]
    assert metrics.ap_11 == pytest.approx(float(reference.ap_11(points)), abs=1e-12)
    assert metrics.ap_area == pytest.approx(float(reference.ap_area(points)), abs=1e-12)


# ------------------------------------------------------------------ published figures


def test_example_of_the_object_detection_metrics_repository(shared_dir):
    """15 objects, 24 detections, IoU 0.3: 26.84 % at 11 points, 24.56 % as area.

    The figures stand in the README of rafaelpadilla/Object-Detection-Metrics, the second summed up
    from four areas rounded to four digits. Its boxes are inclusive pixels.
    """
    folder = shared_dir / "refdata" / "formats" / "tests" / "test_case_1"
    objects, detections = [], []
    for image, file in enumerate(sorted((folder / "gts").glob("*.txt"))):
        for line in file.read_text().splitlines():
            x, y, w, h = map(int, line.split()[1:])
            objects.append((image, (x, y, x + w + 1, y + h + 1), False))
        for line in (folder / "dets" / file.name).read_text().splitlines():
            score, x, y, w, h = map(float, line.split()[1:])
            detections.append((image, (x, y, x + w + 1, y + h + 1), score))
    assert (len(objects), len(detections)) == (15, 24)
    metrics = voc_metrics(truth(objects, 7), found(detections), iou_threshold=0.3)
    assert metrics.ap_11 == pytest.approx(0.2684, abs=1e-4)
    assert metrics.ap_area == pytest.approx(0.2456, abs=2e-4)
