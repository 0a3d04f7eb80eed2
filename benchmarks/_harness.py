# SPDX-License-Identifier: Apache-2.0
"""Verify, then time: what every bench_<op>.py shares.

Contenders are timed in turn, one sample each a round, so that whatever disturbs the machine
disturbs all; ratios are medians over rounds of the ratio in one round. A copy of the same number of
bytes is a contender too: it is the speed that the memory allows. So is new memory of the results'
size, filled once: what no call that returns so much can be faster than. Where a case says how many
multiply-adds, exponentials or divisions it needs, torch's own matrix product, exp or div, on data
that stay in the cache, is another: the speed that the arithmetic allows. The slowest of them binds.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks._memory import advise_huge_pages, can_measure, peak_extra_memory, result_bytes
from benchmarks._timing import Call, Clock, paired_ratio, sample, summary

__all__ = ["Call", "Case", "compiled", "format_line", "measure", "num_bytes", "peers"]

_MATRIX = 384  # three such matrices stay in the second-level cache
_VECTOR = 65_536
# Below so many bytes torch.compile is no rival (its guards decide), and each size takes seconds.
_COMPILED_FROM = 4_000_000
# Filling smaller results takes no time that counts.
_FRESH_FROM = 1 << 20
# Results above so many bytes are in huge pages (empty_large of csrc/common/torch_glue.h).
_HUGE_FROM = 32 << 20


def assert_close(ours: Any, eager: Any) -> None:
    """The default check: torch's own tolerances, NaN equals NaN."""
    torch.testing.assert_close(ours, eager, equal_nan=True)


@dataclass(frozen=True)
class Case:
    """One call at one size.

    Attributes:
        name: The size, in words; unique within its benchmark.
        pydet: The call that is measured, without arguments.
        eager: The formula in torch that a user would write; the result is checked against it.
        num_bytes: Bytes that a call has to read and write, each input and output once.
        peers: Other calls, by name: "torchvision", "compile" (torch.compile of the formula).
        check: Raises where the two results (pydet's, eager's) differ.
        time_eager: False where the formula is far too slow or large to be timed.
        arithmetic: What has to be computed at least, and how often; None where memory binds anyway.
        series: The curve of the plot that this case is a point of; "" for none.
        size: The point's place on the curve: boxes, pairs, ...
    """

    name: str
    pydet: Call
    eager: Call
    num_bytes: int
    peers: dict[str, Call] = field(default_factory=dict)
    check: Callable[[Any, Any], None] = assert_close
    time_eager: bool = True
    arithmetic: tuple[Literal["multiply-add", "exp", "division"], float] | None = None
    series: str = ""
    size: int = 0


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


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile of a formula, for each size anew: its best case."""
    # A code object is compiled for each size, dtype and number of threads.
    torch._dynamo.config.recompile_limit = 256
    torch._dynamo.config.accumulated_recompile_limit = 10_000
    return torch.compile(function, dynamic=False, fullgraph=True)


def num_bytes(*tensors: Tensor) -> int:
    """Bytes of all elements together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _copy_call(count: int, device: torch.device) -> Call:
    """Copies half of the bytes, so that all of them are moved."""
    source = torch.ones(max(count // 2, 1), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _fresh_call(count: int, device: torch.device) -> Call:
    """Takes memory for ``count`` bytes and fills it, in huge pages where pydet asks for them."""

    def call() -> None:
        values = torch.empty(count, dtype=torch.uint8, device=device)
        if device.type == "cpu" and count > _HUGE_FROM:
            advise_huge_pages(values)
        values.zero_()

    return call


def _limit_calls(
    case: Case, produced: int, device: torch.device
) -> tuple[dict[str, Call], dict[str, float]]:
    """The machine's limits as calls, and how many of each call's the case needs."""
    calls = {"copy": _copy_call(case.num_bytes, device)}
    if produced >= _FRESH_FROM:
        calls["fresh"] = _fresh_call(produced, device)
    scale = dict.fromkeys(calls, 1.0)
    if case.arithmetic is None:
        return calls, scale
    kind, count = case.arithmetic
    if kind == "multiply-add":
        matrix = torch.ones(_MATRIX, _MATRIX, device=device)
        product = torch.empty_like(matrix)
        calls[kind] = lambda: torch.mm(matrix, matrix, out=product)
        scale[kind] = count / _MATRIX**3
    else:
        vector = torch.linspace(-8, 0, _VECTOR, device=device)
        values = torch.empty_like(vector)
        divisors = 1 - vector
        calls[kind] = (
            (lambda: torch.exp(vector, out=values))
            if kind == "exp"
            else (lambda: torch.div(vector, divisors, out=values))
        )
        scale[kind] = count / _VECTOR
    return calls, scale


def _contenders(case: Case, skip: tuple[str, ...]) -> dict[str, Call]:
    contenders = {"pydet": case.pydet}
    for name, call in case.peers.items():
        if name in skip or (name == "compile" and case.num_bytes < _COMPILED_FROM):
            continue
        if name == "compile":
            try:
                call()
            except Exception as error:  # what the compiler cannot do, or no C++ compiler at hand
                print(f"  {case.name}: torch.compile: {str(error).splitlines()[0]}")
                continue
        contenders[name] = call
    if case.time_eager:
        contenders["eager"] = case.eager
    return contenders


def measure(
    case: Case,
    device: torch.device,
    threads: int,
    seconds: float,
    *,
    expected: Any = None,
    skip: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Checks one case, then times it.

    Args:
        case: What to call.
        device: Where its tensors are.
        threads: For torch and pydet alike; of no consequence on a GPU.
        seconds: Time to spend on it, roughly.
        expected: The formula's result, where it is known already.
        skip: Peers that are left out.
    """
    torch.set_num_threads(threads)
    result = case.pydet()
    case.check(result, case.eager() if expected is None else expected)
    produced = result_bytes(result)
    del result
    contenders = _contenders(case, skip)
    limits, scale = _limit_calls(case, produced, device)
    samples = sample({**contenders, **limits}, Clock(device, threads), seconds)
    for name in limits:
        samples[name] = [value * scale[name] for value in samples[name]]
    ours = samples["pydet"]
    times = {name: summary(values) for name, values in samples.items()}
    bound = max(limits, key=lambda name: times[name]["median_ms"])
    record = {
        "case": case.name,
        "threads": threads,
        "rounds": len(ours),
        "bytes": case.num_bytes,
        "result_bytes": produced,
        "gb_per_s": case.num_bytes / times["pydet"]["median_ms"] * 1e-6,
        "bound": bound,
        "share_of_bound": paired_ratio(samples[bound], ours),
        "times_faster_than": {
            name: paired_ratio(samples[name], ours) for name in contenders if name != "pydet"
        },
        "times": times,
    }
    if can_measure(device):
        record["peak_extra_bytes"] = {
            name: peak_extra_memory(call, device)
            for name, call in contenders.items()
            if times[name]["samples"] > 1 or len(ours) == 1
        }
    if case.series:
        record |= {"series": case.series, "size": case.size}
    return record


def format_line(result: dict[str, Any]) -> str:
    """One measured case, for the eye."""
    times = result["times"]["pydet"]
    faster = ", ".join(
        f"{ratio:.1f}x {name}" for name, ratio in result["times_faster_than"].items()
    )
    peaks = result.get("peak_extra_bytes", {})
    memory = ", ".join(f"{peak / 2**20:.1f} {name}" for name, peak in peaks.items())
    return (
        f"  {result['case']:<44} {result['threads']:>2} threads {times['median_ms']:>10.3f} ms "
        f"[{times['q25_ms']:.3f}, {times['q75_ms']:.3f}]  {result['gb_per_s']:>7.2f} GB/s "
        f"{result['share_of_bound']:>6.1%} of {result['bound']}  {faster}; MB: {memory}"
    )
