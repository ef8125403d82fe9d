"""Non-maximum suppression as one torch operator that the exporter turns into ONNX's NonMaxSuppression."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

NmsMask = Callable[["Tensor", "Tensor", float], "Tensor"]


@cache
def nms_mask() -> NmsMask:
    """Return the operator ``niwaki::nms_mask``, which runs torchvision's suppression and can be exported.

    It takes boxes (N, M, 4) as corners, scores (N, C, M) and the overlap (intersection over union) above which the
    lower of two boxes of one class goes, and returns (N, C, M): 1 where a box stays, else 0. A score that is not above
    0 is no box.
    """
    import torch
    from torchvision.ops import nms

    def run(boxes: torch.Tensor, scores: torch.Tensor, overlap: float) -> torch.Tensor:
        mask = torch.zeros_like(scores)
        for image_boxes, image_scores, image_mask in zip(boxes, scores, mask, strict=True):
            for class_scores, class_mask in zip(image_scores, image_mask, strict=True):
                (present,) = torch.where(class_scores > 0)
                class_mask[present[nms(image_boxes[present], class_scores[present], overlap)]] = 1
        return mask

    # torch cannot infer the schema: annotations are strings in this file.
    schema = "(Tensor boxes, Tensor scores, float overlap) -> Tensor"
    operator = torch.library.custom_op("niwaki::nms_mask", run, mutates_args=(), schema=schema)
    operator.register_fake(lambda boxes, scores, overlap: torch.empty_like(scores))
    return operator


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return how the exporter writes ``niwaki::nms_mask``: as ONNX nodes that exist from opset 11 on."""
    import torch
    from onnxscript import opset18

    op: Any = opset18  # its annotations demand one type for every constant

    def nodes(boxes: Any, scores: Any, overlap: float) -> Any:
        limit = op.Shape(scores, start=2, end=3)
        zero = op.Constant(value_float=0.0)
        # Each row is (image, class, box).
        found = op.NonMaxSuppression(boxes, scores, limit, op.Constant(value_float=overlap), zero)
        ones = op.Expand(op.Constant(value_float=1.0), op.Shape(found, start=0, end=1))
        return op.ScatterND(op.Expand(zero, op.Shape(scores)), found, ones)

    nms_mask()
    return {torch.ops.niwaki.nms_mask.default: nodes}
