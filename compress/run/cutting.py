"""From what is asked of a cut to its plan and its network: one way for a run's stage and for the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from compress import artifact, prune
from compress.errors import PlanError
from compress.prune import Budget, Plan, Sensitivity, Trace
from compress.prune.drop import Judges, WithinDrop, smallest_within_drop
from compress.recipe.schema import PruneRecipe


def plan_for(
    trace: Trace,
    scores: Tensor,
    asked: PruneRecipe,
    budget: Budget | None = None,
    curves: Sensitivity | None = None,
) -> Plan:
    """Return the plan for what is asked.

    Args:
        trace, scores: the network's.
        asked: scope, limits, and budget or ratios.
        budget: in place of what is asked, as a round or a search has its own.
        curves: the network's sensitivity, where it says how far each group is cut.

    Raises:
        PlanError: the budget cannot be met, a pattern matches nothing, or the network of ``widths_from`` is whole.
        ArtifactError: that network is missing or damaged.
    """
    if budget is None and asked.widths_from is not None:
        return prune.plan_of_widths(trace, scores, _widths_of(asked.widths_from, trace))
    by_ratio = budget is None and asked.ratio is not None
    return prune.plan(
        trace,
        scores,
        budget=None if by_ratio else budget or asked.budget,
        ratio=asked.ratio if by_ratio else None,
        scope=asked.scope,
        round_to=asked.round_to,
        min_kept=asked.min_kept,
        max_ratio=asked.max_ratio,
        curves=curves,
        asked={"criterion": asked.criterion},
    )


def _widths_of(folder: str, trace: Trace) -> dict[str, int]:
    """Return the widths that a saved network was cut to, for another network."""
    cut = artifact.describe(Path(folder)).plan
    if cut is None:
        raise PlanError(f"prune.widths_from: the network in {folder} is not cut; name the folder of one that was.")
    return prune.carried(cut, trace)


def within_drop(
    networks: tuple[Trace, nn.Module],
    planned: Callable[[Budget], Plan],
    repaired: Callable[[nn.Module, Plan], nn.Module],
    judges: Judges,
    asked: PruneRecipe,
    advance: Callable[[int, int, str], None],
) -> WithinDrop:
    """Return the smallest network within the drop that is asked for; raise PlanError where there is none.

    Args:
        networks: the trace of the whole network, and that network.
        planned: from a budget of MACs to a plan.
        repaired: from a cut network and its plan to what is left after reconstruction.
        judges: what accuracy is.
        asked: the drop and the limits.
        advance: told of each try.
    """
    trace, whole = networks
    assert asked.budget.max_drop is not None
    return smallest_within_drop(
        whole,
        planned,
        lambda plan: repaired(prune.apply(whole, plan), plan),
        judges,
        floor=prune.smallest_share(trace, asked.round_to, asked.min_kept, asked.max_ratio),
        max_drop=asked.budget.max_drop,
        advance=advance,
    )
