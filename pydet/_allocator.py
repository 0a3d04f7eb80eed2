# SPDX-License-Identifier: Apache-2.0
"""How the C library keeps the memory of tensors on the CPU."""

import ctypes
import os
import sys

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
# Variables of the environment by which a user has decided.
_DECIDED = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Make the C library keep the memory that tensors on the CPU free, for those that come next.

    glibc gives blocks above 32 MiB back to the system when they are freed, so each training step
    and each detection takes new pages, which the system has to clear: up to a fifth of the time of
    a step (``python -m benchmarks models``, and the same with ``MALLOC_MMAP_MAX_=65536``). The
    process holds some more memory for it.

    It holds for the whole process, to its end. `pydet.training.train` and pydet's commands call it
    where they compute on the CPU. It leaves everything as it is with another C library than glibc,
    and where the environment decides (``MALLOC_MMAP_MAX_``, ``MALLOC_MMAP_THRESHOLD_``,
    ``MALLOC_TRIM_THRESHOLD_``, ``GLIBC_TUNABLES``).

    Returns:
        Whether freed memory is kept.
    """
    decided = any(name in os.environ for name in _DECIDED)
    if decided or "malloc" in os.environ.get("GLIBC_TUNABLES", "") or sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    # No block by itself, and no end of the heap is cut off (-1: at no size).
    return bool(library.mallopt(_M_MMAP_MAX, 0) and library.mallopt(_M_TRIM_THRESHOLD, -1))
