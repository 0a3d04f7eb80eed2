# SPDX-License-Identifier: Apache-2.0
"""pydet's own files.

A file of pydet is one safetensors file. Its metadata has one entry, "pydet": a JSON object with
format, pydet_version, model, num_classes, class_names, config (with preprocessing and thresholds)
and metadata, which is whatever the caller of :func:`pydet.save` added (metrics, for instance).

A file that was converted has one more, origin, of which pydet needs nothing: with it, and with the
tensors whose names begin with "origin/", the file that it was made from can be written again.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch

from pydet._files import atomic_path
from pydet._version import __version__
from pydet.weights._family import Weights
from pydet.weights._state import State, read_state

FORMAT = 1
_ORIGIN = "origin/"


def write(path: Path, weights: Weights, metadata: Mapping[str, Any], op: str) -> None:
    """Writes a file whole or not at all.

    Raises:
        ValueError: Metadata that JSON cannot hold.
        OSError: The file cannot be written.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{op}: {path} must lie in a folder that exists")
    about = {
        "format": FORMAT,
        "pydet_version": __version__,
        "model": weights.name,
        "num_classes": weights.num_classes,
        "class_names": weights.class_names,
        "config": weights.config,
        "metadata": metadata,
    }
    if weights.origin:
        about["origin"] = weights.origin
    try:
        text = json.dumps(about)
    except TypeError as error:
        raise ValueError(f"{op}: metadata must be what JSON can hold ({error})") from error
    dropped = {_ORIGIN + name: value for name, value in weights.dropped.items()}
    write_tensors(path, {**weights.state, **dropped}, {"pydet": text})


def write_tensors(path: Path, state: State, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file, whole or not at all."""
    tensors = {name: value.detach().contiguous().cpu() for name, value in state.items()}
    with atomic_path(path) as temporary:
        # Not safetensors' own save_file, whose files nobody but their owner can read.
        temporary.write_bytes(safetensors.torch.save(tensors, metadata))


def read_metadata(path: Path) -> dict[str, Any]:
    """What a file of pydet says of itself: see the module's text.

    Raises:
        ValueError: Not a file of pydet, or a damaged one.
    """
    return _about(path, read_state(path)[1])


def parse(path: Path, state: State, metadata: Mapping[str, str]) -> Weights:
    """The weights in a file of pydet, from its tensors and metadata.

    Raises:
        ValueError: Metadata that is damaged or of another format.
    """
    about = _about(path, metadata)
    return Weights(
        about["model"],
        about["num_classes"],
        about["config"],
        {name: value for name, value in state.items() if not name.startswith(_ORIGIN)},
        about["class_names"],
        about.get("origin", {}),
        {
            name.removeprefix(_ORIGIN): value
            for name, value in state.items()
            if name.startswith(_ORIGIN)
        },
    )


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
    if version != FORMAT:
        raise ValueError(
            f"load: {path} must have format {FORMAT}, got {version}, written by pydet "
            f"{about.get('pydet_version')}; this is {__version__}"
        )
    return about  # type: ignore[no-any-return]
