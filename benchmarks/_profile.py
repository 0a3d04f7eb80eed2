# SPDX-License-Identifier: Apache-2.0
"""Where the time of a network's call goes: its layers, or the work around them."""

import gc
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

# What a layer of a network is, by parts of the names of torch's operators.
_LAYERS = {
    "convolution": ("convolution", "conv2d", "slow_conv", "thnn_conv"),
    "normalisation": ("batch_norm", "group_norm", "layer_norm"),
    "linear": ("addmm", "::mm", "::linear", "::bmm"),
    "activation, pooling": (
        "relu",
        "clamp_min_",
        "threshold",
        "silu",
        "leaky",
        "mish",
        "max_pool2d",
        "avg_pool2d",
        "upsample",
        "dropout",
    ),
}
REST = "around"


def _own_kind(name: str) -> str:
    if "pydet" in name or "roi_" in name:
        return REST
    for kind, parts in _LAYERS.items():
        if any(part in name for part in parts):
            return kind
    return REST


def _kind(event: FunctionEvent) -> str:
    """Of the outermost layer around an event: what a convolution copies, clears or multiplies."""
    kind = REST
    outer: FunctionEvent | None = event
    while outer is not None:
        own = _own_kind(outer.name)
        kind = kind if own == REST else own
        outer = outer.cpu_parent
    return kind


def profile_call(call: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """Seconds of one call by kind of work, and the dearest operators of what is around the layers.

    On the CPU the rest has the time outside of any operator, too: Python, and torch's own way to
    the operators.
    """
    on_gpu = device.type == "cuda"
    gc.collect()  # else the call may pay for what was done before
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    if on_gpu:
        torch.cuda.synchronize(device)
    with profile(activities=activities) as profiler:
        begin = time.perf_counter()
        call()
        if on_gpu:
            torch.cuda.synchronize(device)
        wall = time.perf_counter() - begin
    seconds: dict[str, float] = defaultdict(float)
    operators: dict[str, float] = defaultdict(float)
    for event in profiler.events() or ():
        if on_gpu and event.device_type == DeviceType.CUDA:
            continue  # its time stands with the operator that started it
        own = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) * 1e-6
        kind = _kind(event)
        seconds[kind] += own
        if kind == REST:
            operators[event.name] += own
    if not on_gpu:
        operators["Python and dispatch"] = max(wall - sum(seconds.values()), 0.0)
        seconds[REST] += operators["Python and dispatch"]
    dearest = sorted(operators.items(), key=lambda item: -item[1])[:12]
    return {"seconds": wall, "by_kind": dict(seconds), "around_by_operator": dict(dearest)}
