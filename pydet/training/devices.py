# SPDX-License-Identifier: Apache-2.0
"""Devices, processes and signals: what the machine decides about a training."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy

from pydet._allocator import keep_freed_memory
from pydet.models import fastest_memory_format
from pydet.training.config import TrainConfig

_T = TypeVar("_T")

_LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def make_fabric(config: TrainConfig) -> Fabric:
    """Fabric for the device and precision of `config`, over the processes that torchrun started.

    Raises:
        ValueError: CUDA asked for and not there, or fp16 on the CPU.
    """
    world_size, local_size = _torchrun_sizes()
    cuda = torch.cuda.is_available() and config.device != "cpu"
    if config.device == "cuda" and not cuda:
        raise ValueError(
            "train: device must be auto or cpu where torch sees no CUDA device, got cuda"
        )
    if config.precision == "fp16" and not cuda:
        raise ValueError("train: precision must be 32 or bf16 on the CPU, got fp16")
    if config.sync_batchnorm and not cuda:
        raise ValueError("train: sync_batchnorm must be false on the CPU, got true")
    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=local_size,
        num_nodes=world_size // local_size,
        precision=_PRECISIONS[
            _native_bf16(cuda) if config.precision == "auto" else config.precision
        ],
        strategy=DDPStrategy(gradient_as_bucket_view=True) if world_size > 1 else "auto",
    )
    fabric.launch()
    if config.threads:
        torch.set_num_threads(config.threads)
    if not cuda:
        keep_freed_memory()
    return fabric


def _native_bf16(cuda: bool) -> str:
    """The precision that "auto" means: without instructions for it, bfloat16 is slower."""
    if cuda:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "32"


def memory_format(config: TrainConfig, device: torch.device) -> torch.memory_format:
    """The layout of weights and images that the config asks for."""
    if config.memory_format == "auto":
        return fastest_memory_format(device)
    return _LAYOUTS[config.memory_format]


def _torchrun_sizes() -> tuple[int, int]:
    """Processes in all, and on this machine."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    return world_size, int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size)))


def default_workers(config: TrainConfig, device: torch.device) -> int:
    """Processes that read images for one device.

    A GPU leaves the cores to them. On the CPU the training itself wants every core.
    """
    if config.workers >= 0:
        return config.workers
    cores = len(os.sched_getaffinity(0)) // _torchrun_sizes()[1]
    return max(1, min(8, cores - 1)) if device.type == "cuda" else int(cores > 2)


def leave_processes() -> None:
    """End the exchange with other processes: its threads may abort a process that exits."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def gather(fabric: Fabric, value: _T) -> list[_T]:
    """The values of all processes, by rank; any that can be pickled."""
    if fabric.world_size == 1:
        return [value]
    values: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(values, value)
    return values


class StopRequest:
    """Turns SIGINT and SIGTERM into a wish that the loop answers after the step at hand.

    A second SIGINT interrupts at once. Outside of the main thread, where Python takes no signal
    handlers, this does nothing.

    Attributes:
        received: number of the signal, 0 for none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._old: dict[int, Any] = {}

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
