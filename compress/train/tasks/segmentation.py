"""A class for each pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric, SumMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from compress.data.images import Batch
from compress.data.targets import IGNORED
from compress.errors import ModelError


class PixelMetrics(Metric):
    """Mean intersection over union, the same of each class that occurs, pixel accuracy and mean cross-entropy.

    Args:
        classes: the classes' names.
    """

    full_state_update = False

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.confusion = MulticlassConfusionMatrix(len(classes), ignore_index=IGNORED, validate_args=False)
        self.losses, self.pixels = SumMetric(nan_strategy="disable"), SumMetric()

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add logits (N, classes, H, W), or integer classes (N, H, W), and masks (N, H, W)."""
        if not predictions.is_floating_point():
            self.confusion.update(predictions, targets)
            return
        logits = predictions.float()
        self.confusion.update(logits.argmax(1), targets)
        self.losses.update(F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum"))
        self.pixels.update((targets != IGNORED).sum())

    def compute(self) -> dict[str, float]:
        found = self.confusion.compute().double()
        right, union = found.diag(), found.sum(0) + found.sum(1) - found.diag()
        # A class that is neither in the masks nor predicted has no IoU.
        occurs = union > 0
        shares = right / union.clamp_min(1)
        each = {f"iou_{name}": float(s) for name, s, o in zip(self.classes, shares, occurs, strict=True) if o}
        pixels = float(self.pixels.compute())
        return {
            "miou": float(shares[occurs].mean()) if bool(occurs.any()) else 0.0,
            "pixel_accuracy": float(right.sum() / found.sum().clamp_min(1)),
            **each,
            # There is no loss without logits.
            **({"loss": float(self.losses.compute()) / pixels} if pixels else {}),
        }


class Segmentation:
    """A class for each pixel, from logits (N, classes, H, W), alone or as ``out`` beside ``aux``."""

    name = "segmentation"
    selects = "miou"
    title = "mIoU"

    def outputs(self, classes: Sequence[str]) -> tuple[str, ...]:
        return tuple(classes)

    def take_prepared(self, model: nn.Module, size: Sequence[int]) -> None:
        """Do nothing: segmenters take them."""

    def check(self, model: nn.Module, example: Tensor) -> None:
        with torch.no_grad():
            answer = model.eval()(example)
        logits = answer.get("out") if isinstance(answer, Mapping) else answer
        if not isinstance(logits, Tensor) or logits.ndim != 4:
            raise ModelError(
                f"{type(model).__name__} gives {_shape(logits)} for images {tuple(example.shape)}, not logits for each "
                "pixel; name a segmenter, such as niwaki:mobilenet_v2_lraspp."
            )

    def loss(self, model: nn.Module, batch: Batch, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy over the pixels that have a class; an auxiliary head (``aux``) has a weight of 0.5."""
        answer = model(batch.images)
        if isinstance(answer, Tensor):
            return self._entropy(answer, batch, smoothing)
        loss = self._entropy(answer["out"], batch, smoothing)
        return loss + 0.5 * self._entropy(answer["aux"], batch, smoothing) if "aux" in answer else loss

    @staticmethod
    def _entropy(logits: Tensor, batch: Batch, smoothing: float) -> Tensor:
        logits = _resized(logits, batch.targets.shape[-2:])
        total = F.cross_entropy(logits, batch.targets, ignore_index=IGNORED, label_smoothing=smoothing, reduction="sum")
        # Without any labelled pixel a mean would be 0 / 0.
        return total / (batch.targets != IGNORED).sum().clamp_min(1)

    def predict(self, model: nn.Module, images: Tensor) -> Tensor:
        answer = model(images)
        return _resized(answer if isinstance(answer, Tensor) else answer["out"], images.shape[-2:])

    def read(self, outputs: Mapping[str, np.ndarray], postprocessing: Any) -> Tensor:
        return torch.from_numpy(next(iter(outputs.values())))

    def metrics(self, classes: Sequence[str]) -> PixelMetrics:
        return PixelMetrics(classes)


def _resized(logits: Tensor, size: Sequence[int]) -> Tensor:
    if logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits, size=list(size), mode="bilinear", align_corners=False)


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
