# SPDX-License-Identifier: Apache-2.0
"""pydet's own files, and the one function that reads all kinds.

A file of pydet is one safetensors file. Its metadata has one entry, "pydet": a JSON object with
format, pydet_version, model, num_classes, class_names, config (with preprocessing and thresholds)
and metadata, which is whatever the caller of :func:`save` added (metrics, for instance).
"""

import dataclasses
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pydet._files import atomic_path
from pydet._version import __version__
from pydet.models import Detector, create_model
from pydet.weights import torchvision
from pydet.weights._state import State, load_state, read_state

_FORMAT = 1


def save(model: Detector, path: str | os.PathLike[str], **metadata: Any) -> None:
    """Writes weights and all that is needed to use them to one ``.safetensors`` file.

    The file appears under its name only when it is whole: it is written beside it first, so a
    crash leaves the old file or none.

    Args:
        model: A detector that :func:`pydet.create_model` built.
        path: The file; an existing one is replaced.
        **metadata: What else to keep, as JSON can hold it: metrics, the training's settings.

    Raises:
        ValueError: A model without a name, or metadata that JSON cannot hold.
        OSError: The file cannot be written.
    """
    if not model.name:
        raise ValueError("save: model must be built by create_model, got one without a name")
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save: {path} must lie in a folder that exists")
    about = {
        "format": _FORMAT,
        "pydet_version": __version__,
        "model": model.name,
        "num_classes": model.num_classes,
        "class_names": model.class_names,
        "config": dataclasses.asdict(model.config),
        "metadata": metadata,
    }
    try:
        text = json.dumps(about)
    except TypeError as error:
        raise ValueError(f"save: metadata must be what JSON can hold ({error})") from error
    tensors = {
        name: value.detach().contiguous().cpu() for name, value in model.state_dict().items()
    }
    with atomic_path(path) as temporary:
        # Not safetensors' own save_file, whose files nobody but their owner can read.
        temporary.write_bytes(safetensors.torch.save(tensors, {"pydet": text}))


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file of pydet says of itself, without building the model: see the module's text.

    Raises:
        ValueError: Not a file of pydet, or a damaged one.
    """
    return _about(Path(path), read_state(Path(path))[1])


def load(
    path: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    name: str | None = None,
    device: torch.device | str = "cpu",
    norm_eps: float | None = None,
    keep_background: bool = False,
    **overrides: Any,
) -> Detector:
    """Builds a detector from a file of weights, in evaluation mode.

    The kind of file is recognised by its content: one that :func:`save` wrote; a state_dict of
    torchvision's ``retinanet_resnet50_fpn`` (as .pth or .safetensors); or one of a ResNet trained
    on ImageNet, as torchvision publishes them, which fills the trunk and leaves the rest random.

    Args:
        path: The file.
        num_classes: K. Needed for a trunk; otherwise the file's own number. With another number,
            the layers that depend on it begin anew, and a warning says which.
        class_names: K names; by default those of the file.
        name: For a trunk: the detector to build; by default the RetinaNet on that ResNet.
        device: Where the model is to lie.
        norm_eps: For files of torchvision: the number added to variances. By default 0 for files
            in the layout of torchvision before 0.13, as their COCO weights were trained with,
            and 1e-5 for all others.
        keep_background: For detectors of torchvision: whether their class 0, which is never an
            object, stays: then labels are theirs. By default it goes and labels are less by one.
        **overrides: Fields of the config that are to differ from the file's.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A damaged or unknown file, tensors that do not fit (by name), or unknown
            overrides.
    """
    path = Path(path)
    state, metadata = read_state(path)
    if "pydet" in metadata:
        about = _about(path, metadata)
        config = _merged(about["config"], overrides)
        same = num_classes is None or num_classes == about["num_classes"]
        names = class_names or (about["class_names"] if same else None)
        model = _fill(path, state, about["model"], about["num_classes"], num_classes, names, config)
    elif torchvision.is_retinanet(state):
        converted = torchvision.convert_retinanet(state, norm_eps, keep_background)
        model = _fill(
            path,
            converted.state,
            converted.name,
            converted.num_classes,
            num_classes,
            class_names,
            _merged(converted.config, overrides),
        )
    elif torchvision.is_resnet(state):
        if num_classes is None:
            raise ValueError(
                f"load: num_classes must be given: {path} holds a ResNet trunk of ImageNet only"
            )
        trunk = torchvision.convert_resnet(state, norm_eps)
        model = create_model(
            name or trunk.name,
            num_classes,
            class_names=class_names,
            **_merged(trunk.config, overrides),
        )
        backbone = model.get_submodule("backbone")
        wanted = backbone.state_dict()
        # Counters of batches, where batch statistics are to be learnt on.
        counters = {k: v for k, v in wanted.items() if k.endswith("num_batches_tracked")}
        load_state(backbone, {**counters, **trunk.state}, str(path))
    else:
        raise ValueError(
            f"load: {path} must be a file of pydet, of torchvision's RetinaNet or of an ImageNet "
            f"ResNet, got tensors named {', '.join(list(state)[:4])} ..."
        )
    return model.to(device).eval()


def _about(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        about = json.loads(metadata["pydet"])
        version = about["format"]
        for key in ("model", "num_classes", "class_names", "config"):
            about[key]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"load: {path} must have pydet's metadata, got a damaged one or none ({error!r})"
        ) from error
    if version != _FORMAT:
        raise ValueError(
            f"load: {path} must have format {_FORMAT}, got {version}, written by pydet "
            f"{about.get('pydet_version')}; this is {__version__}"
        )
    return about  # type: ignore[no-any-return]


def _merged(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A config with some of it overridden; a part of it (preprocessing) by some of its fields."""
    merged = {**config, **overrides}
    for key, value in config.items():
        if isinstance(value, Mapping) and isinstance(overrides.get(key), Mapping):
            merged[key] = {**value, **overrides[key]}
    return merged


def _fill(
    path: Path,
    state: State,
    name: str,
    file_classes: int,
    num_classes: int | None,
    class_names: Sequence[str] | None,
    config: Mapping[str, Any],
) -> Detector:
    """A model with the file's weights, where its number of classes allows."""
    num_classes = file_classes if num_classes is None else num_classes
    model = create_model(name, num_classes, class_names=class_names, **config)
    if num_classes != file_classes:
        with torch.device("meta"):
            twin = create_model(name, file_classes, **config).state_dict()
        own = model.state_dict()
        fresh = [
            key
            for key, value in twin.items()
            if value.shape != own[key].shape
            and (key not in state or state[key].shape == value.shape)
        ]
        warnings.warn(
            f"load: {path} is for {file_classes} classes, the model for {num_classes}: "
            f"{', '.join(fresh)} begin anew and must be trained",
            stacklevel=3,
        )
        replaced: dict[str, Tensor] = {key: own[key] for key in fresh}
        state = {**state, **replaced}
    load_state(model, state, str(path))
    return model
