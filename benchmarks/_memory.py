# SPDX-License-Identifier: Apache-2.0
"""Peak extra memory of a call: what the process (or the device) holds more while it runs.

On the CPU that is resident memory as Linux counts it, so it sees torch's allocations and those of
native code alike, and only pages that were touched. Before the call the C library gives back what
it keeps, so that reused heap is counted, too. Below about half a megabyte (the kernel counts in
batches of pages) a figure means "next to nothing". On a GPU it is torch's own peak.
"""

import ctypes
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # see proc_pid_clear_refs(5)


def _resident(key: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"_memory: {_STATUS} must have a line {key}, got none")


def can_measure(device: torch.device) -> bool:
    """Whether this machine tells peaks of memory."""
    return device.type == "cuda" or _CLEAR.exists()


def peak_extra_memory(call: Callable[[], Any], device: torch.device) -> int:
    """Bytes, the result included; the call should have run before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
    else:
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
        before = _resident("VmRSS")
        result = call()
        peak = _resident("VmHWM")
    del result
    return max(peak - before, 0)


def advise_huge_pages(values: torch.Tensor) -> None:
    """Asks for huge pages for a tensor that nothing was written to yet, where the system can."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None:
        return
    first = -(-values.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = values.data_ptr() + values.nbytes - first
    ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), advice)


def result_bytes(result: Any) -> int:
    """Bytes of all tensors of a result."""
    if isinstance(result, torch.Tensor):
        return result.numel() * result.element_size()
    if isinstance(result, (list, tuple)):
        return sum(map(result_bytes, result))
    return 0
