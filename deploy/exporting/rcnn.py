"""A two-stage detector as one graph: proposals, their suppression and RoIAlign included."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from deploy.errors import DeployError
from deploy.exporting.nms import keep
from deploy.processing.postprocess import RcnnDetection

if TYPE_CHECKING:
    from torch import Tensor, nn


def rcnn_heads(model: Any, example: Tensor) -> tuple[nn.Module, RcnnDetection]:
    """Split a torchvision Faster R-CNN: everything up to its box head's outputs for the file, the rest for the bundle.

    Proposals go through ONNX's NonMaxSuppression and RoIAlign, for what the box head sees depends on them; a runtime
    without these two operators cannot run the file. There are always as many rows as proposals at most: ``kept`` says
    which count.

    Args:
        model: the detector.
        example: (N, 3, H, W), preprocessed; the size is part of the decoding.

    Returns:
        A module from images (N, 3, H, W) to what ``RcnnDetection.OUTPUTS`` names, sharing the detector's weights, and
        the decoding of those.

    Raises:
        DeployError: the model is no torchvision Faster R-CNN, or finds masks or key points.
    """
    import torch
    from torch import nn
    from torchvision.models.detection.faster_rcnn import FasterRCNN
    from torchvision.ops import clip_boxes_to_image, roi_align

    if not isinstance(model, FasterRCNN) or model.roi_heads.has_mask() or model.roi_heads.has_keypoint():
        raise DeployError(
            f"{type(model).__name__} is no plain Faster R-CNN, and the bundle decodes boxes alone; use a Faster R-CNN."
        )
    size = (example.shape[-2], example.shape[-1])
    anchors, names, scales = _geometry(model, example)
    lowest, highest = (-round(math.log2(scale)) for scale in (scales[0], scales[-1]))
    rpn, roi = model.rpn, model.roi_heads
    keeping = keep()
    proposals = min(rpn.post_nms_top_n(), sum(min(rpn.pre_nms_top_n(), len(level)) for level in anchors))

    class Heads(nn.Module):
        one_size = "its proposals hold the anchors of one size"

        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.rpn_head = model.backbone, rpn.head
            self.box_head, self.box_predictor = roi.box_head, roi.box_predictor
            for k, level in enumerate(anchors):
                self.register_buffer(f"anchors{k}", level, persistent=False)

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            features = self.backbone(images)
            features = {"0": features} if isinstance(features, torch.Tensor) else features
            regions, kept = self.proposed(*self.rpn_head(list(features.values())))
            rows = self.box_head(self.pooled([features[name] for name in names], regions))
            logits, boxes = self.box_predictor(rows)
            shape = (-1, regions.shape[1])
            return boxes.reshape(*shape, boxes.shape[-1]), logits.reshape(*shape, logits.shape[-1]), regions, kept

        def proposed(self, objectness: list[Tensor], deltas: list[Tensor]) -> tuple[Tensor, Tensor]:
            """The best regions after suppression within each level, (N, K, 4), and 1 for each that is one, (N, K)."""
            boxes, ranks = [], []
            for k, (raw, moves) in enumerate(zip(objectness, deltas, strict=True)):
                level = getattr(self, f"anchors{k}")
                # (N, A * c, h, w) -> (N, h * w * A, c), the order of the anchors
                likely = raw.permute(0, 2, 3, 1).flatten(1)
                moved = moves.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
                likely, places = likely.topk(min(rpn.pre_nms_top_n(), len(level)), dim=1)
                moved = moved.gather(1, places[..., None].expand(-1, -1, 4))
                found = rpn.box_coder.decode_single(moved.flatten(0, 1), level[places].flatten(0, 1))
                found = clip_boxes_to_image(found.reshape(-1, places.shape[1], 4), size)
                scores, sides = likely.sigmoid(), found[..., 2:] - found[..., :2]
                counts = (sides >= rpn.min_size).all(-1) & (scores >= rpn.score_thresh)
                scores = torch.where(counts, scores, 0.0)
                stays = keeping(found, scores[:, None], rpn.nms_thresh)[:, 0] > 0
                boxes.append(found)
                ranks.append(torch.where(counts & stays, scores, -1.0))
            best, places = torch.cat(ranks, 1).topk(proposals, dim=1)
            regions = torch.cat(boxes, 1).gather(1, places[..., None].expand(-1, -1, 4))
            return regions, (best >= 0).to(regions.dtype)

        def pooled(self, features: list[Tensor], regions: Tensor) -> Tensor:
            """What RoIAlign takes of the level that suits each region's size (Lin et al., 2017, arXiv:1612.03144)."""
            pool, rows = roi.box_roi_pool, regions.flatten(0, 1)
            image = torch.arange(regions.shape[0], device=rows.device).to(rows.dtype)
            image = image[:, None].expand(-1, regions.shape[1]).reshape(-1, 1)
            places = torch.cat([image, rows], 1)
            # Of maps of one size (MobileNetV3's last two) torchvision reads the first alone.
            taken = [
                roi_align(feature, places, list(pool.output_size), scale, pool.sampling_ratio)
                for feature, scale in list(zip(features, scales, strict=True))[: highest - lowest + 1]
            ]
            side = ((rows[:, 2] - rows[:, 0]) * (rows[:, 3] - rows[:, 1])).clamp(min=1e-12).sqrt()
            level = (pool.canonical_level + (side / pool.canonical_scale).log2() + 1e-6).floor().clamp(lowest, highest)
            found = taken[0]
            for k, other in enumerate(taken[1:], 1):
                found = torch.where((level == lowest + k)[:, None, None, None], other, found)
            return found

    decoding = RcnnDetection(
        size=size,
        regions=proposals,
        weights=roi.box_coder.weights,
        score_threshold=roi.score_thresh,
        overlap=roi.nms_thresh,
        detections=roi.detections_per_img,
    )
    return Heads().train(model.training), decoding


def _geometry(model: Any, example: Tensor) -> tuple[list[Tensor], list[str], list[float]]:
    """The anchors of each level, (A, 4); the names of the maps that RoIAlign reads, and their scales."""
    import torch
    from torchvision.models.detection.image_list import ImageList

    was, size = model.training, (example.shape[-2], example.shape[-1])
    model.eval()
    try:
        with torch.inference_mode():
            features = model.backbone(example[:1])
            features = {"0": features} if isinstance(features, torch.Tensor) else features
            maps = list(features.values())
            (every,) = model.rpn.anchor_generator(ImageList(example[:1], [size]), maps)
    finally:
        model.train(was)
    each = model.rpn.anchor_generator.num_anchors_per_location()
    counts = [level.shape[-2] * level.shape[-1] * n for level, n in zip(maps, each, strict=True)]
    names = [name for name in features if name in model.roi_heads.box_roi_pool.featmap_names]
    # torchvision takes the nearest power of two for both directions.
    scales = [2.0 ** round(math.log2(features[name].shape[-2] / size[0])) for name in names]
    return [part.clone() for part in every.split(counts)], names, scales
