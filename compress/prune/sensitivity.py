"""Sensitivity: what each group's channels are worth, measured by cutting that group alone, without training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from compress.errors import PlanError
from compress.prune.allocation import check_ratio, ranked
from compress.prune.calibration import (
    CalibrationBatch,
    Copy,
    Forward,
    Loss,
    answers,
    batches,
    default_loss,
    finite,
    run,
)
from compress.prune.planning import plan_from_kept
from compress.prune.surgery import apply
from compress.prune.units import Trace


class Cell(BaseModel):
    """One group cut to one ratio, all else whole.

    Args:
        ratio: the share of the group's channels that is gone.
        units: which units those are.
        loss: mean loss of an image.
        accuracy: share of images whose highest score is their label's; None where there are no labels.
    """

    model_config = ConfigDict(frozen=True)
    ratio: float
    units: tuple[int, ...]
    loss: float
    accuracy: float | None


class Curve(BaseModel):
    """One group's cells, in the order of their ratios."""

    model_config = ConfigDict(frozen=True)
    group: str
    channels: int
    cells: tuple[Cell, ...]


class Sensitivity(BaseModel):
    """What became of loss and accuracy as each group alone was cut.

    Args:
        loss, accuracy: of the whole network.
        curves: one for each group of the trace, in its order.
        images: how many it was measured on.
    """

    model_config = ConfigDict(frozen=True)
    loss: float
    accuracy: float | None
    curves: tuple[Curve, ...]
    images: int


def measure_sensitivity(
    trace: Trace,
    model: nn.Module,
    scores: Tensor,
    data: Iterable[Any],
    *,
    ratios: Sequence[float] = (0.25, 0.5, 0.75),
    loss: Loss | None = None,
    forward: Forward | None = None,
) -> Sensitivity:
    """Cuts each group alone, the lowest scores first, and measures; nothing is trained.

    Args:
        trace: the network's trace.
        model: the network; it is not changed.
        scores: what goes first within a group, shape (units,).
        data: batches of images and targets; held in memory.
        ratios: shares of a group's channels that go; at least one channel goes and one stays.
        loss: as in `score`, but where there are no targets either, the whole network's answers take their place.
        forward: as in `score`.

    Raises:
        PlanError: an impossible ratio, no group, or a loss that is not finite.
    """
    for ratio in ratios:
        check_ratio(ratio)
    if not trace.groups:
        raise PlanError("No channel of this network is free to go, so there is no sensitivity to measure.")
    values = ranked(trace, scores)
    whole = Copy.of(trace, model).network
    given = _with_targets(whole, list(batches(data)), loss, forward)
    dense = _measured(whole, given, loss, forward)
    curves = []
    for group in trace.groups:
        order = group.units[np.argsort(values[group.units], kind="stable")]
        counts = sorted({min(max(round(ratio * len(order)), 1), len(order) - 1) for ratio in ratios})
        cells = []
        for count in counts:
            kept = np.ones(trace.units, dtype=bool)
            kept[order[:count]] = False
            small = apply(model, plan_from_kept(trace, kept)).eval()
            cost, accuracy = _measured(small, given, loss, forward)
            units = tuple(order[:count].tolist())
            cells.append(Cell(ratio=count / len(order), units=units, loss=cost, accuracy=accuracy))
        curves.append(Curve(group=group.name, channels=len(order), cells=tuple(cells)))
    images = sum(batch.images for batch in given)
    return Sensitivity(loss=dense[0], accuracy=dense[1], curves=tuple(curves), images=images)


def _with_targets(
    whole: nn.Module, given: list[CalibrationBatch], loss: Loss | None, forward: Forward | None
) -> list[CalibrationBatch]:
    """Batches with the targets that every cut is measured by: where there are none, the whole network's answers."""
    if loss is not None:
        return given
    with torch.no_grad():
        return [
            batch
            if batch.targets is not None
            else CalibrationBatch(batch.inputs, answers(run(whole, batch, forward)).clone(), batch.images)
            for batch in given
        ]


def _measured(
    network: nn.Module, given: list[CalibrationBatch], loss: Loss | None, forward: Forward | None
) -> tuple[float, float | None]:
    """Mean loss of an image, and accuracy where targets are labels of images."""
    total = right = labelled = 0.0
    images = 0
    with torch.no_grad():
        for number, batch in enumerate(given, 1):
            outputs = run(network, batch, forward)
            own = (
                default_loss(outputs, batch.targets, torch.Generator())
                if loss is None
                else loss(outputs, batch.targets)
            )
            total += float(finite(own, number)) * batch.images
            images += batch.images
            labels = batch.targets
            if isinstance(labels, Tensor) and not labels.is_floating_point() and labels.dim() == 1:
                right += float((answers(outputs).argmax(1) == labels).sum())
                labelled += len(labels)
    return total / images, right / labelled if labelled else None


def rank_correlation(measured: Sensitivity, scores: Tensor) -> float:
    """How well scores tell beforehand which cuts cost most: Spearman's correlation, over all cells, of the sum of the
    scores that went and the rise of the loss; NaN where either does not vary."""
    values = scores.detach().double().cpu().numpy()
    cells = [cell for curve in measured.curves for cell in curve.cells]
    said = [float(values[list(cell.units)].sum()) for cell in cells]
    rose = [cell.loss - measured.loss for cell in cells]
    if len(set(said)) < 2 or len(set(rose)) < 2:
        return float("nan")
    return float(np.corrcoef(_ranks(said), _ranks(rose))[0, 1])


def _ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Ranks, equal values sharing their mean."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[places])
