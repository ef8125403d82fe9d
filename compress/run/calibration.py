"""The images that int8 and fp16 are calibrated on, and those that they are held against."""

from __future__ import annotations

import numpy as np
import torch

from compress.run.workspace import Workspace
from deploy.quantization.agreement import MOST_IMAGES


def calibration_images(work: Workspace) -> list[np.ndarray]:
    """Draw training images with the run's seed; each as the network sees it, float32 (C, H, W)."""
    split = work.target.splits["train"]
    count = min(work.deploy.calibration_images, len(split))
    chosen = np.random.default_rng(work.recipe.seed).permutation(len(split))[:count]
    return [split.gather(torch.tensor([int(i)]))[0].numpy() for i in sorted(chosen)]


def held_out_images(work: Workspace) -> list[np.ndarray]:
    """Return as many validation images as an agreement is counted on, of which no range is taken; float32 (C, H, W)."""
    return list(work.target.splits["val"].inputs(0, MOST_IMAGES).numpy())
