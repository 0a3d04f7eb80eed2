# SPDX-License-Identifier: Apache-2.0
"""Models into files of pydet, and out of all files that pydet knows."""

import dataclasses
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pydet.models import Detector, create_model
from pydet.weights import _formats, _own
from pydet.weights._family import Weights, check_options, read_family
from pydet.weights._state import check_state, load_state, read_state


def save(model: Detector, path: str | os.PathLike[str], **metadata: Any) -> None:
    """Writes weights and all that is needed to use them to one ``.safetensors`` file.

    The file appears under its name only when it is whole: it is written beside it first, so a
    crash leaves the old file or none.

    Args:
        model: A detector that :func:`pydet.create_model` built; ``torch.compile`` or a wrapper for
            parallel training may be around it.
        path: The file; an existing one is replaced.
        **metadata: What else to keep, as JSON can hold it: metrics, the training's settings.

    Raises:
        TypeError: Not a detector.
        ValueError: A model without a name, or metadata that JSON cannot hold.
        OSError: The file cannot be written.
    """
    for wrapped in ("_orig_mod", "module"):
        model = getattr(model, wrapped, model)
    if not isinstance(model, Detector):
        raise TypeError(f"save: model must be a Detector, got {type(model).__name__}")
    if not model.name:
        raise ValueError("save: model must be built by create_model, got one without a name")
    config = dataclasses.asdict(model.config)
    weights = Weights(model.name, model.num_classes, config, model.state_dict(), model.class_names)
    _own.write(Path(path), weights, metadata, "save")


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file of pydet says of itself, without building the model.

    Returns:
        model, num_classes, class_names, config, metadata (what :func:`save` was given), and format
        and pydet_version of the file.

    Raises:
        ValueError: Not a file of pydet, or a damaged one.
    """
    return _own.read_metadata(Path(path))


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

    The kind of file is recognised by its content: one that :func:`save` wrote; a state_dict of a
    detector of torchvision (as .pth or .safetensors; the README has the list); or one of a trunk
    trained on ImageNet, as torchvision publishes them, which fills the backbone of any detector
    that has it and leaves the rest random.

    Args:
        path: The file.
        num_classes: K. Needed for a trunk; otherwise the file's own number. With another number,
            the layers that depend on it begin anew, and a warning says which.
        class_names: K names; by default those of the file.
        name: For a trunk: the detector to build; by default a RetinaNet on a ResNet, an SSD300 on a
            VGG-16. For a detector its own, or it is refused.
        device: Where the model is to lie.
        norm_eps: For files of torchvision: the number added to variances. By default what their
            published files were trained with: 0 for a Faster R-CNN or a RetinaNet in the layout of
            torchvision before 0.13, and 1e-5 for all others.
        keep_background: For detectors of torchvision but SSD: whether their class 0, which is never
            an object, stays: then labels are theirs. By default it goes and labels are less by one.
        **overrides: Fields of the config that are to differ from the file's.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A damaged or unknown file, tensors that do not fit (by name), another name than
            the file's, arguments that mean nothing for its kind, or unknown overrides.
    """
    path = Path(path)
    state, metadata = read_state(path)
    options = {"norm_eps": norm_eps, "keep_background": keep_background}
    if "pydet" in metadata:
        check_options("load", path, "pydet", (), options)
        weights = _own.parse(path, state, metadata)
    elif (family := _formats.family_of(state)) is not None:
        weights = read_family("load", path, family, state, norm_eps, keep_background)
    elif (trunk := _formats.trunk_of(state)) is not None:
        check_options("load", path, trunk.TITLE, ("norm_eps",), options)
        if num_classes is None:
            raise ValueError(
                f"load: num_classes must be given: {path} holds {trunk.TITLE} only, a trunk"
            )
        weights = trunk.to_pydet(state, norm_eps)
        config = _merged(weights.config, overrides)
        model = create_model(name or weights.name, num_classes, class_names=class_names, **config)
        _fill_trunk(path, model, weights)
        trunk.fill_heads(model, weights)
        return model.to(device).eval()
    else:
        raise _formats.unknown(path, state)
    if name not in (None, weights.name):
        raise ValueError(f"load: name must be {weights.name!r}, that of {path}, got {name!r}")
    return _fill(path, weights, num_classes, class_names, overrides).to(device).eval()


def _merged(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A config with some of it overridden; a part of it (preprocessing) by some of its fields."""
    merged = {**config, **overrides}
    for key, value in config.items():
        if isinstance(value, Mapping) and isinstance(overrides.get(key), Mapping):
            merged[key] = {**value, **overrides[key]}
    return merged


def _fill(
    path: Path,
    weights: Weights,
    num_classes: int | None,
    class_names: Sequence[str] | None,
    overrides: Mapping[str, Any],
) -> Detector:
    """A model with the file's weights, where its number of classes allows."""
    name, state, file_classes = weights.name, weights.state, weights.num_classes
    num_classes = file_classes if num_classes is None else num_classes
    config = _merged(weights.config, overrides)
    if class_names is None and num_classes == file_classes:
        class_names = weights.class_names
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
        state = {**state, **{key: own[key] for key in fresh}}
    load_state(model, state, str(path))
    return model


def _fill_trunk(path: Path, model: Detector, weights: Weights) -> None:
    """Fills a model's backbone, all of it."""
    own = model.state_dict()
    wanted = {key: value for key, value in own.items() if key.startswith("backbone.")}
    # Counters of batches, where batch statistics are to be learnt on.
    state = {key: value for key, value in wanted.items() if key.endswith("num_batches_tracked")}
    state.update(weights.state)
    check_state(wanted, state, str(path), f"the backbone of {model.name}")
    model.load_state_dict({**own, **state})
