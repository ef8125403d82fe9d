"""What every task has to offer while a network is trained, pruned and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from compress.data.images import Batch


class TaskMetrics(Protocol):
    """Adds up over batches and ranks; ``compute`` gives shares of 1 by name, and ``loss`` where there is one."""

    def update(self, predictions: Any, targets: Any) -> None: ...
    def compute(self) -> dict[str, float]: ...
    def to(self, device: torch.device) -> Any: ...


class Task(Protocol):
    """One kind of work.

    Attributes:
        name: as in ``ImageData.task``.
        selects: the metric that chooses checkpoints; higher is better.
        title: that metric in words.
    """

    name: str
    selects: str
    title: str

    def outputs(self, classes: Sequence[str]) -> tuple[str, ...]:
        """What the network's outputs stand for: the classes, after the background for a detector."""
        ...

    def take_prepared(self, model: nn.Module, size: Sequence[int]) -> None:
        """Makes a network take prepared images of (height, width) as they are; nothing of its weights changes."""
        ...

    def check(self, model: nn.Module, example: Tensor) -> None:
        """Tries a network that nobody needs any more on prepared images (N, C, H, W).

        Raises:
            ModelError: it is not for this task.
        """
        ...

    def loss(self, model: nn.Module, batch: Batch, smoothing: float = 0.0) -> Tensor:
        """The supervised loss, a scalar; the network is in train mode."""
        ...

    def predict(self, model: nn.Module, images: Tensor) -> Any:
        """What the network says of images (N, C, H, W), in eval mode, as the metrics take it."""
        ...

    def read(self, outputs: Mapping[str, np.ndarray], postprocessing: Any) -> Any:
        """What an engine's outputs say, as the metrics take it.

        Args:
            outputs: of one run, by name.
            postprocessing: the bundle's own; None where there is none.
        """
        ...

    def metrics(self, classes: Sequence[str]) -> TaskMetrics:
        """Empty metrics for these classes."""
        ...
