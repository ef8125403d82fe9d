"""Boxes in NumPy: decoding, scores and suppression as torchvision computes them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# torchvision's bound on how much a side may be scaled: exp does not overflow.
LARGEST_STEP = math.log(1000 / 16)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Shares along the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """The logistic function; far below 0 it is 0."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-logits))


def moved(offsets: np.ndarray, centred: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Boxes (M, 4) as corners x1, y1, x2, y2, from offsets against reference boxes.

    Args:
        offsets: (M, 4): of the centre in the reference's sides, and the logarithm of the sides' ratios.
        centred: (M, 4) reference boxes: x, y, width, height.
        weights: the four factors that offsets were multiplied with in training.
    """
    steps = offsets / np.asarray(weights, np.float32)
    centres = steps[:, :2] * centred[:, 2:] + centred[:, :2]
    halves = np.exp(np.minimum(steps[:, 2:], np.float32(LARGEST_STEP))) * centred[:, 2:] * np.float32(0.5)
    return np.concatenate([centres - halves, centres + halves], axis=1)


def centred(corners: np.ndarray) -> np.ndarray:
    """Boxes (M, 4) as x, y, width, height, from corners."""
    sides = corners[:, 2:] - corners[:, :2]
    return np.concatenate([corners[:, :2] + np.float32(0.5) * sides, sides], axis=1)


def clipped(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Corners (M, 4) cut to an image of ``size``, (height, width)."""
    height, width = size
    return boxes.clip(0, np.asarray([width, height, width, height], np.float32))


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


def best(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, *, overlap: float, limit: int
) -> dict[str, np.ndarray]:
    """What suppression within each label leaves: ``boxes``, ``scores`` and ``labels``, the likeliest ``limit``."""
    kept = [np.empty(0, np.int64)]
    for label in np.unique(labels):
        (chosen,) = np.nonzero(labels == label)
        order = chosen[np.argsort(-scores[chosen], kind="stable")]
        kept.append(order[suppress(boxes[order], overlap)])
    every = np.concatenate(kept)
    order = every[np.argsort(-scores[every], kind="stable")[:limit]]
    return {"boxes": boxes[order], "scores": scores[order], "labels": labels[order]}
