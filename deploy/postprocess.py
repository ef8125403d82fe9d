"""From a network's raw outputs to boxes or a class for every pixel, in NumPy alone."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

_STRICT = ConfigDict(frozen=True, extra="forbid")
# torchvision's bound on how much a side may be scaled: exp does not overflow.
_LARGEST_STEP = math.log(1000 / 16)


class SsdDetection(BaseModel):
    """Decoding of a single-shot detector (Liu et al., 2016, arXiv:1512.02325), as torchvision does it.

    Its network gives ``boxes`` (N, A, 4), offsets from A default boxes, and ``logits`` (N, A, 1 + classes), where
    the first column is the background.

    Attributes:
        kind: says in a manifest which postprocessing this is.
        size: (height, width) in pixels of the network's input.
        grids: (height, width) of each feature map.
        scales: of the default boxes as shares of the input, one more than there are maps.
        aspect_ratios: for each map, besides 1.
        steps: pixels between default boxes, one a map; empty where the grid itself says.
        clip: whether default boxes are cut to the image's size.
        weights: the four factors that offsets were multiplied with in training.
        score_threshold: boxes under it are dropped.
        candidates: the best boxes of each class that go into suppression.
        overlap: intersection over union above which the lower of two boxes of one class goes.
        detections: boxes of an image at most.
    """

    model_config = _STRICT

    kind: Literal["ssd"] = "ssd"
    size: tuple[int, int]
    grids: tuple[tuple[int, int], ...] = Field(min_length=1)
    scales: tuple[float, ...]
    aspect_ratios: tuple[tuple[float, ...], ...]
    steps: tuple[float, ...] = ()
    clip: bool = True
    weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    score_threshold: float = Field(default=0.01, ge=0, le=1)
    candidates: int = Field(default=400, ge=1)
    overlap: float = Field(default=0.45, ge=0, le=1)
    detections: int = Field(default=200, ge=1)

    def default_boxes(self) -> np.ndarray:
        """Centres and sides in pixels, float32 (A, 4): x, y, width, height."""
        height, width = self.size
        rows = []
        for k, (down, across) in enumerate(self.grids):
            sides = [(self.scales[k],) * 2, (math.sqrt(self.scales[k] * self.scales[k + 1]),) * 2]
            for ratio in self.aspect_ratios[k]:
                root = math.sqrt(ratio)
                wide, high = self.scales[k] * root, self.scales[k] / root
                sides += [(wide, high), (high, wide)]
            shapes = np.asarray(sides, np.float32)
            if self.clip:
                shapes = shapes.clip(0, 1)
            per_x, per_y = (width / self.steps[k], height / self.steps[k]) if self.steps else (across, down)
            x = (np.arange(across, dtype=np.float32) + np.float32(0.5)) / np.float32(per_x)
            y = (np.arange(down, dtype=np.float32) + np.float32(0.5)) / np.float32(per_y)
            centres = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 1, 2)
            both = np.broadcast_arrays(centres, shapes[None])
            rows.append(np.concatenate(both, axis=-1).reshape(-1, 4))
        return np.concatenate(rows) * np.asarray([width, height, width, height], np.float32)

    def __call__(self, boxes: np.ndarray, logits: np.ndarray) -> list[dict[str, np.ndarray]]:
        """Decode a batch.

        Args:
            boxes: (N, A, 4) offsets.
            logits: (N, A, 1 + classes).

        Returns:
            For each image ``boxes`` (M, 4) in pixels of the input (x1, y1, x2, y2), ``scores`` (M,), likeliest
            first, and ``labels`` (M,), where 0 is the first class after the background.
        """
        default = self.default_boxes()
        return [self._image(one, row, default) for one, row in zip(boxes, logits, strict=True)]

    def _image(self, offsets: np.ndarray, logits: np.ndarray, default: np.ndarray) -> dict[str, np.ndarray]:
        shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
        scores = shifted / shifted.sum(axis=-1, keepdims=True)
        corners = self._corners(offsets, default)
        kept_boxes, kept_scores, kept_labels = [], [], []
        for label in range(1, logits.shape[-1]):
            (chosen,) = np.nonzero(scores[:, label] > self.score_threshold)
            order = chosen[np.argsort(-scores[chosen, label], kind="stable")[: self.candidates]]
            order = order[suppress(corners[order], self.overlap)]
            kept_boxes.append(corners[order])
            kept_scores.append(scores[order, label])
            kept_labels.append(np.full(len(order), label - 1, np.int64))
        values = np.concatenate(kept_scores)
        best = np.argsort(-values, kind="stable")[: self.detections]
        return {
            "boxes": np.concatenate(kept_boxes)[best],
            "scores": values[best],
            "labels": np.concatenate(kept_labels)[best],
        }

    def _corners(self, offsets: np.ndarray, default: np.ndarray) -> np.ndarray:
        steps = offsets / np.asarray(self.weights, np.float32)
        centres = steps[:, :2] * default[:, 2:] + default[:, :2]
        halves = np.exp(np.minimum(steps[:, 2:], np.float32(_LARGEST_STEP))) * default[:, 2:] * np.float32(0.5)
        height, width = self.size
        limit = np.asarray([width, height, width, height], np.float32)
        return np.concatenate([centres - halves, centres + halves], axis=1).clip(0, limit)


class Segmentation(BaseModel):
    """A class for every pixel, from ``logits`` (N, classes, height, width).

    Attributes:
        kind: says in a manifest which postprocessing this is.
        in_graph: the network itself resizes and takes the largest: it gives ``classes`` (N, height, width).
    """

    model_config = _STRICT

    kind: Literal["segmentation"] = "segmentation"
    in_graph: bool = False

    def __call__(self, values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """The classes (N, height, width) of ``size``, from logits of any size or from classes of the graph."""
        if self.in_graph:
            rows, columns = (
                np.minimum(((np.arange(want) + 0.5) * have / want).astype(np.int64), have - 1)
                for want, have in zip(size, values.shape[1:], strict=True)
            )
            return values[:, rows[:, None], columns]
        return resize_bilinear(values, size).argmax(axis=1)


Postprocessing = Annotated[SsdDetection | Segmentation, Field(discriminator="kind")]


def suppress(boxes: np.ndarray, overlap: float) -> np.ndarray:
    """Non-maximum suppression: places in ``boxes`` (M, 4), likeliest first, of those that stay, in their order."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    gone = np.zeros(len(boxes), bool)
    kept = []
    for k in range(len(boxes)):
        if gone[k]:
            continue
        kept.append(k)
        rest = boxes[k + 1 :]
        sides = np.minimum(boxes[k, 2:], rest[:, 2:]) - np.maximum(boxes[k, :2], rest[:, :2])
        common = sides.clip(0).prod(axis=1)
        with np.errstate(invalid="ignore"):  # two empty boxes: 0 / 0, which is above nothing
            shares = common / (areas[k] + areas[k + 1 :] - common)
        # In double, like torchvision: which side of the bound a share falls on must not differ.
        gone[k + 1 :] |= shares.astype(np.float64) > overlap
    return np.asarray(kept, np.int64)


def resize_bilinear(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (N, C, H, W) to ``size`` as torch's bilinear interpolation without aligned corners does."""
    for axis, want in ((2, size[0]), (3, size[1])):
        have = values.shape[axis]
        place = ((np.arange(want) + 0.5) * (have / want) - 0.5).clip(0, have - 1)
        low = place.astype(np.int64)
        share = (place - low).astype(np.float32).reshape((-1, 1) if axis == 2 else (-1,))
        high = np.minimum(low + 1, have - 1)
        values = values.take(low, axis) * (1 - share) + values.take(high, axis) * share
    return values
