"""Criteria of weights alone: no data, no pass."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import cpp_ext
from compress.errors import PlanError
from compress.prune.criteria.base import Given
from compress.prune.rules import READERS
from compress.prune.units import Trace


def _norms(trace: Trace, weights: dict[str, Tensor], roles: tuple[str, ...], p: float, **options: bool) -> Tensor:
    """The p-norm of each unit over the weights that have it in these roles; float64 (units,), on the CPU."""
    chosen: dict[torch.device, tuple[list[Tensor], list[int], list[npt.NDArray[np.int64]]]] = {}
    for (name, dim), units in trace.slots.items():
        weight = weights.get(name)
        if weight is not None and weight.dim() > 1 and trace.roles[name, dim] in roles:
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


def uniform(given: Given) -> Tensor:
    """Random scores: the baseline that a criterion has to beat."""
    generator = torch.Generator().manual_seed(given.seed)
    return torch.rand(given.trace.units, dtype=torch.float64, generator=generator)


def l1(given: Given) -> Tensor:
    """Sum of the absolute weights of a unit's filters (Li et al., Pruning Filters for Efficient ConvNets, 2017)."""
    return _norms(given.trace, given.weights, ("producer",), 1)


def l2(given: Given) -> Tensor:
    """Euclidean norm of all of a unit's filters together."""
    return _norms(given.trace, given.weights, ("producer",), 2, squared=True).sqrt()


def bn_scale(given: Given) -> Tensor:
    """Mean absolute scale of a unit's norms (Liu et al., Network Slimming, 2017).

    Raises:
        PlanError: no norm scales the units of a free group.
    """
    total, count = given.zeros(), given.zeros()
    for units, sizes in _scales(given.trace, given.weights):
        total.index_add_(0, units, sizes)
        count.index_add_(0, units, torch.ones_like(sizes))
    for group in given.trace.groups:
        if bool((count[torch.from_numpy(group.units)] == 0).any()):
            raise PlanError(
                f"No norm scales the channels of '{group.name}', so 'bn_scale' cannot judge them; take another "
                "criterion, or protect them."
            )
    return total / count.clamp_min(1)


def _scales(trace: Trace, weights: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Units and absolute scales of each norm."""
    found = []
    for (name, _), units in trace.slots.items():
        weight = weights.get(name)
        if weight is not None and weight.dim() == 1 and name.endswith("weight"):
            found.append((torch.from_numpy(units), weight.detach().double().abs().cpu()))
    return found


def fpgm(given: Given) -> Tensor:
    """Sum of the distances from a unit's filters to those of all others of its group: what is near the geometric
    median can be replaced by the rest (He et al., Filter Pruning via Geometric Median, 2019)."""
    scores, weights = given.zeros(), given.weights
    for group in given.trace.groups:
        units = torch.from_numpy(group.units)
        squares = torch.zeros(len(units), len(units), dtype=torch.float64)
        for name, dim in group.slots:
            weight = weights.get(name)
            if weight is None or weight.dim() < 2 or given.trace.roles[name, dim] != "producer":
                continue
            rows = weight.detach().double().cpu().movedim(dim, 0).flatten(1)
            slot = given.trace.slots[name, dim]
            mine = np.flatnonzero(np.isin(slot, group.units))
            # Each unit's rows in one line: a unit may have several rows, all as many.
            order = mine[np.argsort(slot[mine], kind="stable")]
            lines = rows[torch.from_numpy(order)].reshape(len(units), -1)
            ranks = torch.from_numpy(np.argsort(np.argsort(group.units)))
            squares += torch.cdist(lines[ranks], lines[ranks]).square()
        scores[units] = squares.sqrt().sum(1)
    return scores


def signal(given: Given) -> Tensor:
    """How much of a unit's signal its readers take in: the scale of its norms times the norm of its columns.

    Both are divided by their mean over a parameter, so that layers of other widths compare. A filter's own norm says
    little where a norm layer follows. Our own choice, between Network Slimming's scales (Liu et al., 2017) and the
    group norms of DepGraph (Fang et al., 2023); a unit without a norm layer counts by its columns alone.
    """
    scale = given.zeros()
    for units, sizes in _scales(given.trace, given.weights):
        scale.index_add_(0, units, sizes / sizes.mean().clamp_min(1e-30))
    columns = _norms(given.trace, given.weights, READERS, 2, squared=True, relative=True)
    has_norm = scale > 0
    return columns.sqrt() * torch.where(has_norm, scale, scale[has_norm].mean() if has_norm.any() else 1.0)
