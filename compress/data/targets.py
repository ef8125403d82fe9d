"""What an image is labelled with: a class, a mask or boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

TaskName = Literal["classification", "segmentation", "detection"]

IGNORED = 255
"""The label, in every mask, of a pixel that belongs to no class."""


@dataclass(frozen=True)
class Boxes:
    """The objects of one image.

    Args:
        boxes: float32 (n, 4) as x1, y1, x2, y2 in pixels of the decoded, upright image.
        labels: int64 (n,), each an index into ``ImageData.classes``. A background is not a class here: the task adds
            it where a network needs one, as torchvision's detectors do.
    """

    boxes: np.ndarray
    labels: np.ndarray


Target = int | np.ndarray | Boxes
"""A class index, a mask of class indices (uint8, (H, W), ``IGNORED`` where there is none), or boxes."""
