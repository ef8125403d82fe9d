"""How good a network is on images at hand: the task's own loss and metric, without a workspace or a training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from compress.data.images import Batch
from compress.run.scoring import loss_of
from compress.train.ranks import measured_alone
from compress.train.tasks import Task


def measured_on(
    task: Task, images: Sequence[Batch], classes: Sequence[str]
) -> Callable[[nn.Module], tuple[float, float, int]]:
    """Return a function from a network in eval mode to its mean loss, the metric that chooses, and how many images.

    Args:
        task: what the network is for.
        images: with their targets.
        classes: their names.
    """
    loss_on = loss_of(task)

    def measure(network: nn.Module) -> tuple[float, float, int]:
        metrics, total, count = task.metrics(classes), 0.0, 0
        measured_alone(metrics)
        with torch.no_grad():
            for batch in images:
                metrics.update(task.predict(network, batch.images), batch.targets)
                total += float(loss_on(network, (batch.images, batch.targets))) * len(batch)
                count += len(batch)
        return total / count, metrics.compute()[task.selects], count

    return measure
