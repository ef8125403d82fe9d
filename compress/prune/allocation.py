"""Allocation: from scores to what goes. Which units come first, how many of them, and within which bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import ceil
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from compress.errors import PlanError
from compress.prune.budget import WIDTHS, Budget
from compress.prune.curves import Sensitivity
from compress.prune.units import Group, Trace

Kept = npt.NDArray[np.bool_]

Order = npt.NDArray[np.int64]
"""Rows (group, unit), first to go first."""

Scope = Literal["global", "group", "isomorphic", "per_mac"]


@dataclass(frozen=True)
class Limits:
    """How far each group may be cut.

    Args:
        round_to: kept channels are rounded up to a multiple of it.
        min_kept: channels that always stay.
        max_ratio: the largest share that may go.
    """

    round_to: int = 1
    min_kept: int = 1
    max_ratio: float = 1.0

    def __post_init__(self) -> None:
        whole = isinstance(self.round_to, int) and isinstance(self.min_kept, int)
        if not whole or self.round_to < 1 or self.min_kept < 0:
            raise PlanError(
                f"round_to={self.round_to} and min_kept={self.min_kept} have to be whole, at least 1 and at least 0."
            )
        if not 0 < self.max_ratio <= 1:
            raise PlanError(
                f"max_ratio={self.max_ratio} is impossible; give the largest share that goes, above 0 to 1."
            )

    def stays(self, group: Group, gone: int) -> int:
        """Channels of a group that stay when `gone` of them should go."""
        size = len(group.units)
        # A share such as 0.7 of 10 must not lose a channel to rounding.
        least = max(size - gone, self.min_kept, 1, ceil(size * (1 - self.max_ratio) - 1e-9))
        return min(size, -(-least // self.round_to) * self.round_to)

    def __str__(self) -> str:
        most = "" if self.max_ratio == 1 else f", at most {self.max_ratio:g} of a group gone"
        return f"with at least {max(self.min_kept, 1)} channels a group, in multiples of {self.round_to}{most}"


def removal_order(
    trace: Trace, scores: npt.NDArray[np.float64], scope: Scope, curves: Sensitivity | None = None
) -> Order:
    """What goes, first to go first.

    `global` ranks all units by their scores; `per_mac` by score for each MAC that goes with a unit; `group` takes the
    same share of every group; `isomorphic` the same share of every kind of group, ranked by score within a kind (Fang
    et al., Isomorphic Pruning for Vision Models, 2024). With `curves` every group is cut as far as the loss, measured
    with that group alone cut, rises by one and the same amount (as Li et al., Pruning Filters for Efficient ConvNets,
    2017, choose ratios by eye from such curves); scores only say which channels of a group go first.
    """
    if scope not in get_args(Scope):
        raise PlanError(f"scope='{scope}' is unknown; give {', '.join(map(repr, get_args(Scope)))}.")
    if not trace.groups:
        return np.empty((0, 2), np.int64)
    values = scores
    if scope == "per_mac":
        values = scores / np.maximum(trace.unit_macs(), 1e-12)
    rises = None if curves is None else curves.rises(trace)
    keys, ranks, owner, unit = [], [], [], []
    for g, group in enumerate(trace.groups):
        own = values[group.units]
        ranked = np.argsort(own, kind="stable")
        if rises is not None:
            keys.append(rises[g])
        else:
            keys.append((np.arange(len(ranked)) + 0.5) / len(ranked) if scope == "group" else own[ranked])
        ranks.append(own[ranked])
        owner.append(np.full(len(ranked), g))
        unit.append(group.units[ranked])
    whole = [np.concatenate(parts) for parts in (unit, owner, ranks, keys)]
    if scope == "isomorphic" and curves is None:
        kinds = [_kind(trace, group) for group in trace.groups]
        whole[3] = _shares(whole, np.array([sorted(set(kinds)).index(kind) for kind in kinds]))
    # Equal ones lie in the order of groups and units already, if those of each group rise.
    rising = all(bool((group.units[1:] > group.units[:-1]).all()) for group in trace.groups)
    return np.stack([whole[1], whole[0]], axis=1)[np.lexsort(whole[2:] if rising else whole)]


def _shares(whole: list[npt.NDArray[np.float64]], kinds: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Each unit's place among those of its kind, as a share."""
    keys, kind_of = np.empty(len(whole[0])), kinds[whole[1].astype(np.int64)]
    for kind in np.unique(kinds):
        mine = np.flatnonzero(kind_of == kind)
        order = mine[np.lexsort([part[mine] for part in whole])]
        keys[order] = (np.arange(len(order)) + 0.5) / len(order)
    return keys


def _kind(trace: Trace, group: Group) -> str:
    """Groups of one kind occupy slots of the same kinds: dimension, role, kernel, and whether depthwise."""
    found = []
    for name, dim in group.slots:
        shape = trace.parameters[name]
        depthwise = len(shape) > 2 and shape[1] == 1
        found.append(f"{dim} {trace.roles[name, dim]} {len(shape)} {shape[2:]} {depthwise}")
    return "; ".join(sorted(found))


def kept_after(trace: Trace, order: Order, gone: int, limits: Limits) -> Kept:
    """Keeps all but the first `gone` of `order`, then takes the best of them back until sizes are right."""
    going = order[:gone]
    going = going[np.argsort(going[:, 0], kind="stable")]
    kept = np.ones(trace.units, dtype=bool)
    for g, start, count in zip(*np.unique(going[:, 0], return_index=True, return_counts=True), strict=True):
        group = trace.groups[g]
        stays = limits.stays(group, int(count))
        kept[going[start : start + len(group.units) - stays, 1]] = False
    return kept


def by_pattern(trace: Trace, scores: npt.NDArray[np.float64], ratios: Mapping[str, float], limits: Limits) -> Kept:
    """Removes of each group the share of the first pattern that its name, or a parameter that makes it, matches.

    Raises:
        PlanError: an impossible share, or a pattern that no free group matches.
    """
    for pattern, ratio in ratios.items():
        check_ratio(ratio)
        if not any(matches(trace, group, pattern) for group in trace.groups):
            names = ", ".join(sorted({group.name for group in trace.groups})[:5])
            raise PlanError(f"No free group matches '{pattern}'; there are {names} and so on.")
    kept = np.ones(trace.units, dtype=bool)
    for group in trace.groups:
        ratio = next((r for pattern, r in ratios.items() if matches(trace, group, pattern)), 0.0)
        ranked = group.units[np.argsort(scores[group.units], kind="stable")]
        gone = len(ranked) - limits.stays(group, round(ratio * len(ranked)))
        kept[ranked[:gone]] = False
    return kept


def matches(trace: Trace, group: Group, pattern: str) -> bool:
    """Whether a pattern fits a group's name, or a parameter that makes it."""
    made = [name for name, dim in group.slots if trace.roles[name, dim] == "producer"]
    return any(fnmatchcase(name, pattern) for name in (group.name, *made))


def check_ratio(ratio: float) -> None:
    """Raises PlanError unless a share below 1 is asked to go."""
    if not 0 <= ratio < 1:
        raise PlanError(f"A ratio of {ratio} is impossible; give the share that goes, at least 0 and below 1.")


def costs(trace: Trace, kept: Kept, budget: Budget) -> dict[str, float]:
    """What a budget bounds, in its own units: a share of the dense network's, or bytes."""
    whole = np.ones(trace.units, dtype=bool)
    width = WIDTHS[budget.precision]
    measures = {
        "macs": trace.macs,
        "params": trace.params,
        "size": lambda k: trace.size(k, width),
        "memory": lambda k: trace.memory(k, width) * budget.batch,
    }
    found = {}
    for name, bound in budget.bounds.items():
        dense = measures[name](whole) if bound <= 1 else 1.0
        found[name] = measures[name](kept) / dense if dense else 1.0
    return found


def within(trace: Trace, order: Order, budget: Budget, limits: Limits) -> Kept:
    """What stays when the fewest units go that bring every cost within the budget.

    Raises:
        PlanError: no number of them does; the sentence says what can be reached.
    """

    def fits(kept: Kept) -> bool:
        found = costs(trace, kept, budget)
        return all(found[name] <= bound for name, bound in budget.bounds.items())

    smallest = kept_after(trace, order, len(order), limits)
    if not fits(smallest):
        raise PlanError(_impossible(costs(trace, smallest, budget), budget, limits))
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if fits(kept_after(trace, order, middle, limits)):
            high = middle
        else:
            low = middle + 1
    kept = kept_after(trace, order, low, limits)
    if not fits(kept):
        raise PlanError("The plan found breaks its budget; this is a fault of the allocation; please report the model.")
    return kept


def _impossible(floor: Mapping[str, float], budget: Budget, limits: Limits) -> str:
    missed, ask = [], []
    for name, bound in budget.bounds.items():
        if floor[name] <= bound:
            continue
        if bound <= 1:
            least = ceil(floor[name] * 1000) / 1000
            missed.append(f"{bound:g} of the {_NOUNS[name]} is impossible: {limits}, no less than {least:g} can remain")
            ask.append(f"{name}: {least:g}")
        else:
            least = ceil(floor[name])
            missed.append(f"{bound:g} bytes of {_NOUNS[name]} is impossible: {limits}, no less than {least} can remain")
            ask.append(f"{name}: {least}")
    return f"A budget of {'; '.join(missed)}; ask for {', '.join(ask)} or more."


_NOUNS = {"macs": "MACs", "params": "parameters", "size": "size", "memory": "memory"}


def smallest_share(trace: Trace, round_to: int = 1, min_kept: int = 1, max_ratio: float = 1.0) -> float:
    """Share of the MACs that remains when every free group is cut as far as it goes."""
    order = removal_order(trace, np.zeros(trace.units), "group")
    whole = trace.macs(np.ones(trace.units, dtype=bool))
    limits = Limits(round_to, min_kept, max_ratio)
    return trace.macs(kept_after(trace, order, len(order), limits)) / whole if whole else 1.0


def ranked(trace: Trace, scores: torch.Tensor) -> npt.NDArray[np.float64]:
    """Scores as numbers to rank by; raises PlanError where they are not finite or not this trace's."""
    if not bool(torch.isfinite(scores).all()):
        raise PlanError("Some scores are not finite numbers; check the weights, or score by another criterion.")
    if tuple(scores.shape) != (trace.units,):
        raise PlanError(f"The scores have shape {tuple(scores.shape)}, this trace has {trace.units} units.")
    return scores.detach().double().cpu().numpy()
