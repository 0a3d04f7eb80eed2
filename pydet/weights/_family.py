# SPDX-License-Identifier: Apache-2.0
"""What a module offers that reads the files of another project, and writes them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from pydet.weights._state import State


@dataclass(frozen=True)
class Weights:
    """A state_dict in pydet's names, and how to build the model that it fits.

    Attributes:
        name: Of the detector, as :func:`pydet.create_model` takes it.
        num_classes: K; 0 for a trunk, which has none.
        config: Fields of the detector's config that are not its defaults, or all.
        state: Tensors by pydet's names; of a trunk those of the model's backbone alone.
        class_names: K names, or None.
        origin: For files of other projects: what else must be known to write the same file again,
            as JSON can hold it. Empty for what pydet trained.
        dropped: Tensors, by their project's names, that pydet's model has no place for: with them
            the very same file can be written again.
    """

    name: str
    num_classes: int
    config: Mapping[str, Any]
    state: State
    class_names: Sequence[str] | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    dropped: State = field(default_factory=dict)


class Family(Protocol):
    """A module for the files of one kind of detector of one project.

    ``from_pydet`` is the exact inverse of ``to_pydet``: the same names and the same bits.
    """

    PROJECT: str  # whose files they are, as ``pydet convert --to`` names it
    MODELS: str  # what the names of pydet's detectors begin with
    TITLE: str  # in messages
    OPTIONS: tuple[str, ...]  # those of "norm_eps" and "keep_background" that change something

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Whether a state_dict is of this family, by its names alone."""

    def to_pydet(
        self, state: Mapping[str, Tensor], norm_eps: float | None, keep_background: bool
    ) -> Weights:
        """In pydet's names; for the options see :func:`pydet.load`.

        A name that the family does not know stays as it is: who fills the model names it.
        """

    def from_pydet(self, weights: Weights) -> State:
        """Back in the project's names and layout.

        Args:
            weights: With the whole config.

        Raises:
            ValueError: A model that the project's code cannot build.
        """


class Trunk(Protocol):
    """A module for the files of classifiers whose trunk a detector may begin from."""

    TITLE: str

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Whether a state_dict is of this trunk, by its names alone."""

    def to_pydet(self, state: Mapping[str, Tensor], norm_eps: float | None) -> Weights:
        """Tensors of the backbone, ``backbone.*``, and the detector that is built by default.

        What else a detector may be made of is in ``dropped``.
        """

    def fill_heads(self, model: nn.Module, weights: Weights) -> None:
        """Gives the rest of the classifier to the parts of a detector that are made of it."""


def check_options(
    op: str, path: Path, title: str, known: Collection[str], options: Mapping[str, Any]
) -> None:
    """Raises ValueError for an option that was given (not None, not False) and is not known."""
    for name, value in options.items():
        if value is not None and value is not False and name not in known:
            raise ValueError(
                f"{op}: {name} must be left out for {path}: it means nothing for weights of "
                f"{title}, got {value!r}"
            )


def read_family(
    op: str,
    path: Path,
    family: Family,
    state: Mapping[str, Tensor],
    norm_eps: float | None,
    keep_background: bool,
) -> Weights:
    """A state_dict of a family in pydet's names.

    Raises:
        ValueError: An option that the family has not, or no class but the background.
    """
    options = {"norm_eps": norm_eps, "keep_background": keep_background}
    check_options(op, path, family.TITLE, family.OPTIONS, options)
    weights = family.to_pydet(state, norm_eps, keep_background)
    if not weights.num_classes:
        if "keep_background" in family.OPTIONS:
            raise ValueError(
                f"{op}: keep_background must be True for {path}, whose only class is otherwise "
                f"the background, class 0 of {family.TITLE}; got False"
            )
        raise ValueError(f"{op}: {path} must have a class beside the background, got none")
    return weights
