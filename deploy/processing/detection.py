"""Decode the raw outputs of detectors in NumPy alone, each kind as torchvision does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from deploy.processing.boxes import (
    centres_and_sides,
    clip_boxes,
    decode_boxes,
    sigmoid,
    softmax,
    suppress_by_class,
)

_Side = Annotated[int, Field(ge=1, le=4096)]
_Positive = Annotated[float, Field(ge=1e-6, le=1e6)]
Grid = tuple[_Side, _Side]
Box = tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
Factors = tuple[_Positive, _Positive, _Positive, _Positive]
_MOST_ANCHORS = 1 << 21  # twice what a network on an image of 2,000 x 2,000 pixels has
_Candidates = Annotated[int, Field(ge=1, le=5_000)]
_Detections = Annotated[int, Field(ge=1, le=1_000)]
_Maps = 16
# torchvision's bound: a two-stage detector drops boxes with a shorter side, in pixels.
_MIN_SIDE = 1e-2


def _check_anchors(count: int) -> None:
    """Refuse more anchors than any network has: each takes memory and time before the first box is known."""
    if count > _MOST_ANCHORS:
        raise ValueError(f"the grids hold {count} anchors, and {_MOST_ANCHORS} are the limit")


class DetectionDecoder(BaseModel):
    """The base of all decoders; call one with the network's outputs in the order of ``OUTPUTS``.

    Attributes:
        size: (height, width) in pixels of the network's input.
        score_threshold: boxes with a lower score are dropped.
        overlap: the intersection over union above which the less likely of two boxes of one class is dropped.
        detections: the largest number of boxes of an image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    OUTPUTS: ClassVar[tuple[str, ...]] = ("boxes", "logits")

    size: Grid
    score_threshold: float = Field(default=0.05, ge=0, le=1)
    overlap: float = Field(default=0.5, ge=0, le=1)
    detections: _Detections = 100

    def __call__(self, *outputs: np.ndarray) -> list[dict[str, np.ndarray]]:
        """Decode a batch.

        Args:
            outputs: those of the network, each (N, ...), in the order of ``OUTPUTS``.

        Returns:
            For each image ``boxes`` (M, 4) in pixels of the input (x1, y1, x2, y2), ``scores`` (M,), likeliest
            first, and ``labels`` (M,), where 0 is the first class after the background.
        """
        if len(outputs) != len(self.OUTPUTS):
            raise TypeError(f"{type(self).__name__} takes {', '.join(self.OUTPUTS)}, not {len(outputs)} arrays")
        return [self._image(one) for one in zip(*outputs, strict=True)]

    def shapes(self, classes: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of each output without the batch, for ``classes`` without the background."""
        raise NotImplementedError

    def _image(self, raw: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        raise NotImplementedError


class SsdDecoder(DetectionDecoder):
    """The decoder of a single-shot detector (Liu et al., 2016, arXiv:1512.02325).

    Its network returns ``boxes`` (N, A, 4), offsets from A default boxes, and ``logits`` (N, A, 1 + classes), where
    the first column is the background.

    Attributes:
        kind: the name of this postprocessing in a manifest.
        grids: (height, width) of each feature map.
        scales: of the default boxes as shares of the input, one more than there are maps.
        aspect_ratios: of the default boxes of each map, besides 1.
        steps: pixels between default boxes, one per map; empty where they follow from the grids.
        clip: whether default boxes are clipped to the image.
        weights: the four factors that offsets were multiplied by in training.
        candidates: the best boxes of each class that go into suppression.
    """

    kind: Literal["ssd"] = "ssd"
    grids: tuple[Grid, ...] = Field(min_length=1, max_length=_Maps)
    scales: tuple[_Positive, ...]
    aspect_ratios: tuple[tuple[_Positive, ...], ...]
    steps: tuple[_Positive, ...] = ()
    clip: bool = True
    weights: Factors = (10.0, 10.0, 5.0, 5.0)
    score_threshold: float = Field(default=0.01, ge=0, le=1)
    candidates: _Candidates = 400
    overlap: float = Field(default=0.45, ge=0, le=1)
    detections: _Detections = 200

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        maps = len(self.grids)
        if len(self.scales) <= maps or len(self.aspect_ratios) < maps or 0 < len(self.steps) < maps:
            raise ValueError(f"{maps} grids need {maps + 1} scales, {maps} aspect_ratios and {maps} steps or none")
        _check_anchors(self.shapes(1)["boxes"][0])
        return self

    def default_boxes(self) -> np.ndarray:
        """Return the default boxes in pixels, float32 (A, 4): centre x, centre y, width, height."""
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

    def shapes(self, classes: int) -> dict[str, tuple[int, ...]]:
        places = zip(self.grids, self.aspect_ratios, strict=False)
        anchors = sum(down * across * (2 + 2 * len(ratios)) for (down, across), ratios in places)
        return {"boxes": (anchors, 4), "logits": (anchors, 1 + classes)}

    @cached_property
    def _default(self) -> np.ndarray:
        return self.default_boxes()

    def _image(self, raw: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        offsets, logits = raw
        scores = softmax(logits)
        corners = clip_boxes(decode_boxes(offsets, self._default, self.weights), self.size)
        places, labels = [], []
        for label in range(1, logits.shape[-1]):
            (chosen,) = np.nonzero(scores[:, label] > self.score_threshold)
            places.append(chosen[np.argsort(-scores[chosen, label], kind="stable")[: self.candidates]])
            labels.append(np.full(len(places[-1]), label, np.int64))
        place, column = np.concatenate(places), np.concatenate(labels)
        return suppress_by_class(
            corners[place], scores[place, column], column - 1, overlap=self.overlap, limit=self.detections
        )


class RetinaNetDecoder(DetectionDecoder):
    """The decoder of a RetinaNet (Lin et al., 2017, arXiv:1708.02002).

    Its network returns ``boxes`` (N, A, 4), offsets from A anchors, and ``logits`` (N, A, 1 + classes). The first
    column stands for the background, which no training example has; it is ignored.

    Attributes:
        kind: the name of this postprocessing in a manifest.
        grids: (height, width) of each feature map.
        cells: the corners of each map's anchors around the origin, in pixels.
        weights: the four factors that offsets were multiplied by in training.
        candidates: the best boxes of each feature map that go into suppression.
    """

    kind: Literal["retinanet"] = "retinanet"
    grids: tuple[Grid, ...] = Field(min_length=1, max_length=_Maps)
    cells: tuple[tuple[Box, ...], ...]
    weights: Factors = (1.0, 1.0, 1.0, 1.0)
    candidates: _Candidates = 1000
    detections: _Detections = 300

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if len(self.cells) != len(self.grids):
            raise ValueError(f"{len(self.grids)} grids need as many cells, not {len(self.cells)}")
        _check_anchors(self.shapes(1)["boxes"][0])
        return self

    def shapes(self, classes: int) -> dict[str, tuple[int, ...]]:
        anchors = sum(a * b * len(cells) for (a, b), cells in zip(self.grids, self.cells, strict=True))
        return {"boxes": (anchors, 4), "logits": (anchors, 1 + classes)}

    @cached_property
    def anchors(self) -> list[np.ndarray]:
        """The centre and sides in pixels of every anchor, float32 (A, 4) for each feature map."""
        return [centres_and_sides(level) for level in tile_anchors(self.size, self.grids, self.cells)]

    def _image(self, raw: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        offsets, logits = raw
        return self._best(offsets, sigmoid(logits))

    def _corners(self, offsets: np.ndarray, anchors: np.ndarray) -> np.ndarray:
        return decode_boxes(offsets, anchors, self.weights)

    def _best(self, offsets: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
        boxes, values, labels = [], [], []
        start = 0
        for anchors in self.anchors:
            rows = slice(start, start + len(anchors))
            start += len(anchors)
            flat = scores[rows, 1:].reshape(-1)
            (chosen,) = np.nonzero(flat > self.score_threshold)
            chosen = chosen[np.argsort(-flat[chosen], kind="stable")[: self.candidates]]
            place, label = np.divmod(chosen, scores.shape[-1] - 1)
            boxes.append(clip_boxes(self._corners(offsets[rows][place], anchors[place]), self.size))
            values.append(flat[chosen])
            labels.append(label)
        parts = (np.concatenate(boxes), np.concatenate(values), np.concatenate(labels))
        return suppress_by_class(*parts, overlap=self.overlap, limit=self.detections)


class FcosDecoder(RetinaNetDecoder):
    """The decoder of an FCOS (Tian et al., 2019, arXiv:1904.01355).

    It works as RetinaNet's, but ``boxes`` are distances to the four sides in units of the anchor's sides, and a third
    output ``centreness`` (N, A, 1) weights the scores.
    """

    OUTPUTS: ClassVar[tuple[str, ...]] = ("boxes", "logits", "centreness")

    kind: Literal["fcos"] = "fcos"  # type: ignore[assignment]
    score_threshold: float = Field(default=0.2, ge=0, le=1)
    overlap: float = Field(default=0.6, ge=0, le=1)
    detections: _Detections = 100

    def shapes(self, classes: int) -> dict[str, tuple[int, ...]]:
        found = super().shapes(classes)
        return {**found, "centreness": (found["boxes"][0], 1)}

    def _image(self, raw: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        offsets, logits, centreness = raw
        return self._best(offsets, np.sqrt(sigmoid(logits) * sigmoid(centreness)))

    def _corners(self, offsets: np.ndarray, anchors: np.ndarray) -> np.ndarray:
        centres, sides = anchors[:, :2], anchors[:, 2:]
        return np.concatenate([centres - offsets[:, :2] * sides, centres + offsets[:, 2:] * sides], axis=1)


class RcnnDecoder(DetectionDecoder):
    """The decoder of a two-stage detector (Ren et al., 2015, arXiv:1506.01497), after its box head.

    Its network returns, for the K regions that it proposes, ``boxes`` (N, K, (1 + classes) * 4), offsets for each
    class, ``logits`` (N, K, 1 + classes), ``regions`` (N, K, 4) as corners in pixels, and ``kept`` (N, K): 1 for each
    region that exists, 0 where there are fewer than K.

    Attributes:
        kind: the name of this postprocessing in a manifest.
        regions: K.
        weights: the four factors that offsets were multiplied by in training.
    """

    OUTPUTS: ClassVar[tuple[str, ...]] = ("boxes", "logits", "regions", "kept")

    kind: Literal["rcnn"] = "rcnn"
    regions: int = Field(ge=1, le=10_000)
    weights: Factors = (10.0, 10.0, 5.0, 5.0)

    def shapes(self, classes: int) -> dict[str, tuple[int, ...]]:
        k, columns = self.regions, 1 + classes
        return {"boxes": (k, 4 * columns), "logits": (k, columns), "regions": (k, 4), "kept": (k,)}

    def _image(self, raw: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        offsets, logits, regions, kept = raw
        exists = kept > 0.5
        scores = softmax(logits[exists])[:, 1:]
        columns = logits.shape[-1]
        references = centres_and_sides(np.repeat(regions[exists], columns - 1, axis=0))
        moves = offsets[exists].reshape(-1, columns, 4)[:, 1:].reshape(-1, 4)
        boxes = clip_boxes(decode_boxes(moves, references, self.weights), self.size)
        labels = np.tile(np.arange(columns - 1), len(scores))
        sides = boxes[:, 2:] - boxes[:, :2]
        (chosen,) = np.nonzero((scores.reshape(-1) > self.score_threshold) & (sides >= _MIN_SIDE).all(axis=1))
        return suppress_by_class(
            boxes[chosen], scores.reshape(-1)[chosen], labels[chosen], overlap=self.overlap, limit=self.detections
        )


class DecodedBoxes(DetectionDecoder):
    """The decoder of a network that decodes and suppresses boxes itself.

    It returns ``boxes`` (N, D, 4) in pixels, ``scores`` (N, D) and ``labels`` (N, D), likeliest first; rows that fill
    the arrays up have a score of 0.

    Attributes:
        kind: the name of this postprocessing in a manifest.
    """

    OUTPUTS: ClassVar[tuple[str, ...]] = ("boxes", "scores", "labels")

    kind: Literal["boxes"] = "boxes"

    def shapes(self, classes: int) -> dict[str, tuple[int, ...]]:
        return {"boxes": (self.detections, 4), "scores": (self.detections,), "labels": (self.detections,)}

    def _image(self, raw: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        boxes, scores, labels = raw
        chosen = scores > self.score_threshold
        return {"boxes": boxes[chosen], "scores": scores[chosen], "labels": labels[chosen].astype(np.int64)}


def tile_anchors(size: Grid, grids: Sequence[Grid], cells: Sequence[Sequence[Box]]) -> list[np.ndarray]:
    """Place each feature map's cells at every position of the map.

    Args:
        size: (height, width) of the network's input.
        grids: (height, width) of each feature map.
        cells: the corners of each map's anchors around the origin.

    Returns:
        The corners of every anchor, float32 (A, 4) for each map.
    """
    found = []
    for (down, across), cell in zip(grids, cells, strict=True):
        y, x = np.meshgrid(np.arange(down) * (size[0] // down), np.arange(across) * (size[1] // across), indexing="ij")
        shifts = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4).astype(np.float32)
        found.append((shifts + np.asarray(cell, np.float32)).reshape(-1, 4))
    return found
