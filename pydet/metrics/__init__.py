# SPDX-License-Identifier: Apache-2.0
"""Measures of detections."""

from pydet.metrics.average_precision import (
    VocClassMetrics,
    VocMetrics,
    average_precision_11,
    average_precision_area,
    precision_recall,
    voc_metrics,
)
from pydet.metrics.coco import ClassMetrics, CocoMetrics, coco_metrics
from pydet.metrics.results import to_coco_results

__all__ = [
    "ClassMetrics",
    "CocoMetrics",
    "VocClassMetrics",
    "VocMetrics",
    "average_precision_11",
    "average_precision_area",
    "coco_metrics",
    "precision_recall",
    "to_coco_results",
    "voc_metrics",
]
