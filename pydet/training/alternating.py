# SPDX-License-Identifier: Apache-2.0
"""The 4-step alternating training of Faster R-CNN: Ren et al., arXiv 1506.01497, section 3.2.

1. The proposal network learns, from the initial weights.
2. A second network's head learns from the first's proposals, from the initial weights, too; so far
   the two share nothing.
3. The second network's proposal network learns, its trunk being fixed.
4. Its head learns from its own proposals, the trunk being fixed: one network.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from pydet.data import DetectionDataset
from pydet.models.faster_rcnn import FasterRCNN
from pydet.training.batches import Sample
from pydet.training.config import TrainConfig
from pydet.training.loop import TrainResult, train
from pydet.training.report import check_fits


def train_alternating(
    model: FasterRCNN,
    train_dataset: Dataset[Sample],
    val_dataset: DetectionDataset | None = None,
    config: TrainConfig | None = None,
    *,
    output: str | Path,
    resume: bool = False,
    **options: Any,
) -> TrainResult:
    """Train a Faster R-CNN in four steps, each a training of its own with the whole schedule.

    Args:
        model: With the weights to start from. It is left as it is.
        train_dataset: See :func:`pydet.training.train`.
        val_dataset: Evaluated in the last step.
        config: Settings of each step; steps differ in their seed.
        output: Folder; the steps write to ``step1`` ... ``step4`` in it, the last one the detector.
        resume: Whether to go on: finished steps are passed over.
        **options: Further arguments of :func:`pydet.training.train`.

    Returns:
        Of the last step, or of the one that a signal ended.

    Raises:
        TypeError: See :func:`pydet.training.train`.
        ValueError: The model is no Faster R-CNN; or see there.
    """
    if not isinstance(model, FasterRCNN):
        raise ValueError(
            f"train_alternating: model must be a Faster R-CNN, got {type(model).__name__}"
        )
    check_fits(model, train_dataset, val_dataset)  # which is evaluated in the last step only
    config = config or TrainConfig()
    proposer, current = copy.deepcopy(model), copy.deepcopy(model)
    result: TrainResult | None = None
    for step in range(1, 5):
        learner = proposer if step == 1 else current
        if step > 2:
            learner = copy.deepcopy(model)
            learner.load_state_dict(current.state_dict())
            current = learner
        learner.learn(
            "rpn" if step in (1, 3) else "head",
            fix_trunk=step > 2,
            proposer=proposer if step == 2 else None,
        )
        result = train(
            learner,
            train_dataset,
            val_dataset if step == 4 else None,
            dataclasses.replace(config, seed=config.seed + step - 1),
            output=Path(output) / f"step{step}",
            resume=resume,
            **options,
        )
        if result.signal:
            break
    assert result is not None
    return result
