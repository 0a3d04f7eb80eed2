# SPDX-License-Identifier: Apache-2.0
"""The parts of a data set: how they are called, in all forms of data sets alike."""

from pydet.data._problems import DatasetError

_ALIASES = {"val": ("val", "valid"), "valid": ("valid", "val")}


class SplitError(DatasetError):
    """A data set has no such part; the message names those that it has."""


def split_names(split: str) -> tuple[str, ...]:
    """The names that a part may have, the first that is there to be taken."""
    return _ALIASES.get(split, (split,))
