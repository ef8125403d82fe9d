"""What every task provides while a network is trained, pruned and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from compress.data.images import Batch


class TaskMetrics(Protocol):
    """Accumulates over batches and ranks; ``compute`` returns shares of 1 by name, and ``loss`` where there is one."""

    def update(self, predictions: Any, targets: Any) -> None: ...
    def compute(self) -> dict[str, float]: ...
    def to(self, device: torch.device) -> Any: ...


class Task(Protocol):
    """One kind of work.

    Attributes:
        name: as in ``ImageData.task``.
        selects: the metric that selects the best weights; higher is better.
        title: that metric in words.
    """

    name: str
    selects: str
    title: str

    def outputs(self, classes: Sequence[str]) -> tuple[str, ...]:
        """What the network's outputs stand for: the classes, for a detector the background first."""
        ...

    def take_prepared(self, model: nn.Module, size: Sequence[int]) -> None:
        """Make a network take prepared images of (height, width) unchanged; its weights stay as they are."""
        ...

    def check(self, model: nn.Module, example: Tensor) -> None:
        """Try a network, which may be spoiled, on prepared images (N, C, H, W).

        Raises:
            ModelError: it does not suit this task.
        """
        ...

    def loss(self, model: nn.Module, batch: Batch, smoothing: float = 0.0) -> Tensor:
        """The supervised loss, a scalar; the network is in train mode."""
        ...

    def predict(self, model: nn.Module, images: Tensor) -> Any:
        """Predict for images (N, C, H, W) in eval mode, in the form that the metrics take."""
        ...

    def read(self, outputs: Mapping[str, np.ndarray], postprocessing: Any) -> Any:
        """Turn an engine's outputs into predictions, in the form that the metrics take.

        Args:
            outputs: the outputs of one run, by name.
            postprocessing: the bundle's; None if it has none.
        """
        ...

    def metrics(self, classes: Sequence[str]) -> TaskMetrics:
        """Make empty metrics for these classes."""
        ...
