"""Turn a network's raw outputs into boxes or a class for every pixel, in NumPy alone."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from deploy.processing.detection import (
    DecodedBoxes,
    DetectionDecoder,
    FcosDecoder,
    RcnnDecoder,
    RetinaNetDecoder,
    SsdDecoder,
)

__all__ = [
    "DecodedBoxes", "DetectionDecoder", "FcosDecoder", "Postprocessing", "RcnnDecoder", "RetinaNetDecoder",
    "SegmentationDecoder", "SsdDecoder", "resize_bilinear",
]  # fmt: skip

_MAX_LOGITS = 1 << 24  # resized at a time: 64 MB


class SegmentationDecoder(BaseModel):
    """The decoder of a segmenter: a class for every pixel, from ``logits`` (N, classes, height, width).

    Attributes:
        kind: the name of this postprocessing in a manifest.
        in_graph: whether the network itself resizes and takes the likeliest class: it returns ``classes`` (N, height,
            width).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["segmentation"] = "segmentation"
    in_graph: bool = False

    def __call__(self, values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Return the classes (N, height, width) of ``size``, from logits of any size or from the graph's classes."""
        if self.in_graph:
            rows, columns = (
                np.minimum(((np.arange(want) + 0.5) * have / want).astype(np.int64), have - 1)
                for want, have in zip(size, values.shape[1:], strict=True)
            )
            return values[:, rows[:, None], columns]
        # The logits of a whole photograph at full size would take gigabytes: resize some rows at a time.
        many = max(1, _MAX_LOGITS // (len(values) * values.shape[1] * size[1]))
        bands = [range(first, min(first + many, size[0])) for first in range(0, size[0], many)]
        return np.concatenate([resize_bilinear(values, size, band).argmax(axis=1) for band in bands], axis=1)


Postprocessing = Annotated[
    SsdDecoder | RetinaNetDecoder | FcosDecoder | RcnnDecoder | DecodedBoxes | SegmentationDecoder,
    Field(discriminator="kind"),
]


def resize_bilinear(values: np.ndarray, size: tuple[int, int], rows: range | None = None) -> np.ndarray:
    """Resize (N, C, H, W) to ``size``, or only to some of its ``rows``.

    Equals torch's bilinear interpolation without aligned corners.
    """
    for axis, want, part in ((2, size[0], rows), (3, size[1], None)):
        have = values.shape[axis]
        place = ((np.asarray(range(want) if part is None else part) + 0.5) * (have / want) - 0.5).clip(0, have - 1)
        low = place.astype(np.int64)
        share = (place - low).astype(np.float32).reshape((-1, 1) if axis == 2 else (-1,))
        high = np.minimum(low + 1, have - 1)
        values = values.take(low, axis) * (1 - share) + values.take(high, axis) * share
    return values
