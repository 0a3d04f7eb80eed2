# SPDX-License-Identifier: Apache-2.0
"""Images in all the forms in which a caller of `pydet.inference.detect` may have them."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from pydet.data._problems import ImageError
from pydet.data.image import pixels, read_image
from pydet.preprocessing import _check_image

ImageSource = Tensor | np.ndarray[Any, Any] | Image.Image | str | os.PathLike[str]


def as_list(images: ImageSource | Sequence[ImageSource]) -> Sequence[Any]:
    """The images, also where it is one; what they are, :func:`read` looks at.

    Raises:
        TypeError: No image, and no sequence.
    """
    if isinstance(images, Tensor):
        return list(images) if images.dim() == 4 else [images]
    if isinstance(images, np.ndarray | Image.Image | str | os.PathLike):
        return [images]
    if not isinstance(images, Sequence):
        raise TypeError(
            f"detect: images must be an image or a sequence of images, got {type(images).__name__}"
        )
    return images


def read(source: Any, name: str) -> Tensor:
    """An image [3, H, W] of whatever it is given as; ``name`` is for messages.

    Raises:
        TypeError: No image, or one of another dtype.
        ValueError: Another shape.
        ImageError: A file that is no image, or an image without a defined range.
    """
    if isinstance(source, Tensor):
        _check_image("detect", name, source)
        return source
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8:
            raise TypeError(f"detect: {name} must be uint8 if it is an array, got {source.dtype}")
        if source.ndim != 3 or source.shape[2] != 3 or not source.size:
            raise ValueError(
                f"detect: {name} must have shape [H, W, 3] if it is an array, "
                f"got {list(source.shape)}"
            )
        return pixels(source)
    if isinstance(source, Image.Image):
        try:
            return pixels(source)
        except (OSError, ValueError) as error:
            raise ImageError(f"detect: {name} cannot be used: {error}") from error
    if isinstance(source, str | os.PathLike):
        return read_image(source)
    raise TypeError(
        f"detect: {name} must be a tensor [3, H, W], an array [H, W, 3], an image of Pillow or a "
        f"path, got {type(source).__name__}"
    )
