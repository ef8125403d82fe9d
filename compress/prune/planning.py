"""Plans: which channels stay. A plan is frozen, is JSON, holds names only and is sufficient by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from compress.errors import PlanError
from compress.prune.allocation import (
    Kept,
    Limits,
    Scope,
    by_pattern,
    check_ratio,
    kept_after,
    ranked,
    removal_order,
    within,
)
from compress.prune.budget import Budget
from compress.prune.curves import Sensitivity
from compress.prune.knapsack import Steps, within_steps
from compress.prune.units import Role, Slot, Trace
from compress.validation import explain


class KeptSlot(BaseModel):
    """Which indices of one dimension stay, out of how many, and what that dimension does."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kept: tuple[int, ...]
    of: int
    role: Role


class GroupSize(BaseModel):
    """Channels of one group before and after."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    before: int
    after: int
    slots: int


class RemovedBlock(BaseModel):
    """What takes a residual block's place, and the weights that make its branches zero where they are zero."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    becomes: str
    weights: tuple[str, ...]


class Plan(BaseModel):
    """What stays.

    Args:
        architecture: hash of the network that the plan is for (`architecture_hash`).
        slots: `parameter:dimension` -> kept indices; only dimensions that lose channels.
        attributes: module -> attribute -> (value before, value after).
        substitutions: module -> the class of `compress.prune.attention` that takes its place, its weights unchanged.
        blocks: residual block -> what takes its place (`compress.prune.residual`).
        groups: every free group with its size before and after.
        protected: `parameter:dimension` -> why it stays whole.
        costs: MACs and parameters before and after.
        asked: criterion, scope, budget, rounding, as asked for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal["niwaki-plan-1"] = "niwaki-plan-1"
    architecture: str
    slots: dict[str, KeptSlot]
    attributes: dict[str, dict[str, tuple[int, int]]]
    substitutions: dict[str, str] = {}
    blocks: dict[str, RemovedBlock] = {}
    groups: tuple[GroupSize, ...] = ()
    protected: dict[str, str] = {}
    costs: dict[str, float] = {}
    asked: dict[str, Any] = {}

    def __str__(self) -> str:
        """How many channels stay of each group, and of the MACs; all that the plan holds is in ``to_json``."""
        before, after = (self.costs.get(f"macs_{when}") for when in ("before", "after"))
        cost = f", {after / 1e6:,.1f} of {before / 1e6:,.1f} M MACs" if before and after else ""
        width = max((len(group.name) for group in self.groups), default=0)
        lines = [f"A cut of {len(self.slots)} parameter dimensions in {len(self.groups)} groups{cost}:"]
        return "\n".join([*lines, *(f"  {g.name:<{width}}  {g.after:>5} of {g.before}" for g in self.groups)])

    def __repr__(self) -> str:
        return f"<Plan: {str(self).partition(':')[0].removeprefix('A ')}>"

    def to_json(self) -> str:
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Reads a plan; raises PlanError with one sentence when the text is not one."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise PlanError(f"Not a pruning plan: {explain(error)}; make it again with niwaki.") from None

    def then(self, later: Plan) -> Plan:
        """One plan that does what this plan and then `later`, made for the network it leaves, do.

        Raises:
            PlanError: `later` does not fit what this plan leaves.
        """
        slots = dict(self.slots)
        for key, second in later.slots.items():
            first = self.slots.get(key)
            if first is None:
                slots[key] = second
                continue
            if second.of != len(first.kept):
                raise PlanError(
                    f"The later plan takes '{key}' to have {second.of} channels, {len(first.kept)} are left."
                )
            kept = tuple(first.kept[i] for i in second.kept)
            slots[key] = KeptSlot(kept=kept, of=first.of, role=first.role)
        attributes = {module: dict(changes) for module, changes in self.attributes.items()}
        for module, changes in later.attributes.items():
            for name, (before, after) in changes.items():
                known = attributes.setdefault(module, {})
                known[name] = (known.get(name, (before, before))[0], after)
        sizes = {group.name: group for group in self.groups}
        first_costs = {name: value for name, value in self.costs.items() if name.endswith("_before")}
        # What was done inside a block that goes is done no more.
        stays = {key: slot for key, slot in slots.items() if not later.removed_with(key.rpartition(":")[0])}
        substitutions = {**self.substitutions, **later.substitutions}
        earlier = {path: block for path, block in self.blocks.items() if not later.removed_with(path)}
        return later.model_copy(
            update={
                "architecture": self.architecture,
                "slots": stays,
                "attributes": {path: own for path, own in attributes.items() if not later.removed_with(path)},
                "substitutions": {path: own for path, own in substitutions.items() if not later.removed_with(path)},
                "blocks": {**earlier, **later.blocks},
                "groups": tuple(
                    group.model_copy(update={"before": sizes[group.name].before}) if group.name in sizes else group
                    for group in (later.groups if later.groups or not later.blocks else self.groups)
                ),
                "costs": {**later.costs, **first_costs, **self._not_preserving(later)},
            }
        )

    def removed_with(self, path: str) -> str:
        """The block that is removed and holds a module or parameter, or is it; "" where none is."""
        return next((block for block in self.blocks if path == block or path.startswith(f"{block}.")), "")

    def _not_preserving(self, later: Plan) -> dict[str, float]:
        """Of both plans together, where both say."""
        key = "units_not_preserving"
        return {key: self.costs[key] + later.costs[key]} if key in self.costs and key in later.costs else {}

    def kept_indices(self, slot: Slot, size: int) -> npt.NDArray[np.int64]:
        """Kept indices of one dimension; all of them when the plan does not touch it."""
        found = self.slots.get(f"{slot[0]}:{slot[1]}")
        return np.arange(size) if found is None else np.asarray(found.kept, dtype=np.int64)


def plan(
    trace: Trace,
    scores: torch.Tensor,
    *,
    budget: Budget | None = None,
    ratio: float | Mapping[str, float] | None = None,
    scope: Scope = "global",
    round_to: int = 1,
    min_kept: int = 1,
    max_ratio: float = 1.0,
    curves: Sensitivity | None = None,
    steps: Steps | None = None,
    asked: Mapping[str, Any] | None = None,
) -> Plan:
    """Chooses the units that stay.

    Args:
        trace: the network.
        scores: one score a unit, higher stays; shape (units,). What `score` gives compares from group to group.
        budget: upper bounds on the cost; the largest network within all of them is taken.
        ratio: instead of a budget, the share of the free units that goes (0 <= ratio < 1), or shares by pattern of
            group, or of a parameter that makes it, the first that matches counting: `{"layer3.*": 0.6, "*": 0.3}`.
        scope: `global` ranks all units together, `per_mac` by score for each MAC, `group` removes the same share of
            every group, `isomorphic` of every kind of group; shares by pattern are of each group.
        round_to: kept channels of a group are rounded up to a multiple of it.
        min_kept: channels of a group that always stay.
        max_ratio: the largest share of a group that goes.
        curves: in place of the scope, the network's sensitivity: each group is cut as far as the loss measured for it
            alone rises by one and the same amount.
        steps: for a budget with a latency, the milliseconds of each group at the widths that it may have, from a
            measured table: group, by `knapsack.group_keys`, -> [(width, ms)]. They take the place of `round_to`.
        asked: what to record of the request beside these arguments.

    Raises:
        PlanError: both or neither of budget and ratio, nothing is free, or the budget cannot be reached.
    """
    _check_request(budget, ratio, steps)
    limits = Limits(round_to, min_kept, max_ratio)
    values = ranked(trace, scores)
    if not trace.groups and ratio != 0:
        raise PlanError(f"No channel of this network is free to go: {why_nothing_is_free(trace)}.")
    order = removal_order(trace, values, scope, curves)
    if budget is not None and steps is not None:
        kept = within_steps(trace, values, budget, steps, limits)
    elif budget is not None:
        kept = within(trace, order, budget, limits)
    elif isinstance(ratio, Mapping):
        kept = by_pattern(trace, values, ratio, limits)
    else:
        assert ratio is not None
        kept = kept_after(trace, order, round(ratio * len(order)), limits)
    request: dict[str, Any] = {"scope": scope, "round_to": round_to, "min_kept": min_kept, "ratio": ratio}
    if max_ratio != 1:
        request["max_ratio"] = max_ratio
    if curves is not None:
        request["scope"] = "sensitivity"
    request.update(asked or {})
    if budget is not None:
        request["budget"] = budget.model_dump(exclude_defaults=True)
    return plan_from_kept(trace, kept, asked=request)


def _check_request(budget: Budget | None, ratio: float | Mapping[str, float] | None, steps: Steps | None) -> None:
    """Raise PlanError where what is asked of a plan does not go together."""
    if (budget is None) == (ratio is None):
        raise PlanError("Give plan() either a budget or a ratio, not both and not neither.")
    if isinstance(ratio, int | float):
        check_ratio(ratio)
    if (budget is not None and budget.latency is not None) != (steps is not None):
        raise PlanError("A latency is planned from steps, (width, ms) for each group; give plan() both or neither.")
    if budget is not None and budget.max_drop is not None:
        raise PlanError("A budget of max_drop is met by measuring: search over plans with macs budgets.")


def why_nothing_is_free(trace: Trace) -> str:
    """What holds most of a network, where, and what may help; an input's and an output's channels stay anyway."""
    held: dict[str, int] = {}
    for reasons in trace.protected.values():
        for reason in reasons.split("; "):
            held[reason] = held.get(reason, 0) + 1
    if not held:
        return "it has no channels"
    own = {reason: n for reason, n in held.items() if reason not in ("graph input", "graph output")} or held
    reason = max(own, key=lambda name: (own[name], name))
    place = trace.where.get(reason, "")
    said = f"{reason[:200]}{f' ({place})' if place else ''} holds {own[reason]} of {len(trace.slots)} slots"
    if reason.startswith("fixed size"):
        return f"{said}; let the code take sizes from its tensors, as reshape(B, N, -1) does"
    if reason.startswith("unknown operator"):
        return f"{said}; trace a part of the network without it by forward="
    return said


def plan_from_kept(trace: Trace, kept: Kept, *, asked: Mapping[str, Any] | None = None) -> Plan:
    """The plan that keeps exactly the units in `kept` (bool, one per unit)."""
    slots: dict[str, KeptSlot] = {}
    # Slots of one group often are one array: its indices are written out once, and once for each role.
    written: dict[int, tuple[int, ...]] = {}
    alike: dict[tuple[int, Role], KeptSlot] = {}
    for slot, units in trace.slots.items():
        if id(units) not in written:
            written[id(units)] = tuple(np.flatnonzero(kept[units]).tolist())
        stays = written[id(units)]
        if len(stays) < len(units):
            key = (id(units), trace.roles[slot])
            if key not in alike:
                alike[key] = KeptSlot.model_construct(kept=stays, of=len(units), role=key[1])
            slots[f"{slot[0]}:{slot[1]}"] = alike[key]
    sizes = trace.kept_sizes(kept)
    attributes: dict[str, dict[str, tuple[int, int]]] = {}
    for a in trace.attributes:
        after = a.after(kept, sizes)
        if after != a.value:
            attributes.setdefault(a.module, {})[a.name] = (a.value, after)
    cut = [key.rpartition(":")[0] for key in slots]
    everything = np.ones(trace.units, dtype=bool)
    return Plan(
        architecture=trace.architecture,
        slots=slots,
        attributes=attributes,
        substitutions={
            path: name for path, name in trace.substitutions.items() if any(key.startswith(f"{path}.") for key in cut)
        },
        groups=tuple(
            GroupSize(name=g.name, before=len(g.units), after=int(np.count_nonzero(kept[g.units])), slots=len(g.slots))
            for g in trace.groups
        ),
        protected=dict(trace.protected),
        costs={
            "macs_before": trace.macs(everything),
            "macs_after": trace.macs(kept),
            "units_before": trace.units,
            "units_after": int(kept.sum()),
            "units_not_preserving": int((~kept & ~trace.preserving).sum()),
        },
        asked=dict(asked or {}),
    )
