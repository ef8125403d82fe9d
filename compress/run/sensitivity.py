"""A network's sensitivity on images at hand: its curves, and what each criterion foresaw of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from compress import prune
from compress.prune import Sensitivity, Trace
from compress.prune.sensitivity import Measure

SENSITIVITY = "sensitivity.json"


def sensitivity_of(
    trace: Trace,
    network: nn.Module,
    scored: Callable[[str], Tensor],
    measure: Measure | None,
    *,
    data: Iterable[Any] | None = None,
    criterion: str,
    metric: str = "accuracy",
    ratios: Sequence[float] = (0.25, 0.5, 0.75),
    criteria: Sequence[str] = (),
    advance: Callable[[int, int, str], None] | None = None,
) -> Sensitivity:
    """Cut each group alone and measure, then hold every criterion against what was measured; nothing is trained.

    Args:
        trace, network: the network.
        scored: from a criterion's name to scores.
        measure: from a network to its loss, its metric and how many images it was measured on; None for the
            divergence from the whole network's own answers on ``data``.
        data: batches of images without labels.
        criterion: what chooses the channels that go first.
        metric: what the metric is called.
        ratios: shares of a group that go.
        criteria: which are correlated with what was measured.
        advance: told of each cut, and of each criterion.

    Raises:
        PlanError: no channel is free, an impossible ratio, or a loss that is not finite.
    """
    found = prune.measure_sensitivity(
        trace, network, scored(criterion), data, measure=measure, ratios=ratios, advance=advance
    )
    known = prune.correlations(found, scored, criteria=criteria, advance=advance)
    return found.model_copy(update={"criterion": criterion, "metric": metric, "correlations": known})


def plain(measured: Sensitivity) -> dict[str, Any]:
    """Return what a report shows of it, without the numbers of the units."""
    return measured.model_dump(exclude={"curves": {"__all__": {"cells": {"__all__": {"units"}}}}, "format": True})
