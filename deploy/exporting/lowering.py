"""What of a detector or a segmenter goes into the ONNX file, and what stays for the bundle's own postprocessing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploy.errors import DeployError
from deploy.exporting.in_graph import decoded
from deploy.exporting.rcnn import rcnn_heads
from deploy.processing.postprocess import (
    Detection,
    FcosDetection,
    RetinaNetDetection,
    Segmentation,
    SsdDetection,
)

if TYPE_CHECKING:
    from torch import Tensor, nn


def lowered(
    model: nn.Module, task: str, example: Tensor, *, in_graph: bool = False
) -> tuple[nn.Module, str | tuple[str, ...], Detection | Segmentation | None]:
    """What of ``model`` goes into the ONNX file, the names of its outputs, and what the bundle does with those.

    Args:
        model: a classifier, one of torchvision's detectors named below, or a segmenter.
        task: ``classification``, ``detection`` or ``segmentation``.
        example: (N, 3, H, W), preprocessed; for a detector its size is part of the decoding.
        in_graph: the file itself decodes and suppresses boxes (SSD, RetinaNet, FCOS), or resizes and takes the largest
            class of each pixel; for a classifier there is nothing to take in.

    Returns:
        The module (sharing the model's weights; the model itself for classification), ``output_name`` for
        ``export_onnx``, and the ``postprocessing`` for ``write_bundle``: None for classification.

    Raises:
        DeployError: the task is unknown, or the detector is none whose decoding the bundle, or the graph, knows.
    """
    if task == "classification":
        return model, "logits", None
    if task == "segmentation":
        segmenter, pixels = segmentation_logits(model, in_graph=in_graph)
        return segmenter, "classes" if in_graph else "logits", pixels
    if task != "detection":
        raise DeployError(f"The task is {task!r}; lower a network for classification, detection or segmentation.")
    for name, split in _DETECTORS.items():
        if any(name == kind.__name__ for kind in type(model).__mro__):
            heads, decoding = split(model, example)
            if in_graph:
                heads, decoding = decoded(heads, decoding, example)
            return heads, decoding.OUTPUTS, decoding
    raise DeployError(
        f"{type(model).__name__} is no detector whose decoding the bundle knows; use torchvision's "
        f"{', '.join(_DETECTORS)}."
    )


def ssd_heads(model: Any, example: Tensor) -> tuple[nn.Module, SsdDetection]:
    """Split a torchvision SSD or SSDlite: backbone and raw heads for the file, decoding for the bundle.

    Args:
        model: the detector.
        example: (N, 3, H, W), preprocessed; the size is part of the decoding.

    Returns:
        A module from images (N, 3, H, W) to ``boxes`` and ``logits`` (export it with ``output_name=("boxes",
        "logits")``), sharing the detector's weights, and the decoding of those.

    Raises:
        DeployError: the model is no torchvision SSD.
    """
    from torch import nn
    from torchvision.models.detection.ssd import SSD

    if not isinstance(model, SSD):
        raise DeployError(f"{type(model).__name__} is no torchvision SSD; use an SSD or SSDlite.")

    class Heads(nn.Module):
        one_size = "the bundle's decoding holds the anchors of one size"

        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = model.backbone, model.head

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            found = self.head(list(self.backbone(images).values()))
            return found["bbox_regression"], found["cls_logits"]

    anchors: Any = model.anchor_generator
    decoding = SsdDetection(
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
    return Heads().train(model.training), decoding


def dense_heads(model: Any, example: Tensor) -> tuple[nn.Module, RetinaNetDetection | FcosDetection]:
    """Split a torchvision RetinaNet or FCOS: backbone and raw heads for the file, decoding for the bundle.

    Args:
        model: the detector.
        example: (N, 3, H, W), preprocessed; the size is part of the decoding.

    Returns:
        A module from images (N, 3, H, W) to what the decoding's ``OUTPUTS`` names, sharing the detector's weights, and
        the decoding of those.

    Raises:
        DeployError: the model is neither.
    """
    import torch
    from torch import nn
    from torchvision.models.detection import FCOS, RetinaNet

    if not isinstance(model, RetinaNet | FCOS):
        raise DeployError(f"{type(model).__name__} is no torchvision RetinaNet or FCOS; use one of these.")
    names = ("bbox_regression", "cls_logits", "bbox_ctrness")[: 3 if isinstance(model, FCOS) else 2]

    class Heads(nn.Module):
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
    kind = FcosDetection if isinstance(model, FCOS) else RetinaNetDetection
    decoding = kind(
        size=(example.shape[-2], example.shape[-1]),
        grids=_grids(model, example),
        cells=tuple(tuple(map(tuple, cell.tolist())) for cell in anchors.cell_anchors),
        score_threshold=model.score_thresh,
        candidates=model.topk_candidates,
        overlap=model.nms_thresh,
        detections=model.detections_per_img,
        **({"weights": model.box_coder.weights} if isinstance(model, RetinaNet) else {}),
    )
    return Heads().train(model.training), decoding


def segmentation_logits(model: Any, *, in_graph: bool = False) -> tuple[nn.Module, Segmentation]:
    """A segmenter as a module from images to one tensor, and the bundle's postprocessing of it.

    Args:
        model: from (N, 3, H, W) to logits (N, classes, h, w), or to a dictionary that holds them as ``out``, as
            torchvision's do.
        in_graph: the largest class of each pixel is taken inside: ``classes`` (N, H, W) come out.

    Returns:
        The module, sharing the model's weights, and the postprocessing.
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

    return Segmenter().train(model.training), Segmentation(in_graph=in_graph)


def _grids(model: Any, example: Tensor) -> tuple[tuple[int, int], ...]:
    """(height, width) of each feature map that the detector's backbone makes of ``example``."""
    import torch

    was = model.training
    model.eval()
    try:
        with torch.inference_mode():
            features = model.backbone(example[:1])
    finally:
        model.train(was)
    maps = [features] if isinstance(features, torch.Tensor) else features.values()
    return tuple((one.shape[-2], one.shape[-1]) for one in maps)


_Split = Callable[[Any, "Tensor"], "tuple[nn.Module, Detection]"]
# By the name of the class, for torchvision is imported by what runs alone.
_DETECTORS: dict[str, _Split] = {
    "SSD": ssd_heads,
    "RetinaNet": dense_heads,
    "FCOS": dense_heads,
    "FasterRCNN": rcnn_heads,
}
