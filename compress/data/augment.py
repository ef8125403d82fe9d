"""Augmentations: a split, indices and a seed give a batch. One dict from name to function."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from compress.data.images import Split

Augmentation = Callable[["Split", Tensor, int], Tensor]


def none(split: Split, index: Tensor, seed: int) -> Tensor:
    """The images as they are evaluated."""
    return split.gather(index)


def affine(split: Split, index: Tensor, seed: int) -> Tensor:
    """Turns (±12°), scales (0.85 to 1.15), shears (±0.15) and shifts (±10%) each image, for drawn shapes."""
    inputs = split.gather(index)
    return warp(inputs, torch.Generator().manual_seed(seed), turn=0.21, scale=0.15, shear=0.15, shift=0.2)


def crop_flip(split: Split, index: Tensor, seed: int) -> Tensor:
    """A random crop of 35 to 100% of the area, resized, and a flip left to right, for photographs."""
    from torchvision.transforms import v2

    height, width = split.inputs(0, 1).shape[2:]
    change = v2.Compose(
        [v2.RandomResizedCrop((height, width), scale=(0.35, 1.0), antialias=True), v2.RandomHorizontalFlip()]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        arrays = [split.reader.prepare(change(split.images[int(i)])) for i in index]
    return torch.from_numpy(np.stack(arrays))


def warp(
    inputs: Tensor, generator: torch.Generator, *, turn: float, scale: float, shear: float, shift: float
) -> Tensor:
    """One random affine map an image.

    Args:
        inputs: shape (N, C, H, W).
        generator: where the maps are drawn from.
        turn: largest angle in radians.
        scale: largest relative change of size.
        shear: largest shear.
        shift: largest shift, in half images.
    """
    n = len(inputs)

    def draw(largest: float) -> Tensor:
        return (2 * torch.rand(n, generator=generator) - 1) * largest

    angle, size, slant = draw(turn), 1 / (1 + draw(scale)), draw(shear)
    cos, sin = angle.cos() * size, angle.sin() * size
    rows = [cos, slant * cos - sin, draw(shift), sin, slant * sin + cos, draw(shift)]
    maps = torch.stack(rows, 1).reshape(n, 2, 3)
    grid = F.affine_grid(maps, list(inputs.shape), align_corners=False)
    return F.grid_sample(inputs, grid, padding_mode="border", align_corners=False)


AUGMENTATIONS: dict[str, Augmentation] = {"none": none, "affine": affine, "crop_flip": crop_flip}
