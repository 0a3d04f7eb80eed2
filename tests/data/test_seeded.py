# SPDX-License-Identifier: Apache-2.0
"""Samples that depend on seed, epoch and index, and on nothing else."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from pydet.data import SeededView, seeded


class Numbers(Dataset):
    """Samples without randomness of their own."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.full((3, 2, 2), index, dtype=torch.uint8), {"boxes": torch.zeros(0, 4)}


def add_noise(image, target):
    """Draws from all three generators, as transforms of different libraries do."""
    noise = torch.rand(()).item(), random.random(), np.random.rand()  # noqa: NPY002
    return image, {**target, "noise": torch.tensor(noise, dtype=torch.float64)}


KEYS = [(epoch, index) for epoch in range(3) for index in (4, 0, 5, 1, 3, 2)]


def noises(view, keys=KEYS, **options):
    loader = DataLoader(view, batch_size=None, sampler=keys, **options)
    return torch.stack([target["noise"] for _, target in loader])


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_processes_gives_the_same_samples(workers):
    view = SeededView(Numbers(), add_noise, seed=5)
    assert torch.equal(noises(view), noises(view, num_workers=workers))


def test_a_resumed_run_gives_the_samples_of_an_undisturbed_one():
    view = SeededView(Numbers(), add_noise, seed=5)
    whole = noises(view)
    torch.manual_seed(123)
    random.seed(9)
    assert torch.equal(noises(view, KEYS[7:]), whole[7:])


def test_seed_epoch_and_index_all_matter():
    seen = {
        tuple(SeededView(Numbers(), add_noise, seed)[(epoch, index)][1]["noise"].tolist())
        for seed in (0, 1, 2**64)
        for epoch in range(4)
        for index in range(6)
    }
    assert len(seen) == 3 * 4 * 6
    for column in zip(*seen, strict=True):  # each generator by itself
        assert len(set(column)) == 3 * 4 * 6


def state():
    numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002
    return torch.get_rng_state().tolist(), random.getstate(), numpy_state


def test_the_global_generators_are_left_as_they_were():
    before = state()
    SeededView(Numbers(), add_noise)[(0, 1)]
    assert state() == before
    with pytest.raises(RuntimeError, match="broken"), seeded(1, 2):
        torch.rand(3)
        raise RuntimeError("broken")
    assert state() == before


def test_no_transform_and_plain_indices():
    view = SeededView(Numbers())
    assert len(view) == 6
    assert int(view[3][0][0, 0, 0]) == int(view[(9, 3)][0][0, 0, 0]) == 3
    noisy = SeededView(Numbers(), add_noise)
    assert torch.equal(noisy[2][1]["noise"], noisy[(0, 2)][1]["noise"])


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        SeededView(Numbers(), seed=-1)
