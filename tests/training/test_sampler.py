# SPDX-License-Identifier: Apache-2.0
"""The stream of images and its batches."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydet.training.sampler import ImageStream, StreamBatchSampler, steps_left


@given(st.integers(1, 50), st.integers(0, 5), st.integers(1, 4))
def test_each_epoch_has_each_image_once(num_images, seed, epochs):
    keys = ImageStream(num_images, seed).keys(0, epochs * num_images)
    assert Counter(keys) == {(e, i): 1 for e in range(epochs) for i in range(num_images)}


def test_orders_differ_by_epoch_and_seed_and_repeat():
    def order(seed, epoch):
        return tuple(i for _, i in ImageStream(40, seed).keys(40 * epoch, 40 * epoch + 40))

    assert len({order(0, 0), order(0, 1), order(1, 0), order(1, 1)}) == 4
    assert order(3, 2) == order(3, 2)


@given(
    num_images=st.integers(1, 30),
    world_size=st.integers(1, 4),
    accumulate=st.integers(1, 3),
    per_piece=st.integers(1, 3),
    start=st.integers(0, 100),
)
def test_the_images_of_a_step_do_not_depend_on_processes_and_pieces(
    num_images, world_size, accumulate, per_piece, start
):
    stream = ImageStream(num_images, 1)
    batch_size = world_size * accumulate * per_piece
    num_steps = 4
    ranks = [
        list(
            StreamBatchSampler(
                stream, batch_size, start=start, num_steps=num_steps, rank=rank,
                world_size=world_size, accumulate=accumulate,
            )
        )
        for rank in range(world_size)
    ]  # fmt: skip
    for step in range(num_steps):
        pieces = [rank[step * accumulate + i] for rank in ranks for i in range(accumulate)]
        assert {len(piece) for piece in pieces} == {per_piece}
        begin = start + step * batch_size
        expected = stream.keys(begin, begin + batch_size)
        assert sorted(key for piece in pieces for key in piece) == sorted(expected)
    assert all(len(rank) == num_steps * accumulate for rank in ranks)


@given(st.integers(0, 300), st.integers(1, 50), st.integers(1, 5), st.integers(1, 20))
def test_the_last_step_is_the_first_at_or_past_the_end(position, num_images, epochs, batch_size):
    steps = steps_left(position, num_images, epochs, batch_size)
    assert position + steps * batch_size >= epochs * num_images
    assert steps == 0 or position + (steps - 1) * batch_size < epochs * num_images


def test_what_cannot_be_divided_is_refused():
    with pytest.raises(ValueError, match=r"multiple of devices x accumulate \(2 x 3\), got 8"):
        StreamBatchSampler(ImageStream(9), 8, num_steps=1, world_size=2, accumulate=3)
    with pytest.raises(ValueError, match="the data set to train on is empty"):
        ImageStream(0)
