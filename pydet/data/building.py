# SPDX-License-Identifier: Apache-2.0
"""Transforms from the tables of a config file."""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from pydet.data.augmentation import (
    PhotometricDistortion,
    RandomIoUCrop,
    RandomScaleJitter,
    RandomZoomOut,
)
from pydet.data.transforms import (
    Compose,
    RandomHorizontalFlip,
    RandomVerticalFlip,
    ResizeFixed,
    ResizeShortSide,
)

TRANSFORMS: dict[str, type] = {
    "photometric_distortion": PhotometricDistortion,
    "random_horizontal_flip": RandomHorizontalFlip,
    "random_iou_crop": RandomIoUCrop,
    "random_scale_jitter": RandomScaleJitter,
    "random_vertical_flip": RandomVerticalFlip,
    "random_zoom_out": RandomZoomOut,
    "resize_fixed": ResizeFixed,
    "resize_short_side": ResizeShortSide,
}


def build_transform(specs: Sequence[Mapping[str, Any]]) -> Compose:
    """Makes a transform out of tables such as ``{"name": "random_horizontal_flip", "p": 0.5}``.

    Args:
        specs: One table for each transform, in order: ``name`` and the arguments of its class.

    Raises:
        ValueError: An unknown name or argument, or a value that the transform refuses; the message
            says which table it is and what there is.
    """
    transforms = []
    for i, spec in enumerate(specs):
        name = spec.get("name")
        if name not in TRANSFORMS:
            near = difflib.get_close_matches(str(name), TRANSFORMS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"build_transform: specs[{i}]: name must be a known transform, got {name!r}; {hint}"
                f"known are {', '.join(TRANSFORMS)}"
            )
        arguments = {key: value for key, value in spec.items() if key != "name"}
        accepted = list(inspect.signature(TRANSFORMS[name]).parameters)
        for key in arguments:
            if key not in accepted:
                raise ValueError(
                    f"build_transform: specs[{i}]: {name} must have arguments among "
                    f"{', '.join(accepted)}, got {key!r}"
                )
        try:
            transforms.append(TRANSFORMS[name](**arguments))
        except (TypeError, ValueError) as error:
            raise ValueError(f"build_transform: specs[{i}]: {name}: {error}") from error
    return Compose(transforms)
