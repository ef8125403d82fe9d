"""Augmentations by torchvision's transforms v2, one image at a time from its own seed: one dict by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from compress.data.targets import IGNORED, Target, TaskName
from compress.errors import RecipeError

if TYPE_CHECKING:
    from compress.recipe.schema import TrainRecipe


@dataclass(frozen=True)
class Augmentation:
    """What happens to an image before it is prepared, and to prepared inputs; None for nothing.

    Args:
        image: (image, target or None, (height, width) of the input, seed) -> (image, target).
        inputs: (inputs (N, C, H, W), a seed an image) -> inputs; for class targets, which no shape changes.
        tasks: the tasks that it suits.
    """

    image: Callable[[Image.Image, Any, Sequence[int], int], tuple[Image.Image, Any]] | None = None
    inputs: Callable[[Tensor, Sequence[int]], Tensor] | None = None
    tasks: frozenset[str] = frozenset({"classification", "segmentation", "detection"})


def affine(inputs: Tensor, seeds: Sequence[int]) -> Tensor:
    """Rotate (±12°), scale (0.85 to 1.15), shear (±0.15) and shift (±10%) each image, for drawn shapes."""
    draws = [torch.rand(5, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return _warped(inputs, torch.stack(draws), turn=0.21, scale=0.15, shear=0.15, shift=0.2)


def warp(
    inputs: Tensor, generator: torch.Generator, *, turn: float, scale: float, shear: float, shift: float
) -> Tensor:
    """Warp each image by a random affine map.

    Args:
        inputs: shape (N, C, H, W).
        generator: the maps are drawn from it.
        turn: the largest angle, in radians.
        scale: the largest relative change of size.
        shear: the largest shear.
        shift: the largest shift, in half images.
    """
    draws = torch.stack([torch.rand(len(inputs), generator=generator) for _ in range(5)], 1)
    return _warped(inputs, draws, turn=turn, scale=scale, shear=shear, shift=shift)


def _warped(inputs: Tensor, draws: Tensor, *, turn: float, scale: float, shear: float, shift: float) -> Tensor:
    """Warp by the maps that ``draws`` (N, 5) in 0..1 encode: angle, size, slant and two shifts."""
    angle, size, slant, right, down = ((2 * draws - 1) * torch.tensor([turn, scale, shear, shift, shift])).unbind(1)
    size = 1 / (1 + size)
    cos, sin = angle.cos() * size, angle.sin() * size
    rows = [cos, slant * cos - sin, right, sin, slant * sin + cos, down]
    maps = torch.stack(rows, 1).reshape(len(inputs), 2, 3)
    grid = F.affine_grid(maps, list(inputs.shape), align_corners=False)
    return F.grid_sample(inputs, grid, padding_mode="border", align_corners=False)


def check(recipe: TrainRecipe, task: TaskName, key: str) -> None:
    """Raise RecipeError when the augmentation, or mixing, does not fit the task.

    Args:
        recipe: one training's.
        task: the task that the targets are for.
        key: the training's place in the recipe, for the error message.
    """
    if task not in AUGMENTATIONS[recipe.augment].tasks:
        fitting = ", ".join(name for name, change in AUGMENTATIONS.items() if task in change.tasks)
        raise RecipeError(f"{key}.augment: {recipe.augment} does not fit {task}; take one of {fitting}.")
    if (recipe.mixup or recipe.cutmix) and task != "classification":
        raise RecipeError(f"{key}: mixup and cutmix mix classes and do not fit {task}; set both to 0.")


def _by_torchvision(kind: str, *tasks: TaskName) -> Augmentation:
    return Augmentation(image=partial(_change, kind), tasks=frozenset(tasks))


def _change(
    kind: str, image: Image.Image, target: Target | None, size: Sequence[int], seed: int
) -> tuple[Image.Image, Any]:
    height, width = int(size[0]), int(size[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if target is None:
            return _transform(kind, height, width)(image), None
        if isinstance(target, np.ndarray):
            return _with_mask(_transform(kind, height, width), image, target)
        assert not isinstance(target, int)
        # A crop that looks for a box never ends where there is none.
        kind = "flip_distort" if kind == "iou_crop_flip" and not len(target.boxes) else kind
        return _with_boxes(_transform(kind, height, width), image, target)


@lru_cache(maxsize=64)
def _transform(kind: str, height: int, width: int) -> Any:
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop((height, width), scale=(0.35, 1.0), antialias=True)
    gentle = v2.RandomResizedCrop((height, width), scale=(0.6, 1.0), antialias=True)
    flip, colour = v2.RandomHorizontalFlip(), v2.ColorJitter(0.3, 0.3, 0.3, 0.05)
    distort = v2.RandomPhotometricDistort()
    return {
        "flip": v2.Compose([flip]),
        "crop_flip": v2.Compose([crop, flip]),
        "crop_flip_colour": v2.Compose([gentle, flip, colour]),
        "trivial": v2.Compose([crop, flip, v2.TrivialAugmentWide()]),
        "iou_crop_flip": v2.Compose([distort, v2.RandomIoUCrop(), flip]),
        "flip_distort": v2.Compose([distort, flip]),
        "scale_crop_flip": partial(_scale_crop_flip, height, width),
    }[kind]


def _scale_crop_flip(height: int, width: int, image: Image.Image, mask: Any) -> tuple[Image.Image, Any]:
    """Crop the input's size at 0.5 to 2 times the scale that fits it; what lies beyond the image is IGNORED."""
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    scale = min(height / image.height, width / image.width) * (0.5 + 1.5 * float(torch.rand(())))
    size = [max(1, round(image.height * scale)), max(1, round(image.width * scale))]
    image, mask = v2.functional.resize(image, size, antialias=True), v2.functional.resize(mask, size)
    fill = {tv_tensors.Mask: IGNORED, "others": 0}
    crop = v2.RandomCrop((height, width), pad_if_needed=True, fill=fill)
    return v2.Compose([crop, v2.RandomHorizontalFlip()])(image, mask)


def _with_mask(transform: Any, image: Image.Image, mask: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    from torchvision import tv_tensors

    changed, found = transform(image, tv_tensors.Mask(torch.from_numpy(np.array(mask))))
    return changed, found.numpy()


def _with_boxes(transform: Any, image: Image.Image, target: Any) -> tuple[Image.Image, Any]:
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    boxes = tv_tensors.BoundingBoxes(
        torch.from_numpy(np.array(target.boxes, dtype=np.float32)).reshape(-1, 4),
        format="XYXY",
        canvas_size=(image.height, image.width),
    )
    held = {"boxes": boxes, "labels": torch.from_numpy(np.array(target.labels, dtype=np.int64))}
    changed, held = v2.SanitizeBoundingBoxes()(*transform(image, held))
    return changed, replace(target, boxes=held["boxes"].numpy(), labels=held["labels"].numpy())


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(),
    "affine": Augmentation(inputs=affine, tasks=frozenset({"classification"})),
    "flip": _by_torchvision("flip", "classification", "segmentation", "detection"),
    "crop_flip": _by_torchvision("crop_flip", "classification", "segmentation", "detection"),
    "crop_flip_colour": _by_torchvision("crop_flip_colour", "classification", "segmentation", "detection"),
    "trivial": _by_torchvision("trivial", "classification"),
    # Liu et al., SSD: Single Shot MultiBox Detector, 2016: a crop that keeps a share of some box, distorted colours.
    "iou_crop_flip": _by_torchvision("iou_crop_flip", "detection"),
    # Chen et al., Rethinking Atrous Convolution for Semantic Image Segmentation, 2017.
    "scale_crop_flip": _by_torchvision("scale_crop_flip", "segmentation"),
}
