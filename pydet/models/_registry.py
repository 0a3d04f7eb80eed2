# SPDX-License-Identifier: Apache-2.0
"""Detectors by name: the only registry."""

import dataclasses
import difflib
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, get_type_hints

from pydet.models._checks import describe, fits
from pydet.models._detector import Detector

Builder = Callable[..., Detector]
_B = TypeVar("_B", bound=Builder)
_C = TypeVar("_C")

_builders: dict[str, Builder] = {}


def register_model(builder: _B) -> _B:
    """Decorator: makes ``builder(num_classes, **overrides)`` known by its own name.

    Raises:
        ValueError: The name is taken.
    """
    name = builder.__name__
    if name in _builders:
        raise ValueError(f"register_model: the name must be new, got {name!r}, which is taken")
    _builders[name] = builder
    return builder


def list_models() -> list[str]:
    """Names that :func:`create_model` takes, in alphabetical order."""
    return sorted(_builders)


def create_model(
    name: str,
    num_classes: int,
    *,
    class_names: Sequence[str] | None = None,
    **overrides: Any,
) -> Detector:
    """Builds a detector with random weights.

    Args:
        name: One of :func:`list_models`.
        num_classes: K, background not counted.
        class_names: K names, saved with the weights.
        **overrides: Fields of the detector's config that differ from its defaults; those of a part
            of it (``preprocessing``) as a dict, or each by a name with a dot
            (``preprocessing.size``).

    Raises:
        ValueError: A wrong number or names of classes, or an unknown name or override; the message
            has the nearest known one.

    Example:
        >>> model = create_model("retinanet_resnet18_fpn", 3, score_threshold=0.1)
    """
    if name not in _builders:
        raise ValueError(
            f"create_model: name must be one of list_models(), {_got(name, _builders)}"
        )
    try:  # NumPy's integers are such, too
        count = 0 if isinstance(num_classes, bool) else operator.index(num_classes)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(f"create_model: num_classes must be a positive int, got {num_classes!r}")
    if isinstance(class_names, str):
        raise ValueError(
            f"create_model: class_names must be a sequence of names, got the string {class_names!r}"
        )
    if class_names is not None and len(class_names) != count:
        raise ValueError(f"create_model: class_names must be {count} names, got {len(class_names)}")
    model = _builders[name](count, **overrides)
    model.name = name
    model.class_names = None if class_names is None else tuple(class_names)
    return model


def override(config: _C, changes: Mapping[str, Any], path: str = "") -> _C:
    """A copy of a config dataclass with some fields changed; lists (from JSON, TOML) become tuples.

    Fields of a part of it come as a mapping, or each by a key with a dot (``preprocessing.size``);
    the part's other fields stay, and of two changes of one field the later counts.

    Raises:
        ValueError: A field that the config does not have (the message has the nearest one), or a
            value of another type.
    """
    assert dataclasses.is_dataclass(config) and not isinstance(config, type)
    kind, hints = type(config).__name__, get_type_hints(type(config))
    known = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    values: dict[str, Any] = {}
    for name, value in changes.items():
        key, dot, rest = name.partition(".")
        if dot:
            value = {rest: value}  # noqa: PLW2901
        if key not in known:
            near = _within_parts(key, known) or known
            raise ValueError(f"{kind}: {path}{key} is not one of its fields, {_got(key, near)}")
        current = values.get(key, known[key])
        if dataclasses.is_dataclass(current) and isinstance(value, Mapping):
            value = override(current, value, f"{path}{key}.")  # noqa: PLW2901
        values[key] = _tuples(value)
        if not fits(values[key], hints[key]):
            what = describe(hints[key])
            raise ValueError(f"{kind}: {path}{key} must be {what}, got {value!r}")
    return dataclasses.replace(config, **values)


def _within_parts(key: str, known: Mapping[str, Any]) -> list[str]:
    """The names with a dot of a field that parts of a config have."""
    return [
        f"{part}.{key}"
        for part, value in known.items()
        if dataclasses.is_dataclass(value)
        and key in {field.name for field in dataclasses.fields(value)}
    ]


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _got(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0)
    return f"got {name!r}" + (f"; the nearest is {near[0]!r}" if near else "")
