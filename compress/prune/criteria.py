"""Criteria: how much each unit matters. One dict from name to function."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
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


def _norms(trace: Trace, weights: dict[str, Tensor], role: str, p: float, **options: bool) -> Tensor:
    """The p-norm of each unit over the weights that have it in this role, in one call; float64 (units,), on the CPU."""
    chosen: dict[torch.device, tuple[list[Tensor], list[int], list[npt.NDArray[np.int64]]]] = {}
    for (name, dim), units in trace.slots.items():
        weight = weights.get(name)
        if weight is not None and weight.dim() > 1 and trace.roles[name, dim] == role:
            tensors, dims, index = chosen.setdefault(weight.device, ([], [], []))
            tensors.append(weight.detach())
            dims.append(dim)
            index.append(units)
    total = torch.zeros(trace.units, dtype=torch.float64)
    # A network on several devices takes a call for each; powers of norms add up.
    for tensors, dims, index in chosen.values():
        slots = cpp_ext.Slots(tuple(range(len(tensors))), tuple(dims), tuple(index), trace.units)
        total += cpp_ext.multi_filter_norm(tensors, slots, p, **options).cpu()
    return total


def l1(trace: Trace, weights: dict[str, Tensor], seed: int) -> Tensor:
    """Sum of the absolute weights of a unit's filters (Li et al., Pruning Filters for Efficient ConvNets, 2017)."""
    return _norms(trace, weights, "producer", 1)


def l2(trace: Trace, weights: dict[str, Tensor], seed: int) -> Tensor:
    """Euclidean norm of all of a unit's filters together."""
    return _norms(trace, weights, "producer", 2, squared=True).sqrt()


def signal(trace: Trace, weights: dict[str, Tensor], seed: int) -> Tensor:
    """How much of a unit's signal its readers take in: the scale of its norms times the norm of its columns.

    Both are divided by their mean over a parameter, so that layers of other widths compare. A filter's own norm says
    little where a norm layer follows. Our own choice, between Network Slimming's scales (Liu et al., 2017) and the
    group norms of DepGraph (Fang et al., 2023); a unit without a norm layer counts by its columns alone.
    """
    scale = torch.zeros(trace.units, dtype=torch.float64)
    for (name, _), units in trace.slots.items():
        weight = weights.get(name)
        if weight is not None and weight.dim() == 1 and name.endswith("weight"):
            sizes = weight.detach().double().abs().cpu()
            scale.index_add_(0, torch.from_numpy(units), sizes / sizes.mean().clamp_min(1e-30))
    columns = _norms(trace, weights, "consumer", 2, squared=True, relative=True)
    has_norm = scale > 0
    return columns.sqrt() * torch.where(has_norm, scale, scale[has_norm].mean() if has_norm.any() else 1.0)


def uniform(trace: Trace, weights: dict[str, Tensor], seed: int) -> Tensor:
    """Random scores: the baseline that a criterion has to beat."""
    return torch.rand(trace.units, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


CRITERIA: dict[str, Criterion] = {"l1": l1, "l2": l2, "signal": signal, "random": uniform}
