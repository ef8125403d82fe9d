"""Criteria: how much each unit matters. One dict from name to function."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import cpp_ext
from compress.errors import PlanError
from compress.prune.units import Trace

Criterion = Callable[[Trace, dict[str, Tensor], int], Tensor]


def score(trace: Trace, model: nn.Module, criterion: str = "l1", *, seed: int = 0) -> Tensor:
    """Scores every unit of `model`; higher stays.

    Args:
        trace: the trace of this model.
        model: the network whose weights are scored.
        criterion: a name in `CRITERIA`.
        seed: for criteria that draw.

    Returns:
        float64 tensor of shape (units,).

    Raises:
        PlanError: no criterion of that name.
    """
    if criterion not in CRITERIA:
        raise PlanError(f"No criterion is called '{criterion}'; there are {', '.join(sorted(CRITERIA))}.")
    return CRITERIA[criterion](trace, dict(model.named_parameters(remove_duplicate=False)), seed)


def _sum_over_producers(trace: Trace, weights: dict[str, Tensor], p: int) -> Tensor:
    """Scatters the p-th powers of all filter norms onto the units that the filters make."""
    total = torch.zeros(trace.units, dtype=torch.float64)
    for (name, dim), units in trace.slots.items():
        weight = weights.get(name)
        if trace.roles[name, dim] != "producer" or weight is None or weight.dim() < 2:
            continue
        norms = cpp_ext.filter_norm(weight.detach(), p, dim).double().cpu() ** p
        index = torch.from_numpy(units)
        total.index_add_(0, index[index >= 0], norms[index >= 0])
    return total


def l1(trace: Trace, weights: dict[str, Tensor], seed: int) -> Tensor:
    """Sum of the absolute weights of a unit's filters (Li et al., Pruning Filters for Efficient ConvNets, 2017)."""
    return _sum_over_producers(trace, weights, 1)


def l2(trace: Trace, weights: dict[str, Tensor], seed: int) -> Tensor:
    """Euclidean norm of all of a unit's filters together."""
    return _sum_over_producers(trace, weights, 2).sqrt()


def uniform(trace: Trace, weights: dict[str, Tensor], seed: int) -> Tensor:
    """Random scores: the baseline that a criterion has to beat."""
    return torch.rand(trace.units, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


CRITERIA: dict[str, Criterion] = {"l1": l1, "l2": l2, "random": uniform}
