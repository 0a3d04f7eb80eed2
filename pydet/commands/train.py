# SPDX-License-Identifier: Apache-2.0
"""``python -m pydet train NAME --data PATH``: train a detector on a data set."""

import argparse
import dataclasses
import os
import sys
import typing
from pathlib import Path
from typing import Any

import pydet
from pydet.commands._common import import_modules, open_part
from pydet.data import DetectionDataset, build_transform, summarize_problems
from pydet.models import Detector, create_model
from pydet.training._toml import format_value, parse_value, read_toml
from pydet.training.alternating import train_alternating
from pydet.training.checkpoint import LAST, load_checkpoint, seed_everything
from pydet.training.config import DataConfig, RunConfig, TrainConfig
from pydet.training.devices import leave_processes
from pydet.training.loop import train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments: what to train, and a flag for each setting of `TrainConfig`."""
    parser.description = (
        "Train a detector. Settings come from the defaults, a --config file and flags, the later "
        "ones first. Under torchrun, every process trains on its share of each batch."
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="detector, see pydet.list_models()")
    _add_data_arguments(parser)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="TOML file of settings; one given to go on must agree with the checkpoint's",
    )
    parser.add_argument("--weights", metavar="FILE", help="trained detector or trunk to start from")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="hyper-parameter of the detector, e.g. score_threshold=0.1, or preprocessing.size=600 "
        "for the short side of its images; may be repeated",
    )
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="Python module to import first, which registers a detector of your own",
    )
    parser.add_argument("--no-augment", action="store_true", help="no random changes of the images")
    parser.add_argument("--output", metavar="DIR", help="folder of the results; default: runs/NAME")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the checkpoint of --output with its settings, or begin if there is none",
    )
    parser.add_argument(
        "--alternating",
        action="store_true",
        help="train a Faster R-CNN in its paper's four steps; the detector is step4 of --output",
    )
    parser.add_argument("--resume-from", metavar="FILE", help="go on from this checkpoint")
    parser.add_argument("--print-config", action="store_true", help="print all settings and leave")
    parser.add_argument("--no-tensorboard", action="store_true", help="write no TensorBoard events")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    group = parser.add_argument_group("settings of the training")
    hints = typing.get_type_hints(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        flag = "--" + field.name.replace("_", "-")
        text = f"{field.metadata['help']} (default: {field.default})"
        kind = hints[field.name]
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
        elif kind in (int, float, str):
            choices = field.metadata["choices"] or None
            group.add_argument(flag, type=kind, choices=choices, help=text)
        else:
            group.add_argument(flag, type=float, nargs="+", help=text)


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="PATH", help=_text(DataConfig, "path"))
    parser.add_argument(
        "--split", help="part of it to train on; default: train if there is one, else everything"
    )
    parser.add_argument("--val", metavar="PATH", help=_text(DataConfig, "val_path"))
    parser.add_argument(
        "--val-split",
        help="part to evaluate on; default: val if there is one and none of it is trained on, else "
        "nothing",
    )
    parser.add_argument("--on-error", choices=("raise", "skip"), help=_text(DataConfig, "on_error"))
    parser.add_argument(
        "--duplicate-iou", type=float, metavar="IOU", help=_text(DataConfig, "duplicate_iou")
    )


def run(args: argparse.Namespace) -> int:
    """Train; see `pydet.training.train`."""
    if args.alternating and args.resume_from:
        raise ValueError("--resume-from must not be given with --alternating; --resume goes on")
    config = _config(args)
    if args.print_config:
        print(config.to_toml(comments=True), end="")
        return 0
    if not config.model.name:
        raise ValueError("NAME must be the name of a detector, got none")
    if not config.data.path:
        raise ValueError("--data must be the path of a data set, got none")
    return _train(args, config)


def _config(args: argparse.Namespace) -> RunConfig:
    """The settings: a file's, or those of the training to go on with, changed by the flags."""
    given = read_toml(Path(args.config)) if args.config else {}
    config = RunConfig.from_dict(given, args.config or "RunConfig")
    changes = _changes(args)
    name = args.name or config.model.name
    folder = args.output or (f"runs/{name}" if name else None)
    resumed = args.resume_from
    last = Path(folder or "", "step1" if args.alternating else "", LAST)
    if args.resume and not resumed and folder and last.exists():
        resumed = last
    if resumed:
        saved = load_checkpoint(Path(resumed))["config"]
        try:
            saved_config = RunConfig.from_dict(saved, str(resumed))
        except (TypeError, ValueError):
            if not given:
                raise
            return config.override(changes)  # settings of another pydet, mended in the file
        _check_agree(resumed, given, config.override(changes), saved_config.override(changes))
        config = saved_config
    return config.override(changes)


def _check_agree(
    resumed: str | Path, given: dict[str, Any], config: RunConfig, saved_config: RunConfig
) -> None:
    """Refuse a file with other settings than those of the training that goes on.

    Args:
        resumed: the checkpoint to go on from.
        given: what the file says; other settings of `config` are defaults.
        config: its settings, and those of flags.
        saved_config: the checkpoint's, and those of flags.

    Raises:
        ValueError: names all that differ.
    """
    asked, saved = config.to_dict(), saved_config.to_dict()
    differences = [
        f"[{table}] {key} = {format_value(asked[table][key])} where the checkpoint has "
        + (format_value(saved[table][key]) if key in saved[table] else "none")
        for table, values in given.items()
        for key in values
        if asked[table][key] != saved[table].get(key)
    ]
    if differences:
        raise ValueError(
            f"--config must agree with {resumed}, the checkpoint to go on from (leave it out, or "
            f"change settings by flags), got {'; '.join(differences)}"
        )


def _changes(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What the flags say, by table and key."""
    model: dict[str, Any] = {"name": args.name, "weights": args.weights}
    model["modules"] = args.modules or None
    for option in args.option:
        key, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"--option must be KEY=VALUE, got {option}")
        model[key.strip().replace("-", "_")] = parse_value(value.strip())
    data = {
        "path": args.data,
        "split": args.split,
        "val_path": args.val,
        "val_split": args.val_split,
        "on_error": args.on_error,
        "duplicate_iou": args.duplicate_iou,
    }
    settings = {f.name: getattr(args, f.name) for f in dataclasses.fields(TrainConfig)}
    changes: dict[str, dict[str, Any]] = {
        table: {key: value for key, value in values.items() if value is not None}
        for table, values in (("model", model), ("data", data), ("train", settings))
    }
    if args.no_augment:
        changes["augment"] = {"transforms": []}
    return changes


def _train(args: argparse.Namespace, config: RunConfig) -> int:
    seed_everything(config.train.seed)  # the weights of a new model are drawn from it
    import_modules(config.model.modules)
    first = os.environ.get("RANK", "0") == "0"
    training, validation = _open(config.data)
    model = _model(config, training)
    output = Path(args.output or f"runs/{config.model.name}")
    if first:
        _say(f"{config.model.name} learns {', '.join(training.class_names)}")
        for purpose, dataset in (("train on", training), ("evaluate on", validation)):
            _say(f"{purpose}: {dataset if dataset else 'nothing (no --val, no --val-split)'}")
            if dataset and dataset.problems:
                _say(summarize_problems(dataset.problems))
    specs = config.augment.transforms
    run_steps = train_alternating if args.alternating else train
    result = run_steps(
        model,  # type: ignore[arg-type]  # checked there
        training,
        validation,
        config.train,
        output=output,
        transform=build_transform(specs) if specs else None,
        resume=args.resume_from or args.resume,
        run_config=config,
        tensorboard=not args.no_tensorboard,
        progress=not args.no_progress,
    )
    leave_processes()
    if not first:
        return 128 + result.signal if result.signal else 0
    if result.invalid_boxes:
        _say(
            f"{result.invalid_boxes} times, a box was left out that has no area, lies outside of "
            "its image or is not finite; pydet.data.DetectionDataset.check names them"
        )
    if result.signal:
        _say(
            f"stopped after step {result.steps} by signal {result.signal}; "
            f"go on with: pydet train --output {output} --resume"
            + (" --alternating" if args.alternating else "")
        )
        return 128 + result.signal
    if result.best:
        _say(
            f"best {config.train.best_metric}: {result.best[config.train.best_metric]:.4f}, "
            f"after epoch {result.best['epoch']:g}"
        )
    _say(f"{result.steps} steps, {result.epochs} epochs done; the results are in {output}")
    return 0


def _open(data: DataConfig) -> tuple[DetectionDataset, DetectionDataset | None]:
    """What to train and what to evaluate on."""
    training = open_part(
        data.path,
        data.split,
        "train",
        data.on_error,
        everything=True,
        duplicate_iou=data.duplicate_iou,
    )
    assert training is not None
    if not training.num_boxes:
        why = f"; the first problem: {training.problems[0]}" if training.problems else ""
        raise ValueError(f"--data must have objects to learn, got {training}{why}")
    validation = open_part(
        data.val_path or data.path,
        data.val_split,
        "val",
        data.on_error,
        everything=bool(data.val_path),
        duplicate_iou=data.duplicate_iou,
        class_names=training.class_names,
    )
    if validation and not (data.val_path or data.val_split) and _share(training, validation):
        return training, None  # such as a single file, or "val" where everything is trained on
    return training, validation


def _share(first: DetectionDataset, second: DetectionDataset) -> bool:
    """Whether an image is in both."""
    paths = {first.image_path(i) for i in range(len(first))}
    return any(second.image_path(i) in paths for i in range(len(second)))


def _model(config: RunConfig, dataset: DetectionDataset) -> Detector:
    """The detector to train: new, or with the weights of a file, as far as they fit."""
    name, names, options = config.model.name, dataset.class_names, dict(config.model.options)
    for key in {"num_classes", "class_names"} & options.keys():
        raise ValueError(
            f"[model]: {key} must be left out, the data set has it, got {options[key]!r}"
        )
    if not config.model.weights:
        return create_model(name, len(names), class_names=names, **options)
    return pydet.load(
        config.model.weights, num_classes=len(names), class_names=names, name=name, **options
    )


def _text(section: type[Any], name: str) -> str:
    (text,) = (f.metadata["help"] for f in dataclasses.fields(section) if f.name == name)
    return str(text)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
