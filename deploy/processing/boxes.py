"""Decode, score and suppress boxes in NumPy as torchvision does."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# torchvision's bound on the logarithm of how much a side may be scaled, so that exp does not overflow.
MAX_LOG_RATIO = math.log(1000 / 16)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax along the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return the logistic function; it underflows to 0 far below 0."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-logits))


def decode_boxes(offsets: np.ndarray, references: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Decode offsets against reference boxes to corners x1, y1, x2, y2, (M, 4).

    Args:
        offsets: (M, 4), the shift of the centre in sides of the reference, and the logarithms of the sides' ratios.
        references: (M, 4), centre x, centre y, width, height.
        weights: the four factors that offsets were multiplied by in training.
    """
    steps = offsets / np.asarray(weights, np.float32)
    centres = steps[:, :2] * references[:, 2:] + references[:, :2]
    halves = np.exp(np.minimum(steps[:, 2:], np.float32(MAX_LOG_RATIO))) * references[:, 2:] * np.float32(0.5)
    return np.concatenate([centres - halves, centres + halves], axis=1)


def centres_and_sides(corners: np.ndarray) -> np.ndarray:
    """Convert corners (M, 4) to centre x, centre y, width, height."""
    sides = corners[:, 2:] - corners[:, :2]
    return np.concatenate([corners[:, :2] + np.float32(0.5) * sides, sides], axis=1)


def clip_boxes(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Clip corners (M, 4) to an image of ``size``, (height, width)."""
    height, width = size
    return boxes.clip(0, np.asarray([width, height, width, height], np.float32))


def suppress_by_class(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, *, overlap: float, limit: int
) -> dict[str, np.ndarray]:
    """Suppress boxes within each class and return ``boxes``, ``scores`` and ``labels`` of the likeliest ``limit``.

    Args:
        boxes: corners (M, 4).
        scores: (M,).
        labels: (M,), the class of each.
        overlap: the intersection over union above which the less likely of two boxes of one class is dropped.
        limit: where to stop; the time taken grows with it times M.
    """
    order = np.lexsort((labels, -scores))  # stable: of equal boxes the first stays
    boxes, labels = boxes[order], labels[order]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    gone = np.zeros(len(boxes), bool)
    # Of each class the boxes that are still to come, likeliest first.
    waiting = {label: np.flatnonzero(labels == label) for label in np.unique(labels)}
    kept: list[int] = []
    for k in range(len(boxes)):
        if gone[k]:
            continue
        kept.append(k)
        if len(kept) == limit:
            break
        rest = waiting[labels[k]]
        rest = rest[(rest > k) & ~gone[rest]]
        sides = np.minimum(boxes[k, 2:], boxes[rest, 2:]) - np.maximum(boxes[k, :2], boxes[rest, :2])
        common = sides.clip(0).prod(axis=1)
        with np.errstate(invalid="ignore"):  # two empty boxes give 0 / 0, which exceeds no bound
            shares = common / (areas[k] + areas[rest] - common)
        # In double precision like torchvision, so that each share falls on the same side of the bound.
        over = shares.astype(np.float64) > overlap
        gone[rest[over]] = True
        waiting[labels[k]] = rest[~over]
    found = np.asarray(kept, np.int64)
    return {"boxes": boxes[found], "scores": scores[order[found]], "labels": labels[found]}
