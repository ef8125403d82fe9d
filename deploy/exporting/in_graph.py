"""A detector's decoding and suppression inside the ONNX file, for runtimes that have ONNX's NonMaxSuppression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploy.errors import DeployError
from deploy.exporting.nms import keep
from deploy.processing.boxes import LARGEST_STEP
from deploy.processing.postprocess import Detection, FcosDetection, FoundBoxes, RetinaNetDetection, SsdDetection

if TYPE_CHECKING:
    from torch import Tensor, nn


def decoded(heads: nn.Module, after: Detection, example: Tensor) -> tuple[nn.Module, FoundBoxes]:
    """``heads`` with the decoding that the bundle would do in NumPy: the same boxes, from the graph.

    Args:
        heads: from images (N, 3, H, W) to what ``after.OUTPUTS`` names.
        after: the decoding of an SSD, a RetinaNet or an FCOS.
        example: (N, 3, H, W), preprocessed.

    Returns:
        A module from images to ``boxes`` (N, D, 4), ``scores`` (N, D) and ``labels`` (N, D), and what the bundle then
        does with those: it drops the rows of score 0 that fill up.

    Raises:
        DeployError: the decoding is another one.
    """
    import torch
    from torch import nn

    if not isinstance(after, SsdDetection | RetinaNetDetection):
        raise DeployError(
            f"{type(after).__name__} stays outside the graph; leave in_graph out, or use an SSD, RetinaNet or FCOS."
        )
    levels = [after.default_boxes()] if isinstance(after, SsdDetection) else after.anchors
    candidates = _by_class if isinstance(after, SsdDetection) else _by_level
    classes = _classes(heads, example)
    boxes = _count(after, [len(level) for level in levels], classes)
    found = FoundBoxes(
        size=after.size,
        score_threshold=after.score_threshold,
        overlap=after.overlap,
        detections=min(after.detections, boxes * classes),
    )
    keeping = keep()

    class Decoded(nn.Module):
        one_size = "its decoding holds the anchors of one size"

        def __init__(self) -> None:
            super().__init__()
            self.heads = heads
            for k, level in enumerate(levels):
                self.register_buffer(f"anchors{k}", torch.from_numpy(level), persistent=False)

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            raw = self.heads(images)
            references = [getattr(self, f"anchors{k}") for k in range(len(levels))]
            corners = _corners(after, raw[0], torch.cat(references))
            corners = torch.minimum(corners.clamp(min=0), corners.new_tensor(after.size[::-1] * 2))
            corners, scores = candidates(after, corners, _scores(after, raw), [len(one) for one in references])
            ranks = (scores * keeping(corners, scores, after.overlap)).flatten(1)
            best, places = ranks.topk(found.detections, dim=1)
            rows = (places % scores.shape[2])[..., None].expand(-1, -1, 4)
            return corners.gather(1, rows), best, places // scores.shape[2]

    return Decoded().train(heads.training), found


def _classes(heads: nn.Module, example: Tensor) -> int:
    """How many classes the heads tell apart, besides the background."""
    import torch

    was = heads.training
    heads.eval()
    try:
        with torch.inference_mode():
            return int(heads(example[:1])[1].shape[-1]) - 1
    finally:
        heads.train(was)


def _count(after: Any, levels: list[int], classes: int) -> int:
    """How many boxes go into suppression."""
    if isinstance(after, SsdDetection):
        return sum(levels)
    return sum(min(after.candidates, level * classes) for level in levels)


def _scores(after: Any, raw: tuple[Tensor, ...]) -> Tensor:
    """(N, A, classes), 0 where a score is not above the threshold."""
    import torch

    if isinstance(after, SsdDetection):
        scores = raw[1].softmax(-1)
    elif isinstance(after, FcosDetection):
        scores = (raw[1].sigmoid() * raw[2].sigmoid()).sqrt()
    else:
        scores = raw[1].sigmoid()
    scores = scores[..., 1:]
    return torch.where(scores > after.score_threshold, scores, 0.0)


def _corners(after: Any, offsets: Tensor, references: Tensor) -> Tensor:
    """Boxes (N, A, 4) as corners, from offsets against reference boxes (A, 4) given by centre and sides."""
    import torch

    centres, sides = references[:, :2], references[:, 2:]
    if isinstance(after, FcosDetection):
        return torch.cat([centres - offsets[..., :2] * sides, centres + offsets[..., 2:] * sides], -1)
    steps = offsets / offsets.new_tensor(after.weights)
    middle = steps[..., :2] * sides + centres
    halves = steps[..., 2:].clamp(max=LARGEST_STEP).exp() * sides * 0.5
    return torch.cat([middle - halves, middle + halves], -1)


def _by_class(after: Any, corners: Tensor, scores: Tensor, _: list[int]) -> tuple[Tensor, Tensor]:
    """The best boxes of each class: all corners, and scores (N, classes, A) that are 0 for the others."""
    import torch

    scores = scores.transpose(1, 2)
    if after.candidates >= scores.shape[2]:
        return corners, scores
    values, places = scores.topk(after.candidates, dim=2)
    return corners, torch.zeros_like(scores).scatter(2, places, values)


def _by_level(after: Any, corners: Tensor, scores: Tensor, levels: list[int]) -> tuple[Tensor, Tensor]:
    """The best boxes of each feature map: their corners (N, M, 4), and scores (N, classes, M), 0 for other classes."""
    import torch

    classes, start = scores.shape[2], 0
    boxes, values, labels = [], [], []
    for level in levels:
        flat = scores[:, start : start + level].flatten(1)
        value, place = flat.topk(min(after.candidates, level * classes), dim=1)
        rows = (place // classes)[..., None].expand(-1, -1, 4)
        boxes.append(corners[:, start : start + level].gather(1, rows))
        values.append(value)
        labels.append(place % classes)
        start += level
    own = torch.cat(labels, 1)[:, None] == torch.arange(classes, device=corners.device)[:, None]
    return torch.cat(boxes, 1), torch.where(own, torch.cat(values, 1)[:, None], 0.0)
