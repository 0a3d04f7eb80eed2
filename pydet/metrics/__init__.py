# SPDX-License-Identifier: Apache-2.0
"""Measures of detections."""

from pydet.metrics.coco import ClassMetrics, CocoMetrics, coco_metrics
from pydet.metrics.results import to_coco_results

__all__ = ["ClassMetrics", "CocoMetrics", "coco_metrics", "to_coco_results"]
