# SPDX-License-Identifier: Apache-2.0
"""Image files as tensors."""

import os
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, TiffImagePlugin
from torch import Tensor

from pydet.data._problems import ImageError

_ORIENTATION = 0x0112  # EXIF tag; 1 is upright, 2 to 8 are turned or mirrored
_SWAPS_SIDES = frozenset((5, 6, 7, 8))
_WHITE = (255, 255, 255)


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """Decodes an image file to RGB, upright.

    The EXIF orientation is applied. Grey and palette images become RGB. 16-bit grey is scaled by
    255/65535, not clipped. Transparent pixels (RGBA, grey with alpha, palette or colour key) are
    laid over white, as a browser shows them. CMYK, YCbCr and Lab are converted by Pillow without a
    colour profile. Of a file with several frames the first one is read.

    Args:
        path: A file in any format that Pillow reads.

    Returns:
        [3, H, W] uint8, in the order of the file: the three values of a pixel lie together
        (``image.permute(1, 2, 0)`` is contiguous), which is what resizing is fastest with.

    Raises:
        FileNotFoundError: No such file.
        ImageError: The file is not an image, is damaged or cut off, holds pixels without a defined
            range (floating point), or is so large that it must be taken for a decompression bomb
            (more than twice ``PIL.Image.MAX_IMAGE_PIXELS``). The message names the file.
    """
    try:
        with Image.open(path) as image:
            return pixels(_to_rgb(_upright(image)))
    except (FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:  # decoders raise whatever they like on damaged files
        raise ImageError(f"read_image: {os.fspath(path)} cannot be decoded: {error}") from error


def pixels(image: Image.Image | np.ndarray[Any, Any]) -> Tensor:
    """The pixels of an image in memory.

    Args:
        image: [H, W, 3] uint8 RGB, or an image of Pillow: made RGB as :func:`read_image` does, but
            not turned upright.

    Returns:
        [3, H, W] uint8, a copy; the three values of a pixel lie together.
    """
    # Pillow makes a copy, too (its memory has four bytes a pixel), but not one to write to.
    rgb = _to_rgb(image) if isinstance(image, Image.Image) else image
    return torch.from_numpy(np.array(rgb, order="C")).permute(2, 0, 1)


def read_image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width of the upright image, read from the file's head without decoding a pixel.

    Raises:
        FileNotFoundError: No such file.
        ImageError: The file is not an image or too large, as for :func:`read_image`.
    """
    try:
        with Image.open(path) as image:
            width, height = _stored_size(image)
            # PNG may keep EXIF after the pixels, and PngImageFile.getexif would decode them to find
            # it; the base class takes what the head gave.
            swaps = _orientation(Image.Image.getexif(image)) in _SWAPS_SIDES
        return (width, height) if swaps else (height, width)
    except (FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(f"read_image_size: {os.fspath(path)} is no image: {error}") from error


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height before the orientation is applied."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Newer versions of Pillow give the upright size of TIFF files, and of no others.
        tags = image.tag_v2
        return int(tags[TiffImagePlugin.IMAGEWIDTH]), int(tags[TiffImagePlugin.IMAGELENGTH])
    return image.size


def _orientation(exif: Image.Exif) -> int:
    value: Any = exif.get(_ORIENTATION, 1)
    return value if isinstance(value, int) else 1


def _upright(image: Image.Image) -> Image.Image:
    if _orientation(image.getexif()) in range(2, 9):  # exif_transpose copies even an upright image
        return ImageOps.exif_transpose(image)
    return image


def _to_rgb(image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[H, W, 3]."""
    mode = image.mode
    if mode == "I" or mode.startswith("I;"):
        grey = _scale_16_bit(np.asarray(image))
        return np.broadcast_to(grey[..., None], (*grey.shape, 3))
    if mode == "F":
        raise ValueError("its pixels are floating point, which has no defined white")
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        opaque = Image.new("RGB", rgba.size, _WHITE)
        opaque.paste(rgba, mask=rgba.getchannel("A"))
        return np.asarray(opaque)
    return np.asarray(image if mode == "RGB" else image.convert("RGB"))


def _scale_16_bit(grey: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    low, high = (int(grey.min()), int(grey.max())) if grey.size else (0, 0)
    if low < 0 or high > 65535:
        raise ValueError(f"its grey pixels lie in {low}..{high}, outside of 0..65535")
    # 65535 = 257 * 255, so this rounds value * 255 / 65535 to the nearest integer.
    return ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)
