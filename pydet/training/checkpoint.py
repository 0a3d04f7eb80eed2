# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: all that a training needs to go on as if it had never stopped.

They hold tensors and plain Python values only and are read with ``weights_only=True``: reading one
runs no code of its author's.
"""

import os
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pydet._files import atomic_path

FORMAT = 1
"""Version of the checkpoints' layout; raised when an old one cannot be read any more."""

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class CheckpointError(Exception):
    """A checkpoint that is damaged, of another kind, or does not fit this training."""


def save_checkpoint(folder: Path, state: dict[str, Any], *, again: bool = False) -> None:
    """Write ``last.ckpt`` in `folder`; the one before is kept as ``previous.ckpt``.

    If it is written `again`, at the same step, it takes the place of ``last.ckpt`` alone.

    At every moment at least one of the two is a whole checkpoint; where the file system has hard
    links, ``last.ckpt`` itself never goes missing.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    with atomic_path(last) as temporary:
        torch.save({"format": FORMAT, **state}, temporary)
        if last.exists() and not again:
            # A second name for the old file, moved over the older one: `last` never goes missing.
            link = folder / f".{PREVIOUS}.tmp-{os.getpid()}"
            link.unlink(missing_ok=True)
            try:
                os.link(last, link)
            except OSError:  # a file system without hard links
                os.replace(last, link)
            os.replace(link, previous)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU, after checking that every byte is as it was written.

    Raises:
        CheckpointError: damaged, cut short, or no checkpoint of a training.
        OSError: it cannot be read at all.
    """
    other = path.with_name(PREVIOUS if path.name == LAST else LAST)
    hint = f"; the one before it is kept: --resume-from {other}" if other.is_file() else ""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint{hint}")
    try:
        # torch's reader checks no checksum; the container is a zip file with one for each record.
        with zipfile.ZipFile(path) as container:
            damaged = container.testzip()
        if damaged is not None:
            raise CheckpointError(f"{path}: the checkpoint is damaged ({damaged}){hint}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes make zip, pickle and torch raise nearly anything
        reason = str(error).strip().split("\n")[0][:200]
        raise CheckpointError(f"{path}: the checkpoint is damaged ({reason}){hint}") from error
    if not isinstance(state, dict) or "format" not in state or "position" not in state:
        raise CheckpointError(f"{path}: the file is no checkpoint of a training")
    if state["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: the checkpoint has layout {state['format']}, this pydet reads {FORMAT}"
        )
    return state


def seed_everything(seed: int) -> None:
    """Seed torch (all devices), NumPy and Python, as at the start of a training."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the legacy generator that transforms may use
    random.seed(seed)


def rng_state() -> dict[str, Any]:
    """States of torch's (CPU and CUDA), NumPy's and Python's global generators, as plain values."""
    name, keys, place, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": (str(name), np.asarray(keys).tolist(), int(place), int(has_gauss), float(cached)),
        "python": random.getstate(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` gave; CUDA states only where the number of devices is the same."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, place, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), place, has_gauss, cached))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
