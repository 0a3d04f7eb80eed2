# SPDX-License-Identifier: Apache-2.0
"""From a data set to the batches of one process."""

from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pydet.data import SeededView
from pydet.inference import start_worker
from pydet.preprocessing import Preprocessing
from pydet.structures import ImageBatch, PackedTargets, Target
from pydet.training.sampler import StreamBatchSampler

Sample = tuple[Tensor, Target]
Transform = Callable[[Tensor, Target], Sample]
Piece = tuple[ImageBatch, PackedTargets]
"""What a device computes at once: its share of a step, or with ``accumulate`` a part of that."""


def load_batches(
    dataset: Dataset[Sample],
    sampler: StreamBatchSampler,
    preprocessing: Preprocessing,
    transform: Transform | None,
    *,
    seed: int,
    workers: int,
    device: torch.device,
) -> Generator[Piece, None, None]:
    """Every batch that `sampler` names, in its order, on the CPU (pinned for a CUDA `device`).

    One generator serves all epochs, so the workers live as long as the training: until it is
    closed.

    Args:
        dataset: (image, target) pairs.
        sampler: which images make which batch.
        preprocessing: the model's: resizes each image in the worker and makes the batch. Where it
            is by the short side, images whose size a transform chose keep that.
        transform: random changes before it.
        seed: of the random changes; see `pydet.data.SeededView`.
        workers: processes that read; 0: this one.
        device: where the batches will go.
    """
    loader: DataLoader[Any] = DataLoader(
        SeededView(dataset, _Prepare(transform, preprocessing), seed),
        batch_sampler=sampler,
        collate_fn=preprocessing.collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=start_worker,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # its seeds must not come from the training's generator
    )
    yield from loader


class _Prepare:
    """What a worker does to a sample: the random changes, then the model's resizing."""

    def __init__(self, transform: Transform | None, preprocessing: Preprocessing) -> None:
        self.transform = transform
        self.resize = preprocessing.resize_sample
        self.any_size = preprocessing.resize == "short_side"

    def __call__(self, image: Tensor, target: Target) -> Sample:
        if self.transform is not None:
            image, target = self.transform(image, target)
        # What a later transform cut or enlarged has no chosen size any more.
        if self.any_size and target.get("sized") == tuple(image.shape[1:]):
            return image, target
        return self.resize(image, target)
