# SPDX-License-Identifier: Apache-2.0
"""Images a second and core: decoding, and all that a worker does to an image before the batch.

Of JPEG files in the folders that ``--images`` names, or of drawn ones. Beside torchvision's v2
transforms, plain Pillow and OpenCV, where they can be imported. All begin with a file's path and
end with a uint8 tensor; boxes go along in pydet's and torchvision's.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks._timing import Clock, paired_ratio, sample, summary
from benchmarks.bench_models import make_targets
from pydet.data import Compose, RandomHorizontalFlip, read_image
from pydet.data.augmentation import PhotometricDistortion, RandomIoUCrop, RandomZoomOut
from pydet.preprocessing import Preprocessing

Reader = Callable[[Path], Any]
_SHORT, _LONG = 800, 1333  # the training size of most detectors
_SSD = 300


def _draw(folder: Path, count: int) -> list[Path]:
    """JPEG files of 640 x 480 and 1920 x 1080 pixels: smooth shapes with the noise of a camera."""
    rng = np.random.default_rng(0)
    paths = []
    for index in range(count):
        width, height = ((640, 480), (1920, 1080))[index % 2]
        coarse = rng.integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth) + rng.normal(0, 4, (height, width, 3))
        paths.append(folder / f"{index}.jpg")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def _pydet() -> dict[str, Reader]:
    large = Preprocessing(size=_SHORT, max_size=_LONG)
    small = Preprocessing(resize="fixed", size=(_SSD, _SSD))
    flip = RandomHorizontalFlip()
    random = Compose([PhotometricDistortion(), RandomZoomOut(), RandomIoUCrop(), flip])
    target = make_targets(1, (300, 300), torch.device("cpu"))[0]
    return {
        "decode": read_image,
        "train": lambda path: large.resize_sample(*flip(read_image(path), target)),
        "train SSD": lambda path: small.resize_sample(*random(read_image(path), target)),
        "resize": lambda path: small.resize_sample(read_image(path)),
    }


def _torchvision() -> dict[str, Reader]:
    from torchvision import io, tv_tensors
    from torchvision.transforms import v2

    def read(path: Path) -> Tensor:
        return io.decode_image(str(path), io.ImageReadMode.RGB)

    def through(transform: Callable[..., Any]) -> Reader:
        objects = make_targets(1, (300, 300), torch.device("cpu"))[0]

        def call(path: Path) -> Any:
            image = tv_tensors.Image(read(path))
            boxes = tv_tensors.BoundingBoxes(
                objects["boxes"], format="XYXY", canvas_size=image.shape[-2:]
            )
            return transform(image, {"boxes": boxes, "labels": objects["labels"]})

        return call

    small = v2.Resize((_SSD, _SSD), antialias=True)
    flip = v2.RandomHorizontalFlip()
    large = v2.Resize(_SHORT, max_size=_LONG, antialias=True)
    random = [v2.RandomPhotometricDistort(), v2.RandomZoomOut(), v2.RandomIoUCrop(), flip, small]
    return {
        "decode": read,
        "train": through(v2.Compose([flip, large])),
        "train SSD": through(v2.Compose([*random, v2.SanitizeBoundingBoxes()])),
        "resize": lambda path: small(read(path)),
    }


def _to_tensor(image: Any) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _pillow() -> dict[str, Reader]:
    def read(path: Path) -> Any:
        return Image.open(path).convert("RGB")

    def large(path: Path) -> Tensor:
        image = read(path)
        scale = min(_SHORT / min(image.size), _LONG / max(image.size))
        size = (round(image.width * scale), round(image.height * scale))
        return _to_tensor(image.resize(size, Image.Resampling.BILINEAR))

    def small(path: Path) -> Tensor:
        return _to_tensor(read(path).resize((_SSD, _SSD), Image.Resampling.BILINEAR))

    return {"decode": lambda path: _to_tensor(read(path)), "train": large, "resize": small}


def _opencv() -> dict[str, Reader]:
    import cv2

    cv2.setNumThreads(1)

    def read(path: Path) -> Any:
        return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)

    def large(path: Path) -> Tensor:
        image = read(path)
        scale = min(_SHORT / min(image.shape[:2]), _LONG / max(image.shape[:2]))
        return _to_tensor(cv2.resize(image, None, fx=scale, fy=scale))

    def small(path: Path) -> Tensor:
        return _to_tensor(cv2.resize(read(path), (_SSD, _SSD), interpolation=cv2.INTER_AREA))

    return {"decode": lambda path: _to_tensor(read(path)), "train": large, "resize": small}


_TITLES = {
    "decode": "decode",
    "train": "decode, flip, resize to 800 (1333 at most)",
    "train SSD": "decode, light, zoom, crop, flip, resize to 300 x 300",
    "resize": "decode, resize to 300 x 300",
}


def _readers() -> dict[str, dict[str, Reader]]:
    found = {"pydet": _pydet()}
    for name, make in (("torchvision", _torchvision), ("Pillow", _pillow), ("OpenCV", _opencv)):
        try:
            found[name] = make()
        except (ImportError, RuntimeError, OSError):
            print(f"  {name} cannot be imported")
    return found


def _measure(source: str, paths: list[Path], seconds: float) -> list[dict[str, Any]]:
    results = []
    readers = _readers()
    for kind, title in _TITLES.items():
        calls = {
            name: lambda read=calls[kind]: [read(path) for path in paths]
            for name, calls in readers.items()
            if kind in calls
        }
        torch.manual_seed(0)
        samples = sample(calls, Clock(torch.device("cpu"), 1), seconds)
        times = {name: summary(values) for name, values in samples.items()}
        rates = {name: len(paths) / t["median_ms"] * 1e3 for name, t in times.items()}
        results.append(
            {
                "case": f"{source}: {title}",
                "threads": 1,
                "images_per_second": rates,
                "times": times,
                "times_faster_than": {
                    name: paired_ratio(values, samples["pydet"])
                    for name, values in samples.items()
                    if name != "pydet"
                },
            }
        )
        shown = ", ".join(f"{rate:.0f} {name}" for name, rate in rates.items())
        print(f"  {results[-1]['case']:<70} {shown} images/s", flush=True)
    return results


def run(device: torch.device, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures each source of images, with one thread, as a worker has it."""
    torch.set_num_threads(1)
    count, seconds = (2, 0.0) if args.quick else (16, 5 * args.seconds)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        sources = {"drawn": _draw(Path(folder), count)}
        for name in args.images:
            found = sorted(Path(name).glob("*.jp*g"))
            label = f"{Path(name).parent.name}/{Path(name).name}"
            sources[label] = found[:: max(len(found) // count, 1)][:count]
        for source, paths in sources.items():
            results += _measure(source, paths, seconds)
    return results
