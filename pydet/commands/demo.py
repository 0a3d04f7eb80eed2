# SPDX-License-Identifier: Apache-2.0
"""``python -m pydet demo``: draw a data set, train a small RetinaNet on it, evaluate, show."""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch

import pydet
from pydet._files import atomic_path, write_text
from pydet.commands._common import write_pictures
from pydet.data import DetectionDataset, build_transform, open_dataset
from pydet.data.synthetic import write_synthetic_dataset
from pydet.inference import Evaluation, evaluate
from pydet.models import Detector, create_model
from pydet.training.checkpoint import seed_everything
from pydet.training.config import RunConfig
from pydet.training.loop import train
from pydet.visualization import tile

# Small pictures of objects about upright, each class in its colour, and a RetinaNet for them: three
# levels, a quarter of the channels, anchors that fit. Chosen for six minutes on two cores.
PICTURES: dict[str, Any] = {
    "image_size": 128,
    "min_object_size": 22,
    "max_object_size": 64,
    "max_objects": 4,
    "max_turn": 20.0,
    "typical_colors": True,
    "val_fraction": 0.1,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "model": {
        "name": "retinanet_resnet18_fpn",
        "levels": [3, 4, 5],
        "fpn_channels": 64,
        "head_convs": 2,
        "head_norm": "group",
        "anchor_sizes": [[16, 20, 25], [32, 40, 51], [64, 81, 102]],
        "preprocessing": {"resize": "none"},
    },
    "augment": {"transforms": [{"name": "random_horizontal_flip"}]},
    "train": {
        "epochs": 4,
        "batch_size": 8,
        "optimizer": "adamw",
        "learning_rate": 0.001,
        "weight_decay": 0.02,
        "warmup_epochs": 0.3,
        "ema_decay": 0.99,
        "eval_every": 1000,  # the last epoch alone is evaluated
        "precision": "auto",
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "Draw a data set, train a small RetinaNet on it, evaluate it with pycocotools on images "
        "that it has not seen, and write weights, metrics, plots and pictures."
    )
    parser.add_argument("--output", default="demo", metavar="DIR", help="default: demo")
    parser.add_argument("--images", type=int, default=2000, help="pictures to draw, 90 %% to train")
    parser.add_argument("--epochs", type=int, default=SETTINGS["train"]["epochs"])
    parser.add_argument("--pictures", type=int, default=12, help="held-out pictures to show")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--required-ap50",
        type=float,
        default=0.85,
        help="fail (exit code 1) below this average precision at IoU 0.5 (default: 0.85)",
    )
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")


def run(args: argparse.Namespace) -> int:
    """Run the demo; 1 if the detector is worse than required."""
    begin = time.perf_counter()
    folder = Path(args.output)
    for old in ("data", "training", "pictures"):
        shutil.rmtree(folder / old, ignore_errors=True)
    print(f"Drawing {args.images} pictures into {folder / 'data'}")
    data = write_synthetic_dataset(folder / "data", args.images, seed=args.seed, **PICTURES)
    train_dataset = open_dataset(data, "train")
    val_dataset = open_dataset(data, "val")
    print(train_dataset)
    model = _train(args, folder, train_dataset)
    evaluation = evaluate(model, val_dataset, batch_size=16, progress=not args.no_progress)
    print(evaluation.table())
    ap50 = evaluation.coco.ap50
    seconds = time.perf_counter() - begin
    _write(folder, model, val_dataset, evaluation, args.pictures, seconds)
    print(
        f"AP50 {ap50:.3f} on {len(val_dataset)} held-out pictures, after {seconds:.0f} s. "
        f"Weights, metrics, plots and pictures are in {folder}."
    )
    if not ap50 >= args.required_ap50:
        print(f"demo: AP50 must be at least {args.required_ap50}, got {ap50:.3f}")
        return 1
    return 0


def _train(args: argparse.Namespace, folder: Path, dataset: DetectionDataset) -> Detector:
    """A detector trained on the data set; it ends with the averaged weights."""
    config = RunConfig.from_dict(SETTINGS).override(
        {
            "data": {"path": str(folder / "data"), "split": "train", "val_split": "val"},
            "train": {"epochs": args.epochs, "seed": args.seed},
        }
    )
    seed_everything(args.seed)
    model = create_model(
        config.model.name,
        len(dataset.class_names),
        class_names=dataset.class_names,
        **config.model.options,
    )
    train(
        model,
        dataset,
        config=config.train,
        output=folder / "training",
        transform=build_transform(config.augment.transforms),
        run_config=config,
        progress=not args.no_progress,
    )
    shutil.copyfile(folder / "training" / "last.safetensors", folder / "detector.safetensors")
    shutil.copyfile(folder / "training" / "loss.png", folder / "loss.png")
    return pydet.load(folder / "detector.safetensors")


def _write(
    folder: Path,
    model: Detector,
    dataset: DetectionDataset,
    evaluation: Evaluation,
    num_pictures: int,
    seconds: float,
) -> None:
    """Metrics, curves and pictures, the first of the data set in the order of their ids."""
    with atomic_path(folder / "precision_recall.png") as temporary:
        evaluation.plot(temporary)
    pictures = write_pictures(model, dataset, num_pictures, folder / "pictures")
    if pictures:
        tile(pictures, 2).save(folder / "pictures.png")
    metrics = {
        "model": model.name,
        "held_out_images": len(dataset),
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        **evaluation.as_dict(),
    }
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
