# SPDX-License-Identifier: Apache-2.0
"""What a training leaves behind: evaluations, weights, metrics, plots."""

import math
from pathlib import Path

import torch

import pydet
from pydet._files import atomic_path
from pydet.data import DetectionDataset
from pydet.inference import Evaluation, collect_results, evaluate_results
from pydet.training import report
from pydet.training.checkpoint import rng_state, set_rng_state
from pydet.training.config import RunConfig
from pydet.training.devices import gather
from pydet.training.logging import RunLog
from pydet.training.state import TrainState


class Results:
    """The results of one training; its first process writes them.

    Args:
        state: what is trained.
        folder: the output folder.
        run_config: saved with the weights.
        workers: processes that read images.
        log: the first process's; None on the others.
    """

    def __init__(
        self,
        state: TrainState,
        folder: Path,
        run_config: RunConfig,
        workers: int,
        log: RunLog | None,
    ) -> None:
        self.state = state
        self.fabric = state.fabric
        self.config = state.config
        self.folder = folder
        self.run_config = run_config
        self.workers = workers
        self.log = log

    def evaluate(self, dataset: DetectionDataset) -> None:
        """Evaluate the averaged weights, each process on its share of the images."""
        states, training = rng_state(), self.state.weights.training
        try:
            self._evaluate(dataset)
        finally:
            self.state.weights.train(training)
            set_rng_state(states)
        self.state.evaluated = self.state.epochs_done

    def _evaluate(self, dataset: DetectionDataset) -> None:
        if self.fabric.world_size > 1:  # each process has running statistics of its own
            saved = self.state.weights.state_dict().keys()
            for name, buffer in self.state.weights.named_buffers():
                if name in saved:  # what is not (cached anchors) need not exist everywhere
                    torch.distributed.broadcast(buffer, src=0)
        config = self.config
        # In float32, whatever the training's precision is: the measures are those that others will
        # get from the saved weights.
        own = collect_results(
            self.state.weights,
            dataset,
            batch_size=config.eval_batch_size
            or config.batch_size // (self.fabric.world_size * config.accumulate),
            device=self.fabric.device,
            workers=self.workers,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
            progress=self.log is not None and self.log.shows_progress,
        )
        results = [result for share in gather(self.fabric, own) for result in share]
        if self.fabric.is_global_zero:
            evaluation = evaluate_results(dataset, results)
            self._keep(evaluation)
        numbers = (self.state.metrics, self.state.best)
        self.state.metrics, self.state.best = gather(self.fabric, numbers)[0]

    def _keep(self, evaluation: Evaluation) -> None:
        """Log an evaluation; save weights and curves if it is the best."""
        metric = self.config.best_metric
        place = {"epoch": self.state.epochs_done, "step": self.state.step}
        self.state.metrics = {**place, **evaluation.numbers()}
        value = self.state.metrics[metric]  # NaN without an object to find: worse than any number
        old = self.state.best.get(metric, math.nan)
        best = not self.state.best or value > old or (math.isnan(old) and not math.isnan(value))
        assert self.log is not None
        self.log.write("eval", self.state.metrics)
        self.log.say(
            f"epoch {self.state.epochs_done}: "
            + ", ".join(f"{name} {self.state.metrics[name]:.3f}" for name in ("ap", "ap50", "ap75"))
            + (f" (best {metric} so far)" if best else "")
        )
        if best:
            self.state.best = self.state.metrics
            self._save_weights("best")
            with atomic_path(self.folder / "precision_recall.png") as temporary:
                evaluation.plot(temporary)

    def _save_weights(self, name: str) -> None:
        metrics = self.state.best if name == "best" else self.state.metrics
        pydet.save(
            self.state.weights,
            self.folder / f"{name}.safetensors",
            metrics=report.to_json(metrics),
            training=self.run_config.to_dict(),
            step=self.state.step,
        )

    def finish(self) -> None:
        """Write the weights, the metrics and the plot of the losses."""
        if self.log is None:
            return
        self._save_weights("last")
        report.write_metrics(
            self.folder,
            {
                "model": self.state.detector.name,
                "epochs": self.state.position / self.state.num_images,
                "steps": self.state.step,
                "images": self.state.position,
                "stopped": self.state.position < self.state.total,
                "last": self.state.metrics,
                "best": self.state.best,
            },
        )
        report.plot_losses(self.folder)
