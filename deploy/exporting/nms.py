"""Suppression inside the ONNX file: one operator of torch that becomes ONNX's NonMaxSuppression."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Keep = Callable[["Tensor", "Tensor", float], "Tensor"]


@cache
def keep() -> Keep:
    """The operator ``niwaki::keep``, which torch runs by torchvision's suppression and the exporter knows.

    It takes boxes (N, M, 4) as corners, scores (N, C, M) and the overlap above which the lower of two of one class
    goes, and gives (N, C, M): 1 where a box stays, else 0. A score that is not above 0 is no box.
    """
    import torch
    from torchvision.ops import nms

    def run(boxes: torch.Tensor, scores: torch.Tensor, overlap: float) -> torch.Tensor:
        kept = torch.zeros_like(scores)
        for own, rows, stays in zip(boxes, scores, kept, strict=True):
            for row, stay in zip(rows, stays, strict=True):
                (there,) = torch.where(row > 0)
                stay[there[nms(own[there], row[there], overlap)]] = 1
        return kept

    # The schema by hand: annotations are strings in this file.
    schema = "(Tensor boxes, Tensor scores, float overlap) -> Tensor"
    operator = torch.library.custom_op("niwaki::keep", run, mutates_args=(), schema=schema)
    operator.register_fake(lambda boxes, scores, overlap: torch.empty_like(scores))
    return operator


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What the exporter makes of ``niwaki::keep``: nodes of ONNX from opset 11 on, by operator."""
    import torch
    from onnxscript import opset18

    op: Any = opset18  # its annotations know constants of no one type

    def nodes(boxes: Any, scores: Any, overlap: float) -> Any:
        most = op.Shape(scores, start=2, end=3)
        floor = op.Constant(value_float=0.0)
        # Each row of it is (image, class, box).
        found = op.NonMaxSuppression(boxes, scores, most, op.Constant(value_float=overlap), floor)
        ones = op.Expand(op.Constant(value_float=1.0), op.Shape(found, start=0, end=1))
        return op.ScatterND(op.Expand(floor, op.Shape(scores)), found, ones)

    keep()
    return {torch.ops.niwaki.keep.default: nodes}
