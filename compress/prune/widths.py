"""Widths as a design: a plan of exactly so many channels, and the widths of one pruned network given to another.

"Rethinking the Value of Network Pruning" (Liu et al., 2019) reads a pruned network as an architecture that was found,
and carries its pattern to another network or data set (guided pruning).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from compress.errors import PlanError
from compress.prune.allocation import matches, ranked
from compress.prune.planning import Plan, plan_from_kept
from compress.prune.units import Trace


def plan_of_widths(trace: Trace, scores: Tensor, widths: Mapping[str, int]) -> Plan:
    """Keep exactly so many channels of each named group, those with the best scores; groups not named stay whole.

    Args:
        trace: the network.
        scores: one score a unit, higher stays; shape (units,).
        widths: by pattern of group, or of a parameter that makes it; the first that fits counts.

    Raises:
        PlanError: a pattern that no free group matches, or a width beyond the group's.
    """
    values = ranked(trace, scores)
    names = [group.name for group in trace.groups]
    for pattern in widths:
        if not any(matches(trace, group, pattern) for group in trace.groups):
            raise PlanError(f"No free group matches '{pattern}'; there are {', '.join(names[:5])} and so on.")
    kept = np.ones(trace.units, dtype=bool)
    for group in trace.groups:
        width = next((w for pattern, w in widths.items() if matches(trace, group, pattern)), len(group.units))
        if not 1 <= width <= len(group.units):
            raise PlanError(f"'{group.name}' has {len(group.units)} free channels, of which {width} cannot stay.")
        order = group.units[np.argsort(values[group.units], kind="stable")]
        kept[order[: len(order) - width]] = False
    return plan_from_kept(trace, kept, asked={"widths": dict(widths)})


def carried(plan: Plan, trace: Trace) -> dict[str, int]:
    """Give the widths of a pruned network to another one: a group's share by its name, else by its stage.

    A stage is what comes before the first dot of a group's name (``layer2``); its share is the mean over its groups. A
    network without such a stage takes the share at the same relative depth.

    Args:
        plan: how the first network was cut.
        trace: the other network.

    Returns:
        Group of the other network -> channels that stay, one at least.

    Raises:
        PlanError: the plan names no groups.
    """
    if not plan.groups:
        raise PlanError("This plan tells of no group, so it has no widths to carry over; make it with prune.plan.")
    shares = {group.name: group.after / group.before for group in plan.groups}
    stages: dict[str, list[float]] = defaultdict(list)
    for name, share in shares.items():
        stages[_stage(name)].append(share)
    along = list(shares.values())
    found = {}
    for place, group in enumerate(trace.groups):
        stage = stages.get(_stage(group.name))
        deep = along[min(len(along) - 1, place * len(along) // len(trace.groups))]
        share = shares.get(group.name, sum(stage) / len(stage) if stage else deep)
        found[group.name] = max(1, round(share * len(group.units)))
    return found


def uniform(trace: Trace, share: float) -> dict[str, int]:
    """Give every group the same share of its channels: the baseline for other patterns."""
    return {group.name: max(1, round(share * len(group.units))) for group in trace.groups}


def _stage(name: str) -> str:
    return name.partition(".")[0]
