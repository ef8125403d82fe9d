"""Resize masks and boxes as their image is resized on its way into the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from compress.data.targets import Target


@dataclass(frozen=True)
class Geometry:
    """The part of an image that is taken, and the size that it is resized to.

    Args:
        box: (left, top, right, bottom) in pixels of the image.
        size: (height, width) of the network's input.
    """

    box: tuple[float, float, float, float]
    size: tuple[int, int]


def fitted(target: Target, geometry: Geometry) -> Any:
    """Map a target to the network's input: an int64 mask (H, W), or a dict of ``boxes`` (n, 4) and ``labels`` (n,).

    A mask takes the nearest label. A box is clipped to the part taken and dropped where less than a pixel is left.
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
