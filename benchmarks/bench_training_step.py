# SPDX-License-Identifier: Apache-2.0
"""One training step of each detector beside torchvision's, with the same weights, in one run.

CPU: batch 2, 512 pixels; GPU: batch 8, 800 pixels; 20 boxes an image. Both begin with the same list
of images, have their weights in the layout that is fastest there, and end with a step of SGD. Where
there are norms, the step is also taken as torchvision fine-tunes a model: their statistics and
scales are fixed, and so are the stem and the first stage. On a GPU pydet runs a second time as it
is meant to, in bfloat16. "around" is what is neither convolution nor normalisation; fixed norms
are products and sums in torchvision, and a part of the convolutions in pydet.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pydet
from benchmarks._harness import torchvision_ops
from benchmarks._memory import can_measure, peak_extra_memory
from benchmarks._profile import REST, profile_call
from benchmarks._timing import Call, Clock, paired_ratio, sample, summary
from benchmarks.bench_models import make_targets, training_step
from pydet.models import fastest_memory_format

# torchvision's builders, and the size that a detector is made for if it is of one size.
_MODELS: dict[str, int | None] = {
    "retinanet_resnet50_fpn": None,
    "fcos_resnet50_fpn": None,
    "fasterrcnn_resnet50_fpn": None,
    "ssd300_vgg16": 300,
}
_CLASSES = 21  # torchvision's, with background
_FIXED = ("conv1", "layer1")  # of the trunk, in fine-tuning


def _torchvision_model(name: str, side: int, *, fine_tuning: bool) -> nn.Module:
    from torchvision.models import detection

    sizes = {} if _MODELS[name] else {"min_size": side, "max_size": side}
    torch.manual_seed(0)
    build = getattr(detection, name)
    model = build(weights=None, weights_backbone=None, num_classes=_CLASSES, **sizes)
    if fine_tuning:
        _fix_norms(model.backbone.body)
        _fix_stages(model.backbone.body)
    return model


def _fix_norms(trunk: nn.Module) -> None:
    """Makes batch norms those that torchvision's builders take where weights are downloaded."""
    from torchvision.ops.misc import FrozenBatchNorm2d

    for module in list(trunk.modules()):
        for name, norm in list(module.named_children()):
            if isinstance(norm, nn.BatchNorm2d):
                fixed = FrozenBatchNorm2d(norm.num_features, eps=norm.eps)
                fixed.load_state_dict(norm.state_dict())
                setattr(module, name, fixed)


def _fix_stages(trunk: nn.Module) -> None:
    for name in _FIXED:
        trunk.get_submodule(name).requires_grad_(False)


def _pydet_model(theirs: nn.Module, side: int, *, fine_tuning: bool) -> pydet.models.Detector:
    """The same weights, through a file, as users have them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        torch.save(theirs.state_dict(), path)
        model = pydet.load(path)
    values = vars(model.config)
    if model.preprocessing.resize == "short_side":
        resized = {**vars(model.preprocessing), "size": side, "max_size": side}
        values = {**values, "preprocessing": pydet.preprocessing.Preprocessing(**resized)}
    model.config = type(model.config)(**values)
    if fine_tuning:
        _fix_stages(model.backbone)
    return model


def _fast(model: nn.Module, images: list[Tensor], targets: Any) -> Call:
    """In bfloat16."""
    step = training_step(model, images, targets)

    def call() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            step()

    return call


def _contenders(
    name: str, device: torch.device, batch: int, side: int, *, fine_tuning: bool
) -> dict[str, Call]:
    side = _MODELS[name] or side
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, side, side, generator=generator).to(device) for _ in range(batch)]
    targets = make_targets(batch, (side, side), device, classes=_CLASSES - 1)
    with_background = [{**t, "labels": t["labels"] + 1} for t in targets]
    theirs = _torchvision_model(name, side, fine_tuning=fine_tuning)
    place = {"device": device, "memory_format": fastest_memory_format(device)}
    ours = _pydet_model(theirs, side, fine_tuning=fine_tuning).to(**place).train()
    calls = {
        "pydet": training_step(ours, images, targets),
        "torchvision": training_step(theirs.to(**place).train(), images, with_background),
    }
    if device.type == "cuda":
        again = _pydet_model(theirs.cpu(), side, fine_tuning=fine_tuning).to(**place).train()
        theirs.to(device)
        calls["pydet bf16"] = _fast(again, images, targets)
    return calls


def _measure(
    case: str, calls: dict[str, Call], device: torch.device, threads: int, seconds: float
) -> dict[str, Any]:
    samples = sample(calls, Clock(device, threads), seconds)
    profiles, peaks = {}, {}
    for key, call in calls.items():

        def profiled(key: str = key, call: Call = call) -> None:
            profiles[key] = profile_call(call, device)

        if can_measure(device):
            peaks[key] = peak_extra_memory(profiled, device)
        else:
            profiled()
    around = {key: p["by_kind"].get(REST, 0.0) for key, p in profiles.items()}
    result: dict[str, Any] = {
        "case": case,
        "threads": threads,
        "times": {key: summary(values) for key, values in samples.items()},
        "times_faster_than": {
            "torchvision": paired_ratio(samples["torchvision"], samples["pydet"])
        },
        "around_ms": {key: value * 1e3 for key, value in around.items()},
        "around_share": {key: around[key] / p["seconds"] for key, p in profiles.items()},
    }
    if peaks:
        result["peak_extra_bytes"] = peaks
    times = ", ".join(f"{t['median_ms']:.0f} ms {key}" for key, t in result["times"].items())
    shares = ", ".join(f"{value:.1%} {key}" for key, value in result["around_share"].items())
    print(f"  {case:<40} {threads} threads {times}; around {shares}", flush=True)
    return result


def run(device: torch.device, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Times each detector that both have."""
    if torchvision_ops() is None:
        print("  torchvision cannot be imported: nothing to compare with")
        return []
    batch, side = (2, 512) if device.type == "cpu" else (8, 800)
    if args.quick:
        batch, side = 1, 128
    results = []
    for name in args.models or _MODELS:
        for fine_tuning in (False, True) if "resnet" in name else (False,):
            results += _measure_model(name, device, args, batch, side, fine_tuning=fine_tuning)
    return results


def _measure_model(
    name: str,
    device: torch.device,
    args: argparse.Namespace,
    batch: int,
    side: int,
    *,
    fine_tuning: bool,
) -> list[dict[str, Any]]:
    try:
        calls = _contenders(name, device, batch, side, fine_tuning=fine_tuning)
    except ValueError as error:  # a detector whose weights pydet cannot read
        print(f"  {name}: {error}")
        return []
    case = f"{name}, fine-tuning" if fine_tuning else name
    results = []
    for threads in args.threads if device.type == "cpu" else args.threads[:1]:
        torch.set_num_threads(threads)
        seconds = 0.0 if args.quick else 10 * args.seconds
        results.append(_measure(case, calls, device, threads, seconds))
    return results
