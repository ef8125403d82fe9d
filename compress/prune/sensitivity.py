"""Sensitivity: what each group's channels are worth, measured by cutting that group alone, without training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
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
from compress.prune.criteria import CRITERIA
from compress.prune.curves import Cell, Curve, Sensitivity
from compress.prune.planning import plan_from_kept
from compress.prune.surgery import apply
from compress.prune.units import Group, Trace

Measure = Callable[[nn.Module], tuple[float, float | None, int]]
"""From a network to its mean loss of an image, its accuracy where there are labels, and how many images there were."""


def measure_sensitivity(
    trace: Trace,
    model: nn.Module,
    scores: Tensor,
    data: Iterable[Any] | None = None,
    *,
    ratios: Sequence[float] = (0.25, 0.5, 0.75),
    loss: Loss | None = None,
    forward: Forward | None = None,
    measure: Measure | None = None,
    advance: Callable[[int, int, str], None] | None = None,
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
        measure: in place of data, loss and forward: from a network in eval mode to loss, accuracy and images.
        advance: told after each cut how many are done, how many there are, and the group.

    Raises:
        PlanError: an impossible ratio, no group, or a loss that is not finite.
    """
    for ratio in ratios:
        check_ratio(ratio)
    if not trace.groups:
        raise PlanError("No channel of this network is free to go, so there is no sensitivity to measure.")
    values = ranked(trace, scores)
    whole = Copy.of(trace, model).network
    if measure is None:
        given = _with_targets(whole, list(batches(data)), loss, forward)

        def measure(network: nn.Module) -> tuple[float, float | None, int]:
            return _measured(network, given, loss, forward)

    dense = measure(whole)
    curves, done, total = [], 0, sum(len(_counts(group, ratios)) for group in trace.groups)
    for group in trace.groups:
        order = group.units[np.argsort(values[group.units], kind="stable")]
        cells = []
        for count in _counts(group, ratios):
            kept = np.ones(trace.units, dtype=bool)
            kept[order[:count]] = False
            small = apply(model, plan_from_kept(trace, kept)).eval()
            cost, accuracy, _ = measure(small)
            if not math.isfinite(cost):
                raise PlanError(f"The loss is {cost:g} with {count} channels of '{group.name}' gone; check the data.")
            units = tuple(order[:count].tolist())
            cells.append(Cell(ratio=count / len(order), units=units, loss=cost, accuracy=accuracy))
            done += 1
            if advance is not None:
                advance(done, total, group.name)
        if cells:
            curves.append(Curve(group=group.name, channels=len(order), cells=tuple(cells)))
    return Sensitivity(loss=dense[0], accuracy=dense[1], curves=tuple(curves), images=dense[2])


def _counts(group: Group, ratios: Sequence[float]) -> list[int]:
    """How many channels of a group go, by cut; of a group of one channel none can."""
    size = len(group.units)
    return sorted({min(max(round(ratio * size), 1), size - 1) for ratio in ratios} - {0})


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
) -> tuple[float, float | None, int]:
    """Mean loss of an image, accuracy where targets are labels of images, and how many images there are."""
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
    return total / images, right / labelled if labelled else None, images


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


def correlations(
    measured: Sensitivity,
    scored: Callable[[str], Tensor],
    *,
    criteria: Sequence[str] = tuple(CRITERIA),
    advance: Callable[[int, int, str], None] | None = None,
) -> dict[str, float | None]:
    """The rank correlation of each criterion with what was measured; None where it cannot judge this network.

    Args:
        measured: the network's sensitivity.
        scored: from a criterion's name to its scores.
        criteria: which ones.
        advance: told before each criterion how many are done, how many there are, and its name.
    """
    found: dict[str, float | None] = {}
    for number, name in enumerate(criteria):
        if advance is not None:
            advance(number, len(criteria), name)
        try:
            value = rank_correlation(measured, scored(name))
        except PlanError:
            found[name] = None
        else:
            found[name] = value if math.isfinite(value) else None
    return found


def _ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Ranks, equal values sharing their mean."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[places])
