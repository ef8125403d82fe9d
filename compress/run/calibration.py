"""The images that int8 and fp16 are calibrated on."""

from __future__ import annotations

import numpy as np
import torch

from compress.run.workspace import Workspace


def calibration_images(work: Workspace) -> list[np.ndarray]:
    """Draw training images with the run's seed; each as the network sees it, float32 (C, H, W)."""
    split = work.target.splits["train"]
    count = min(work.deploy.calibration_images, len(split))
    chosen = np.random.default_rng(work.recipe.seed).permutation(len(split))[:count]
    return [split.gather(torch.tensor([int(i)]))[0].numpy() for i in sorted(chosen)]
