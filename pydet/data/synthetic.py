# SPDX-License-Identifier: Apache-2.0
"""A data set of drawn objects, for the demo and for tests that train."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

CLASS_NAMES = ("circle", "square", "triangle", "star", "cross", "ring")
_TYPICAL_COLORS = (  # RGB, one a class
    (220, 60, 50),
    (50, 90, 220),
    (60, 190, 80),
    (235, 205, 60),
    (200, 70, 200),
    (70, 205, 215),
)

_OVERSAMPLING = 3  # shapes are drawn this much larger and scaled down, for smooth edges
_MIN_VISIBLE = 0.6  # least part of an object that later objects must leave visible
_TRIES = 30  # places that are tried for an object


def write_synthetic_dataset(
    path: str | os.PathLike[str],
    num_images: int = 600,
    image_size: int = 256,
    seed: int = 0,
    *,
    val_fraction: float = 0.2,
    max_objects: int = 8,
    min_object_size: int = 20,
    max_object_size: int = 112,
    max_turn: float = 180.0,
    typical_colors: bool = False,
) -> Path:
    """Draws images of objects and writes them with COCO annotations.

    Objects of six classes (circle, square, triangle, star, cross, ring) of many sizes, turned by
    some angle, in any colour, partly over each other and over the border, on backgrounds of
    gradients, stripes, blotches and noise with lines that belong to no object. A box is the
    smallest around the whole shape inside of the image, also where other objects hide parts of it;
    at least 60 % of a shape stay visible. ``area`` counts the visible pixels.

    Written are ``annotations/instances_train.json``, ``annotations/instances_val.json`` and the
    folders ``train`` and ``val`` with JPEG files: :func:`pydet.data.open_dataset` reads them by
    ``split``. The same arguments give the same annotations and pixels; each image depends on
    ``seed`` and its own number only.

    Args:
        path: Folder to write into; made if it is not there.
        num_images: Images of both splits together.
        image_size: Pixels of the longer side; the shorter has 3/4 to all of it.
        seed: Any whole number of at least 0.
        val_fraction: Part of the images that goes to ``val``.
        max_objects: Most objects of an image; the least is none (one image in fifty), else one.
        min_object_size: Least diameter of an object, pixels.
        max_object_size: Largest diameter of an object, pixels.
        max_turn: Largest angle by which an object is turned from upright, degrees to either side.
        typical_colors: Whether objects of a class have similar colours, as things in photographs
            do: an easier data set, which a small network learns in minutes.

    Returns:
        The folder.
    """
    if num_images < 1 or not 0 <= val_fraction <= 1:
        raise ValueError(
            "write_synthetic_dataset: num_images must be positive and val_fraction in [0, 1], "
            f"got {num_images}, {val_fraction}"
        )
    if not 4 <= min_object_size <= max_object_size <= image_size:
        raise ValueError(
            "write_synthetic_dataset: sizes must obey 4 <= min_object_size <= max_object_size <= "
            f"image_size, got {min_object_size}, {max_object_size}, {image_size}"
        )
    root = Path(path)
    num_val = round(num_images * val_fraction)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for split, first, last in (
        ("train", 0, num_images - num_val),
        ("val", num_images - num_val, num_images),
    ):
        (root / split).mkdir(exist_ok=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(first, last):
            rng = np.random.default_rng((seed, number))
            sizes = (min_object_size, max_object_size)
            painter = _Painter(rng, image_size, max_objects, sizes, max_turn, typical_colors)
            picture, objects = painter.paint()
            name = f"{number:06d}.jpg"
            picture.save(root / split / name, quality=92)
            images.append(
                {
                    "id": number + 1,
                    "file_name": name,
                    "width": picture.width,
                    "height": picture.height,
                }
            )
            for item in objects:
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": number + 1, "iscrowd": 0, **item}
                )
        data = {
            "info": {"description": "drawn objects", "seed": seed},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": k, "name": name} for k, name in enumerate(CLASS_NAMES, start=1)],
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(data))
    return root


class _Painter:
    """Paints one image."""

    def __init__(
        self,
        rng: np.random.Generator,
        image_size: int,
        max_objects: int,
        object_sizes: tuple[int, int],
        max_turn: float = 180.0,
        typical_colors: bool = False,
    ) -> None:
        self.rng = rng
        short = int(image_size * rng.uniform(0.75, 1.0))
        self.width, self.height = (image_size, short) if rng.random() < 0.5 else (short, image_size)
        self.num_objects = 0 if rng.random() < 0.02 else int(rng.integers(1, max_objects + 1))
        self.object_sizes = object_sizes
        self.max_turn = max_turn
        self.typical_colors = typical_colors

    def paint(self) -> tuple[Image.Image, list[dict[str, Any]]]:
        """The picture, and its objects as COCO annotations without ids."""
        canvas = _paint_background(self.rng, self.height, self.width)
        owner = np.full((self.height, self.width), -1, dtype=np.int16)  # which object a pixel shows
        totals: list[int] = []
        objects: list[dict[str, Any]] = []
        for _ in range(self.num_objects):
            label = int(self.rng.integers(len(CLASS_NAMES)))
            placed = self._place(label, owner, totals)
            if placed is None:
                continue
            top, left, mask = placed
            rows, columns = slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1])
            solid = mask >= 128
            owner[rows, columns][solid] = len(totals)
            totals.append(int(solid.sum()))
            self._color(canvas[rows, columns], mask, label)
            ys, xs = np.nonzero(solid)
            x1, y1 = left + int(xs.min()), top + int(ys.min())
            width, height = int(xs.max() - xs.min()) + 1, int(ys.max() - ys.min()) + 1
            objects.append({"category_id": label + 1, "bbox": [x1, y1, width, height]})
        for number, item in enumerate(objects):
            item["area"] = int((owner == number).sum())
        canvas += self.rng.normal(0.0, self.rng.uniform(1.0, 8.0), canvas.shape)
        return Image.fromarray(canvas.clip(0, 255).astype(np.uint8)), objects

    def _place(
        self, label: int, owner: NDArray[np.int16], totals: Sequence[int]
    ) -> tuple[int, int, NDArray[np.uint8]] | None:
        """Top, left and mask of a shape, cut at the border; None if no place for it was found."""
        low, high = self.object_sizes
        # As many objects in each octave of sizes, so that small ones are not drowned by large ones.
        diameter = math.exp(self.rng.uniform(math.log(low), math.log(high)))
        whole = _draw_shape(CLASS_NAMES[label], diameter, self.rng, self.max_turn)
        size = whole.shape[0]
        for _ in range(_TRIES):
            top = int(self.rng.integers(-size // 5, self.height - size * 4 // 5 + 1))
            left = int(self.rng.integers(-size // 5, self.width - size * 4 // 5 + 1))
            y1, x1 = max(0, top), max(0, left)
            y2, x2 = min(self.height, top + size), min(self.width, left + size)
            mask = whole[y1 - top : y2 - top, x1 - left : x2 - left]
            solid = mask >= 128
            if solid.sum() < 0.75 * (whole >= 128).sum():
                continue
            hidden = np.where(solid, -1, owner[y1:y2, x1:x2])
            touched = np.unique(owner[y1:y2, x1:x2][solid])
            if all(
                n < 0
                or self._visible(owner, hidden, (y1, y2, x1, x2), n) >= _MIN_VISIBLE * totals[n]
                for n in touched
            ):
                return y1, x1, mask
        return None

    @staticmethod
    def _visible(
        owner: NDArray[np.int16],
        inside: NDArray[np.int16],
        window: tuple[int, int, int, int],
        number: int,
    ) -> int:
        """Pixels of an object that still show when ``inside`` replaces a window of ``owner``."""
        y1, y2, x1, x2 = window
        before = int((owner[y1:y2, x1:x2] == number).sum())
        return int((owner == number).sum()) - before + int((inside == number).sum())

    def _color(self, window: NDArray[np.float32], mask: NDArray[np.uint8], label: int) -> None:
        """Paints a shape in a shaded colour: of its class, or unlike what is below it."""
        rng = self.rng
        alpha = (mask.astype(np.float32) / 255)[..., None]
        below = window[mask >= 128].mean(axis=0)
        color = rng.uniform(0, 255, 3)
        for _ in range(20):
            if np.abs(color - below).max() > 70:
                break
            color = rng.uniform(0, 255, 3)
        if self.typical_colors:
            color = np.clip(np.array(_TYPICAL_COLORS[label]) + rng.uniform(-35, 35, 3), 0, 255)
        height, width = mask.shape
        angle = rng.uniform(0, 2 * math.pi)
        ramp = (
            math.cos(angle) * np.linspace(-1, 1, width)[None, :]
            + math.sin(angle) * np.linspace(-1, 1, height)[:, None]
        )
        shade = 1 + rng.uniform(0.0, 0.25) * ramp[..., None]
        window += alpha * (color * shade - window)


def _paint_background(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """[height, width, 3], 0..255."""
    start, end = rng.uniform(30, 225, 3), rng.uniform(30, 225, 3)
    angle = rng.uniform(0, 2 * math.pi)
    x, y = np.arange(width)[None, :] / width, np.arange(height)[:, None] / height
    along = math.cos(angle) * x + math.sin(angle) * y  # in [-1.42, 1.42]
    kind = rng.integers(4)
    if kind == 0:  # gradient
        weight = (along + 1.42) / 2.84
    elif kind == 1:  # stripes
        weight = 0.5 + 0.5 * np.sin(along * rng.uniform(15, 70))
        end = start + (end - start) * 0.4
    elif kind == 2:  # blotches
        coarse = rng.uniform(0, 255, (int(rng.integers(3, 9)), int(rng.integers(3, 9))))
        blown_up = Image.fromarray(coarse.astype(np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        weight = np.asarray(blown_up, dtype=np.float64) / 255
    else:  # checkerboard
        cell = rng.uniform(12, 60)
        tiles = np.floor(np.arange(width)[None, :] / cell) + np.floor(
            np.arange(height)[:, None] / cell
        )
        weight = tiles % 2
        end = start + (end - start) * 0.3
    canvas = (start + weight[..., None] * (end - start)).astype(np.uint8)
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(0, 7))):  # lines that are no object
        ends = [(int(rng.integers(width)), int(rng.integers(height))) for _ in range(2)]
        color = tuple(int(v) for v in rng.integers(0, 256, 3))
        draw.line(ends, fill=color, width=int(rng.integers(1, 4)))
    if rng.random() < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.5)))
    return np.asarray(picture).astype(np.float32)


def _draw_shape(
    name: str, diameter: float, rng: np.random.Generator, max_turn: float = 180.0
) -> NDArray[np.uint8]:
    """[S, S] coverage 0..255 of a shape, turned by a random angle, S = diameter rounded up."""
    size = math.ceil(diameter)
    large = size * _OVERSAMPLING
    center, radius = large / 2, diameter * _OVERSAMPLING / 2
    # Upright: the first corner of a shape points up.
    turn = math.radians(rng.uniform(-max_turn, max_turn) - 90)
    image = Image.new("L", (large, large))
    draw = ImageDraw.Draw(image)

    def polygon(corners: Sequence[tuple[float, float]]) -> None:
        """Fills a polygon of (angle, radius) corners; radius 1 is half the diameter."""
        draw.polygon(
            [
                (
                    center + radius * r * math.cos(turn + angle),
                    center + radius * r * math.sin(turn + angle),
                )
                for angle, r in corners
            ],
            fill=255,
        )

    def disc(r: float, value: int) -> None:
        draw.ellipse([center - r, center - r, center + r, center + r], fill=value)

    if name == "circle":
        disc(radius, 255)
    elif name == "ring":
        disc(radius, 255)
        disc(radius * rng.uniform(0.45, 0.65), 0)
    elif name == "square":
        polygon([(math.pi / 4 + i * math.pi / 2, 1.0) for i in range(4)])
    elif name == "triangle":
        polygon([(i * 2 * math.pi / 3, 1.0) for i in range(3)])
    elif name == "star":
        polygon([(i * math.pi / 5, 1.0 if i % 2 == 0 else 0.42) for i in range(10)])
    elif name == "cross":
        half = rng.uniform(0.22, 0.34)  # half the width of an arm
        arm, inner = (math.sqrt(1 - half**2), half), (half, half)
        corners = []
        for i in range(4):
            for x, y in ((arm[0], -arm[1]), arm, inner):
                corners.append((i * math.pi / 2 + math.atan2(y, x), math.hypot(x, y)))
        polygon(corners)
    else:
        raise ValueError(f"unknown shape {name!r}")
    return np.asarray(image.resize((size, size), Image.Resampling.BOX))
