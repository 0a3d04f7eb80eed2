# SPDX-License-Identifier: Apache-2.0
"""Object detection with native CPU and CUDA kernels."""

import importlib
from types import ModuleType

from pydet._allocator import keep_freed_memory
from pydet._version import __version__
from pydet.models import create_model, list_models
from pydet.weights import load, save

__all__ = ["__version__", "create_model", "keep_freed_memory", "list_models", "load", "save"]

# Imported when they are asked for: they need packages that the operators and detectors do not.
_LATER = ("data", "inference", "metrics", "onnx", "training", "visualization")


def __getattr__(name: str) -> ModuleType:
    if name not in _LATER:
        raise AttributeError(f"module 'pydet' has no attribute {name!r}")
    return importlib.import_module(f"pydet.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
