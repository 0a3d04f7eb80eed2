# SPDX-License-Identifier: Apache-2.0
"""Learning rate as a function of progress, and the optimisers' parameter groups.

The schedules are functions of the epochs done, not objects that count: a training that is resumed,
also with another batch size or number of epochs, needs no state to go on where it belongs.
"""

import math

import torch
from torch import nn

from pydet.training.config import TrainConfig


def learning_rate(epochs_done: float, config: TrainConfig) -> float:
    """Learning rate of the step that begins after `epochs_done` epochs.

    Linear warm-up over ``warmup_epochs`` from ``warmup_factor`` (Goyal et al. 2017, Accurate, Large
    Minibatch SGD, section 2.2), multiplied with one of: a half cosine from the end of the warm-up
    to the last epoch (Loshchilov and Hutter 2017, SGDR, eq. 5, one period), steps, or nothing.

    Args:
        epochs_done: epochs done before the step, a fraction counted: images seen / images.
        config: the training's settings.

    Returns:
        The learning rate, not negative.
    """
    factor = 1.0
    if epochs_done < config.warmup_epochs:
        share = epochs_done / config.warmup_epochs
        factor = config.warmup_factor + (1.0 - config.warmup_factor) * share
    if config.schedule == "cosine":
        span = config.epochs - config.warmup_epochs
        share = min(max((epochs_done - config.warmup_epochs) / span, 0.0), 1.0)
        half_cosine = 0.5 * (1.0 + math.cos(math.pi * share))
        factor *= config.final_factor + (1.0 - config.final_factor) * half_cosine
    elif config.schedule == "step":
        factor *= config.step_factor ** sum(epoch <= epochs_done for epoch in config.step_epochs)
    return config.learning_rate * factor


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, object]]:
    """Trainable parameters in two groups: with weight decay and, unless asked for, without.

    Parameters of one dimension or none are those without: biases, scales and shifts of
    normalisation layers. Decay pulls them towards 0, where a scale switches its channel off.

    Raises:
        ValueError: the model has no trainable parameter.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("train: model must have trainable parameters, got none")
    if config.decay_norm_and_bias:
        return [{"params": trainable, "weight_decay": config.weight_decay}]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser that `config` names, over `parameter_groups`.

    The fused versions pass over the memory of weights, gradients and momenta once, on the CPU and
    on CUDA. They unscale gradients themselves, which excludes clipping under fp16: not there.
    """
    groups = parameter_groups(model, config)
    fused = config.precision != "fp16"
    if config.optimizer == "adamw":
        betas = (config.momentum, 0.999)
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=fused)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, fused=fused)
