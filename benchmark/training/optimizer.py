"""Optimizer and learning-rate schedule of a recipe, from torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from robbench.training.recipe import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over the parameters that are trained."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fused = all(map(_dense, parameters))
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
            fused=fused,
        )
    adaptive = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return adaptive(parameters, recipe.lr, weight_decay=recipe.weight_decay, fused=fused)


def _dense(parameter: Tensor) -> bool:
    """Whether a fused step suits it: that takes real numbers, and walks over memory whatever the strides are."""
    dense = parameter.is_contiguous() or parameter.is_contiguous(memory_format=torch.channels_last)
    return dense and parameter.is_floating_point()


def make_scheduler(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int, epochs: int, epoch: int
) -> LRScheduler:
    """The recipe's learning rates from the beginning of an epoch on.

    It is made anew for each epoch, so that resuming needs no more state than the optimizer's.

    Args:
        optimizer: What it sets the learning rate of, once for every step of the scheduler.
        recipe: The recipe.
        steps_per_epoch: Optimizer steps of an epoch.
        epochs: Epochs in all.
        epoch: The epoch that begins, from 0.
    """
    before = epoch * steps_per_epoch - 1 if epoch else -1
    if recipe.schedule == "one-cycle":
        total = epochs * steps_per_epoch
        return OneCycleLR(
            optimizer, recipe.lr, total, anneal_strategy="linear", cycle_momentum=False, last_epoch=before
        )
    for group in optimizer.param_groups:
        group["initial_lr"] = recipe.lr

    warm = round(recipe.warmup * epochs * steps_per_epoch)

    # Not torch's CosineAnnealingLR, which derives each rate from the one before and so adds up rounding.
    def factor(step: int) -> float:
        grown = min(1.0, (step + 1) / warm) if warm else 1.0
        epoch, step = divmod(step, steps_per_epoch)
        if recipe.schedule == "steps":
            return grown * recipe.gamma ** sum(epoch >= milestone for milestone in recipe.milestones)
        progress = (epoch + step / steps_per_epoch) / epochs
        return grown * 0.5 * (1 + math.cos(math.pi * progress)) if recipe.schedule == "cosine" else grown

    return LambdaLR(optimizer, factor, last_epoch=before)
