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

    It takes boxes (N, M, 4) as corners, scores (N, M) and the overlap above which the lower of two goes, and gives
    (N, M): 1 where a box stays, else 0.
    """
    import torch
    from torchvision.ops import nms

    def run(boxes: torch.Tensor, scores: torch.Tensor, overlap: float) -> torch.Tensor:
        kept = torch.zeros_like(scores)
        for k in range(len(boxes)):
            kept[k, nms(boxes[k], scores[k], overlap)] = 1
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
        shape = op.Shape(scores)
        most = op.Shape(scores, start=1, end=2)
        found = op.NonMaxSuppression(
            boxes, op.Unsqueeze(scores, op.Constant(value_ints=[1])), most, op.Constant(value_float=overlap)
        )
        # Each row of it is (image, class, box), and here is one class.
        places = op.Gather(found, op.Constant(value_ints=[0, 2]), axis=1)
        ones = op.Expand(op.Constant(value_float=1.0), op.Shape(places, start=0, end=1))
        return op.ScatterND(op.Expand(op.Constant(value_float=0.0), shape), places, ones)

    keep()
    return {torch.ops.niwaki.keep.default: nodes}
