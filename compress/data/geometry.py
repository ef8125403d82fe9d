"""Masks and boxes follow the resize that an image gets on its way into the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from compress.data.targets import Target


@dataclass(frozen=True)
class Geometry:
    """Which part of an image is taken, and the size that it gets.

    Args:
        box: (left, top, right, bottom) in pixels of the image.
        size: (height, width) of the network's input.
    """

    box: tuple[float, float, float, float]
    size: tuple[int, int]


def fitted(target: Target, geometry: Geometry) -> Any:
    """What a target is in the network's input: an int64 mask (H, W), or ``boxes`` (n, 4) and ``labels`` (n,) in a dict.

    A mask takes the nearest label. A box is cut to what is seen; one that is not seen, or is under a pixel, goes.
    """
    height, width = geometry.size
    if isinstance(target, np.ndarray):
        picture = Image.fromarray(target).resize((width, height), Image.Resampling.NEAREST, box=geometry.box)
        return torch.from_numpy(np.asarray(picture).astype(np.int64))
    assert not isinstance(target, int)
    left, top, right, bottom = geometry.box
    boxes = torch.as_tensor(target.boxes, dtype=torch.float32).reshape(-1, 4)
    offset = torch.tensor([left, top, left, top])
    scale = torch.tensor([width / (right - left), height / (bottom - top)] * 2)
    boxes = (boxes - offset) * scale
    boxes = torch.minimum(boxes.clamp_min(0), torch.tensor([width, height, width, height], dtype=torch.float32))
    seen = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)
    return {"boxes": boxes[seen], "labels": torch.as_tensor(target.labels, dtype=torch.int64)[seen]}
