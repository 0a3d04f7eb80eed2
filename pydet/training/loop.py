# SPDX-License-Identifier: Apache-2.0
"""The training loop.

`train` is all a caller needs. It runs in one process, or in each of several under ``torchrun``;
Lightning Fabric places the model, casts and synchronises. The loop's own promises:

- A step's loss is the mean over its images, and the images of a step depend on seed and batch size
  only. So the loss curve of W processes is that of one process with the whole batch, up to the
  order of sums, if no layer mixes images (batch normalisation does, group and frozen ones do not)
  and all images of a step are padded to one size (they are if they are resized to one).
- Killed at any moment and resumed, a run on the CPU ends with the same bits.
- On a GPU the host waits for the device once every ``log_every`` steps, not every step. With
  precision fp16 it does every step: the gradient scaler's decision to skip one is made on the host.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pydet._files import remove_leftovers, write_text
from pydet.data import DetectionDataset
from pydet.models import Detector
from pydet.structures import ImageBatch, PackedTargets
from pydet.training import report
from pydet.training.batches import Piece, Sample, Transform, load_batches
from pydet.training.checkpoint import LAST, PREVIOUS, seed_everything
from pydet.training.config import RunConfig, TrainConfig
from pydet.training.devices import (
    StopRequest,
    default_workers,
    gather,
    make_fabric,
    memory_format,
)
from pydet.training.ema import WeightAverage
from pydet.training.logging import Clock, RunLog
from pydet.training.results import Results
from pydet.training.sampler import ImageStream, Key, StreamBatchSampler, steps_left
from pydet.training.schedule import build_optimizer, learning_rate
from pydet.training.state import TrainState
from pydet.training.watch import LossWatch


@dataclass(frozen=True)
class TrainResult:
    """What a training came to.

    Attributes:
        folder: the output folder.
        steps: steps of the optimiser, those before a resume counted.
        epochs: whole epochs done.
        metrics: metrics of the last evaluation; empty without one.
        best: metrics of the best one, with its ``epoch`` and ``step``.
        invalid_boxes: boxes left out because they are no boxes (see `pydet.structures`).
        signal: number of the signal that ended the run early, to be resumed; 0: it is complete.
    """

    folder: Path
    steps: int
    epochs: int
    metrics: Mapping[str, float]
    best: Mapping[str, float]
    invalid_boxes: int
    signal: int


def train(
    model: Detector,
    train_dataset: Dataset[Sample],
    val_dataset: DetectionDataset | None = None,
    config: TrainConfig | None = None,
    *,
    output: str | Path,
    transform: Transform | None = None,
    resume: bool | str | Path = False,
    run_config: RunConfig | None = None,
    tensorboard: bool = True,
    progress: bool = True,
) -> TrainResult:
    """Train a detector; writes checkpoints, weights, metrics, logs and plots to `output`.

    Args:
        model: the detector, with the weights to start from. It is trained in place.
        train_dataset: (image uint8 [3, H, W], Target) pairs; its ``class_names`` must be the
            model's.
        val_dataset: evaluated every ``eval_every`` epochs; None: nothing is evaluated.
        config: settings; None: the defaults.
        output: folder, made if absent. One that holds a training is refused unless resumed.
        transform: random changes, (image, target) -> (image, target); they may draw from torch's,
            NumPy's and Python's global generators, which are seeded for each image and epoch.
        resume: True goes on from ``last.ckpt`` of `output`, or begins if there is none; a path goes
            on from that checkpoint. Settings may change: the position in images stays, the learning
            rate follows the new settings from there on.
        run_config: written to ``config.toml``; its table ``[train]`` is replaced by `config`.
        tensorboard: write TensorBoard events.
        progress: show a progress bar.

    Returns:
        A `TrainResult`; the same on every process.

    Raises:
        TypeError: `val_dataset` is another data set than a DetectionDataset.
        ValueError: settings that do not fit the machine, the data or the model; an output folder
            that holds another training.
        CheckpointError: the checkpoint is damaged or of another model or data set.
        NonFiniteLossError: a loss is NaN or infinite.
    """
    config = config or TrainConfig()
    tables = run_config.to_dict() if run_config else {}
    tables["train"] = RunConfig(train=config).to_dict()["train"]
    trainer = _Trainer(model, train_dataset, val_dataset, config, Path(output), transform)
    trainer.prepare(resume, RunConfig.from_dict(tables))
    return trainer.run(tensorboard, progress)


class _Batch:
    """Hides its tensors from Fabric, which would round the boxes to the precision of autocast."""

    def __init__(self, images: ImageBatch, targets: PackedTargets) -> None:
        self.images = images
        self.targets = targets


class _Losses(nn.Module):
    """The detector as a function of one argument, which DDP and Fabric can wrap."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, batch: _Batch) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.detector(batch.images, batch.targets)
        return losses


class _Trainer:
    """One training in one process."""

    def __init__(
        self,
        model: Detector,
        train_dataset: Dataset[Sample],
        val_dataset: DetectionDataset | None,
        config: TrainConfig,
        folder: Path,
        transform: Transform | None,
    ) -> None:
        report.check_fits(model, train_dataset, val_dataset)
        self.fabric = make_fabric(config)
        self.device = self.fabric.device
        seed_everything(config.seed + self.fabric.global_rank)
        self.config = config
        self.folder = folder
        self.train_dataset = train_dataset
        self.val_dataset = val_dataset
        self.transform = transform
        self.workers = default_workers(config, self.device)
        self.stream = ImageStream(len(train_dataset), config.seed)  # type: ignore[arg-type]
        self.detector = self._place(model)
        module: nn.Module = _Losses(self.detector)
        if config.compile:
            module = torch.compile(module)  # type: ignore[assignment]
        optimizer = build_optimizer(self.detector, config)
        self.module, self.optimizer = self.fabric.setup(module, optimizer)
        self.average = (
            WeightAverage(self.detector, config.ema_decay) if config.ema_decay > 0 else None
        )
        self.watch = LossWatch(partial(report.describe_image, train_dataset))
        self.state = TrainState(
            self.fabric,
            self.detector,
            self.optimizer,
            self.average,
            self.watch,
            self.stream.num_images,
            config,
        )
        self.gradient_norm = torch.zeros(())
        self.stop = StopRequest()
        self.stopping = False
        self.log: RunLog | None = None  # rank 0's

    def _place(self, model: Detector) -> Detector:
        layout = memory_format(self.config, self.device)
        model = model.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        if self.config.sync_batchnorm and self.fabric.world_size > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return model.train()

    def prepare(self, resume: bool | str | Path, run_config: RunConfig) -> None:
        """Make the output folder; load the checkpoint to go on from, if one is wanted."""
        last = self.folder / LAST
        present = last.exists() or (self.folder / PREVIOUS).exists()
        if resume is False and present:
            raise ValueError(
                "train: output must be a new folder, or be resumed with --resume, "
                f"got {self.folder}, which holds a training"
            )
        self.run_config = run_config
        self.sampler = self._sampler()  # refuses a batch size that cannot be divided
        if not isinstance(resume, bool):
            self.state.load(Path(resume))
        elif resume and present:
            self.state.load(last)
        self.fabric.barrier()  # nobody writes before everybody has read
        if self.fabric.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder)
            write_text(self.folder / "config.toml", run_config.to_toml(comments=True))

    def _sampler(self) -> StreamBatchSampler:
        config, images = self.config, self.stream.num_images
        return StreamBatchSampler(
            self.stream,
            config.batch_size,
            start=self.state.position,
            num_steps=steps_left(self.state.position, images, config.epochs, config.batch_size),
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
            accumulate=config.accumulate,
        )

    def run(self, tensorboard: bool, progress: bool) -> TrainResult:
        """Train to the end, or to a signal."""
        state = self.state
        if self.fabric.is_global_zero:
            self.log = RunLog(
                self.folder,
                total=state.total,
                position=state.position,
                step=state.step,
                evaluated=state.evaluated,
                tensorboard=tensorboard,
                progress=progress,
            )
        results = Results(state, self.folder, self.run_config, self.workers, self.log)
        try:
            with self.stop, closing(self._batches()) as batches:
                self._loop(batches, results)
            results.finish()
        finally:
            if self.log:
                self.log.close()
        unfinished = self.stopping and state.position < state.total
        return TrainResult(
            folder=self.folder,
            steps=state.step,
            epochs=state.epochs_done,
            metrics=state.metrics,
            best=state.best,
            invalid_boxes=sum(gather(self.fabric, self.watch.invalid_boxes)),
            signal=max(gather(self.fabric, self.stop.received)) if unfinished else 0,
        )

    def _batches(self) -> Generator[Piece, None, None]:
        self.sampler = self._sampler()
        return load_batches(
            self.train_dataset,
            self.sampler,
            self.detector.preprocessing,
            self.transform,
            seed=self.config.seed,
            workers=self.workers,
            device=self.device,
        )

    def _loop(self, batches: Iterator[Piece], results: Results) -> None:
        config, state = self.config, self.state
        self._evaluate(results)  # where it failed before
        self.clock = Clock(state.position)
        while state.position < state.total and not self.stopping:
            self._step(self._read(batches))
            before = state.epochs_done
            state.step += 1
            state.position += config.batch_size
            finished = state.position >= state.total
            if state.step % config.log_every == 0 or finished:
                self._write_log()
            if self.log:
                self.log.progress(config.batch_size, before, config.epochs)
            # One process obeys a signal at once; several agree on it when they exchange losses.
            self.stopping |= self.fabric.world_size == 1 and self.stop.received > 0
            epoch_ended = state.epochs_done > before
            if (
                epoch_ended
                or finished
                or self.stopping
                or state.step % config.checkpoint_every == 0
            ):
                # Waits for a GPU while the clock still runs, and raises before weights that became
                # NaN are saved or evaluated.
                self.watch.look()
                with self.clock:
                    state.save(self.folder, self.run_config)
                    self._evaluate(results)

    def _evaluate(self, results: Results) -> None:
        """Evaluate, if it is due: only after what was learnt is saved, for it may fail."""
        state, every = self.state, self.config.eval_every
        done = state.epochs_done
        due = done // every > state.evaluated // every
        due |= state.position >= state.total and done > state.evaluated
        if self.val_dataset is not None and due:
            results.evaluate(self.val_dataset)
            state.save(self.folder, self.run_config, again=True)

    def _read(self, batches: Iterator[Piece]) -> list[Piece]:
        """The pieces of a step; what was learnt is kept where an image cannot be read."""
        try:
            return [next(batches) for _ in range(self.config.accumulate)]
        except Exception:
            # Other processes cannot help: they wait for this one's gradients.
            self.state.save(self.folder, self.run_config, alone=True)
            raise

    def _step(self, pieces: Sequence[Piece]) -> None:
        """One step of the optimiser."""
        config = self.config
        rate = learning_rate(self.state.position / self.stream.num_images, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        keys: list[Key] = []
        for piece, (images, targets) in enumerate(pieces):
            batch = _Batch(
                images.to(self.device, non_blocking=True),
                targets.to(self.device, non_blocking=True),
            )
            more = piece + 1 < config.accumulate
            with self.fabric.no_backward_sync(self.module, enabled=more):
                losses = self.module(batch)
                piece_keys = self.sampler.piece_keys(self.state.position, piece)
                keys += piece_keys
                self.watch.add(self.state.step, piece_keys, losses, batch.targets.num_invalid)
                self.fabric.backward(sum(losses.values()) / config.accumulate)
        norm = self.fabric.clip_gradients(
            self.module,
            self.optimizer,
            max_norm=config.clip_norm or float("inf"),
            error_if_nonfinite=False,
        )
        assert norm is not None
        self.gradient_norm = norm
        if config.precision != "fp16":  # there the scaler skips steps with infinite gradients
            self.watch.add_gradient(self.state.step, keys, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.detector)

    def _write_log(self) -> None:
        """Bring the losses of all processes together and write them."""
        sums, count = self.watch.take()
        row = [*sums, float(count), float(self.watch.invalid_boxes), float(self.stop.received > 0)]
        if self.fabric.world_size > 1:
            both = torch.tensor(row, dtype=torch.float64, device=self.device)
            row = torch.as_tensor(self.fabric.all_reduce(both, reduce_op="sum")).tolist()
            self.stopping |= row[-1] > 0
        *sums, pieces, invalid, _ = row
        means = {name: total / pieces for name, total in zip(self.watch.names, sums, strict=True)}
        rate = self.clock.images_per_second(self.state.position)
        if self.log is None:
            return
        losses = {"loss": sum(means.values()), **means}
        self.log.write(
            "train",
            {
                "step": self.state.step,
                "epoch": self.state.position / self.stream.num_images,
                "images": self.state.position,
                "learning_rate": self.optimizer.param_groups[0]["lr"],
                **losses,
                "gradient_norm": float(self.gradient_norm),
                "invalid_boxes": int(invalid),
                "images_per_second": rate,
            },
        )
        self.log.show(losses)
