# SPDX-License-Identifier: Apache-2.0
"""Balanced samples: counts and fractions by their rule, each subset as likely as any other."""

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pydet.sampling import sample_balanced

FOREGROUND, BACKGROUND, NEITHER = 1, 0, -1


def kinds(max_images=3, max_items=30):
    """Images of one number of items, each foreground, background or neither."""
    item = st.sampled_from([FOREGROUND, BACKGROUND, NEITHER])
    return st.integers(0, max_items).flatmap(
        lambda num: st.lists(
            st.lists(item, min_size=num, max_size=num), min_size=1, max_size=max_images
        )
    )


def draw(images, count, fraction, seed=0, device="cpu"):
    kind = torch.tensor(images, dtype=torch.int64, device=device).reshape(len(images), -1)
    torch.manual_seed(seed)
    return sample_balanced(kind == FOREGROUND, kind == BACKGROUND, count, fraction)


@given(kinds(), st.integers(1, 20), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(0, 99))
def test_counts_are_those_of_the_rule(images, count, fraction, seed):
    samples = draw(images, count, fraction, seed)
    for b, items in enumerate(images):
        num_fg = min(items.count(FOREGROUND), int(count * fraction))
        num_bg = min(items.count(BACKGROUND), count - num_fg)
        taken = samples.taken[b].tolist()
        assert taken == [place < num_fg + num_bg for place in range(len(taken))]
        assert samples.foreground[b].tolist() == [place < num_fg for place in range(len(taken))]
        drawn = samples.idxs[b, : num_fg + num_bg].tolist()
        assert len(set(drawn)) == len(drawn)
        assert [items[i] for i in drawn] == [FOREGROUND] * num_fg + [BACKGROUND] * num_bg
        assert samples.idxs.shape == (len(images), min(count, len(items)))


def test_every_subset_is_equally_likely():
    """Chi-squared over the 6 · 10 pairs of subsets of 2 of 4 and 3 of 5; 59 degrees of freedom."""
    items = [FOREGROUND, BACKGROUND, NEITHER] * 4 + [BACKGROUND]
    images = [items] * 6000
    samples = draw(images, 5, 0.4)
    assert samples.taken.all()
    found = Counter((frozenset(row[:2]), frozenset(row[2:])) for row in samples.idxs.tolist())
    pairs = [
        (frozenset(fg), frozenset(bg))
        for fg in itertools.combinations([0, 3, 6, 9], 2)
        for bg in itertools.combinations([1, 4, 7, 10, 12], 3)
    ]
    assert len(pairs) == 60
    assert set(found) == set(pairs)
    statistic = sum((found[pair] - 100) ** 2 / 100 for pair in pairs)
    assert 30 < statistic < 98  # the middle 99.8 %


def test_images_are_drawn_apart(device):
    samples = draw([[BACKGROUND] * 100] * 4, 10, 0.5, device=device)
    assert len({tuple(row) for row in samples.idxs.tolist()}) == 4


def test_seed_repeats_the_draw(device):
    images = [[FOREGROUND, BACKGROUND, NEITHER] * 50] * 3
    first, again, other = (draw(images, 20, 0.25, seed, device) for seed in (3, 3, 4))
    assert torch.equal(first.idxs, again.idxs)
    assert not torch.equal(first.idxs, other.idxs)


def test_items_at_the_end_change_nothing():
    items = [FOREGROUND, BACKGROUND] * 20
    fewer, more = draw([items] * 3, 10, 0.5), draw([items + [NEITHER] * 17] * 3, 10, 0.5)
    assert torch.equal(fewer.idxs, more.idxs)


@pytest.mark.parametrize("count", [1, 7, 512])
def test_no_items(count):
    samples = draw([[], []], count, 0.25)
    assert samples.idxs.shape == samples.taken.shape == (2, 0)
