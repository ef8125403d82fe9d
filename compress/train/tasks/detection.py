"""Boxes with a class, by torchvision's detectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.detection import MeanAveragePrecision

from compress.data.images import Batch
from compress.errors import ModelError
from compress.models.detection import raw_heads, take_prepared


class BoxMetrics(Metric):
    """COCO's mean average precision over IoU 0.50 to 0.95, at 0.50, at 0.75, and that of each class.

    Args:
        classes: the classes' names.
    """

    full_state_update = False

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.precision = MeanAveragePrecision(class_metrics=True)
        # More than 100 boxes an image are no mistake here; torchmetrics would warn each time.
        self.precision.warn_on_many_detections = False

    def update(self, predictions: Sequence[dict[str, Tensor]], targets: Sequence[dict[str, Tensor]]) -> None:
        """Add images: predicted ``boxes`` (n, 4), ``scores``, ``labels`` (n,), and true ``boxes`` and ``labels``."""
        self.precision.update(list(predictions), list(targets))

    def compute(self) -> dict[str, float]:
        found = self.precision.compute()
        # torchmetrics returns -1 for what occurs nowhere.
        shares = {"map": found["map"], "map50": found["map_50"], "map75": found["map_75"]}
        each = dict(zip(found["classes"].reshape(-1).tolist(), found["map_per_class"].reshape(-1), strict=False))
        shares |= {f"map_{self.classes[k]}": value for k, value in each.items() if 0 <= k < len(self.classes)}
        return {name: max(0.0, float(value)) for name, value in shares.items()}


class Detection:
    """Boxes with a class: a torchvision SSD, RetinaNet, FCOS or R-CNN, whose class 0 is the background."""

    name = "detection"
    selects = "map"
    title = "mAP"

    def outputs(self, classes: Sequence[str]) -> tuple[str, ...]:
        return ("background", *classes)

    def take_prepared(self, model: nn.Module, size: Sequence[int]) -> None:
        take_prepared(model, size)

    def check(self, model: nn.Module, example: Tensor) -> None:
        if raw_heads(model) is None:
            raise ModelError(
                f"{type(model).__name__} is not a detector that is known here (an SSD, RetinaNet, FCOS or R-CNN of "
                "torchvision); name one, such as niwaki:mobilenet_v2_ssdlite."
            )

    def loss(self, model: nn.Module, batch: Batch, smoothing: float = 0.0) -> Tensor:
        """The sum of the detector's own losses, which have no label smoothing."""
        targets = [{**target, "labels": target["labels"] + 1} for target in batch.targets]
        return torch.stack(list(model(list(batch.images), targets).values())).sum()

    def predict(self, model: nn.Module, images: Tensor) -> list[dict[str, Tensor]]:
        return [{**found, "labels": found["labels"] - 1} for found in model(list(images))]

    def read(self, outputs: Mapping[str, np.ndarray], postprocessing: Any) -> list[dict[str, Tensor]]:
        decoded = postprocessing(*(outputs[name] for name in postprocessing.OUTPUTS))
        return [{name: torch.from_numpy(value) for name, value in one.items()} for one in decoded]

    def metrics(self, classes: Sequence[str]) -> BoxMetrics:
        return BoxMetrics(classes)
