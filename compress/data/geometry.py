"""Resize masks and boxes as their image is resized on its way into the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from compress.data.targets import IGNORED, Target


@dataclass(frozen=True)
class Geometry:
    """The part of an image that is taken, and the size that it is resized to.

    Args:
        box: (left, top, right, bottom) in pixels of the image; it reaches over the edges where the image is padded.
        size: (height, width) of the network's input.
    """

    box: tuple[float, float, float, float]
    size: tuple[int, int]


def fitted(target: Target, geometry: Geometry) -> Any:
    """Map a target to the network's input: an int64 mask (H, W), or a dict of ``boxes`` (n, 4) and ``labels`` (n,).

    A mask takes the nearest label, and IGNORED in the padding. A box is clipped to the part taken and dropped where
    less than a pixel is left.
    """
    height, width = geometry.size
    if isinstance(target, np.ndarray):
        return torch.from_numpy(_fitted_mask(target, geometry).astype(np.int64))
    assert not isinstance(target, int)
    left, top, right, bottom = geometry.box
    boxes = torch.as_tensor(target.boxes, dtype=torch.float32).reshape(-1, 4)
    offset = torch.tensor([left, top, left, top])
    scale = torch.tensor([width / (right - left), height / (bottom - top)] * 2)
    boxes = (boxes - offset) * scale
    boxes = torch.minimum(boxes.clamp_min(0), torch.tensor([width, height, width, height], dtype=torch.float32))
    seen = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)
    return {"boxes": boxes[seen], "labels": torch.as_tensor(target.labels, dtype=torch.int64)[seen]}


def _fitted_mask(mask: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Return the nearest labels, uint8 (H, W)."""
    height, width = geometry.size
    left, top, right, bottom = geometry.box
    inside = (max(left, 0.0), max(top, 0.0), min(right, float(mask.shape[1])), min(bottom, float(mask.shape[0])))
    if inside == geometry.box:
        picture = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST, box=inside)
        return np.asarray(picture)
    across, down = width / (right - left), height / (bottom - top)
    x, y = round((inside[0] - left) * across), round((inside[1] - top) * down)
    wide, high = round((inside[2] - inside[0]) * across), round((inside[3] - inside[1]) * down)
    found = np.full((height, width), IGNORED, np.uint8)
    part = Image.fromarray(mask).resize((wide, high), Image.Resampling.NEAREST, box=inside)
    found[y : y + high, x : x + wide] = np.asarray(part)
    return found
