# SPDX-License-Identifier: Apache-2.0
"""Paths that annotation files name: they may not leave the data set's folder."""

import os
from collections.abc import Callable
from pathlib import Path, PureWindowsPath

from pydet.data._problems import DatasetError

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
)


def native_name(folder: Path, name: str) -> str:
    """A path below ``folder`` with this machine's slashes, where it has those of Windows."""
    if "\\" in name and not os.path.exists(folder / name):
        return PureWindowsPath(name).as_posix()
    return name


def resolve_inside(folder: Path, name: str, *, may_link: bool = False) -> Path:
    """The path of ``name`` inside ``folder``.

    Annotation files come from strangers. A name that leads elsewhere, climbs out by ``..`` or
    reaches outside through a symbolic link would let them choose which files of this machine are
    read.

    Args:
        folder: The folder of the images; it may itself be a symbolic link.
        name: A path as an annotation file gives it: relative, with either kind of slash, or
            absolute.
        may_link: Whether the name itself may be a symbolic link that leads elsewhere.

    Raises:
        DatasetError: The name is empty or leads outside of the folder.
    """
    windows = PureWindowsPath(name)  # splits at both kinds of slash
    if not name or "\0" in name or windows.name in ("", ".", ".."):
        raise DatasetError(f"{name!r} is not a file name")
    absolute = Path(name).is_absolute()
    if ".." in windows.parts or (not absolute and (windows.drive or windows.root)):
        raise DatasetError(f"{name!r} leads outside of the data set's folder {folder}")
    path = folder / native_name(folder, name)  # the name alone, if it is absolute
    if not _is_below(folder, path, os.path.realpath) and not (
        may_link and _is_below(folder, path, os.path.abspath)
    ):
        through = "" if absolute else "is a link that "
        raise DatasetError(f"{name!r} {through}leads outside of the data set's folder {folder}")
    return path


def _is_below(folder: Path, path: Path, resolve: Callable[[Path], str]) -> bool:
    root = resolve(folder)
    return os.path.commonpath((root, resolve(path))) == root
