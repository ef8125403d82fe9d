"""Decide what of a network goes into its ONNX file and what the bundle's own postprocessing does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploy.errors import DeployError
from deploy.exporting.in_graph import decode_in_graph
from deploy.exporting.modes import evaluating
from deploy.exporting.rcnn import rcnn_heads
from deploy.processing.postprocess import (
    DetectionDecoder,
    FcosDecoder,
    RetinaNetDecoder,
    SegmentationDecoder,
    SsdDecoder,
)

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Lowered:
    """A network prepared for export.

    Attributes:
        module: what goes into the file; it shares the network's weights.
        output_name: the name of its output, or of each of its outputs: ``output_name`` of ``export_onnx``.
        postprocessing: what the bundle does with those, for ``BundleSpec``; None for classification.
    """

    module: nn.Module
    output_name: str | tuple[str, ...]
    postprocessing: DetectionDecoder | SegmentationDecoder | None


def lower(model: nn.Module, task: str, example: Tensor, *, in_graph: bool = False) -> Lowered:
    """Split ``model`` into what goes into its ONNX file and what the bundle does.

    Args:
        model: a classifier, one of torchvision's detectors named below, or a segmenter.
        task: ``classification``, ``detection`` or ``segmentation``.
        example: (N, 3, H, W), preprocessed; for a detector its size is part of the decoding.
        in_graph: whether the file itself decodes and suppresses boxes (SSD, RetinaNet, FCOS), or resizes the logits
            and takes the likeliest class of each pixel; without effect on a classifier.

    Raises:
        DeployError: the task is unknown, or neither the bundle nor the graph can decode this detector.
    """
    if task == "classification":
        return Lowered(model, "logits", None)
    if task == "segmentation":
        segmenter, pixels = segmentation_logits(model, in_graph=in_graph)
        return Lowered(segmenter, "classes" if in_graph else "logits", pixels)
    if task != "detection":
        raise DeployError(f"The task is {task!r}; lower a network for classification, detection or segmentation.")
    for name, split in _DETECTORS.items():
        if any(name == kind.__name__ for kind in type(model).__mro__):
            heads, decoder = split(model, example)
            if in_graph:
                heads, decoder = decode_in_graph(heads, decoder, example)
            return Lowered(heads, decoder.OUTPUTS, decoder)
    raise DeployError(
        f"{type(model).__name__} is not a detector whose decoding the bundle knows; use torchvision's "
        f"{', '.join(_DETECTORS)}."
    )


def ssd_heads(model: Any, example: Tensor) -> tuple[nn.Module, SsdDecoder]:
    """Split a torchvision SSD or SSDlite: backbone and raw heads for the file, decoding for the bundle.

    Args:
        model: the detector.
        example: (N, 3, H, W), preprocessed; the size is part of the decoding.

    Returns:
        A module from images (N, 3, H, W) to ``boxes`` and ``logits`` (export it with ``output_name=("boxes",
        "logits")``), sharing the detector's weights, and the decoder of its outputs.

    Raises:
        DeployError: the model is no torchvision SSD.
    """
    from torch import nn
    from torchvision.models.detection.ssd import SSD

    if not isinstance(model, SSD):
        raise DeployError(f"{type(model).__name__} is not a torchvision SSD; use an SSD or SSDlite.")

    class SsdHeads(nn.Module):
        one_size = "the bundle's decoding holds the anchors of one size"

        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = model.backbone, model.head

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            found = self.head(list(self.backbone(images).values()))
            return found["bbox_regression"], found["cls_logits"]

    anchors: Any = model.anchor_generator
    decoder = SsdDecoder(
        size=(example.shape[-2], example.shape[-1]),
        grids=_grids(model, example),
        scales=tuple(anchors.scales),
        aspect_ratios=tuple(tuple(ratios) for ratios in anchors.aspect_ratios),
        steps=tuple(anchors.steps or ()),
        clip=anchors.clip,
        weights=model.box_coder.weights,
        score_threshold=model.score_thresh,
        candidates=model.topk_candidates,
        overlap=model.nms_thresh,
        detections=model.detections_per_img,
    )
    return SsdHeads().train(model.training), decoder


def dense_heads(model: Any, example: Tensor) -> tuple[nn.Module, RetinaNetDecoder | FcosDecoder]:
    """Split a torchvision RetinaNet or FCOS: backbone and raw heads for the file, decoding for the bundle.

    Args:
        model: the detector.
        example: (N, 3, H, W), preprocessed; the size is part of the decoding.

    Returns:
        A module from images (N, 3, H, W) to what the decoder's ``OUTPUTS`` names, sharing the detector's weights, and
        the decoder.

    Raises:
        DeployError: the model is neither.
    """
    import torch
    from torch import nn
    from torchvision.models.detection import FCOS, RetinaNet

    if not isinstance(model, RetinaNet | FCOS):
        raise DeployError(f"{type(model).__name__} is not a torchvision RetinaNet or FCOS; use one of these.")
    names = ("bbox_regression", "cls_logits", "bbox_ctrness")[: 3 if isinstance(model, FCOS) else 2]

    class DenseHeads(nn.Module):
        one_size = "the bundle's decoding holds the anchors of one size"

        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = model.backbone, model.head

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            features = self.backbone(images)
            maps = [features] if isinstance(features, torch.Tensor) else list(features.values())
            found = self.head(maps)
            return tuple(found[name] for name in names)

    anchors: Any = model.anchor_generator
    kind = FcosDecoder if isinstance(model, FCOS) else RetinaNetDecoder
    decoder = kind(
        size=(example.shape[-2], example.shape[-1]),
        grids=_grids(model, example),
        cells=tuple(tuple(map(tuple, cell.tolist())) for cell in anchors.cell_anchors),
        score_threshold=model.score_thresh,
        candidates=model.topk_candidates,
        overlap=model.nms_thresh,
        detections=model.detections_per_img,
        **({"weights": model.box_coder.weights} if isinstance(model, RetinaNet) else {}),
    )
    return DenseHeads().train(model.training), decoder


def segmentation_logits(model: Any, *, in_graph: bool = False) -> tuple[nn.Module, SegmentationDecoder]:
    """Wrap a segmenter into a module from images to one tensor.

    Args:
        model: from (N, 3, H, W) to logits (N, classes, h, w), or to a dictionary that holds them as ``out``, as
            torchvision's do.
        in_graph: whether the module itself takes the likeliest class of each pixel and returns ``classes`` (N, H, W).

    Returns:
        The module, sharing the model's weights, and the decoder of its output.
    """
    from torch import nn
    from torch.nn import functional

    class Segmenter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> Tensor:
            found = self.model(images)
            logits = found["out"] if isinstance(found, dict) else found
            if not in_graph:
                return logits
            size = images.shape[-2:]
            return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(1)

    return Segmenter().train(model.training), SegmentationDecoder(in_graph=in_graph)


def _grids(model: Any, example: Tensor) -> tuple[tuple[int, int], ...]:
    """Return (height, width) of each feature map that the detector's backbone makes of ``example``."""
    import torch

    with evaluating(model), torch.no_grad():
        features = model.backbone(example[:1])
    maps = [features] if isinstance(features, torch.Tensor) else features.values()
    return tuple((one.shape[-2], one.shape[-1]) for one in maps)


_Split = Callable[[Any, "Tensor"], "tuple[nn.Module, DetectionDecoder]"]
# By the name of the class, so that torchvision is imported only by the function that runs.
_DETECTORS: dict[str, _Split] = {
    "SSD": ssd_heads,
    "RetinaNet": dense_heads,
    "FCOS": dense_heads,
    "FasterRCNN": rcnn_heads,
}
