"""Judging: how far a network's outputs are from another's on images that nothing was fitted to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.errors import PlanError
from compress.prune.calibration import CalibrationBatch, Forward, run
from compress.prune.rules import tensors


class Judge:
    """Holds a network's answers and compares others with them.

    Args:
        reference: the network whose answers count, in eval mode.
        batches: held-out images.
        forward: how, as in `run`.

    Attributes:
        measure: `kl` where the one output is [images, classes]: divergence of the class probabilities, in nats;
            `error` for anything else: squared error of all outputs, as a share of their sum of squares.

    Raises:
        PlanError: the network gives no numbers.
    """

    def __init__(self, reference: nn.Module, batches: Sequence[CalibrationBatch], forward: Forward | None) -> None:
        self._batches, self._forward = batches, forward
        self._wanted = [self._outputs(reference, batch) for batch in batches]
        classes = all(len(outs) == 1 and outs[0].dim() == 2 and outs[0].shape[1] > 1 for outs in self._wanted)
        self.measure = "kl" if classes else "error"
        squares = sum(float(t.double().square().sum()) for outs in self._wanted for t in outs)
        self._scale = max(squares, 1e-30) / sum(batch.images for batch in batches)

    def __call__(self, network: nn.Module) -> Tensor:
        """What each held-out image has to say; float64 (images,)."""
        found = []
        for batch, wanted in zip(self._batches, self._wanted, strict=True):
            ours = self._outputs(network, batch)
            if self.measure == "kl":
                p, q = wanted[0].double().log_softmax(1), ours[0].double().log_softmax(1)
                found.append((p.exp() * (p - q)).sum(1))
            else:
                squares = [(a.double() - b.double()).square() for a, b in zip(ours, wanted, strict=True)]
                found.append(torch.stack([_by_image(part, batch.images) for part in squares]).sum(0))
        each = torch.cat(found).cpu()
        return each if self.measure == "kl" else each / self._scale

    def _outputs(self, network: nn.Module, batch: CalibrationBatch) -> list[Tensor]:
        with torch.no_grad():
            found = [t for t in tensors(run(network, batch, self._forward)) if t.is_floating_point()]
        if not found:
            raise PlanError("The network gives no numbers that could be compared; give forward=, for a part that does.")
        return found


def _by_image(values: Tensor, images: int) -> Tensor:
    if values.dim() and len(values) % images == 0 and len(values):
        return values.reshape(images, -1).sum(1)
    # Where nothing tells which image a row is of, all share alike.
    return (values.sum() / images).expand(images)


def surely_lower(values: Tensor, others: Tensor) -> bool:
    """Whether `values` are lower than `others`, image by image, by more than twice the error of the mean."""
    difference = others - values
    if not bool(torch.isfinite(difference).all()):
        return bool(torch.isfinite(values).all())
    error = float(difference.std(correction=1)) / math.sqrt(len(difference)) if len(difference) > 1 else 0.0
    return float(difference.mean()) > 2 * error
