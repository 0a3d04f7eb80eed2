# SPDX-License-Identifier: Apache-2.0
"""Random transforms whose results do not depend on which process computes them, or when."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pydet.data.transforms import Transform
from pydet.structures import Target


class SeededView(Dataset[tuple[Tensor, Target]]):
    """A data set whose sample of an epoch is always the same, whoever asks for it.

    ``view[(epoch, index)]`` seeds the global generators of torch (CPU), Python and NumPy from
    (seed, epoch, index), reads and transforms the sample, and puts the generators back as they
    were. So a run gives the same samples with any number of workers, after any resume, and drawing
    them does not disturb what else is random. ``view[index]`` is ``view[(0, index)]``.

    Args:
        dataset: Anything with ``len`` and ``dataset[i] -> (image, target)``.
        transform: A callable (image, target) -> (image, target), or None.
        seed: Any whole number of at least 0.
    """

    def __init__(
        self,
        dataset: Dataset[tuple[Tensor, Target]],
        transform: Transform | None = None,
        seed: int = 0,
    ) -> None:
        if seed < 0:
            raise ValueError(f"SeededView: seed must be at least 0, got {seed}")
        self.dataset = dataset
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: tuple[int, int] | int) -> tuple[Tensor, Target]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        with seeded(self.seed, epoch, index):
            image, target = self.dataset[index]
            if self.transform is not None:
                image, target = self.transform(image, target)
        return image, target


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Seeds the global CPU generators of torch, Python and NumPy, and restores them at the end.

    Generators of GPUs are left alone: ``torch.manual_seed`` would reset them too, for instance that
    of a dropout layer in the process that loads the data.

    Args:
        entropy: Whole numbers of at least 0 that the seeds are made of; different ones give
            independent streams.
    """
    seeds = np.random.SeedSequence(entropy).generate_state(3, dtype=np.uint64)
    torch_state = torch.default_generator.get_state()
    python_state = random.getstate()
    numpy_state: Any = np.random.get_state()  # noqa: NPY002 (transforms of others draw from it)
    torch.default_generator.manual_seed(int(seeds[0]) >> 1)
    random.seed(int(seeds[1]))
    np.random.seed(int(seeds[2]) % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        torch.default_generator.set_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
