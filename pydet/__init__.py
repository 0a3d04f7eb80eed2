# SPDX-License-Identifier: Apache-2.0
"""Object detection with native CPU and CUDA kernels."""

from pydet._version import __version__
from pydet.models import create_model, list_models
from pydet.weights import load, save

__all__ = ["__version__", "create_model", "list_models", "load", "save"]
