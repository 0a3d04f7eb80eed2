# SPDX-License-Identifier: Apache-2.0
"""Detectors: one import line each, alphabetical; that line is the registration."""

from pydet.models import faster_rcnn as faster_rcnn
from pydet.models import fcos as fcos
from pydet.models import retinanet as retinanet
from pydet.models import ssd as ssd
from pydet.models._detector import Detector as Detector
from pydet.models._detector import fastest_memory_format as fastest_memory_format
from pydet.models._registry import create_model as create_model
from pydet.models._registry import list_models as list_models
from pydet.models._registry import register_model as register_model
