# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or absent.

A file is written under a temporary name in the same folder, flushed to the disk, and renamed over
the old one: a process killed at any moment leaves the old file or the new one.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path to write; rename it to `path` when the block ends without an error.

    The file is on the disk before it gets its name, and the name before the block's end returns.

    Raises:
        OSError: the disk is full, the folder cannot be written; the old file is untouched.
    """
    # The suffix stays the last one: writers such as NumPy's and matplotlib's look at it.
    temporary = path.with_name(f".{path.stem}.tmp-{os.getpid()}{path.suffix}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files that a killed process left behind."""
    for leftover in folder.glob(".*.tmp-*"):
        leftover.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
