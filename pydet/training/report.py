# SPDX-License-Identifier: Apache-2.0
"""Words and files about a training: checks before it, names of images, metrics and plots."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from pydet._files import atomic_path, write_text
from pydet.data import DetectionDataset
from pydet.models import Detector
from pydet.training.checkpoint import CheckpointError
from pydet.training.logging import read_log
from pydet.training.sampler import Key


def check_fits(
    model: Detector, train_dataset: Dataset[Any], val_dataset: Dataset[Any] | None
) -> None:
    """Refuse a model and data sets that do not speak of the same classes.

    Raises:
        TypeError: the set to evaluate on is none that can be measured on.
        ValueError: the class names, or their order, differ; or the set to evaluate on is empty.
    """
    if val_dataset is not None and not isinstance(val_dataset, DetectionDataset):
        raise TypeError(
            "train: val_dataset must be a pydet.data.DetectionDataset or None, "
            f"got {type(val_dataset).__name__}"
        )
    for name, dataset in (("train_dataset", train_dataset), ("val_dataset", val_dataset)):
        given = getattr(dataset, "class_names", None)
        if given is None or not model.class_names:
            continue
        if tuple(given) != tuple(model.class_names):
            raise ValueError(
                f"train: {name} must have the model's classes {_list(model.class_names)}, "
                f"got {_list(given)}"
            )
    if val_dataset is not None and len(val_dataset) == 0:
        raise ValueError("train: val_dataset must have at least one image, got none")


def check_same_training(path: Path, state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another training.

    Raises:
        CheckpointError: it was made with another model, data set, seed or optimiser.
    """
    for key, value in identity.items():
        found = state["identity"].get(key)
        if found != value:
            raise CheckpointError(
                f"{path}: the checkpoint was made with {key} = {found}, which cannot change "
                f"when a training goes on, got {value}"
            )


def describe_image(dataset: Any, key: Key) -> str:
    """An image in words: its file and id if the data set tells them, its index and epoch."""
    epoch, index = key
    parts = []
    if hasattr(dataset, "image_path"):
        parts.append(str(dataset.image_path(index)))
    if hasattr(dataset, "target"):
        parts.append(f"image_id {dataset.target(index).get('image_id')}")
    return ", ".join([*parts, f"index {index}, epoch {epoch}"])


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write ``metrics.json``."""
    write_text(folder / "metrics.json", json.dumps(to_json(metrics), indent=2) + "\n")


def plot_losses(folder: Path) -> None:
    """Draw the losses of ``metrics.jsonl`` as ``loss.png``; nothing without a line of them."""
    from pydet.visualization import loss_plot  # noqa: PLC0415 - matplotlib takes a second to load

    records = [record for record in read_log(folder) if record["kind"] == "train"]
    if records:
        names = [key for key in records[-1] if key.startswith("loss")]
        losses = {name: [_number(record.get(name)) for record in records] for name in names}
        with atomic_path(folder / "loss.png") as temporary:
            loss_plot(temporary, [record["step"] for record in records], losses)


def to_json(value: Any) -> Any:
    """NaN as null: JSON has no word for it."""
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _list(names: Any) -> str:
    return "(" + ", ".join(map(str, names)) + ")"
