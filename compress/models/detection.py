"""The part of torchvision's detectors that has weights: from a batch of images to every raw output.

What follows (anchors, decoding, suppression) depends on values and has no channels; ``raw_heads`` leaves it out, so
that a detector can be traced and proved like any other network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign, roi_align

_DENSE = FCOS | RetinaNet | SSD

RawHeads = Callable[[nn.Module, Tensor], dict[str, Any]]
"""From a detector and an image batch to its raw outputs by name."""

# Regions of interest as shares of width and height: x1, y1, x2, y2. A small one, and one over most of the image.
_REGIONS = ((0.1, 0.2, 0.35, 0.4), (0.15, 0.05, 0.95, 0.9))


def raw_heads(model: nn.Module) -> RawHeads | None:
    """The function that runs the body and the heads of a torchvision detector.

    It takes the detector (this one, or one cut from it) and a float tensor of shape (images, 3, height, width), and
    returns every raw output: per-level lists for an RPN, (images, anchors, columns) for dense heads, and a row of
    class logits, box deltas, masks and keypoints for each of two fixed regions of an image on each pyramid level. It
    reads no values, so it runs on meta and fake tensors too, in eval and in train mode.

    Returns:
        The function; None unless ``model`` is a Faster, Mask or Keypoint R-CNN, RetinaNet, FCOS or SSD.
    """
    if isinstance(model, _DENSE):
        return dense_heads
    if isinstance(model, GeneralizedRCNN) and isinstance(model.roi_heads, RoIHeads):
        pools = (model.roi_heads.box_roi_pool, model.roi_heads.mask_roi_pool, model.roi_heads.keypoint_roi_pool)
        if all(pool is None or isinstance(pool, MultiScaleRoIAlign) for pool in pools):
            return rcnn_heads
    return None


def dense_heads(model: Any, images: Tensor) -> dict[str, Any]:
    """Raw outputs of a RetinaNet, FCOS or SSD: class logits, box deltas and, for FCOS, centre-ness."""
    return model.head(list(_features(model, images).values()))


def rcnn_heads(model: Any, images: Tensor) -> dict[str, Any]:
    """Raw outputs of a Faster, Mask or Keypoint R-CNN: its RPN's and those of all its RoI heads."""
    features = _features(model, images)
    objectness, deltas = model.rpn.head(list(features.values()))
    regions, roi = _regions(images), model.roi_heads
    logits, boxes = roi.box_predictor(roi.box_head(_pooled(roi.box_roi_pool, features, regions, images)))
    outputs = {"rpn_objectness": objectness, "rpn_deltas": deltas, "class_logits": logits, "box_deltas": boxes}
    if roi.has_mask():
        pooled = _pooled(roi.mask_roi_pool, features, regions, images)
        outputs["mask_logits"] = roi.mask_predictor(roi.mask_head(pooled))
    if roi.has_keypoint():
        pooled = _pooled(roi.keypoint_roi_pool, features, regions, images)
        outputs["keypoint_logits"] = roi.keypoint_predictor(roi.keypoint_head(pooled))
    return outputs


@contextmanager
def learning(model: nn.Module) -> Iterator[None]:
    """Inside, a torchvision detector takes targets and gives its losses; its norms and dropout stay as they are."""
    parts = [m for m in model.modules() if isinstance(m, GeneralizedRCNN | RegionProposalNetwork | RoIHeads | _DENSE)]
    before = [part.training for part in parts]
    for part in parts:
        part.training = True
    try:
        yield
    finally:
        for part, training in zip(parts, before, strict=True):
            part.training = training


class AsGiven(GeneralizedRCNNTransform):
    """Neither normalises nor resizes: images come prepared, and boxes are in their pixels."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__(
            min(height, width),
            max(height, width),
            [0.0] * 3,
            [1.0] * 3,
            size_divisible=1,
            fixed_size=(width, height),
        )

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target


def take_prepared(model: nn.Module, size: Sequence[int]) -> None:
    """Make a torchvision detector take images of (height, width) unchanged; leave other networks alone."""
    if isinstance(getattr(model, "transform", None), GeneralizedRCNNTransform):
        model.transform = AsGiven(int(size[0]), int(size[1]))


def example_input(model: nn.Module, side: int | None = None, batch: int = 1) -> Tensor:
    """Random images of a size that suits ``model``, on its device and of its dtype.

    Args:
        model: any network for images.
        side: height and width in pixels; None for the network's own size where it has one (SSD, ViT), else 128 for
            detectors and 224 for the rest.
        batch: number of images.

    Returns:
        Tensor of shape (batch, channels, height, width), values in 0..1.
    """
    first = next(iter(model.parameters()), torch.empty(0))
    width, height = (side, side) if side is not None else _own_size(model)
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    noise = torch.rand((batch, channels, height, width), generator=torch.Generator().manual_seed(0))
    return noise.to(first.device, first.dtype)


def _own_size(model: nn.Module) -> tuple[int, int]:
    """The width and height that the network is made for."""
    fixed = getattr(getattr(model, "transform", None), "fixed_size", None)
    if fixed is not None:
        return int(fixed[0]), int(fixed[1])
    own = getattr(model, "image_size", None)
    # Pyramids halve the size five times or more; an image larger than that shows no further channels.
    side = own if isinstance(own, int) else 224 if raw_heads(model) is None else 128
    return side, side


def _features(model: Any, images: Tensor) -> dict[str, Tensor]:
    """The backbone's feature maps by name."""
    features = model.backbone(images)
    return {"0": features} if isinstance(features, Tensor) else features


def _regions(images: Tensor) -> Tensor:
    """The fixed regions of every image in pixels, shape (images * regions, 5): image, x1, y1, x2, y2."""
    count, _, height, width = images.shape
    rows = [
        [float(i), x1 * width, y1 * height, x2 * width, y2 * height]
        for i in range(count)
        for x1, y1, x2, y2 in _REGIONS
    ]
    return torch.tensor(rows, dtype=images.dtype, device=images.device)


def _pooled(pool: MultiScaleRoIAlign, features: dict[str, Tensor], regions: Tensor, images: Tensor) -> Tensor:
    """Pool all regions on each level that ``pool`` uses, one level after the other, whatever their size."""
    levels = [features[name] for name in pool.featmap_names if name in features]
    return torch.cat(
        [
            roi_align(f, regions, list(pool.output_size), f.shape[-1] / images.shape[-1], pool.sampling_ratio)
            for f in levels
        ]
    )
