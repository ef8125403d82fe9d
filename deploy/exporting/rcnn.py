"""Split a two-stage detector for export: its graph includes proposals and RoIAlign, up to the box head's outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploy.errors import DeployError
from deploy.exporting.modes import evaluating
from deploy.exporting.nms import nms_mask
from deploy.processing.postprocess import RcnnDecoder

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class _Geometry:
    """What of a detector depends on the image size alone.

    Attributes:
        size: (height, width) of the image in pixels.
        anchors: the anchors of each level, (A, 4).
        maps: the names of the feature maps that RoIAlign reads.
        scales: of those maps, as shares of the image's size.
        proposals: the largest number of regions of an image.
    """

    size: tuple[int, int]
    anchors: list[Tensor]
    maps: list[str]
    scales: list[float]
    proposals: int


def rcnn_heads(model: Any, example: Tensor) -> tuple[nn.Module, RcnnDecoder]:
    """Split a torchvision Faster R-CNN: all up to the outputs of its box head for the file, the rest for the bundle.

    Proposals go through ONNX's NonMaxSuppression and RoIAlign, for the input of the box head depends on them; a runtime
    without these two operators cannot run the file. The number of rows is always the largest number of proposals;
    ``kept`` marks those that exist.

    Args:
        model: the detector.
        example: (N, 3, H, W), preprocessed; the size is part of the decoding.

    Returns:
        A module from images (N, 3, H, W) to what ``RcnnDecoder.OUTPUTS`` names, sharing the detector's weights, and
        the decoder of its outputs.

    Raises:
        DeployError: the model is no torchvision Faster R-CNN, or predicts masks or key points.
    """
    from torchvision.models.detection.faster_rcnn import FasterRCNN

    if not isinstance(model, FasterRCNN) or model.roi_heads.has_mask() or model.roi_heads.has_keypoint():
        raise DeployError(
            f"{type(model).__name__} is not a plain Faster R-CNN, and the bundle decodes only boxes; use one."
        )
    geometry, roi = _geometry(model, example), model.roi_heads
    decoder = RcnnDecoder(
        size=geometry.size,
        regions=geometry.proposals,
        weights=roi.box_coder.weights,
        score_threshold=roi.score_thresh,
        overlap=roi.nms_thresh,
        detections=roi.detections_per_img,
    )
    return _heads_module(model, geometry).train(model.training), decoder


def _heads_module(model: Any, geometry: _Geometry) -> nn.Module:
    import torch
    from torch import nn

    rpn, roi = model.rpn, model.roi_heads
    nms_mask()  # registers the operator before it is traced

    class RcnnHeads(nn.Module):
        one_size = "its proposals hold the anchors of one size"

        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.rpn_head = model.backbone, rpn.head
            self.box_head, self.box_predictor = roi.box_head, roi.box_predictor
            for k, level in enumerate(geometry.anchors):
                self.register_buffer(f"anchors{k}", level, persistent=False)

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            features = self.backbone(images)
            features = {"0": features} if isinstance(features, torch.Tensor) else features
            regions, kept = self.propose(*self.rpn_head(list(features.values())))
            maps = [features[name] for name in geometry.maps]
            rows = self.box_head(_pool_regions(roi.box_roi_pool, maps, geometry.scales, regions))
            logits, boxes = self.box_predictor(rows)
            shape = (-1, regions.shape[1])
            return boxes.reshape(*shape, boxes.shape[-1]), logits.reshape(*shape, logits.shape[-1]), regions, kept

        def propose(self, objectness: list[Tensor], deltas: list[Tensor]) -> tuple[Tensor, Tensor]:
            levels = []
            for k, (logits, moves) in enumerate(zip(objectness, deltas, strict=True)):
                levels.append(_level_proposals(rpn, geometry.size, logits, moves, getattr(self, f"anchors{k}")))
            return _best_proposals(levels, geometry.proposals)

    return RcnnHeads()


def _level_proposals(
    rpn: Any, size: tuple[int, int], objectness: Tensor, deltas: Tensor, anchors: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the candidate boxes of one feature map, (N, M, 4), and their scores, (N, M): -1 where suppressed."""
    import torch
    from torchvision.ops import clip_boxes_to_image

    # (N, A * c, h, w) -> (N, h * w * A, c), the order of the anchors
    logits = objectness.permute(0, 2, 3, 1).flatten(1)
    deltas = deltas.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
    logits, places = logits.topk(min(rpn.pre_nms_top_n(), len(anchors)), dim=1)
    deltas = deltas.gather(1, places[..., None].expand(-1, -1, 4))
    boxes = rpn.box_coder.decode_single(deltas.flatten(0, 1), anchors[places].flatten(0, 1))
    boxes = clip_boxes_to_image(boxes.reshape(-1, places.shape[1], 4), size)
    scores, sides = logits.sigmoid(), boxes[..., 2:] - boxes[..., :2]
    valid = (sides >= rpn.min_size).all(-1) & (scores >= rpn.score_thresh)
    scores = torch.where(valid, scores, 0.0)
    stays = nms_mask()(boxes, scores[:, None], rpn.nms_thresh)[:, 0] > 0
    return boxes, torch.where(valid & stays, scores, -1.0)


def _best_proposals(levels: list[tuple[Tensor, Tensor]], count: int) -> tuple[Tensor, Tensor]:
    """Return the best regions of all levels, (N, count, 4), and 1 for each one that exists, (N, count)."""
    import torch

    boxes, scores = (torch.cat(part, 1) for part in zip(*levels, strict=True))
    best, places = scores.topk(count, dim=1)
    regions = boxes.gather(1, places[..., None].expand(-1, -1, 4))
    return regions, (best >= 0).to(regions.dtype)


def _pool_regions(pool: Any, maps: list[Tensor], scales: list[float], regions: Tensor) -> Tensor:
    """Run RoIAlign on the level that suits each region's size (Lin et al., 2017, arXiv:1612.03144)."""
    import torch
    from torchvision.ops import roi_align

    lowest, highest = (-round(math.log2(scale)) for scale in (scales[0], scales[-1]))
    rows = regions.flatten(0, 1)
    image = torch.arange(regions.shape[0], device=rows.device).to(rows.dtype)
    image = image[:, None].expand(-1, regions.shape[1]).reshape(-1, 1)
    boxes = torch.cat([image, rows], 1)
    # Of several maps of one size (the last two of MobileNetV3) torchvision reads only the first.
    pooled = [
        roi_align(feature, boxes, list(pool.output_size), scale, pool.sampling_ratio)
        for feature, scale in list(zip(maps, scales, strict=True))[: highest - lowest + 1]
    ]
    side = ((rows[:, 2] - rows[:, 0]) * (rows[:, 3] - rows[:, 1])).clamp(min=1e-12).sqrt()
    level = (pool.canonical_level + (side / pool.canonical_scale).log2() + 1e-6).floor().clamp(lowest, highest)
    found = pooled[0]
    for k, other in enumerate(pooled[1:], 1):
        found = torch.where((level == lowest + k)[:, None, None, None], other, found)
    return found


def _geometry(model: Any, example: Tensor) -> _Geometry:
    import torch
    from torchvision.models.detection.image_list import ImageList

    size = (example.shape[-2], example.shape[-1])
    with evaluating(model), torch.no_grad():
        features = model.backbone(example[:1])
        features = {"0": features} if isinstance(features, torch.Tensor) else features
        maps = list(features.values())
        (every,) = model.rpn.anchor_generator(ImageList(example[:1], [size]), maps)
    per_location = model.rpn.anchor_generator.num_anchors_per_location()
    counts = [level.shape[-2] * level.shape[-1] * n for level, n in zip(maps, per_location, strict=True)]
    names = [name for name in features if name in model.roi_heads.box_roi_pool.featmap_names]
    # Like torchvision: the nearest power of two, for both directions.
    scales = [2.0 ** round(math.log2(features[name].shape[-2] / size[0])) for name in names]
    anchors = [part.clone() for part in every.split(counts)]
    before = model.rpn.pre_nms_top_n()
    proposals = min(model.rpn.post_nms_top_n(), sum(min(before, len(level)) for level in anchors))
    return _Geometry(size, anchors, names, scales, proposals)
