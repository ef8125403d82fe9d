"""BatchNorm while a pretrained network learns on few images: live, frozen, or adapted first and then frozen."""

from __future__ import annotations

import torch
from torch import nn

from compress.data.images import Split
from compress.models.norms import norms, statistics_anew


def freeze_statistics(model: nn.Module) -> None:
    """Make BatchNorms use their running statistics, which no longer move; scale and shift still learn."""
    for module in norms(model):
        module.eval()


def adapt_statistics(model: nn.Module, split: Split, device: torch.device, batch_size: int = 64) -> None:
    """Recompute running means and variances from the images of ``split``, without augmentation, all of equal weight.

    After Li et al., Revisiting Batch Normalization for Practical Domain Adaptation (AdaBN), 2016.
    """
    with statistics_anew(model), torch.no_grad():
        for batch in split.batches(batch_size):
            if len(batch) > 1:
                model(batch.images.to(device))
