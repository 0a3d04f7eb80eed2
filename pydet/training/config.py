# SPDX-License-Identifier: Apache-2.0
"""Every setting of a training, in one place: dataclasses, a TOML file, command line flags.

A configuration file has four tables: ``[model]``, ``[data]``, ``[augment]`` and ``[train]``. Every
key has a default; a key that does not exist is refused, with the nearest name. Flags of
``python -m pydet train`` override the file, and the output folder of a training receives the
complete result as ``config.toml``.
"""

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydet.training._toml import format_key, format_value, read_toml

_T = TypeVar("_T")


def _option(
    default: _T,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
) -> _T:
    """A documented field: its text serves ``--help``, printed configurations and the checks."""
    metadata = {"help": help, "choices": choices, "minimum": minimum, "maximum": maximum}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ModelConfig:
    """Table ``[model]``: which detector; keys not named here go to `pydet.create_model`."""

    name: str = _option("", "registered name of the detector, see pydet.list_models()")
    weights: str = _option(
        "", "file to start from: a saved detector or a trunk; empty: random weights"
    )
    modules: tuple[str, ...] = _option(
        (), "Python modules to import first: those that register detectors of your own"
    )
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Every other key of the table: hyper-parameters of the detector, by their names."""

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class DataConfig:
    """Table ``[data]``: what to train and to evaluate on."""

    path: str = _option(
        "", "data set to train on: Pascal VOC or YOLO folder, COCO JSON file or folder"
    )
    split: str = _option(
        "", "part of it to train on; empty: train if there is one, else everything"
    )
    val_path: str = _option("", "data set to evaluate on; empty: the one to train on")
    val_split: str = _option(
        "", "part to evaluate on; empty: val if there is one, else all of val_path, else nothing"
    )
    on_error: str = _option(
        "raise",
        "a broken record stops (raise) or is left out and counted (skip)",
        choices=("raise", "skip"),
    )
    duplicate_iou: float = _option(
        0.0,
        "from which IoU on two objects of one class are one given twice, which is a broken record; "
        "0: both are taken",
        minimum=0,
        maximum=1,
    )

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class AugmentConfig:
    """Table ``[augment]``: random changes of the training images, in their order."""

    transforms: tuple[Mapping[str, Any], ...] = field(
        default=(MappingProxyType({"name": "random_horizontal_flip"}),),
        metadata={
            "help": "list of { name = ..., arguments }, the transforms of pydet.data.transforms"
        },
    )

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class TrainConfig:
    """Table ``[train]``: how to train. The text of each field says its unit.

    Losses are per image, so no setting depends on the number of devices: ``batch_size`` is what
    one step of the optimiser sees, over all devices and pieces.

    Raises:
        TypeError: a value of another type.
        ValueError: a value out of range, or settings that exclude each other.
    """

    epochs: int = _option(12, "passes over the training images", minimum=1)
    batch_size: int = _option(
        16, "images a step of the optimiser, over all devices and pieces", minimum=1
    )
    accumulate: int = _option(
        1, "pieces that a device's share of a batch is computed in, to need less memory", minimum=1
    )
    optimizer: str = _option("sgd", "sgd (with momentum) or adamw", choices=("sgd", "adamw"))
    learning_rate: float = _option(
        0.01, "highest learning rate, reached after the warm-up", minimum=0
    )
    momentum: float = _option(0.9, "momentum of sgd; first beta of adamw", minimum=0, maximum=1)
    weight_decay: float = _option(1e-4, "weight decay (decoupled for adamw)", minimum=0)
    decay_norm_and_bias: bool = _option(
        False, "apply the weight decay to biases and normalisation layers, too"
    )
    schedule: str = _option(
        "cosine",
        "course of the learning rate after the warm-up",
        choices=("cosine", "step", "constant"),
    )
    final_factor: float = _option(
        0.01, "cosine: last learning rate, as a fraction of the highest", minimum=0, maximum=1
    )
    step_epochs: tuple[float, ...] = _option(
        (8.0, 11.0), "step: epochs after which the learning rate falls"
    )
    step_factor: float = _option(0.1, "step: what it is multiplied with then", minimum=0, maximum=1)
    warmup_epochs: float = _option(
        0.5, "epochs of linear warm-up (a fraction of one is allowed); 0: none", minimum=0
    )
    warmup_factor: float = _option(
        0.001,
        "first learning rate of the warm-up, as a fraction of the highest",
        minimum=0,
        maximum=1,
    )
    clip_norm: float = _option(
        10.0, "largest norm of the gradient of all parameters; 0: no clip", minimum=0
    )
    ema_decay: float = _option(
        0.9998,
        "decay a step of the averaged weights, those evaluated and saved; 0: no average",
        minimum=0,
        maximum=1,
    )
    precision: str = _option(
        "32",
        "of the forward pass: 32, or autocast to bf16 or fp16 (CUDA only); auto: bf16 where the "
        "device computes it natively, half the time of 32, else 32",
        choices=("auto", "32", "bf16", "fp16"),
    )
    memory_format: str = _option(
        "auto",
        "layout of images and weights: contiguous or channels_last; auto: channels_last but on a "
        "CPU without AVX-512, whose convolutions have slower gradients then",
        choices=("auto", "contiguous", "channels_last"),
    )
    compile: bool = _option(False, "torch.compile the detector's losses")
    sync_batchnorm: bool = _option(
        False, "batch normalisation over all devices' images (CUDA and torchrun only)"
    )
    device: str = _option(
        "auto", "auto (CUDA if there), cpu or cuda", choices=("auto", "cpu", "cuda")
    )
    threads: int = _option(0, "CPU threads of one process; 0: torch's choice", minimum=0)
    workers: int = _option(
        -1, "processes a device that read images; 0: none; -1: chosen for the machine", minimum=-1
    )
    seed: int = _option(0, "of weights, order and augmentation", minimum=0)
    log_every: int = _option(10, "steps between two lines of the log", minimum=1)
    eval_every: int = _option(
        1, "epochs between two evaluations; the last is always evaluated", minimum=1
    )
    eval_batch_size: int = _option(
        0,
        "images a batch of the evaluation, a device; 0: as many as one learns from at once",
        minimum=0,
    )
    best_metric: str = _option(
        "ap", "metric whose best weights are kept: ap, ap50 or ap75", choices=("ap", "ap50", "ap75")
    )
    checkpoint_every: int = _option(
        500, "steps between two checkpoints; one is written after each epoch, too", minimum=1
    )

    def __post_init__(self) -> None:
        _check(self)
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"TrainConfig: accumulate must divide batch_size ({self.batch_size}), "
                f"got {self.accumulate}"
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"TrainConfig: warmup_epochs must be less than epochs ({self.epochs}), "
                f"got {self.warmup_epochs}"
            )
        if any(epoch <= 0 for epoch in self.step_epochs) or list(self.step_epochs) != sorted(
            self.step_epochs
        ):
            raise ValueError(
                f"TrainConfig: step_epochs must be positive and rising, got {self.step_epochs}"
            )


@dataclass(frozen=True)
class RunConfig:
    """A whole configuration file."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @classmethod
    def from_dict(cls, tables: Mapping[str, Any], source: str = "RunConfig") -> "RunConfig":
        """Build from nested dictionaries, as a TOML file gives them.

        Args:
            tables: the tables ``model``, ``data``, ``augment`` and ``train``, each optional.
            source: where they come from, for error sentences.

        Raises:
            ValueError: an unknown table or key (with the nearest name), or a value out of range.
            TypeError: a value of another type.
        """
        _refuse_unknown(source, "table", tables, SECTIONS)
        sections: dict[str, Any] = {}
        for name, section in SECTIONS.items():
            values = tables.get(name, {})
            if not isinstance(values, Mapping):
                raise TypeError(f"{source}: {name} must be a table, got {type(values).__name__}")
            sections[name] = _build(section, values, f"{source}: [{name}]")
        return cls(**sections)

    @classmethod
    def read(cls, path: str | Path) -> "RunConfig":
        """Read a TOML file; raises as `from_dict`, and OSError where it cannot be read."""
        return cls.from_dict(read_toml(Path(path)), source=str(path))

    def override(self, changes: Mapping[str, Mapping[str, Any]]) -> "RunConfig":
        """A copy with some keys of some tables changed."""
        tables = self.to_dict()
        for name, values in changes.items():
            tables.setdefault(name, {}).update(values)
        return type(self).from_dict(tables)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Nested dictionaries of plain values: what `from_dict` takes, what checkpoints hold."""
        tables = {}
        for name in SECTIONS:
            section = getattr(self, name)
            values = {f.name: _plain(getattr(section, f.name)) for f in dataclasses.fields(section)}
            values.update(values.pop("options", {}))
            tables[name] = values
        return tables

    def to_toml(self, comments: bool = False) -> str:
        """The configuration as a TOML file, with the text of every key if asked for."""
        lines = []
        for name, section in SECTIONS.items():
            texts = {f.name: f.metadata.get("help") for f in dataclasses.fields(section)}
            lines.append(f"[{name}]")
            for key, value in self.to_dict()[name].items():
                if comments and texts.get(key):
                    lines.append(f"# {texts[key]}")
                lines.append(f"{format_key(key)} = {format_value(value)}")
            lines.append("")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.to_toml()


SECTIONS: Mapping[str, type[Any]] = MappingProxyType(
    {"model": ModelConfig, "data": DataConfig, "augment": AugmentConfig, "train": TrainConfig}
)


def _build(section: type[Any], values: Mapping[str, Any], source: str) -> Any:
    names = [f.name for f in dataclasses.fields(section) if f.name != "options"]
    if section is ModelConfig:
        known = {key: value for key, value in values.items() if key in names}
        known["options"] = {key: value for key, value in values.items() if key not in names}
    else:
        _refuse_unknown(source, "key", values, names)
        known = dict(values)
    for key, value in known.items():
        if isinstance(value, list):
            known[key] = tuple(value)
    return section(**known)


def _refuse_unknown(source: str, kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"{source}: unknown {kind} {name!r}; {hint}")


def _check(section: Any) -> None:
    """Types, choices and ranges of a section; whole numbers are taken where floats are meant."""
    hints = typing.get_type_hints(type(section))
    for f in dataclasses.fields(section):
        value, kind = getattr(section, f.name), hints[f.name]
        value = _convert(value, kind)
        if value is None:
            raise TypeError(
                f"{type(section).__name__}: {f.name} must be {_describe(kind)}, "
                f"got {getattr(section, f.name)!r}"
            )
        object.__setattr__(section, f.name, value)  # the one moment when a frozen one may change
        choices, low, high = (f.metadata.get(k) for k in ("choices", "minimum", "maximum"))
        sentence = f"{type(section).__name__}: {f.name} must be"
        if choices and value not in choices:
            raise ValueError(f"{sentence} one of {', '.join(choices)}, got {value!r}")
        if low is not None and not value >= low:
            raise ValueError(f"{sentence} at least {low}, got {value}")
        if high is not None and not value <= high:
            raise ValueError(f"{sentence} at most {high}, got {value}")


def _convert(value: Any, kind: Any) -> Any:
    """The value as the type of its field; None if it is of another type."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (bool, int, float, str):
        exact = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
        return value if exact else None
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if not isinstance(value, (list, tuple)):
            return None
        items = tuple(_convert(each, item) for each in value)
        return None if any(each is None for each in items) else items
    return MappingProxyType(dict(value)) if isinstance(value, Mapping) else None


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return f"a list, each item {_describe(typing.get_args(kind)[0])}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
    return names.get(kind, "a table")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
