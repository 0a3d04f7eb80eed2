# SPDX-License-Identifier: Apache-2.0
"""Losses of the steps since the last look: their means, and the first that is not finite.

Reading a number from a GPU waits for it. So losses stay on their device until a look is due (a log
line, a checkpoint), which copies all of them at once; on the CPU, where reading is free, every step
is looked at before its weights are changed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pydet.training.sampler import Key


class NonFiniteLossError(RuntimeError):
    """A loss is NaN or infinite; the sentence names step, images and every loss's value."""


@dataclass
class LossWatch:
    """Collects the losses of one process.

    Attributes:
        describe: turns a (epoch, index) key into words: file and image id.
        names: the losses' names, in the order of columns; set by the first step.
        pending: (step, keys, [L] losses on their device, [] invalid boxes) not yet looked at.
        norms: (step, keys, [] norm of the gradient) not yet looked at.
        sums: sum of each loss since `take`.
        count: pieces in these sums.
        invalid_boxes: invalid boxes met by this process in the whole training.
    """

    describe: Callable[[Key], str]
    names: tuple[str, ...] = ()
    pending: list[tuple[int, Sequence[Key], Tensor, Tensor]] = field(default_factory=list)
    norms: list[tuple[int, Sequence[Key], Tensor]] = field(default_factory=list)
    sums: list[float] = field(default_factory=list)
    count: int = 0
    invalid_boxes: int = 0

    def add(
        self, step: int, keys: Sequence[Key], losses: dict[str, Tensor], num_invalid: Tensor
    ) -> None:
        """Remember the losses of one piece of a step; looks at them at once on the CPU.

        Args:
            step: number of the step, from 0.
            keys: which images the piece holds.
            losses: name -> [] loss.
            num_invalid: [] invalid boxes in the piece's targets.

        Raises:
            NonFiniteLossError: on the CPU, if one of the losses is not finite.
        """
        if not self.names:
            self.names = tuple(losses)
            self.sums = [0.0] * len(self.names)
        values = torch.stack([losses[name].detach().float() for name in self.names])  # [L]
        self.pending.append((step, keys, values, num_invalid.to(values.device)))
        if values.device.type == "cpu":
            self.look()

    def add_gradient(self, step: int, keys: Sequence[Key], norm: Tensor) -> None:
        """Remember the norm of a step's gradient, [], where it must be finite.

        Raises:
            NonFiniteLossError: on the CPU, if it is not: before the weights are changed by it.
        """
        self.norms.append((step, keys, norm.detach()))
        if norm.device.type == "cpu":
            self.look()

    def look(self) -> None:
        """Copy the pending losses, add them up, and raise for the first that is not finite.

        Raises:
            NonFiniteLossError: names the step and its images; later steps are only counted.
        """
        if self.pending:
            self._look_at_losses()
        if self.norms:
            norms, self.norms = self.norms, []
            values = torch.stack([norm for _, _, norm in norms]).tolist()
            for (step, keys, norm), value in zip(norms, values, strict=True):
                if not abs(value) < float("inf"):
                    self._stop("gradient", step, keys, f"norm = {value:g}", norm.device.type)

    def _look_at_losses(self) -> None:
        pending, self.pending = self.pending, []
        rows = torch.stack(
            [torch.cat([losses, invalid.float()[None]]) for _, _, losses, invalid in pending]
        ).tolist()  # one wait for all
        for (step, keys, losses, _), row in zip(pending, rows, strict=True):
            *values, invalid = row
            if not all(abs(value) < float("inf") for value in values):  # false for NaN, too
                pairs = zip(self.names, values, strict=True)
                text = ", ".join(f"{name} = {value:g}" for name, value in pairs)
                self._stop("loss", step, keys, text, losses.device.type)
            self.sums = [total + value for total, value in zip(self.sums, values, strict=True)]
            self.count += 1
            self.invalid_boxes += int(invalid)

    def take(self) -> tuple[list[float], int]:
        """Sums of the losses and number of pieces since the last call; starts anew."""
        self.look()
        sums, count = self.sums, self.count
        self.sums, self.count = [0.0] * len(self.names), 0
        return sums, count

    def _stop(self, what: str, step: int, keys: Sequence[Key], values: str, device: str) -> None:
        images = "; ".join(self.describe(key) for key in keys)
        raise NonFiniteLossError(
            f"train: the {what} of step {step} is not finite: {values}; its images: {images}. "
            "Checkpoints written before it are intact. Look at these images' boxes, or try a "
            "lower learning_rate, a longer warm-up, a smaller clip_norm"
            + (", or precision bf16 or 32" if device == "cuda" else "")
        )
