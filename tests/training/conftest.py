# SPDX-License-Identifier: Apache-2.0
"""A small data set of drawn objects, for tests that train."""

from pathlib import Path

import pytest

from pydet.data import write_synthetic_dataset


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """15 images of 48 pixels to train on, 5 to evaluate on; 6 classes."""
    return write_synthetic_dataset(
        tmp_path_factory.mktemp("drawn"),
        num_images=20,
        image_size=48,
        val_fraction=0.25,
        min_object_size=8,
        max_object_size=24,
    )
