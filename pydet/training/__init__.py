# SPDX-License-Identifier: Apache-2.0
"""Training: settings, loop, checkpoints."""

from pydet.training.checkpoint import CheckpointError, load_checkpoint
from pydet.training.config import AugmentConfig, DataConfig, ModelConfig, RunConfig, TrainConfig
from pydet.training.loop import TrainResult, train
from pydet.training.watch import NonFiniteLossError

__all__ = [
    "AugmentConfig",
    "CheckpointError",
    "DataConfig",
    "ModelConfig",
    "NonFiniteLossError",
    "RunConfig",
    "TrainConfig",
    "TrainResult",
    "load_checkpoint",
    "train",
]
