"""Accuracy as the budget: the smallest network that loses no more than so many points before it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from compress.errors import PlanError
from compress.prune.budget import Budget
from compress.prune.planning import Plan

TRIES, CLIMBS = 8, 3


@dataclass(frozen=True)
class WithinDrop:
    """A network that was found, and what it loses.

    Args:
        plan: from the whole network to it.
        network: as it was cut and repaired.
        share: of the MACs that was asked for.
        drop: points lost on the images that confirm.
    """

    plan: Plan
    network: nn.Module
    share: float
    drop: float


@dataclass(frozen=True)
class Judges:
    """Two functions from a network to its accuracy, a share of 1: one for the search, one that confirms."""

    search: Callable[[nn.Module], float]
    confirm: Callable[[nn.Module], float]


def smallest_within_drop(
    whole: nn.Module,
    planned: Callable[[Budget], Plan],
    made: Callable[[Plan], nn.Module],
    judges: Judges,
    *,
    floor: float,
    max_drop: float,
    advance: Callable[[int, int, str], None] | None = None,
) -> WithinDrop:
    """Bisect the MACs for the smallest network within ``max_drop`` points of the whole one; nothing is trained.

    Args:
        whole: the network before the cut.
        planned: from a budget of MACs to a plan.
        made: from a plan to the cut network, reconstructed where that is wanted.
        judges: what accuracy is; the networks found are confirmed, the smallest first, by the second.
        floor: the smallest share of the MACs that the limits of the plan allow.
        max_drop: points, hundredths of accuracy.
        advance: told after each try how many are done, how many there are, and what came of it.

    Raises:
        PlanError: no network that was tried is within the drop.
    """
    search = _Search(whole, planned, made, advance or (lambda done, total, text: None))
    found = search.bisect(judges.search, floor, max_drop)
    # What half of the images let pass may fail on all of them: the next larger is asked, and larger ones still.
    larger = [] if not found else [1 - (1 - found[-1][0]) / 2**n for n in range(1, CLIMBS + 1)]
    sure = judges.confirm(whole) if found else 0.0
    known = {share: (plan, network) for share, plan, network in found}
    for share in (*known, *larger):
        plan, network = known[share] if share in known else search.cut(share)
        drop = 100 * (sure - judges.confirm(network))
        if drop <= max_drop:
            return WithinDrop(plan, network, share, drop)
        search.least = min(search.least, drop)
    raise PlanError(
        f"No cut network is within {max_drop:g} points of the whole one before it is trained: the nearest lost "
        f"{search.least:.1f}; allow max_drop: {search.least + 0.1:.1f}, or give a budget of macs and train afterwards."
    )


@dataclass
class _Search:
    """Tries of one search, and the least that any of them lost."""

    whole: nn.Module
    planned: Callable[[Budget], Plan]
    made: Callable[[Plan], nn.Module]
    advance: Callable[[int, int, str], None]
    least: float = float("inf")

    def cut(self, share: float) -> tuple[Plan, nn.Module]:
        # A hair above, so that rounding does not push the smallest share that there is out of reach.
        plan = self.planned(Budget(macs=min(1.0, share * 1.0001)))
        return plan, self.made(plan)

    def bisect(
        self, accuracy: Callable[[nn.Module], float], floor: float, max_drop: float
    ) -> list[tuple[float, Plan, nn.Module]]:
        """Return what is within the drop, the smallest first."""
        dense, low, high = accuracy(self.whole), floor, 1.0
        within: list[tuple[float, Plan, nn.Module]] = []
        lost = []
        for attempt in range(TRIES):
            share = floor if attempt == 0 else (low + high) / 2
            plan, network = self.cut(share)
            lost.append(100 * (dense - accuracy(network)))
            self.advance(attempt + 1, TRIES, f"{100 * share:.0f} % of the MACs: {lost[-1]:.1f} points lost")
            if lost[-1] > max_drop:
                low = share
                continue
            high = share
            within.insert(0, (share, plan, network))
            if attempt == 0:
                break
        # Where some are within, what is confirmed counts.
        self.least = float("inf") if within else min(lost)
        return within
