# SPDX-License-Identifier: Apache-2.0
"""Everything of a training that changes from step to step: what a checkpoint holds."""

from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricOptimizer

from pydet.models import Detector
from pydet.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    rng_state,
    save_checkpoint,
    seed_everything,
    set_rng_state,
)
from pydet.training.config import RunConfig, TrainConfig
from pydet.training.devices import gather
from pydet.training.ema import WeightAverage
from pydet.training.report import check_same_training
from pydet.training.watch import LossWatch


class TrainState:
    """The state of one training in one process.

    Attributes:
        position: images of the stream that were seen, over all processes.
        step: steps of the optimiser that were done.
        evaluated: whole epochs that the last evaluation came after.
        metrics: numbers of the last evaluation.
        best: numbers of the best evaluation.
    """

    def __init__(
        self,
        fabric: Fabric,
        detector: Detector,
        optimizer: _FabricOptimizer,
        average: WeightAverage[Detector] | None,
        watch: LossWatch,
        num_images: int,
        config: TrainConfig,
    ) -> None:
        self.fabric = fabric
        self.detector = detector
        self.optimizer = optimizer
        self.average = average
        self.watch = watch
        self.num_images = num_images
        self.config = config
        self.position = self.step = self.evaluated = 0
        self.metrics: dict[str, float] = {}
        self.best: dict[str, float] = {}

    @property
    def epochs_done(self) -> int:
        """Whole epochs that were seen."""
        return self.position // self.num_images

    @property
    def total(self) -> int:
        """Position at which the training ends."""
        return self.config.epochs * self.num_images

    @property
    def weights(self) -> Detector:
        """The model that is evaluated and saved."""
        return self.average.model if self.average else self.detector

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: it is damaged, or of another training.
        """
        state = load_checkpoint(path)
        check_same_training(path, state, self.identity())
        try:
            self.detector.load_state_dict(state["model"])
            if self.average:
                self.average.load_state_dict(
                    state["average"] or {"model": state["model"], "updates": 0}
                )
        except RuntimeError as error:
            raise CheckpointError(
                f"{path}: the checkpoint's weights do not fit the model: {error}"
            ) from error
        # The optimiser's moments come from the file, its settings from the configuration.
        settings = [
            {key: value for key, value in group.items() if key != "params"}
            for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, setting in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(setting)
        # Fused steps walk through memory: moments in the layout of their weights, whatever it was.
        for group in self.optimizer.param_groups:
            for weight in group["params"]:
                moments = self.optimizer.state.get(weight, {})
                for name, value in moments.items():
                    if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                        moments[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
        if state["precision"]:
            self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.position, self.step = state["position"], state["step"]
        self.metrics, self.best = state["metrics"], state["best"]
        self.evaluated = state.get("evaluated", self.epochs_done)
        self.watch.names = tuple(state["loss_names"])
        processes = state["processes"]
        if len(processes) == self.fabric.world_size:
            mine = processes[self.fabric.global_rank]
            self.watch.sums, self.watch.count = mine["sums"], mine["count"]
            self.watch.invalid_boxes = mine["invalid_boxes"]
            set_rng_state(mine["rng"])
        else:  # no state belongs to this process: a new one, the same whenever this is repeated
            self.watch.sums = [0.0] * len(self.watch.names)
            if self.fabric.is_global_zero:
                self.watch.invalid_boxes = sum(p["invalid_boxes"] for p in processes)
            seed_everything(self.config.seed + self.position + self.fabric.global_rank)

    def identity(self) -> dict[str, Any]:
        """What must be the same when a training goes on."""
        return {
            "model": self.detector.name,
            "class_names": list(self.detector.class_names or ()),
            "images": self.num_images,
            "seed": self.config.seed,
            "optimizer": self.config.optimizer,
            "decay_norm_and_bias": self.config.decay_norm_and_bias,
        }

    def save(
        self, folder: Path, run_config: RunConfig, *, again: bool = False, alone: bool = False
    ) -> None:
        """Write the checkpoint; refused by a loss that is not finite.

        Args:
            folder: where.
            run_config: saved with it.
            again: the last checkpoint is of this step, too: the one before stays.
            alone: only this process calls it. All have the same weights after a step; the others'
                random states are lost, which `load` puts up with.
        """
        self.watch.look()
        own = {
            "rng": rng_state(),
            "sums": self.watch.sums,
            "count": self.watch.count,
            "invalid_boxes": self.watch.invalid_boxes,
        }
        processes = [own] if alone else gather(self.fabric, own)
        if alone or self.fabric.is_global_zero:
            state = {
                "identity": self.identity(),
                "config": run_config.to_dict(),
                "model": self.detector.state_dict(),
                "average": self.average.state_dict() if self.average else None,
                "optimizer": self.optimizer.state_dict(),
                "precision": self.fabric.strategy.precision.state_dict(),
                "position": self.position,  # of the stream: with it the schedule's state
                "step": self.step,
                "loss_names": list(self.watch.names),
                "processes": processes,
                "metrics": self.metrics,
                "best": self.best,
                "evaluated": self.evaluated,
            }
            save_checkpoint(folder, state, again=again)
