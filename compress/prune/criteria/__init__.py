"""Criteria: how much each unit matters. One dict from name to criterion."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

import torch
from torch import Tensor, nn

from compress.errors import PlanError
from compress.prune.calibration import Forward, Loss
from compress.prune.criteria import activations, gradients, second_order, weights
from compress.prune.criteria.base import Criterion, Given, Needs, Normalization, normalized
from compress.prune.units import Trace

CRITERIA: dict[str, Criterion] = {
    "random": Criterion(weights.uniform, "weights", "none: the baseline", "none", "none"),
    "l1": Criterion(weights.l1, "weights", "Li et al. 2017", "none"),
    "l2": Criterion(weights.l2, "weights", "Li et al. 2017", "none"),
    "bn_scale": Criterion(weights.bn_scale, "weights", "Liu et al. 2017", "none", "none"),
    "fpgm": Criterion(weights.fpgm, "weights", "He et al. 2019", "none"),
    "signal": Criterion(weights.signal, "weights", "none: Niwaki's own", "none"),
    "taylor": Criterion(gradients.taylor, "gradients", "Molchanov et al. 2019", "1 backward", "none"),
    "taylor_gate": Criterion(gradients.taylor_gate, "gradients", "Molchanov et al. 2017", "1 backward", "none"),
    "fisher": Criterion(gradients.fisher, "gradients", "Theis et al. 2018", "1 backward", "none"),
    "obd": Criterion(gradients.obd, "gradients", "LeCun et al. 1990", "2 backward", "none"),
    "hutchinson": Criterion(gradients.hutchinson, "gradients", "Yu et al. 2022", "2 backward", "none"),
    "apoz": Criterion(activations.apoz, "activations", "Hu et al. 2016", "1 forward"),
    "mean_activation": Criterion(activations.mean_activation, "activations", "Molchanov et al. 2017", "1 forward"),
    "hrank": Criterion(activations.hrank, "activations", "Lin et al. 2020", "1 forward, a rank per map"),
    "thinet": Criterion(activations.thinet, "activations", "Luo et al. 2017", "1 forward", "none"),
    "regression": Criterion(activations.regression, "activations", "He et al. 2017", "1 forward, a LASSO per group"),
    "second_order": Criterion(
        second_order.second_order, "activations", "Kurtic et al. 2023", "1 forward, an inverse per reader", "none"
    ),
    "kfac": Criterion(
        second_order.kfac, "gradients", "Wang et al. 2019", "1 backward, an inverse per reader", "none"
    ),
}  # fmt: skip
"""Name -> criterion. `prune.score` runs them."""


def score(
    trace: Trace,
    model: nn.Module,
    criterion: str = "l1",
    *,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    normalize: Normalization | None = None,
    forward: Forward | None = None,
    trial: bool = False,
) -> Tensor:
    """Scores every unit of `model`; higher stays.

    Args:
        trace: the trace of this model.
        model: the network, which is left exactly as it is: it runs in eval mode, as a copy that shares its weights.
        criterion: a name in `CRITERIA`.
        data: for criteria of gradients and activations: batches of images, or pairs of images and targets, gone
            through once; only sums are kept.
        loss: for criteria of gradients: `loss(outputs, targets)`, the mean over a batch's images. Without one the
            outputs are class scores and the loss their cross entropy against the targets (labels, or a teacher's
            scores), or where there are no targets a random sum of the scores, whose slopes tell how much they change.
        seed: of everything random.
        normalize: what makes scores comparable from group to group: `none`, `mean`, `max` or `cost`; the
            criterion's own choice without it.
        forward: `forward(network, inputs)` instead of `network(inputs)`.
        trial: asks only whether the criterion can judge this network: what chooses one unit after the other, which
            takes minutes in a network of thousands, stops at each group's first, and the scores mean nothing.

    Returns:
        float64 tensor of shape (units,). Criteria of data say nothing of units that no free group has.

    Raises:
        PlanError: no criterion of that name, data that is missing or of the wrong kind, a loss that is not finite, or
            free channels that the criterion cannot judge.
    """
    known = CRITERIA.get(criterion)
    if known is None:
        raise PlanError(f"No criterion is called '{criterion}'; there are {', '.join(sorted(CRITERIA))}.")
    if known.needs != "weights" and data is None:
        raise PlanError(f"The criterion '{criterion}' looks at {known.needs}; give score(..., data=batches of images).")
    if normalize is not None and normalize not in get_args(Normalization):
        raise PlanError(f"normalize='{normalize}' is unknown; give {', '.join(get_args(Normalization))}.")
    generator = torch.Generator().manual_seed(seed)
    given = Given(trace, model, seed, data, loss, forward, generator, trial)
    scores = known.function(given)
    return normalized(trace, scores, normalize or known.normalize)


__all__ = ["CRITERIA", "Criterion", "Needs", "Normalization", "normalized", "score"]
