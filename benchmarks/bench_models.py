# SPDX-License-Identifier: Apache-2.0
"""One training step and one detection of each registered detector: the share of its layers.

What is neither a convolution nor a normalisation, an activation, pooling or a linear layer is
pydet's own part: making the batch, targets, losses, decoding, suppression, the optimiser. On the
CPU it should be under 5 %. Weights are laid out, and freed memory is kept, as pydet's commands do.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import pydet
from benchmarks._profile import REST, profile_call
from pydet.models import Detector, fastest_memory_format
from pydet.structures import Target

_CLASSES, _OBJECTS = 80, 20
_LONG = 5.0  # seconds


def make_targets(
    count: int, size: tuple[int, int], device: torch.device, classes: int = _CLASSES
) -> list[Target]:
    """`_OBJECTS` boxes an image, sides 10 to 200 pixels."""
    generator = torch.Generator().manual_seed(0)
    targets = []
    for _ in range(count):
        sides = 10 * 20 ** torch.rand(_OBJECTS, 2, generator=generator)
        space = (torch.tensor([size[1], size[0]]) - sides).clamp(min=0)
        corners = torch.rand(_OBJECTS, 2, generator=generator) * space
        targets.append(
            Target(
                boxes=torch.cat([corners, corners + sides], 1).to(device),
                labels=torch.randint(0, classes, (_OBJECTS,), generator=generator).to(device),
            )
        )
    return targets


def training_step(model: torch.nn.Module, images: Any, targets: Any) -> Callable[[], None]:
    """A step of SGD with momentum, in the version that pydet's training takes."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-6, momentum=0.9, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        sum(model(images, targets).values()).backward()
        optimizer.step()

    return step


def _input(model: Detector, batch: int, side: int, device: torch.device) -> Tensor:
    """[B, 3, H, W] uint8 of the size that the detector is made for, else of `side`."""
    size = model.preprocessing.size
    height, width = (side, side) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, height, width), generator=generator)
    return images.byte().to(device)


def _result(name: str, what: str, threads: int, call: Callable[[], Any], rounds: int) -> Any:
    device = torch.device("cpu")
    call()  # twice: what the first frees, the second lays out anew
    begin = time.perf_counter()
    call()
    # What takes long needs no second look; the shares are those of one call.
    rounds = 1 if time.perf_counter() - begin > _LONG else rounds
    profiles = [profile_call(call, device) for _ in range(rounds)]
    best = min(profiles, key=lambda p: p["seconds"])
    shares = {kind: value / best["seconds"] for kind, value in best["by_kind"].items()}
    result = {
        "case": f"{name}: {what}",
        "threads": threads,
        "seconds": best["seconds"],
        "shares": shares,
        "around_ms": {key: value * 1e3 for key, value in best["around_by_operator"].items()},
    }
    print(f"  {result['case']:<48} {best['seconds']:.3f} s, around {shares.get(REST, 0):.1%}:")
    for operator, ms in list(result["around_ms"].items())[:6]:
        print(f"    {ms:8.1f} ms  {operator}")
    return result


def run(device: torch.device, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Profiles each detector; on the CPU whatever `device` is."""
    batch, side, rounds = (1, 128, 1) if args.quick else (2, 512, 3)
    threads = max(args.threads)
    torch.set_num_threads(threads)
    pydet.keep_freed_memory()
    results = []
    for name in args.models or pydet.list_models():
        torch.manual_seed(0)
        model = pydet.create_model(name, num_classes=_CLASSES)
        model = model.to(memory_format=fastest_memory_format("cpu"))
        images = _input(model, batch, side, torch.device("cpu"))
        targets = make_targets(batch, tuple(images.shape[2:]), torch.device("cpu"))
        step = training_step(model.train(), images, targets)
        results.append(_result(name, "training step", threads, step, rounds))
        model.eval()
        # Nothing that was not trained scores more than the threshold; suppression would be idle.
        if hasattr(model.config, "score_threshold"):
            low = {"score_threshold": 0.0}
            model.config = type(model.config)(**{**vars(model.config), **low})
        with torch.inference_mode():
            detect = partial(model, images)
            results.append(_result(name, "detection", threads, detect, rounds))
    return results
