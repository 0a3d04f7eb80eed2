# SPDX-License-Identifier: Apache-2.0
"""Object detection with native CPU and CUDA kernels."""

from pydet._version import __version__

__all__ = ["__version__"]
