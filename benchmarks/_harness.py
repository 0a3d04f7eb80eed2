# SPDX-License-Identifier: Apache-2.0
"""Verify, then time: what every bench_<op>.py shares.

Contenders are timed in turn, one sample each a round, so that whatever disturbs the machine
disturbs all; ratios are medians over rounds of the ratio in one round. A copy of the same number of
bytes is a contender too: it is the speed that the memory allows.
"""

import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pydet
from pydet.ops import _library

RESULTS = Path(__file__).parent / "results"
# A sample repeats short calls until it lasts this long, so that the clock's grain does not count.
_SHORTEST_SAMPLE = 0.5e-3
_MIN_ROUNDS, _MAX_ROUNDS = 5, 200

Call = Callable[[], Any]


def assert_close(ours: Any, eager: Any) -> None:
    """The default check: torch's own tolerances, NaN equals NaN."""
    torch.testing.assert_close(ours, eager, equal_nan=True)


@dataclass(frozen=True)
class Case:
    """One call at one size.

    Attributes:
        name: The size, in words.
        pydet: The call that is measured, without arguments.
        eager: The formula in torch that a user would write; the result is checked against it.
        num_bytes: Bytes that a call has to read and write, each input and output once.
        peers: Other libraries' calls, by name.
        check: Raises where the two results (pydet's, eager's) differ.
        time_eager: False where the formula is far too slow or large to be timed.
    """

    name: str
    pydet: Call
    eager: Call
    num_bytes: int
    peers: dict[str, Call]
    check: Callable[[Any, Any], None] = assert_close
    time_eager: bool = True


def torchvision_ops() -> Any:
    """torchvision.ops, or None where it cannot be imported."""
    try:
        from torchvision import ops
    except (ImportError, RuntimeError, OSError):
        return None
    return ops


def peers(**calls: Callable[[Any], Call]) -> dict[str, Call]:
    """The peers of a case: ``peers(torchvision=lambda ops: lambda: ops.nms(...))``."""
    ops = torchvision_ops()
    if ops is None:
        calls.pop("torchvision", None)
    return {name: make(ops) for name, make in calls.items()}


def _copy_call(num_bytes: int, device: torch.device) -> Call:
    """Copies half of the bytes, so that all of them are moved."""
    source = torch.ones(max(num_bytes // 2, 1), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


class _Clock:
    """Seconds of ``repeats`` calls: by CUDA events with a flushed L2 cache, or by the clock."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        if self.on_gpu:
            size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
            self.flushed = torch.empty(size, dtype=torch.uint8, device=device)

    def __call__(self, call: Call, repeats: int) -> float:
        if not self.on_gpu:
            begin = time.perf_counter()
            for _ in range(repeats):
                call()
            return time.perf_counter() - begin
        total = 0.0
        for _ in range(repeats):
            begin_event = torch.cuda.Event(enable_timing=True)
            end_event = torch.cuda.Event(enable_timing=True)
            self.flushed.zero_()
            begin_event.record()
            call()
            end_event.record()
            end_event.synchronize()
            total += begin_event.elapsed_time(end_event) * 1e-3
        return total


def _sample(contenders: dict[str, Call], clock: _Clock, seconds: float) -> dict[str, list[float]]:
    """Seconds a call of each contender, one value a round."""
    repeats = {}
    round_seconds = 0.0
    for name, call in contenders.items():
        clock(call, 1)  # warms up: code, caches, allocator
        once = clock(call, 1)
        repeats[name] = max(1, int(_SHORTEST_SAMPLE / max(once, 1e-9)))
        round_seconds += once * repeats[name]
    rounds = min(max(int(seconds / round_seconds), _MIN_ROUNDS), _MAX_ROUNDS)
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            samples[name].append(clock(call, repeats[name]) / repeats[name])
    return samples


def _summary(seconds: Sequence[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(seconds, n=4)
    return {"median_ms": middle * 1e3, "q25_ms": low * 1e3, "q75_ms": high * 1e3}


def measure(case: Case, device: torch.device, threads: int, seconds: float) -> dict[str, Any]:
    """Checks one case, then times it.

    Args:
        case: What to call.
        device: Where its tensors are.
        threads: For torch and pydet alike; of no consequence on a GPU.
        seconds: Time to spend on it, roughly.
    """
    torch.set_num_threads(threads)
    case.check(case.pydet(), case.eager())
    contenders = {"pydet": case.pydet, **case.peers}
    if case.time_eager:
        contenders["eager"] = case.eager
    contenders["copy"] = _copy_call(case.num_bytes, device)
    samples = _sample(contenders, _Clock(device), seconds)
    times = {name: _summary(values) for name, values in samples.items()}
    ours = samples["pydet"]
    return {
        "case": case.name,
        "threads": threads,
        "rounds": len(ours),
        "bytes": case.num_bytes,
        "gb_per_s": case.num_bytes / times["pydet"]["median_ms"] * 1e-6,
        "share_of_copy": statistics.median(
            copy / own for copy, own in zip(samples["copy"], ours, strict=True)
        ),
        "times_faster_than": {
            name: statistics.median(other / own for other, own in zip(values, ours, strict=True))
            for name, values in samples.items()
            if name not in ("pydet", "copy")
        },
        "times": times,
    }


def format_line(result: dict[str, Any]) -> str:
    """One measured case, for the eye."""
    times = result["times"]["pydet"]
    faster = ", ".join(
        f"{ratio:.1f}x {name}" for name, ratio in result["times_faster_than"].items()
    )
    return (
        f"  {result['case']:<34} {result['threads']:>2} threads {times['median_ms']:>10.3f} ms "
        f"[{times['q25_ms']:.3f}, {times['q75_ms']:.3f}]  {result['gb_per_s']:>7.2f} GB/s "
        f"{result['share_of_copy']:>6.1%} of copy  {faster}"
    )


def device_name(device: torch.device) -> str:
    """The name of the chip, as a folder can have it."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = platform.machine()
        cpuinfo = Path("/proc/cpuinfo")
        if cpuinfo.is_file():
            found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text(encoding="utf-8"))
            name = found[1] if found else name
        name = f"{name} {os.cpu_count()} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def write_results(op: str, device: torch.device, results: list[dict[str, Any]]) -> Path:
    """Writes results/<device>/<op>.json and returns its path."""
    extension = _library.extension
    about = {
        "op": op,
        "device": device_name(device),
        "pydet": pydet.__version__,
        "torch": torch.__version__,
        "cpu_path": None if extension is None else extension.cpu_isa(),
        "results": results,
    }
    path = RESULTS / device_name(device) / f"{op}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return path


def num_bytes(*tensors: Tensor) -> int:
    """Bytes of all elements together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
