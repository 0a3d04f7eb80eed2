# SPDX-License-Identifier: Apache-2.0
"""Paths that annotation files name: they may not leave the data set's folder."""

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from pydet.data._problems import DatasetError

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
)


def resolve_inside(folder: Path, name: str) -> Path:
    """The path of ``name`` inside ``folder``.

    Annotation files come from strangers. A name that is absolute, climbs out by ``..`` or reaches
    outside through a symbolic link would let them choose which files of this machine are read.

    Args:
        folder: The folder of the images; it may itself be a symbolic link.
        name: A relative path as an annotation file gives it, with either kind of slash.

    Raises:
        DatasetError: The name is empty or leads outside of the folder.
    """
    windows = PureWindowsPath(name)  # splits at both kinds of slash
    if not name or "\0" in name or windows.name in ("", ".", ".."):
        raise DatasetError(f"{name!r} is not a file name")
    if PurePosixPath(name).is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise DatasetError(f"{name!r} leads outside of the data set's folder {folder}")
    path = folder / name
    if not path.exists() and "\\" in name:
        path = folder.joinpath(*windows.parts)
    root = os.path.realpath(folder)
    if os.path.commonpath((root, os.path.realpath(path))) != root:
        raise DatasetError(
            f"{name!r} is a link that leads outside of the data set's folder {folder}"
        )
    return path
