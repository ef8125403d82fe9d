"""A class for each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric, SumMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from compress.data.images import Batch
from compress.errors import ModelError, said_by


class ClassMetrics(Metric):
    """Top-1, top-5 (from six classes on), macro-F1 and mean cross-entropy.

    Args:
        classes: number of classes.
    """

    full_state_update = False

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.top1 = MulticlassAccuracy(classes, average="micro", validate_args=False)
        self.top5 = MulticlassAccuracy(classes, average="micro", top_k=5, validate_args=False) if classes > 5 else None
        self.macro_f1 = MulticlassF1Score(classes, average="macro", validate_args=False)
        self.losses, self.images = SumMetric(nan_strategy="disable"), SumMetric()

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add logits (N, classes) and class indices (N,)."""
        logits = predictions.float()
        self.top1.update(logits, targets)
        if self.top5 is not None:
            self.top5.update(logits, targets)
        self.macro_f1.update(logits, targets)
        self.losses.update(F.cross_entropy(logits, targets, reduction="sum"))
        self.images.update(len(targets))

    def compute(self) -> dict[str, float]:
        images = round(float(self.images.compute()))
        # The metrics are float32; the number of correct images is exact.
        found = {"top1": round(float(self.top1.compute()) * images) / max(1, images)}
        if self.top5 is not None:
            found["top5"] = round(float(self.top5.compute()) * images) / max(1, images)
        found["macro_f1"] = float(self.macro_f1.compute())
        return {**found, "loss": float(self.losses.compute()) / max(1, images)}


class Classification:
    """A class for each image, from one network output (N, classes)."""

    name = "classification"
    selects = "top1"
    title = "accuracy"

    def outputs(self, classes: Sequence[str]) -> tuple[str, ...]:
        return tuple(classes)

    def take_prepared(self, model: nn.Module, size: Sequence[int]) -> None:
        """Do nothing: classifiers take them."""

    def check(self, model: nn.Module, example: Tensor) -> None:
        try:
            answer = model.train()(example)
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"{type(model).__name__} does not run in training on images {tuple(example.shape[1:])} "
                f"({said_by(error, 160)}); ask for a larger preprocessing.size, or leave auxiliary heads out "
                "(aux_logits: false)."
            ) from None
        heads = _heads(answer)
        if not heads or any(
            not isinstance(one, Tensor) or one.ndim != 2 or one.shape != heads[0].shape for one in heads
        ):
            raise ModelError(
                f"{type(model).__name__} returns {type(answer).__name__} in training, not logits alone or before those "
                "of auxiliary heads; name a factory whose network does."
            )

    def loss(self, model: nn.Module, batch: Batch, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy with label smoothing; auxiliary heads (GoogLeNet, Inception) have a weight of 0.3."""
        main, *others = _heads(model(batch.images))
        extra = [self._entropy(logits, batch, smoothing) for logits in others]
        return self._entropy(main, batch, smoothing) + 0.3 * sum(extra, torch.zeros((), device=main.device))

    @staticmethod
    def _entropy(logits: Tensor, batch: Batch, smoothing: float) -> Tensor:
        target = batch.targets if batch.soft is None else batch.soft.to(logits.dtype)
        return F.cross_entropy(logits, target, label_smoothing=smoothing)

    def predict(self, model: nn.Module, images: Tensor) -> Tensor:
        return model(images)

    def read(self, outputs: Mapping[str, np.ndarray], postprocessing: Any) -> Tensor:
        return torch.from_numpy(next(iter(outputs.values())))

    def metrics(self, classes: Sequence[str]) -> ClassMetrics:
        return ClassMetrics(len(classes))


def _heads(answer: Any) -> list[Any]:
    """The output of each head: the classifier's first, then those of auxiliary heads."""
    return [one for one in answer if one is not None] if isinstance(answer, tuple | list) else [answer]
