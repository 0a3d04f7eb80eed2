# SPDX-License-Identifier: Apache-2.0
"""Trains one of pydet's detectors, or torchvision's in its place, and measures what it learnt.

    python -m benchmarks.compare_torchvision configs/comparison/bccd_fcos.toml \\
        --data PATH/bccd --library torchvision --seed 0

Both begin with the same weights and see the same batches: data, augmentation, optimiser, schedule,
average and evaluation are pydet's, only the detector differs (`benchmarks._torchvision`). Each run
becomes a file of docs/results/comparison/runs; one that is there is not repeated, one that was
killed goes on. `python -m benchmarks.comparison_report` makes the table.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from benchmarks._results import about
from pydet._files import write_text
from pydet.commands._common import open_part
from pydet.data import build_transform
from pydet.inference import evaluate
from pydet.models import Detector, create_model
from pydet.training.checkpoint import LAST, load_checkpoint, seed_everything
from pydet.training.config import RunConfig
from pydet.training.loop import train

LIBRARIES = ("pydet", "torchvision")
RUNS = Path(__file__).parents[1] / "docs/results/comparison/runs"


def make_model(config: RunConfig, class_names: tuple[str, ...], library: str) -> Detector:
    """The detector of a config with random weights, pydet's own or torchvision's with the same."""
    seed_everything(config.train.seed)
    options = config.model.options
    model = create_model(config.model.name, len(class_names), class_names=class_names, **options)
    if library == "torchvision":
        from benchmarks._torchvision import TorchvisionDetector

        model = TorchvisionDetector(model)
    seed_everything(config.train.seed)  # whatever was drawn for weights that were replaced
    return model


def measure(config: RunConfig, data: str, library: str, work: Path) -> dict[str, Any]:
    """Trains in a folder, or goes on there; then evaluates on the part ``val_split``."""
    parts = [
        open_part(
            data,
            part,
            part,
            config.data.on_error,
            everything=False,
            duplicate_iou=config.data.duplicate_iou,
        )
        for part in (config.data.split, config.data.val_split)
    ]
    assert parts[0] is not None and parts[1] is not None
    learnt, held_out = parts[0], parts[1]
    model = make_model(config, learnt.class_names, library)
    images = config.train.epochs * len(learnt)
    begin = load_checkpoint(work / LAST)["position"] if (work / LAST).exists() else 0
    if begin >= images:  # killed after its last step: how long that took is not known any more
        shutil.rmtree(work)
        begin = 0
    seconds = time.process_time()  # not the wall clock: other programs may run
    result = train(
        model,
        learnt,
        None,
        config.train,
        output=work,
        transform=build_transform(config.augment.transforms),
        resume=True,
        run_config=config,
        tensorboard=False,
        progress=False,
    )
    seconds = time.process_time() - seconds
    if result.signal:
        raise SystemExit(128 + result.signal)
    per_second = (images - begin) / seconds
    weights = work / "last.safetensors"
    model.load_state_dict(safetensors.torch.load_file(weights))
    seconds = time.process_time()
    found = evaluate(model, held_out, batch_size=config.train.batch_size)
    seconds = time.process_time() - seconds
    numbers = found.numbers()
    return {
        **{name: numbers[name] for name in ("ap", "ap50", "ap75")},
        "training_seconds": images / per_second,  # of one core, as if never interrupted
        "training_images_per_second": per_second,
        "detection_images_per_second": len(held_out) / seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
        "file_bytes": weights.stat().st_size,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, help="named after data and detector: bccd_fcos.toml")
    parser.add_argument("--data", required=True, help="the data set")
    parser.add_argument("--library", choices=LIBRARIES, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--output", type=Path, default=RUNS)
    args = parser.parse_args(arguments)
    name = f"{args.config.stem}_{args.library}_{args.seed}"
    output = args.output / f"{name}.json"
    if output.exists():
        return 0
    config = RunConfig.read(args.config).override({"train": {"seed": args.seed}})
    data, detector = args.config.stem.split("_", 1)
    record = {
        "library": args.library,
        "detector": detector,
        "data": data,
        "seed": args.seed,
        **measure(config, args.data, args.library, args.work / name),
        "config": args.config.name,
        "threads": torch.get_num_threads(),
        **about(torch.device("cpu")),
    }
    args.output.mkdir(parents=True, exist_ok=True)
    write_text(output, json.dumps(record, indent=1) + "\n")
    print(f"{name}: AP {record['ap']:.3f}, AP50 {record['ap50']:.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
