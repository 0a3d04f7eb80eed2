# SPDX-License-Identifier: Apache-2.0
"""The table of all files of other projects that pydet reads, by the names of their tensors."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pydet.weights._family import Family, Trunk
from pydet.weights._state import State
from pydet.weights.torchvision import faster_rcnn, fcos, resnet, retinanet, ssd, vgg

# One entry each, alphabetical; no two may recognise the same file (tests/weights/test_convert.py).
FAMILIES: tuple[Family, ...] = (faster_rcnn, fcos, retinanet, ssd)
TRUNKS: tuple[Trunk, ...] = (resnet, vgg)


def family_of(state: Mapping[str, Tensor]) -> Family | None:
    """The family whose detector a state_dict is of, or None."""
    return next((family for family in FAMILIES if family.recognises(state)), None)


def trunk_of(state: Mapping[str, Tensor]) -> Trunk | None:
    """The trunk that a state_dict is of, or None."""
    return next((trunk for trunk in TRUNKS if trunk.recognises(state)), None)


def family_for(name: str, project: str) -> Family:
    """The family that writes a detector of pydet as a file of another project.

    Raises:
        ValueError: There is none.
    """
    for family in FAMILIES:
        if family.PROJECT == project and name.startswith(family.MODELS):
            return family
    known = ", ".join(family.MODELS + "*" for family in FAMILIES if family.PROJECT == project)
    raise ValueError(f"convert: the detector must be one of {known} for {project}, got {name!r}")


def projects() -> list[str]:
    """Whose files can be written, in alphabetical order."""
    return sorted({family.PROJECT for family in FAMILIES})


def unknown(path: Path, state: State) -> ValueError:
    """The error for a file that the table does not have."""
    titles = [family.TITLE for family in FAMILIES] + [trunk.TITLE for trunk in TRUNKS]
    known = ", ".join(titles)
    hint = ""
    if any(name.startswith("backbone.") for name in state):
        hint = (
            ". The state_dict of a detector of pydet alone says none of its settings: give it to "
            "load_state_dict of the model that create_model builds, then pydet.save writes a file "
            "that pydet.load reads"
        )
    return ValueError(
        f"load: {path} must be a file of pydet, {known}; got tensors named "
        f"{', '.join(list(state)[:4])} ...{hint}"
    )
