"""Put a detector's decoding and suppression into the ONNX file, for runtimes that have ONNX's NonMaxSuppression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploy.errors import DeployError
from deploy.exporting.modes import evaluating
from deploy.exporting.nms import nms_mask
from deploy.processing.boxes import MAX_LOG_RATIO
from deploy.processing.postprocess import DecodedBoxes, DetectionDecoder, FcosDecoder, RetinaNetDecoder, SsdDecoder

if TYPE_CHECKING:
    from torch import Tensor, nn


def decode_in_graph(heads: nn.Module, decoder: DetectionDecoder, example: Tensor) -> tuple[nn.Module, DecodedBoxes]:
    """Append to ``heads`` the decoding that the bundle would do in NumPy: the same boxes, from the graph.

    Args:
        heads: from images (N, 3, H, W) to what ``decoder.OUTPUTS`` names.
        decoder: that of an SSD, a RetinaNet or an FCOS.
        example: (N, 3, H, W), preprocessed.

    Returns:
        A module from images to ``boxes`` (N, D, 4), ``scores`` (N, D) and ``labels`` (N, D), and the decoder for
        those, which drops the rows of score 0 that fill the array up.

    Raises:
        DeployError: the decoder is of another kind.
    """
    import torch
    from torch import nn

    if not isinstance(decoder, SsdDecoder | RetinaNetDecoder):
        raise DeployError(
            f"{type(decoder).__name__} stays outside the graph; leave in_graph out, or use an SSD, RetinaNet or FCOS."
        )
    levels = [decoder.default_boxes()] if isinstance(decoder, SsdDecoder) else decoder.anchors
    candidates = _best_of_class if isinstance(decoder, SsdDecoder) else _best_of_level
    classes = _count_classes(heads, example)
    boxes = _count_boxes(decoder, [len(level) for level in levels], classes)
    found = DecodedBoxes(
        size=decoder.size,
        score_threshold=decoder.score_threshold,
        overlap=decoder.overlap,
        detections=min(decoder.detections, boxes * classes),
    )
    suppress = nms_mask()

    class DecodedHeads(nn.Module):
        one_size = "its decoding holds the anchors of one size"

        def __init__(self) -> None:
            super().__init__()
            self.heads = heads
            for k, level in enumerate(levels):
                self.register_buffer(f"anchors{k}", torch.from_numpy(level), persistent=False)

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            raw = self.heads(images)
            references = [getattr(self, f"anchors{k}") for k in range(len(levels))]
            corners = _corners(decoder, raw[0], torch.cat(references))
            corners = torch.minimum(corners.clamp(min=0), corners.new_tensor(decoder.size[::-1] * 2))
            corners, scores = candidates(decoder, corners, _scores(decoder, raw), [len(one) for one in references])
            kept = (scores * suppress(corners, scores, decoder.overlap)).flatten(1)
            best, places = kept.topk(found.detections, dim=1)
            rows = (places % scores.shape[2])[..., None].expand(-1, -1, 4)
            return corners.gather(1, rows), best, places // scores.shape[2]

    return DecodedHeads().train(heads.training), found


def _count_classes(heads: nn.Module, example: Tensor) -> int:
    """Return how many classes the heads tell apart, without the background."""
    import torch

    with evaluating(heads), torch.no_grad():
        return int(heads(example[:1])[1].shape[-1]) - 1


def _count_boxes(decoder: Any, levels: list[int], classes: int) -> int:
    """Return how many boxes go into suppression."""
    if isinstance(decoder, SsdDecoder):
        return sum(levels)
    return sum(min(decoder.candidates, level * classes) for level in levels)


def _scores(decoder: Any, raw: tuple[Tensor, ...]) -> Tensor:
    """Return the scores (N, A, classes), 0 where one is not above the threshold."""
    import torch

    if isinstance(decoder, SsdDecoder):
        scores = raw[1].softmax(-1)
    elif isinstance(decoder, FcosDecoder):
        scores = (raw[1].sigmoid() * raw[2].sigmoid()).sqrt()
    else:
        scores = raw[1].sigmoid()
    scores = scores[..., 1:]
    return torch.where(scores > decoder.score_threshold, scores, 0.0)


def _corners(decoder: Any, offsets: Tensor, references: Tensor) -> Tensor:
    """Decode offsets (N, A, 4) against reference boxes (A, 4), given by centre and sides, to corners."""
    import torch

    centres, sides = references[:, :2], references[:, 2:]
    if isinstance(decoder, FcosDecoder):
        return torch.cat([centres - offsets[..., :2] * sides, centres + offsets[..., 2:] * sides], -1)
    steps = offsets / offsets.new_tensor(decoder.weights)
    middle = steps[..., :2] * sides + centres
    halves = steps[..., 2:].clamp(max=MAX_LOG_RATIO).exp() * sides * 0.5
    return torch.cat([middle - halves, middle + halves], -1)


def _best_of_class(decoder: Any, corners: Tensor, scores: Tensor, _: list[int]) -> tuple[Tensor, Tensor]:
    """Select the best boxes of each class: return all corners, and scores (N, classes, A), 0 for the others."""
    import torch

    scores = scores.transpose(1, 2)
    if decoder.candidates >= scores.shape[2]:
        return corners, scores
    values, places = scores.topk(decoder.candidates, dim=2)
    return corners, torch.zeros_like(scores).scatter(2, places, values)


def _best_of_level(decoder: Any, corners: Tensor, scores: Tensor, levels: list[int]) -> tuple[Tensor, Tensor]:
    """Select the best boxes of each feature map.

    Returns:
        Their corners (N, M, 4), and scores (N, classes, M), 0 for every class but the box's own.
    """
    import torch

    classes, start = scores.shape[2], 0
    boxes, values, labels = [], [], []
    for level in levels:
        flat = scores[:, start : start + level].flatten(1)
        value, place = flat.topk(min(decoder.candidates, level * classes), dim=1)
        rows = (place // classes)[..., None].expand(-1, -1, 4)
        boxes.append(corners[:, start : start + level].gather(1, rows))
        values.append(value)
        labels.append(place % classes)
        start += level
    own = torch.cat(labels, 1)[:, None] == torch.arange(classes, device=corners.device)[:, None]
    return torch.cat(boxes, 1), torch.where(own, torch.cat(values, 1)[:, None], 0.0)
