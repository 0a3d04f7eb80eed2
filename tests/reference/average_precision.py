# SPDX-License-Identifier: Apache-2.0
"""Average precision by the text of Pascal VOC (Everingham et al., IJCV 2010, section 4.2).

Everything in exact fractions; a detection is (image, box, score), an object (image, box,
difficult), a box (x1, y1, x2, y2) of integers.
"""

from fractions import Fraction


def iou(a, b):
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    inner = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner
    return Fraction(inner, union)


def outcomes(objects, detections, threshold):
    """True, False or None (not counted) for each detection, best score first."""
    found = set()
    results = []
    for image, box, _ in sorted(detections, key=lambda d: -d[2]):
        best, best_iou = None, Fraction(-1)
        for i, (other_image, other, _) in enumerate(objects):
            if other_image == image and iou(box, other) > best_iou:
                best, best_iou = i, iou(box, other)
        if best is None or best_iou < threshold:
            results.append(False)
        elif objects[best][2]:
            results.append(None)
        else:
            results.append(best not in found)
            found.add(best)
    return results


def curve(results, num_objects):
    """(recall, precision) after each counted detection."""
    points, true, counted = [], 0, 0
    for result in results:
        if result is not None:
            counted += 1
            true += result
            points.append((Fraction(true, num_objects), Fraction(true, counted)))
    return points


def ap_11(points):
    total = Fraction(0)
    for i in range(11):
        total += max((p for r, p in points if r >= Fraction(i, 10)), default=Fraction(0))
    return total / 11


def ap_area(points):
    """Each new recall adds a strip as high as the best precision from there on."""
    total, before = Fraction(0), Fraction(0)
    for i, (recall, _) in enumerate(points):
        total += (recall - before) * max(p for _, p in points[i:])
        before = recall
    return total
