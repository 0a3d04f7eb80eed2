# SPDX-License-Identifier: Apache-2.0
"""The interface of every detector."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor, nn

from pydet.postprocess import PaddedDetections, to_list
from pydet.preprocessing import Preprocessing
from pydet.structures import Detection, ImageBatch, PackedTargets, Target

Images = Tensor | Sequence[Tensor] | ImageBatch


def fastest_memory_format(device: torch.device | str) -> torch.memory_format:
    """The layout of weights and images for a device.

    channels_last on a GPU, as NVIDIA advises for its tensor cores (not measured here), and on a CPU
    with AVX-512; configs/README.md has the measurement.
    """
    last = (
        torch.device(device).type == "cuda" or torch.backends.cpu.get_cpu_capability() == "AVX512"
    )
    return torch.channels_last if last else torch.contiguous_format


class Detector(nn.Module, ABC):
    """Base of all detectors: ``model(images)`` detects, ``model(images, targets)`` gives losses.

    Targets or none decides, never ``model.training``: a validation loss is one call. (The mode
    still decides what batch normalisation does, as everywhere in torch.)

    The path of a batch, each step a method of its own::

        images --preprocessing--> [B, 3, H, W] --predict--> output --losses--> dict of scalars
                                                                 `--decode---> detections

    Attributes:
        config: A frozen dataclass, every hyper-parameter with its source. Thresholds of it are read
            at each call: ``model.config = dataclasses.replace(model.config, score_threshold=0.3)``.
        name: By which it was created; "" if built by hand.
        num_classes: K, background not counted.
        class_names: K names, or None.
        num_invalid_boxes: How many boxes of targets were met so far that nothing could be learnt
            from (see :class:`PackedTargets`): 0, then a tensor on the model's device.
    """

    config: Any

    def __init__(self, config: Any, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.name = ""
        self.num_classes = num_classes
        self.class_names: tuple[str, ...] | None = None
        self.num_invalid_boxes: Tensor | int = 0

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become a batch: part of the config."""
        return self.config.preprocessing  # type: ignore[no-any-return]

    @abstractmethod
    def predict(self, images: Tensor) -> Any:
        """The network's raw output for normalised images [B, 3, H, W]."""

    @abstractmethod
    def losses(self, output: Any, targets: PackedTargets) -> dict[str, Tensor]:
        """Scalars to be added up and minimised."""

    @abstractmethod
    def decode(self, output: Any, image_sizes: Tensor) -> PaddedDetections:
        """Detections in pixels of the batch; ``image_sizes`` [B, 2] (height, width) of contents."""

    def detect(self, images: Tensor, image_sizes: Tensor) -> PaddedDetections:
        """Padded detections for normalised images [B, 3, H, W]: what is compiled or exported."""
        return self.decode(self.predict(images), image_sizes)

    @overload
    def forward(self, images: Images, targets: None = None) -> list[Detection]: ...
    @overload
    def forward(
        self, images: Images, targets: Sequence[Target] | PackedTargets
    ) -> dict[str, Tensor]: ...

    def forward(
        self, images: Images, targets: Sequence[Target] | PackedTargets | None = None
    ) -> dict[str, Tensor] | list[Detection]:
        """Losses with targets, detections without.

        Args:
            images: A list of RGB tensors [3, H, W] of any sizes (resized and padded by the model's
                preprocessing), a tensor [B, 3, H, W] (taken as it is, so of the model's own size
                where that is fixed), or an :class:`ImageBatch`; uint8 in 0 ... 255 or floating in
                0 ... 1.
            targets: One dict an image, boxes in that image's pixels, labels in 0 ... K-1; or
                :class:`PackedTargets` of an :class:`ImageBatch`.

        Returns:
            With targets: scalars by name; their sum is to be minimised. Without: for each image
            ``{"boxes": [D, 4], "scores": [D], "labels": [D]}``, in pixels of the image as given.

        Raises:
            TypeError: Wrong types or dtypes.
            ValueError: Wrong shapes or values. Labels out of range are seen where targets lie on
                the CPU; to look at those on a GPU would be to wait for it
                (:meth:`PackedTargets.check_labels` does).
        """
        batch, packed = self.preprocessing.batch(images, targets)
        if isinstance(images, Tensor):
            self._check_size(images)
        parameter = next(self.parameters())
        if batch.images.device != parameter.device:
            raise ValueError(
                f"{type(self).__name__}: images must be on the model's device "
                f"({parameter.device}), got {batch.images.device}"
            )
        if packed is not None:
            packed = self._checked(packed, parameter.device)
        # In the layout of the weights: else each convolution converts one or the other.
        pixels = batch.images.contiguous(memory_format=self._memory_format())
        batch = replace(batch, images=pixels)
        output = self.predict(self.preprocessing.normalize(batch, parameter.dtype))
        if packed is not None:
            return self.losses(output, packed)
        return to_list(self.decode(output, batch.sizes_tensor()), batch)

    def _check_size(self, images: Tensor) -> None:
        """Refuses a tensor, which is not resized, of another size than all images are to have."""
        size = self.preprocessing.size
        if self.preprocessing.resize == "fixed" and tuple(images.shape[2:]) != size:
            raise ValueError(
                f"{type(self).__name__}: images must have (height, width) {size} where they are "
                f"one tensor, which is not resized, got {tuple(images.shape[2:])}; list(images) is "
                "resized, an ImageBatch taken as it is"
            )

    def _memory_format(self) -> torch.memory_format:
        """Of the weights; kernels of one cell or one input channel are in both, and say nothing."""
        last = torch.channels_last
        kernels = (p for p in self.parameters() if p.dim() == 4 and not p.is_contiguous())
        is_last = any(kernel.is_contiguous(memory_format=last) for kernel in kernels)
        return last if is_last else torch.contiguous_format

    def _checked(self, targets: PackedTargets, device: torch.device) -> PackedTargets:
        if targets.labels.device.type == "cpu":
            targets.check_labels(self.num_classes, type(self).__name__)
        targets = targets.to(device, non_blocking=True)
        seen = self.num_invalid_boxes
        if isinstance(seen, Tensor):
            seen = seen.to(device, non_blocking=True)
        self.num_invalid_boxes = seen + targets.num_invalid
        return targets
