# SPDX-License-Identifier: Apache-2.0
"""Time of contenders that take turns, one sample each a round."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

Call = Callable[[], Any]

# A sample repeats short calls until it lasts this long, so that the clock's grain does not count,
# nor what a first call pays for code that others have pushed out of the caches (0.1 ms).
_SHORTEST_SAMPLE = 5e-3
_MIN_ROUNDS, _MAX_ROUNDS = 5, 200
# A contender that takes so many seconds a call is sampled three times, or only once.
_SLOW, _VERY_SLOW = 1.0, 20.0


class Clock:
    """Seconds of ``repeats`` calls.

    On a GPU by CUDA events, with a flushed L2 cache. On a CPU with one thread by the time that the
    process has run: what else the machine does then does not count. With several by the wall clock.
    """

    def __init__(self, device: torch.device, threads: int) -> None:
        self.on_gpu = device.type == "cuda"
        self.now = time.process_time if threads == 1 else time.perf_counter
        if self.on_gpu:
            size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
            self.flushed = torch.empty(size, dtype=torch.uint8, device=device)

    def __call__(self, call: Call, repeats: int) -> float:
        if not self.on_gpu:
            begin = self.now()
            for _ in range(repeats):
                call()
            return self.now() - begin
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


def sample(contenders: dict[str, Call], clock: Clock, seconds: float) -> dict[str, list[float]]:
    """Seconds a call of each contender, one value a round; of slow ones fewer, but the same rounds.

    Args:
        contenders: What is called, by name.
        clock: What takes the time.
        seconds: To spend on all together, roughly; those that are slow may take longer.
    """
    repeats, samples, most = {}, {}, {}
    round_seconds = 0.0
    for name, call in contenders.items():
        once = clock(call, 1)  # warms up: code, caches, allocator
        samples[name] = []
        if once > _VERY_SLOW:
            samples[name], most[name] = [once], 1
            continue
        once = min(once, clock(call, 1))
        repeats[name] = max(1, int(_SHORTEST_SAMPLE / max(once, 1e-9)))
        most[name] = 3 if once > _SLOW else _MAX_ROUNDS
        round_seconds += once * repeats[name] if once <= _SLOW else 0.0
    rounds = min(max(int(seconds / max(round_seconds, 1e-9)), _MIN_ROUNDS), _MAX_ROUNDS)
    for _ in range(rounds):
        for name, call in contenders.items():
            if len(samples[name]) < most[name]:
                samples[name].append(clock(call, repeats[name]) / repeats[name])
    return samples


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median and quartiles in milliseconds, and how many samples they are of."""
    low, middle, high = (
        statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    )
    return {
        "median_ms": middle * 1e3,
        "q25_ms": low * 1e3,
        "q75_ms": high * 1e3,
        "samples": len(seconds),
    }


def paired_ratio(others: Sequence[float], ours: Sequence[float]) -> float:
    """Median over the rounds that both have of the other's time over ours."""
    return statistics.median(a / b for a, b in zip(others, ours, strict=False))
