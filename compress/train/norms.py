"""BatchNorm while a pretrained network learns on few images: live, frozen, or adapted first and then frozen."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.data.images import Split


def norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def freeze_statistics(model: nn.Module) -> None:
    """Make BatchNorms use their running statistics, which no longer move; scale and shift still learn."""
    for module in norms(model):
        module.eval()


def adapt_statistics(model: nn.Module, split: Split, device: torch.device, batch_size: int = 64) -> None:
    """Recompute running means and variances from the images of ``split``, without augmentation, all of equal weight.

    After Li et al., Revisiting Batch Normalization for Practical Domain Adaptation (AdaBN), 2016.
    """
    held = [(module, module.momentum, module.training) for module in norms(model)]
    was_training = model.training
    model.eval()
    for module, _, _ in held:
        module.reset_running_stats()
        module.momentum = None
        module.train()
    with torch.no_grad():
        for batch in split.batches(batch_size):
            if len(batch) > 1:
                model(batch.images.to(device))
    model.train(was_training)
    for module, momentum, training in held:
        module.momentum = momentum
        module.train(training)
