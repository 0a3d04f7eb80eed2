# SPDX-License-Identifier: Apache-2.0
"""Which images make which step: one endless stream, cut into full batches.

The stream is the concatenation of one permutation of the images an epoch; step s sees the next
`batch_size` of it. So every batch is full, no image is left out or seen twice as often as another,
and a data set smaller than a batch works: the last batch of an epoch is filled from the next epoch.
A training's position is one number, the images seen so far: it stays meaningful when the batch
size, the number of devices or of epochs changes.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int]
"""(epoch, index): the image at `index` of the data set, with the augmentation of `epoch`."""


class ImageStream:
    """The order of the images, computed from (seed, epoch) and nothing else.

    Args:
        num_images: images of the data set, at least 1.
        seed: of the order, a new permutation each epoch.

    Raises:
        ValueError: no image.
    """

    def __init__(self, num_images: int, seed: int = 0) -> None:
        if num_images < 1:
            raise ValueError(
                f"ImageStream: num_images must be at least 1, got {num_images}: "
                "the data set to train on is empty"
            )
        self.num_images = num_images
        self.seed = seed
        self._order = lru_cache(maxsize=4)(self._compute_order)

    def _compute_order(self, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        # NumPy mixes the pair into one state, so neighbouring seeds and epochs are independent.
        generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        return generator.permutation(self.num_images)

    def keys(self, start: int, stop: int) -> list[Key]:
        """Keys at the positions `start` (included) to `stop` (excluded) of the stream."""
        keys = []
        for position in range(start, stop):
            epoch, place = divmod(position, self.num_images)
            keys.append((epoch, int(self._order(epoch)[place])))
        return keys


class StreamBatchSampler(Sampler[list[Key]]):
    """Batches of one process, for `torch.utils.data.DataLoader(batch_sampler=...)`.

    The step that begins at position p of the stream sees the positions p to p + `batch_size` - 1
    over all processes. Rank r takes every `world_size`-th of them, from the r-th on, in
    `accumulate` pieces that follow each other: whatever the number of processes and pieces, the
    images of a step are the same.

    Args:
        stream: the order of images.
        batch_size: images a step, over all processes and pieces.
        start: position of the first step.
        num_steps: steps to give.
        rank: this process, in [0, world_size).
        world_size: processes.
        accumulate: pieces a step and process.

    Raises:
        ValueError: `batch_size` cannot be divided evenly.
    """

    def __init__(
        self,
        stream: ImageStream,
        batch_size: int,
        *,
        start: int = 0,
        num_steps: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
    ) -> None:
        if batch_size % (world_size * accumulate):
            raise ValueError(
                f"train: batch_size must be a multiple of devices x accumulate "
                f"({world_size} x {accumulate}), got {batch_size}"
            )
        self.stream = stream
        self.batch_size = batch_size
        self.start = start
        self.num_steps = num_steps
        self.rank = rank
        self.world_size = world_size
        self.accumulate = accumulate

    def __len__(self) -> int:
        return self.num_steps * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.num_steps):
            for piece in range(self.accumulate):
                yield self.piece_keys(self.start + step * self.batch_size, piece)

    def piece_keys(self, position: int, piece: int) -> list[Key]:
        """Keys of this process's `piece` of the step that begins at `position`."""
        keys = self.stream.keys(position, position + self.batch_size)
        share = keys[self.rank :: self.world_size]
        size = len(share) // self.accumulate
        return share[piece * size : (piece + 1) * size]


def steps_left(position: int, num_images: int, epochs: int, batch_size: int) -> int:
    """Steps from `position` of the stream to the first full batch at or past the last epoch."""
    return max(0, -(-(epochs * num_images - position) // batch_size))
