# SPDX-License-Identifier: Apache-2.0
"""Files of other projects into files of pydet, and back, without loss."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pydet._files import atomic_path
from pydet.models import Detector, create_model
from pydet.weights import _formats, _own
from pydet.weights._family import Weights, check_options, read_family
from pydet.weights._state import State, check_state, read_state


def convert(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    to: str = "pydet",
    class_names: Sequence[str] | None = None,
    norm_eps: float | None = None,
    keep_background: bool = False,
) -> list[str]:
    """Writes a file of weights in another project's form.

    To pydet: the file holds all tensors that the other project's file has; those that pydet's model
    has no use for (rows of a background that sigmoids never give) stand beside the model's. So the
    way back gives the same names and the same bits. A model that pydet trained further or saved
    itself is written with rows of a background that is never detected.

    Args:
        path: A file of a detector of another project, or of pydet.
        output: The file to write, replaced if it exists: of pydet always in the safetensors format;
            of another project likewise where it ends in ``.safetensors``, else as torch saves it.
        to: "pydet", or the project in whose form a file of pydet is to be written: "torchvision".
        class_names: To pydet: the names of the classes.
        norm_eps: To pydet: see :func:`pydet.load`.
        keep_background: To pydet: see :func:`pydet.load`.

    Returns:
        To another project: the settings of the model that its file has no place for and that its
        reader takes to be others, a line each. Empty to pydet.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that is unknown or damaged, is of that form already, or holds a model
            that the other project cannot build.
        OSError: The file cannot be written.
    """
    path, output = Path(path), Path(output)
    state, metadata = read_state(path)
    is_own = "pydet" in metadata
    if is_own == (to == "pydet"):
        wanted = "a file of another project" if is_own else "a file of pydet"
        raise ValueError(f"convert: {path} must be {wanted} to be written as one of {to}")
    if is_own:
        options = {
            "class_names": class_names,
            "norm_eps": norm_eps,
            "keep_background": keep_background,
        }
        check_options("convert", path, "pydet", (), options)
        return _write_theirs(output, _own.parse(path, state, metadata), to)
    family = _formats.family_of(state)
    if family is None:
        if (trunk := _formats.trunk_of(state)) is not None:
            raise ValueError(
                f"convert: {path} must hold a detector, got {trunk.TITLE}, a trunk; "
                "pydet.load and pydet train --weights take it as it is"
            )
        raise _formats.unknown(path, state)
    weights = read_family("convert", path, family, state, norm_eps, keep_background)
    model = _on_meta(weights, class_names)
    check_state(model.state_dict(), weights.state, str(path), type(model).__name__)
    whole = dataclasses.asdict(model.config)
    weights = dataclasses.replace(weights, config=whole, class_names=model.class_names)
    _own.write(output, weights, {}, "convert")
    return []


def _write_theirs(output: Path, weights: Weights, project: str) -> list[str]:
    family = _formats.family_for(weights.name, project)
    state = family.from_pydet(weights)
    kept = bool(weights.origin.get("keep_background", False))
    again = family.to_pydet(state, None, kept)
    check_state(again.state, weights.state, str(output), weights.name)
    differences = _differences(
        dataclasses.asdict(_on_meta(weights).config), dataclasses.asdict(_on_meta(again).config)
    )
    if not output.parent.is_dir():
        raise FileNotFoundError(f"convert: {output} must lie in a folder that exists")
    if output.suffix == ".safetensors":
        _own.write_tensors(output, state)
    else:
        _save_torch(output, state)
    return differences


def _on_meta(weights: Weights, class_names: Sequence[str] | None = None) -> Detector:
    """The model that weights are of, without memory for tensors."""
    with torch.device("meta"):
        return create_model(
            weights.name, weights.num_classes, class_names=class_names, **weights.config
        )


def _save_torch(output: Path, state: State) -> None:
    with atomic_path(output) as temporary:
        torch.save({name: value.contiguous() for name, value in state.items()}, temporary)


def _differences(own: Mapping[str, Any], theirs: Mapping[str, Any], path: str = "") -> list[str]:
    """The fields that two configs of one kind differ in, a line each."""
    lines = []
    for key, value in own.items():
        if isinstance(value, Mapping):
            lines += _differences(value, theirs[key], f"{path}{key}.")
        elif value != theirs[key]:
            lines.append(f"{path}{key} is {value!r}, there {theirs[key]!r}")
    return lines
